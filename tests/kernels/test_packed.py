"""Packed and fused products against plain modules, and the release of the plain weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

from engine_helpers import prompt_of
from justright.architectures.spec import ModelSpec
from justright.engine.model_runner import Verifier
from justright.engine.step import StepInput
from justright.kernels import packed as kernels
from justright.kernels.packed import FusedMember, FusedProjections, PackedLinear, pack, padded_rows, supported
from tiny import ALL, save_tiny, tiny_model

pytestmark = pytest.mark.skipif(
    not kernels.supported(torch.device("cpu"), torch.float32), reason="no oneDNN in this torch"
)

# Sums of up to 96 products of inputs around 1 and weights around 0.2, in another order: outputs of about 2,
# some tens of roundings of 2**-24 relative each.
TOLERANCE = 1e-5


@torch.inference_mode()
def inputs(rows: int, size: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(1, rows, size, generator=torch.Generator().manual_seed(seed))


@torch.inference_mode()
def linear(out: int, size: int, bias: bool, seed: int = 0) -> nn.Linear:
    module = nn.Linear(size, out, bias=bias)
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return module


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("rows", [1, 2, 8, 31, 200])
@pytest.mark.parametrize("shape", [(96, 64), (7, 5), (1, 33)])
@torch.inference_mode()
def test_packed_equals_plain(shape: tuple[int, int], rows: int, bias: bool) -> None:
    plain = linear(*shape, bias)
    packed = PackedLinear(plain.weight, plain.bias)
    x = inputs(rows, shape[1])
    torch.testing.assert_close(packed(x), plain(x), rtol=0, atol=TOLERANCE)
    assert packed(x).shape == (1, rows, shape[0])


@pytest.mark.parametrize("biases", [(False,) * 3, (True,) * 3, (True, False, True)])
@torch.inference_mode()
def test_fused_equals_plain_whatever_the_order_of_calls(biases: tuple[bool, ...]) -> None:
    plain = [linear(out, 24, bias, out) for out, bias in zip((16, 8, 4), biases, strict=True)]
    members = FusedProjections(plain).members
    x, y = inputs(3, 24, 1), inputs(5, 24, 2)
    calls = [
        *[(0, x), (1, x), (2, x)],  # the order of a model
        *[(2, y), (0, y), (1, y)],
        *[(0, x), (0, y), (1, x), (1, y)],  # alternating inputs, the third module unused
        *[(1, y), (1, y)],  # the same call twice
        *[(2, x), (0, x), (1, x), (0, x)],
    ]
    for index, value in calls:
        got, wanted = members[index](value), plain[index](value)
        torch.testing.assert_close(got, wanted, rtol=0, atol=TOLERANCE)


@torch.inference_mode()
def test_fused_computes_once_and_releases_its_input() -> None:
    group = FusedProjections([linear(4, 8, False), linear(6, 8, False)])
    calls: list[int] = []
    group.linear.register_forward_hook(lambda *_: calls.append(1))
    x = inputs(2, 8)
    for _ in range(3):
        group.members[0](x)
        group.members[1](x)
    assert len(calls) == 3
    assert group._input is None, "nothing is kept once every member has its output"
    assert all(out is None for out in group._outputs)


def test_fused_projections_share_their_input_size() -> None:
    with pytest.raises(ValueError, match="share one input"):
        FusedProjections([linear(4, 8, False), linear(4, 9, False)])


def left_plain(model: PreTrainedModel) -> set[str]:
    return {name for name, module in model.named_modules() if type(module) is nn.Linear}


@pytest.mark.parametrize("family", ALL)
def test_pack_covers_the_decoder_and_changes_only_last_bits(family: str) -> None:
    plain, packed = tiny_model(family), tiny_model(family)
    pack(packed)
    for module in ModelSpec.of(packed.config).linears:
        kind = type(packed.get_submodule(module.name))
        assert kind in (PackedLinear, FusedMember), f"{module.name} is {kind}"
    for group in ModelSpec.of(packed.config).fused_groups:
        owners = {packed.get_submodule(name).group for name in group}  # type: ignore[union-attr]
        assert len(owners) == 1
    assert isinstance(packed.get_output_embeddings(), PackedLinear)
    text = [n for n in left_plain(packed) if "vision" not in n and "multi_modal" not in n]
    assert all("gate" in n or "router" in n for n in text), f"left plain: {text}"
    ids = torch.tensor([prompt_of(30)])
    with torch.inference_mode():
        wanted, got = plain(ids).logits, packed(ids).logits
    # As in test_attention: logits of about 10 after 4 layers.
    torch.testing.assert_close(got, wanted, rtol=0, atol=2e-4)


def load(path: Path, cpu_kernels: str) -> Verifier:
    return Verifier.load(path, cpu_kernels=cpu_kernels)  # type: ignore[arg-type]


def logits(verifier: Verifier) -> torch.Tensor:
    list(verifier.prefill(0, prompt_of(20)))
    [output] = verifier.step([StepInput(0, prompt_of(5, 1))])
    verifier.keep(0, [0])
    verifier.clear(0)
    return output.logits


@pytest.mark.parametrize("linked", [False, True], ids=["file", "link to a blob"])
@pytest.mark.parametrize("family", ["llama", "smollm3"], ids=["own head", "tied head"])
def test_weights_in_a_file_are_given_back_without_a_change(
    family: str, linked: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pages are released, and a tied embedding reads its rows from the file again."""
    path = save_tiny(family, tmp_path / "model", hidden_size=256, intermediate_size=512, head_dim=64)
    file = path / "model.safetensors"
    if linked:  # like the hub's cache: a link to a file named by its hash
        file.rename(tmp_path / "0a1b2c")
        file.symlink_to(tmp_path / "0a1b2c")
    released: list[int] = []
    backed = kernels._file_backed

    def watching(begin: int, length: int) -> bool:
        found = backed(begin, length)
        released.append(length if found else 0)
        return found

    monkeypatch.setattr(kernels, "_file_backed", watching)
    plain, packed = load(path, "plain"), load(path, "packed")
    assert sum(released) > 0.8 * sum(released_size(packed)), "most packed memory is released"
    wanted = logits(plain)
    torch.testing.assert_close(logits(packed), wanted, rtol=0, atol=1e-3)
    embeddings = [v.model.get_input_embeddings().weight for v in (plain, packed)]
    assert torch.equal(*embeddings)
    torch.testing.assert_close(logits(packed), wanted, rtol=0, atol=1e-3)


def released_size(verifier: Verifier) -> list[int]:
    """Bytes of the packed matrices; fused ones count once."""
    modules = {m.group.linear if isinstance(m, FusedMember) else m for m in verifier.model.modules()}
    return [4 * m.in_features * m.out_features for m in modules if isinstance(m, PackedLinear)]


def test_memory_that_maps_no_file_is_unchanged() -> None:
    weight = torch.full((600, 600), 3.0)
    kernels._release(weight)
    assert bool((weight == 3.0).all())


def test_supported_where_the_kernels_are() -> None:
    assert not kernels.supported(torch.device("cpu"), torch.bfloat16)
    assert not kernels.supported(torch.device("cuda"), torch.float32)


def test_products_run_with_few_numbers_of_rows() -> None:
    sizes = {rows: padded_rows(rows) for rows in range(1, 513)}
    assert len(set(sizes.values())) <= 64, "each is a kernel that is compiled, and kept"
    assert all(size == rows for rows, size in sizes.items() if rows <= 32), (
        "decoding pays for no row too many"
    )
    assert all(rows <= size <= 1.25 * rows for rows, size in sizes.items())
    assert all(padded_rows(size) == size for size in sizes.values())


@pytest.mark.skipif(not supported(torch.device("cpu"), torch.float32), reason="no oneDNN here")
@pytest.mark.parametrize("shape", [(33,), (1, 33), (2, 65), (129,), (513,)])
def test_rows_that_are_added_are_taken_away(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    linear = torch.nn.Linear(24, 40)
    x = torch.randn(*shape, 24)
    with torch.no_grad():
        expected = linear(x)
        found = PackedLinear(linear.weight.clone(), linear.bias)(x)
    assert found.shape == expected.shape
    torch.testing.assert_close(found, expected)
