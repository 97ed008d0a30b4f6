"""Layer streaming: the whole model's hidden states, unchanged weights, resumption."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from justright.architectures.spec import ModelSpec
from justright.calibration.statistics import Collector, LayerStatistics
from justright.calibration.stream import LayerStream, Stage
from justright.checkpoint.reader import Checkpoint
from justright.errors import CheckpointError, UnsupportedModelError, UsageError
from justright.files import job_folder
from justright.model.decoder_layer import LayerFormat, refuse_quantised
from tiny import ALL, MOE, save_tiny, tiny_model

IDS = torch.randint(5, 320, (3, 24), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Any:
    found: dict[str, Checkpoint] = {}

    def get(family: str) -> Checkpoint:
        if family not in found:
            found[family] = Checkpoint.open(save_tiny(family, tmp_path_factory.mktemp(family)))
        return found[family]

    return get


@pytest.mark.parametrize("family", ALL)
def test_a_layer_read_and_written_back_is_the_same(checkpoints: Any, family: str) -> None:
    layers = LayerFormat(checkpoints(family))
    for index in range(layers.spec.num_layers):
        back = layers.write(index, layers.read(index))
        assert set(back) == set(layers.disk_names(index))
        for name, tensor in back.items():
            assert torch.equal(tensor, layers.checkpoint.tensor(name)), name
    assert len(layers.other_names()) + sum(
        len(layers.disk_names(i)) for i in range(layers.spec.num_layers)
    ) == len(layers.checkpoint)


def run_all(stream: LayerStream, layers: LayerFormat) -> list[LayerStatistics]:
    found = []
    for index in range(stream.position, len(stream._layers)):
        layer = stream.materialise(index, layers.read(index))
        with Collector(stream, index, layer) as statistics:
            stream.fly([Stage(index)], 0)
        found.append(statistics)
        stream.release(index)
    return found


def outputs(stream: LayerStream) -> torch.Tensor:
    return torch.cat(list(stream._inputs(len(stream._layers))))


@pytest.mark.parametrize("family", ALL)
def test_it_computes_what_the_whole_model_does(checkpoints: Any, family: str, tmp_path: Path) -> None:
    """The statistics equal those of hooks on the whole model: matrix inputs, and routing."""
    layers = LayerFormat(checkpoints(family))
    stream = LayerStream(layers.checkpoint, layers.checkpoint.config, IDS, tmp_path, rows=2)
    found = run_all(stream, layers)
    model = tiny_model(family)
    squares: dict[str, torch.Tensor] = {}
    seen: list[torch.Tensor] = []
    for module in ModelSpec.of(model.config).linears:
        model.get_submodule(module.name).register_forward_pre_hook(
            lambda _, args, name=module.name: squares.__setitem__(
                name, args[0].flatten(0, -2).double().square().sum(0)
            )
        )
    decoder = model.get_submodule(layers.architecture.memory.stem)
    decoder.norm.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.no_grad():
        decoder(input_ids=IDS, use_cache=False)
    # One product per expert instead of transformers' grouped product: another summation order.
    torch.testing.assert_close(outputs(stream), seen[0], rtol=1e-4, atol=1e-4)
    for module in ModelSpec.of(model.config).linears:
        name = module.name.removeprefix(layers.architecture.memory.layer(module.layer) + ".") + ".weight"
        torch.testing.assert_close(
            found[module.layer].squares[name], squares[module.name], rtol=1e-3, atol=1e-5
        )
    for index, statistics in enumerate(found):
        assert statistics.tokens == IDS.numel()
        assert (statistics.counts is not None) == (index in ModelSpec.of(model.config).moe_layers)


@pytest.mark.parametrize("family", MOE)
def test_experts_are_counted_as_by_hand(checkpoints: Any, family: str, tmp_path: Path) -> None:
    """Routing, inputs and outputs of each expert, one token at a time, from the layer's own hidden states."""
    layers = LayerFormat(checkpoints(family))
    stream = LayerStream(layers.checkpoint, layers.checkpoint.config, IDS, tmp_path)
    index = layers.spec.moe_layers[-1]
    for before in range(index):
        stream.materialise(before, layers.read(before))
        stream.fly([Stage(before)], 0)
    layer = stream.materialise(index, layers.read(index))
    moe = layers.architecture.moe
    assert moe is not None
    experts, inputs, chosen, gates = layer.get_submodule(moe.memory.module), [], [], []
    router = layer.get_submodule(moe.router.module)

    def routed(_: Any, args: Any, output: Any) -> None:
        inputs.append(args[0].flatten(0, -2))
        if len(output) == 2:
            weights, picked = output[0].flatten(0, -2).topk(2, dim=-1)
        else:
            weights, picked = (
                (output[1], output[2]) if output[2].dtype == torch.int64 else (output[2], output[1])
            )
        chosen.append(picked)
        gates.append(weights)

    handle = router.register_forward_hook(routed)
    with Collector(stream, index, layer) as found:
        stream.measure(index)
    handle.remove()
    assert found.counts is not None
    assert found.coactivation is not None
    assert found.gated_norms is not None
    assert found.output_norms is not None
    count = len(found.counts)
    counts, together = torch.zeros(count).long(), torch.zeros(count, count).long()
    norms, gated, squares = torch.zeros(count), torch.zeros(count), torch.zeros(count, 64)
    llama4 = family.startswith("llama4")
    with torch.no_grad():
        for x, picked, weights in zip(*(torch.cat(t) for t in (inputs, chosen, gates)), strict=True):
            for expert, gate in zip(picked.tolist(), weights, strict=True):
                counts[expert] += 1
                for other in picked.tolist():
                    together[expert, other] += other != expert
                one = x * gate if llama4 else x
                squares[expert] += one.square()
                if llama4:
                    alone = torch.zeros(count, 1, 64)
                    alone[expert] = one
                    norm = experts(alone.flatten(0, 1)).view(count, 1, -1)[expert].norm()
                else:
                    norm = experts(one[None], torch.tensor([[expert]]), torch.ones(1, 1)).norm()
                norms[expert] += norm
                gated[expert] += norm if llama4 else norm * gate
    assert torch.equal(found.counts, counts)
    assert torch.equal(found.coactivation, together)
    torch.testing.assert_close(found.squares[moe.memory.gate].float(), squares, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.output_norms.float(), norms, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.gated_norms.float(), gated, rtol=1e-4, atol=1e-4)


def test_an_interrupted_run_continues(checkpoints: Any, tmp_path: Path) -> None:
    layers = LayerFormat(checkpoints("qwen3_moe"))
    whole = LayerStream(layers.checkpoint, layers.checkpoint.config, IDS, tmp_path / "whole", rows=2)
    run_all(whole, layers)
    first = LayerStream(layers.checkpoint, layers.checkpoint.config, IDS, tmp_path / "cut", rows=2)
    first.materialise(0, layers.read(0))
    first.fly([Stage(0)], 0)
    first.materialise(1, layers.read(1))

    def killed() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        first.fly([Stage(1)], 0, before=killed)
    second = LayerStream(layers.checkpoint, layers.checkpoint.config, IDS, tmp_path / "cut", rows=2)
    assert second.position == 1
    run_all(second, layers)
    assert torch.equal(outputs(second), outputs(whole))
    second.discard()
    assert not (tmp_path / "cut").exists()


def test_statistics_survive_a_file() -> None:
    found = LayerStatistics(7, {"a.weight": torch.rand(3)}, torch.tensor([1, 2]))
    back = LayerStatistics.from_tensors(found.to_tensors())
    assert back.tokens == 7
    assert torch.equal(back.squares["a.weight"], found.squares["a.weight"])
    assert back.counts is not None
    assert back.coactivation is None


def test_another_jobs_work_is_not_taken_up(tmp_path: Path) -> None:
    folder = job_folder(tmp_path / "work", {"model": "a"})
    (folder / "layer").touch()
    assert (job_folder(folder, {"model": "a"}) / "layer").exists()
    assert not (job_folder(folder, {"model": "b"}) / "layer").exists()


def test_no_sequences_are_refused(checkpoints: Any, tmp_path: Path) -> None:
    layers = LayerFormat(checkpoints("llama"))
    with pytest.raises(UsageError, match="no calibration"):
        LayerStream(
            layers.checkpoint, layers.checkpoint.config, torch.zeros(0, 8, dtype=torch.int64), tmp_path
        )


def test_a_missing_or_misshapen_weight_is_named(checkpoints: Any, tmp_path: Path) -> None:
    layers = LayerFormat(checkpoints("llama"))
    stream = LayerStream(layers.checkpoint, layers.checkpoint.config, IDS, tmp_path)
    state = layers.read(0)
    name = "mlp.up_proj.weight"
    with pytest.raises(CheckpointError, match=f"lacks {name}"):
        stream.materialise(0, {k: v for k, v in state.items() if k != name})
    with pytest.raises(CheckpointError, match=rf"{name} has shape \[2, 2\]"):
        stream.materialise(0, state | {name: torch.zeros(2, 2)})


def test_quantised_weights_are_refused(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    path = save_tiny("llama", tmp_path / "m")
    tensors = {n: Checkpoint.open(path).tensor(n, copy=True) for n in Checkpoint.open(path)}
    name = "model.layers.0.mlp.up_proj.weight"
    save_file(tensors | {name: tensors[name].to(torch.float8_e4m3fn)}, path / "model.safetensors")
    with pytest.raises(UnsupportedModelError, match=r"quantised.*F8_E4M3.*dequantise"):
        refuse_quantised(Checkpoint.open(path))
