"""Products on quantised blocks: the values against the gguf package, the sums against float64, rows bit for bit."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Type
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from engine_helpers import prompt_of
from justright.engine.llm import LLM
from justright.errors import UsageError
from justright.kernels import build, packed
from justright.kernels.packed import PackedLinear, pack
from justright.kernels.quantised import FORMATS, Blocks, QuantisedLinear, Weights, dequantise, fits, quantise
from tiny import save_tiny, tiny_model

TYPES = (Type.Q4_0, Type.Q4_1, Type.Q5_0, Type.Q5_1, Type.Q8_0, Type.Q4_K, Type.Q5_K, Type.Q6_K)
BOTH: tuple[Weights, ...] = ("int8", "int4")

pytestmark = pytest.mark.skipif(build.missing() is not None, reason=str(build.missing()))


def blocks_of(kind: Type, outputs: int, columns: int, seed: int = 0) -> np.ndarray:
    """Random blocks. Without bit 6 of a byte, no float16 in them is infinite or NaN."""
    size, count = gguf.GGML_QUANT_SIZES[kind]
    raw = np.random.default_rng(seed).integers(0, 256, (outputs, columns // size * count), dtype=np.uint8)
    return raw & 0xBF


def linear(x: torch.Tensor, blocks: torch.Tensor, bias: torch.Tensor | None, kind: int) -> torch.Tensor:
    out: torch.Tensor = torch.ops.justright.linear(x, [blocks], [kind], bias)
    return out


@pytest.mark.parametrize("kind", TYPES)
def test_blocks_have_the_values_of_the_gguf_package(kind: Type) -> None:
    raw = blocks_of(kind, 37, 768)
    found = torch.ops.justright.dequantise(torch.from_numpy(raw), 768, int(kind)).numpy()
    np.testing.assert_array_equal(found, gguf.quants.dequantize(raw, kind))


@pytest.mark.parametrize("kind", TYPES)
@hypothesis_settings(max_examples=10)
@given(rows=st.integers(1, 150), outputs=st.integers(1, 40), bias=st.booleans(), threads=st.integers(1, 3))
def test_products(kind: Type, rows: int, outputs: int, bias: bool, threads: int) -> None:
    """Sums as in float64 but for activations of 16 bits; a row has the same bits alone, whatever rows and threads."""
    raw = blocks_of(kind, outputs, 512, seed=rows)
    generator = torch.Generator().manual_seed(rows)
    x = torch.randn(rows, 512, generator=generator)
    offset = torch.randn(outputs, generator=generator) if bias else None
    weight = torch.from_numpy(gguf.quants.dequantize(raw, kind)).double()
    blocks = torch.from_numpy(raw)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        found = linear(x, blocks, offset, int(kind))
    finally:
        torch.set_num_threads(before)
    expected = x.double() @ weight.T + (0 if offset is None else offset.double())
    largest = x.double().abs().view(rows, -1, 32).amax(-1)  # a step of 16 bits is a part in 32,767 of it
    rounding = largest @ weight.abs().view(outputs, -1, 32).sum(-1).T / 65534
    scale = (x.double().abs() @ weight.abs().T).max()
    assert ((found.double() - expected).abs() <= 1.01 * rounding + 2e-6 * scale).all()
    assert (found.double() - expected).abs().max() <= 1e-4 * scale
    for row in {0, rows // 2, rows - 1}:
        assert torch.equal(linear(x[row : row + 1], blocks, offset, int(kind))[0], found[row])


@pytest.mark.parametrize("wrong", [torch.nan, torch.inf])
def test_a_row_that_is_not_finite_stays_so_alone(wrong: float) -> None:
    blocks = torch.from_numpy(blocks_of(Type.Q4_1, 8, 64))
    x = torch.randn(4, 64)
    expected = linear(x, blocks, None, 3)
    x[1, 40] = wrong
    found = linear(x, blocks, None, 3)
    assert not found[1].isfinite().any()
    assert torch.equal(found[[0, 2, 3]], expected[[0, 2, 3]])


@pytest.mark.parametrize("bias", [False, True])
def test_many_rows_have_the_values_of_few(bias: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("justright.kernels.quantised._SLAB", 7 * 64)
    module = QuantisedLinear(Blocks.of(torch.randn(33, 64), "int8"), torch.randn(33) if bias else None)
    x = torch.randn(3, 50, 64)
    few = torch.stack([module(one) for one in x[:, :20]])
    torch.testing.assert_close(module(x)[:, :20], few, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("weights", BOTH)
def test_the_reference_reads_blocks_as_the_kernels_do(weights: Weights) -> None:
    blocks = quantise(torch.randn(9, 320), weights)
    kernel = torch.ops.justright.dequantise(blocks, 320, FORMATS[weights].type)
    assert torch.equal(dequantise(blocks, weights), kernel)


@pytest.mark.parametrize("scale", [1e-6, 0.02, 300.0])
def test_int8_rounds_to_the_nearest_step(scale: float) -> None:
    weight = torch.randn(16, 256) * scale
    steps = weight.unflatten(1, (-1, 32)).abs().amax(-1, keepdim=True) / 127
    error = (dequantise(quantise(weight, "int8"), "int8") - weight).unflatten(1, (-1, 32)).abs()
    # Half a step, and what float16 rounds off the scale: 2**-11 of it, or 2**-25 where it is subnormal, 127 times.
    assert (error <= steps * 0.5 + 127 * torch.maximum(steps * 2**-11, torch.tensor(2.0**-25))).all()


def test_int4_has_less_error_than_rounding_over_the_whole_range() -> None:
    weight = torch.randn(64, 512)
    plain = gguf.quants.dequantize(gguf.quants.quantize(weight.numpy(), Type.Q4_1), Type.Q4_1)
    ours = dequantise(quantise(weight, "int4"), "int4")
    assert (ours - weight).square().mean() < 0.97 * (torch.from_numpy(plain) - weight).square().mean()


@pytest.mark.parametrize("weights", BOTH)
@pytest.mark.parametrize("value", [0.0, 1.5, -3.0])
def test_constant_groups_stay(weights: Weights, value: float) -> None:
    weight = torch.full((4, 64), value)
    torch.testing.assert_close(dequantise(quantise(weight, weights), weights), weight, rtol=1e-3, atol=0)


@pytest.mark.parametrize("weights", BOTH)
def test_parts_of_a_matrix_are_quantised_alike(weights: Weights, monkeypatch: pytest.MonkeyPatch) -> None:
    """A few rows at a time, of any layout and number."""
    weight = torch.randn(64, 11).bfloat16().T
    whole = quantise(weight, weights)
    monkeypatch.setattr("justright.kernels.quantised._SLAB", 3 * 64)
    assert torch.equal(quantise(weight, weights), whole)
    assert quantise(weight[:0], weights).shape == (0, whole.shape[1])


def test_what_does_not_fit_stays_float32() -> None:
    assert fits(torch.ones(3, 64))
    assert not fits(torch.ones(3, 33))
    assert not fits(torch.full((3, 32), 1e6))
    assert not fits(torch.full((3, 32), -1e6))
    assert not fits(torch.full((3, 32), torch.inf))
    for place in (0, 50, 95):
        weight = torch.zeros(96)
        weight[place] = torch.nan
        assert not fits(weight.view(3, 32))


@pytest.mark.parametrize("weights", BOTH)
def test_the_largest_values_that_fit_stay_finite(weights: Weights) -> None:
    weight = torch.full((2, 64), 65503.9)
    weight[:, ::2] *= -1
    assert fits(weight)
    torch.testing.assert_close(dequantise(quantise(weight, weights), weights), weight, rtol=1e-3, atol=0)


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "qwen2_moe"])
@pytest.mark.parametrize("weights", BOTH)
@torch.inference_mode()
def test_a_packed_model_computes_with_the_quantised_values(family: str, weights: Weights) -> None:
    model, expected = tiny_model(family), tiny_model(family)
    pack(model, weights)
    names = [name for name, module in model.named_modules() if isinstance(module, QuantisedLinear)]
    assert names
    for name, module in expected.named_modules():
        router = name.endswith((".gate", ".shared_expert_gate"))
        if type(module) is torch.nn.Linear and not router and fits(module.weight):
            module.weight = torch.nn.Parameter(dequantise(quantise(module.weight, weights), weights))
    ids = torch.tensor([prompt_of(11)])
    torch.testing.assert_close(model(ids).logits, expected(ids).logits, rtol=1e-3, atol=2e-3)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny("llama", tmp_path_factory.mktemp("models") / "llama")


@pytest.mark.parametrize("weights", BOTH)
def test_drafts_do_not_change_the_answer(checkpoint: Path, weights: Weights) -> None:
    prompt = prompt_of(9) * 3
    plain = LLM(str(checkpoint), weights=weights)
    drafted = LLM(str(checkpoint), weights=weights, draft="suffix", adaptive=False)
    first, second = (
        engine.generate_request(prompt, max_tokens=40, ignore_eos=True) for engine in (plain, drafted)
    )
    assert first.token_ids == second.token_ids
    assert second.stats.drafted > 0
    assert first.stats.near_ties == second.stats.near_ties == 0, "a draft changes no bit"


def test_without_a_compiler_the_values_are_the_same(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quantised = LLM(str(checkpoint), weights="int8")
    for module in (build, packed):
        monkeypatch.setattr(module, "missing", lambda: "no C++ compiler")
    monkeypatch.setattr("justright.kernels.quantised.missing", lambda: "no C++ compiler")
    with pytest.warns(UserWarning, match=r"run as float32.*no C\+\+ compiler"):
        plain = LLM(str(checkpoint), weights="int8")
    assert any(isinstance(module, PackedLinear) for module in plain.verifier.model.modules())
    first, second = (
        engine.generate_request(prompt_of(11), max_tokens=12, ignore_eos=True)
        for engine in (quantised, plain)
    )
    assert first.token_ids == second.token_ids


@pytest.mark.parametrize("changes", [{"dtype": "bfloat16"}, {"cpu_kernels": "plain"}])
def test_other_ways_to_run_are_refused(checkpoint: Path, changes: dict[str, str]) -> None:
    with pytest.raises(UsageError, match="weights 'int8' need packed CPU kernels in float32"):
        LLM(str(checkpoint), weights="int8", **changes)


def test_bad_shapes_are_errors_and_not_memory_faults() -> None:
    blocks = torch.zeros(4, 34, dtype=torch.uint8)
    for x, weight, kind in (
        (torch.zeros(1, 64), blocks, 8),
        (torch.zeros(1, 33), blocks, 8),
        (torch.zeros(1, 32), blocks.T.contiguous(), 8),
        (torch.zeros(1, 32), blocks, 1),
        (torch.zeros(1, 32).double(), blocks, 8),
        (torch.zeros(1, 0), blocks[:, :0], 8),
    ):
        with pytest.raises(RuntimeError):
            torch.ops.justright.linear(x, [weight], [kind], None)
    with pytest.raises(RuntimeError, match="bias"):
        torch.ops.justright.linear(torch.zeros(1, 32), blocks, torch.zeros(3), 32, 8)
