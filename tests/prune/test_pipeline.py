"""Whole runs on tiny models of every family, against transformers models pruned by simple code."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.overrides import TorchFunctionMode
from transformers import AutoModelForCausalLM

from justright.architectures.spec import ModelSpec
from justright.checkpoint.reader import Checkpoint
from justright.engine.loading import load_model
from justright.errors import CheckpointError, ResourceError, UnsupportedModelError, UsageError
from justright.model.decoder_layer import LayerFormat
from justright.prune import passes
from justright.prune.pipeline import Pruned, Pruning
from justright.prune.plan import Plan, least_count
from justright.prune.preflight import kept_experts
from justright.prune.settings import Settings
from tiny import ALL, DENSE, MOE

Get = Callable[[str], Path]
IDS = torch.arange(5, 35)[None]


def settings(texts: str, **changes: Any) -> Settings:
    return Settings(**({"calibration": (texts,), "sequences": 6, "length": 40, "min_tokens": 4} | changes))


def prune(model: Path, out: Path, chosen: Settings, **options: Any) -> Pruned:
    return Pruning(model, chosen, **({"rows": 4} | options)).run(out)


def load(path: Path) -> Any:
    model, notes = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, output_loading_info=True)
    assert not notes["missing_keys"]
    assert not notes["unexpected_keys"]
    assert not notes["mismatched_keys"]
    return model.eval()


def digest(path: Path) -> dict[str, str]:
    files = [f for f in path.rglob("*") if f.is_file() and f.name not in ("provenance.json",)]
    return {str(f.relative_to(path)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


class WithoutExperts(TorchFunctionMode):
    """The simple reference: routers with logits of -inf for removed experts."""

    def __init__(self, model: Any, plan: Plan) -> None:
        super().__init__()
        row = ModelSpec.of(model.config).architecture
        assert row.moe is not None
        self.gone = {}
        for layer, choice in plan.experts.items():
            prefix = row.memory.layer(layer) + "."
            weight = model.get_parameter(prefix + row.moe.router.weight)
            gone = [e for e in range(len(weight)) if e not in choice.kept]
            self.gone[weight.data_ptr()] = gone
            if row.moe.router.correction_bias:  # added after a sigmoid: -inf logits alone do not suffice
                state = model.state_dict(keep_vars=True)
                state[prefix + row.moe.router.correction_bias].data[..., gone] = float("-inf")

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        if function is torch.nn.functional.linear and (gone := self.gone.get(args[1].data_ptr())):
            out = out.clone()
            out[..., gone] = float("-inf")
        return out


@pytest.mark.parametrize("family", MOE)
@pytest.mark.parametrize("criterion", ["stun", "reap"])
def test_fewer_experts_are_the_model_without_them(
    checkpoint: Get, texts: str, tmp_path: Path, family: str, criterion: str
) -> None:
    model = checkpoint(family)
    chosen = settings(texts, sparsity=0.6, expert_sparsity=0.25, criterion=criterion, parts=("experts",))
    count = Checkpoint.open(model).spec.num_experts
    if family in ("deepseek_v2", "deepseek_v3"):  # 4 groups of 2, of which a token may use 2
        with pytest.raises(UsageError, match="groups"):
            Pruning(model, chosen)
        if family == "deepseek_v3":
            return
        chosen = settings(texts, sparsity=0.6, expert_sparsity=0.5, criterion=criterion, parts=("experts",))
    plan = Pruning(model, chosen, rows=4).run(tmp_path / "both").plan
    only = replace(plan, sparsity={})
    done = prune(model, tmp_path / "out", settings(texts), plan=only)
    assert done.plan.kept == round(count * (0.5 if family == "deepseek_v2" else 0.75))
    whole, fewer = load(model), load(tmp_path / "out")
    with torch.no_grad():
        found = fewer(IDS).logits
        whole.set_experts_implementation("eager")  # the reference mask works on plain products
        with WithoutExperts(whole, plan):
            expected = whole(IDS).logits
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("sparsity", [0.3, 0.4, 0.6])
def test_weights_none_keeps_as_many_experts_in_each_routing_group(
    checkpoint: Get, texts: str, sparsity: float
) -> None:
    """Of 8 experts in 4 groups, 4 or 8 can be kept: removing 0.3, 0.4 or 0.6 is nearer to 4 than to 0 or 8."""
    chosen = settings(texts, weights="none", sparsity=sparsity, parts=("experts",))
    assert kept_experts(LayerFormat(Checkpoint.open(checkpoint("deepseek_v2"))), chosen) == 4


@pytest.mark.parametrize("family", MOE)
def test_uneven_layers_are_the_model_without_those_experts(
    checkpoint: Get, texts: str, tmp_path: Path, family: str
) -> None:
    model = checkpoint(family)
    least = least_count(Checkpoint.open(model).spec)
    share = 0.0 if least == 8 else 0.25
    chosen = settings(
        texts, sparsity=0.6, expert_sparsity=share, uneven=True, parts=("experts",), criterion="router"
    )
    chosen = replace(chosen, weights="none", sparsity=0.0)
    plan = prune(model, tmp_path / "out", chosen).plan
    if not share:
        assert plan.counts == {}, "groups of two, of which each needs two"
        return
    layers = Checkpoint.open(model).spec.moe_layers
    groups = Checkpoint.open(model).spec.expert_groups[0]
    count = Checkpoint.open(model).spec.num_experts
    gone = round(0.25 * count * len(layers) / groups) * groups
    assert sum(plan.counts.values()) == count * len(layers) - gone
    whole, fewer = load(model), load_model(tmp_path / "out", dtype=torch.float32, device=torch.device("cpu"))
    with torch.no_grad():
        found = fewer(IDS).logits
        whole.set_experts_implementation("eager")
        with WithoutExperts(whole, plan):
            expected = whole(IDS).logits
    if any(choice.averaged for choice in plan.experts.values()):
        return  # averaged experts are new, so the reference does not apply
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_uneven_and_sparse_both_at_once(checkpoint: Get, texts: str, tmp_path: Path) -> None:
    """Stage 2 runs on the uneven model; stock loaders reject the result; no more experts can be removed from it."""
    model = checkpoint("qwen3_moe")
    chosen = settings(texts, sparsity=0.6, expert_sparsity=0.3, uneven=True, ratios="outlier_weighed")
    done = prune(model, tmp_path / "out", chosen)
    assert len(set(done.plan.counts.values())) > 1
    assert 0.57 <= done.sparsity <= 0.6
    mine = load_model(tmp_path / "out", dtype=torch.float32, device=torch.device("cpu"))
    for layer, count in done.plan.counts.items():
        assert len(mine.model.layers[layer].mlp.experts.down_proj) == count
    with pytest.raises(RuntimeError, match="mismatch"):
        AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    again = Plan.read(tmp_path / "out" / "plan.json")
    same = prune(model, tmp_path / "again", settings(texts), plan=again)
    assert same.plan.counts == done.plan.counts
    with pytest.raises(UsageError, match="already have different numbers of experts"):
        Pruning(tmp_path / "out", settings(texts))
    more = prune(tmp_path / "out", tmp_path / "more", settings(texts, sparsity=0.5, expert_sparsity=0.0))
    assert more.sparsity > 0.45


@pytest.mark.parametrize("family", ALL)
def test_with_everything_kept_not_a_bit_changes(
    checkpoint: Get, texts: str, tmp_path: Path, family: str
) -> None:
    model = checkpoint(family)
    prune(model, tmp_path / "out", settings(texts, sparsity=0.0))
    before, after = load_file(model / "model.safetensors"), load_file(tmp_path / "out" / "model.safetensors")
    assert set(before) == set(after)
    assert all(torch.equal(before[name], after[name]) for name in before)
    config = [json.loads((p / "config.json").read_text()) for p in (model, tmp_path / "out")]
    assert config[0] == config[1]


def reference_masks(model: Any, ids: Tensor, sparsity: float) -> dict[str, Tensor]:
    """Reference Wanda with the whole dense model in memory, layer by layer on the outputs of pruned layers."""
    masks = {}

    def count(squares: dict[Any, Tensor], module: Any, args: Any) -> None:
        squares[module] = squares.get(module, 0) + args[0].flatten(0, -2).double().square().sum(0)

    for layer in model.model.layers:
        squares: dict[Any, Tensor] = {}
        linears = [module for module in layer.modules() if isinstance(module, torch.nn.Linear)]
        handles = [module.register_forward_pre_hook(partial(count, squares)) for module in linears]
        with torch.no_grad():
            model(ids, use_cache=False)
        for handle in handles:
            handle.remove()
        for module, total in squares.items():
            scores = module.weight.data.abs() * total.sqrt().float()
            order = scores.argsort(dim=1, stable=True)
            mask = torch.ones_like(scores, dtype=torch.bool)
            mask.scatter_(1, order[:, : int(scores.shape[1] * sparsity)], False)
            module.weight.data *= mask
            masks[next(n for n, m in model.named_modules() if m is module)] = mask
    return masks


@pytest.mark.parametrize("family", ["llama", "gemma2", "phi3", "starcoder2"])
def test_weights_go_as_in_the_reference(checkpoint: Get, texts: str, tmp_path: Path, family: str) -> None:
    assert family in DENSE
    model = checkpoint(family)
    pruning = Pruning(model, settings(texts, sparsity=0.5), rows=6)
    done = pruning.run(tmp_path / "out")
    assert pruning.calibration is not None
    reference = load(model)
    masks = reference_masks(reference, pruning.calibration.ids, 0.5)
    mine = load(tmp_path / "out")
    for name, mask in masks.items():
        assert torch.equal(mine.get_submodule(name).weight != 0, mask), name
    assert done.sparsity == pytest.approx(0.5, abs=0.02)
    with torch.no_grad():
        torch.testing.assert_close(mine(IDS).logits, reference(IDS).logits)


@pytest.mark.parametrize("family", MOE)
def test_both_stages_reach_the_target(checkpoint: Get, texts: str, tmp_path: Path, family: str) -> None:
    model = checkpoint(family)
    done = prune(model, tmp_path / "out", settings(texts, sparsity=0.6, ratios="outlier_weighed"))
    # Each row loses int(in * s) weights; for rows of 32 to 96, rounding is up to 3% of a matrix.
    assert 0.57 <= done.sparsity <= 0.6
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    spec = ModelSpec.of(config)
    row = spec.architecture
    assert row.moe is not None
    assert {config[key] for key in row.moe.count_keys if key in config} == {done.plan.kept}
    again = load(tmp_path / "out")
    with torch.no_grad():
        assert torch.isfinite(again(IDS).logits).all()
    down = again.get_parameter(f"{row.memory.layer(spec.moe_layers[0])}.{row.moe.memory.down}")
    assert len(down) == done.plan.kept
    rows = down.transpose(-1, -2) if row.moe.memory.transposed else down
    zeros = (rows == 0).sum(-1)
    assert (zeros == zeros[0, 0]).all(), "every row of a matrix is equally sparse"


@pytest.mark.parametrize("cut", [("collect", 2), ("weights", 1), ("weights", 3), ("write", 2)])
def test_a_killed_run_ends_with_the_same_bytes(
    checkpoint: Get, texts: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cut: tuple[str, int]
) -> None:
    model, chosen = checkpoint("qwen3_moe"), settings(texts, sparsity=0.5)
    prune(model, tmp_path / "whole", chosen)
    stage, layer = cut
    name = {"collect": "calibrating", "weights": "weights", "write": "writing"}[stage]

    def killed(what: str, done: int, _: int) -> None:
        if what == name and done == layer:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Pruning(model, chosen, rows=4).run(tmp_path / "cut", killed)
    assert not (tmp_path / "cut").exists()
    seen: list[tuple[str, int]] = []
    Pruning(model, chosen, rows=4).run(tmp_path / "cut", lambda what, done, _: seen.append((what, done)))
    if stage == "weights":
        assert ("calibrating", 0) not in seen
        assert ("weights", 0) not in seen, "finished layers are not done again"
    whole, again = digest(tmp_path / "whole"), digest(tmp_path / "cut")
    for found in (whole, again):
        found.pop("prune.json"), found.pop("report.html")  # both contain the folder's name
    assert whole == again
    assert not (tmp_path / "cut.partial").exists()


@pytest.mark.parametrize("family", ["qwen3_moe", "gemma3_text", "gpt_oss", "deepseek_v2"])
@pytest.mark.parametrize("devices", ["cpu,cpu", "cpu,cpu,cpu"])
def test_layers_in_flight_give_the_same_bytes(
    checkpoint: Get, texts: str, tmp_path: Path, family: str, devices: str
) -> None:
    """Several devices (here threads on one) run layers at the same time, with the same result."""
    model, chosen = checkpoint(family), settings(texts, sparsity=0.6, ratios="outlier_weighed", sequences=7)
    one = prune(model, tmp_path / "one", chosen, rows=2)
    more = prune(model, tmp_path / "more", chosen, rows=2, device=devices)
    assert one.plan.experts == more.plan.experts
    assert one.plan.sparsity == more.plan.sparsity
    files = [tmp_path / name / "model.safetensors" for name in ("one", "more")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_a_killed_run_continues(checkpoint: Get, texts: str, tmp_path: Path) -> None:
    model, chosen = checkpoint("olmoe"), settings(texts, sparsity=0.5)
    prune(model, tmp_path / "whole", chosen, device="cpu,cpu")
    for stage, layer in (("calibrating", 2), ("weights", 1), ("weights", 3)):

        def killed(what: str, done: int, _: int, stage: str = stage, layer: int = layer) -> None:
            if (what, done) == (stage, layer):
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            Pruning(model, chosen, rows=4, device="cpu,cpu").run(tmp_path / "cut", killed)
    prune(model, tmp_path / "cut", chosen, device="cpu,cpu")
    files = [tmp_path / name / "model.safetensors" for name in ("whole", "cut")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_statistics_serve_another_sparsity(
    checkpoint: Get, texts: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = checkpoint("olmoe")
    kept = tmp_path / "statistics"
    prune(model, tmp_path / "one", settings(texts, sparsity=0.4, expert_sparsity=0.25), statistics=kept)
    seen: list[tuple[str, int]] = []
    other = settings(texts, sparsity=0.5, expert_sparsity=0.5, criterion="frequency")
    Pruning(model, other, rows=4, statistics=kept).run(
        tmp_path / "two", lambda what, done, _: seen.append((what, done))
    )
    assert ("calibrating", 0) not in seen
    with pytest.raises(UsageError, match="holds statistics of another run"):
        prune(checkpoint("mixtral"), tmp_path / "three", settings(texts), statistics=kept)


def test_a_plan_is_applied_to_another_checkpoint_without_texts(
    checkpoint: Get, texts: str, tmp_path: Path
) -> None:
    from tiny import save_tiny

    done = prune(checkpoint("qwen3_moe"), tmp_path / "one", settings(texts, sparsity=0.5))
    other = save_tiny("qwen3_moe", tmp_path / "other", seed=1)
    plan = Plan.read(tmp_path / "one" / "plan.json")
    assert "of 8 experts per layer are kept" in (tmp_path / "one" / "README.md").read_text()
    assert plan == done.plan
    again = prune(other, tmp_path / "two", Settings(sparsity=0.0), plan=plan)
    assert again.plan.experts == plan.experts
    assert again.sparsity == pytest.approx(done.sparsity, abs=1e-9)


def test_a_plan_and_settings_that_contradict_are_refused(checkpoint: Get, texts: str, tmp_path: Path) -> None:
    model = checkpoint("olmoe")
    plan = prune(model, tmp_path / "one", settings(texts, sparsity=0.5)).plan
    with pytest.raises(UsageError, match="--parts excludes them"):
        Pruning(model, Settings(parts=("attention",)), plan=plan)
    with pytest.raises(UsageError, match="weights none keeps all"):
        Pruning(model, Settings(weights="none"), plan=plan)
    estimate = Pruning(model, Settings(), plan=plan).estimate()
    assert estimate.second_stage_sparsity == pytest.approx(plan.sparsity[0])


def test_a_folder_without_statistics_raises_before_work(checkpoint: Get, texts: str, tmp_path: Path) -> None:
    model, chosen = checkpoint("olmoe"), settings(texts, sparsity=0.4)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("mine")
    for wrong in (tmp_path / "notes", tmp_path / "notes" / "a.txt"):
        with pytest.raises(UsageError, match="files that are not statistics"):
            Pruning(model, chosen, statistics=wrong)
    prune(model, tmp_path / "out", chosen, statistics=tmp_path / "statistics")
    with pytest.raises(UsageError, match=r"another run \(different calibration\)"):
        Pruning(model, replace(chosen, seed=5), rows=4, statistics=tmp_path / "statistics")
    assert (tmp_path / "notes" / "a.txt").read_text() == "mine"


def test_averaged_experts_and_routers(checkpoint: Get, texts: str, tmp_path: Path) -> None:
    """With fewer than three clusters, the kept expert and its router row are the cluster's mean."""
    model = checkpoint("mixtral")
    chosen = settings(texts, sparsity=0.5, expert_sparsity=0.5, parts=("experts",))
    plan = prune(model, tmp_path / "out", chosen).plan
    before, after = load_file(model / "model.safetensors"), load_file(tmp_path / "out" / "model.safetensors")
    for layer, choice in plan.experts.items():
        assert choice.averaged
        prefix = f"model.layers.{layer}.block_sparse_moe"
        for new, members in enumerate(choice.clusters):
            row = torch.stack([before[f"{prefix}.gate.weight"][e] for e in members]).mean(0)
            torch.testing.assert_close(after[f"{prefix}.gate.weight"][new], row)
            for name in ("w1", "w2", "w3"):
                mean = torch.stack([before[f"{prefix}.experts.{e}.{name}.weight"] for e in members]).mean(0)
                torch.testing.assert_close(after[f"{prefix}.experts.{new}.{name}.weight"], mean)


def test_a_pattern_is_in_every_group(checkpoint: Get, texts: str, tmp_path: Path) -> None:
    prune(checkpoint("llama"), tmp_path / "out", settings(texts, sparsity=0.0, pattern="2:4"))
    weight = load_file(tmp_path / "out" / "model.safetensors")["model.layers.1.mlp.down_proj.weight"]
    assert ((weight.unflatten(-1, (-1, 4)) != 0).sum(-1) == 2).all()


def test_experts_that_saw_too_little_go_by_magnitude(checkpoint: Get, texts: str, tmp_path: Path) -> None:
    model = checkpoint("olmoe")
    done = prune(model, tmp_path / "out", settings(texts, expert_sparsity=0.0, min_tokens=10**6))
    assert done.uncalibrated == 4 * 8
    before, after = load_file(model / "model.safetensors"), load_file(tmp_path / "out" / "model.safetensors")
    name = "model.layers.2.mlp.experts.3.down_proj.weight"
    row = before[name].abs()
    gone = int(row.shape[1] * done.plan.sparsity[2])
    assert (after[name] == 0).sum() == gone * len(row)
    assert (
        row[after[name] == 0].view(len(row), gone).amax(1) <= row.masked_fill(after[name] == 0, 9).amin(1)
    ).all()


def test_masks_are_packed_without_loss() -> None:
    mask = torch.rand(3, 5, 7, generator=torch.Generator().manual_seed(0)) > 0.5
    assert torch.equal(passes.unpack(passes.pack(mask), mask.shape), mask)


@pytest.mark.parametrize(
    ("family", "changes", "message"),
    [
        ("llama", {"expert_sparsity": 0.5}, "dense model"),
        ("mixtral", {"expert_sparsity": 0.75, "sparsity": 0.9}, r"1 experts would be kept.*at least 2"),
        ("mixtral", {"expert_sparsity": 0.5, "sparsity": 0.1}, "more than the overall sparsity"),
        ("mixtral", {"expert_sparsity": 0.5, "parts": ("attention",)}, "excludes them"),
        ("deepseek_v3", {"expert_sparsity": 0.5}, "groups"),
        ("llama", {"calibration": ()}, "need calibration texts"),
        ("llama", {"sequences": 4000}, r"words.txt have .* tokens"),
        ("llama", {"length": 600, "sequences": 2}, "the context holds 512"),
        ("llama", {"parts": ("experts",)}, "has none of the parts experts"),
        ("llama", {"uneven": True}, "without experts: leave --uneven and --criterion out"),
        ("llama", {"criterion": "reap"}, "without experts: leave --uneven and --criterion out"),
        ("mixtral", {"pattern": "2:7"}, "multiple of 7"),
        ("gpt_oss", {"pattern": "2:7"}, "multiple of 7"),
        ("olmoe", {"weights": "none", "sparsity": 0.01}, "nothing would be removed"),
        ("deepseek_v2", {"weights": "none", "sparsity": 0.2, "parts": ("experts",)}, "each of the 4 routing"),
    ],
)
def test_what_cannot_be_done_is_refused_before_work(
    checkpoint: Get, texts: str, tmp_path: Path, family: str, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        prune(checkpoint(family), tmp_path / "out", settings(texts, **changes))
    assert not list(tmp_path.iterdir())


def test_a_disk_without_room_is_noticed_before_work(
    checkpoint: Get, texts: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from justright.prune import preflight

    usage = type("Usage", (), {"free": 100_000})
    monkeypatch.setattr(preflight.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(ResourceError, match=r"has 97\.7 KiB free, but pruning needs .* for work files"):
        prune(checkpoint("olmoe"), tmp_path / "deep" / "out", settings(texts))
    assert not list(tmp_path.iterdir())


def test_nan_is_found_before_any_layer_runs(checkpoint: Get, texts: str, tmp_path: Path) -> None:
    import shutil

    model = Path(shutil.copytree(checkpoint("mixtral"), tmp_path / "copy"))
    tensors = load_file(model / "model.safetensors")
    name = "model.layers.3.block_sparse_moe.experts.1.w2.weight"
    tensors[name][0, 0] = float("nan")
    save_file(tensors, model / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match=rf"the tensor {name} holds"):
        prune(model, tmp_path / "out", settings(texts))
    assert not (tmp_path / "out").exists()


def save_arctic(path: Path) -> Path:
    """A checkpoint in Snowflake Arctic's layout: 2 layers, experts in the second."""
    generator = torch.Generator().manual_seed(0)
    config = {
        "model_type": "arctic",
        "hidden_size": 16,
        "vocab_size": 32,
        "num_attention_heads": 2,
        "num_hidden_layers": 2,
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
        "moe_layer_frequency": 2,
        "max_position_embeddings": 64,
    }
    shapes = {"model.embed_tokens.weight": (32, 16), "lm_head.weight": (32, 16), "model.norm.weight": (16,)}
    for layer in range(2):
        prefix = f"model.layers.{layer}"
        shapes |= {f"{prefix}.self_attn.{n}_proj.weight": (16, 16) for n in "qkvo"}
        inner = [f"{prefix}.block_sparse_moe.mlp"] if layer == 0 else [f"{prefix}.residual_mlp"]
        if layer == 1:
            inner += [f"{prefix}.block_sparse_moe.experts.{e}" for e in range(8)]
            shapes[f"{prefix}.block_sparse_moe.gate.weight"] = (8, 16)
        shapes |= {
            f"{mlp}.{n}.weight": (16, 24) if n == "w2" else (24, 16)
            for mlp in inner
            for n in ("w1", "w2", "w3")
        }
    path.mkdir()
    tensors = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    save_file(tensors, path / "model.safetensors", {"format": "pt"})
    (path / "config.json").write_text(json.dumps(config))
    return path


def test_arctic_is_pruned_by_its_layout(tmp_path: Path) -> None:
    model = save_arctic(tmp_path / "model")
    chosen = Settings(sparsity=0.5, expert_sparsity=0.25, criterion="router", weights="magnitude")
    done = prune(model, tmp_path / "out", chosen)
    before, after = load_file(model / "model.safetensors"), load_file(tmp_path / "out" / "model.safetensors")
    kept = done.plan.experts[1].kept
    assert len(kept) == 6
    gate = "model.layers.1.block_sparse_moe.gate.weight"
    assert torch.equal(after[gate], before[gate][list(kept)])
    for new, old in enumerate(kept):
        name = "model.layers.1.block_sparse_moe.experts.{}.w2.weight"
        mine, source = after[name.format(new)], before[name.format(old)]
        assert torch.equal(mine[mine != 0], source[mine != 0])
    assert "model.layers.1.block_sparse_moe.experts.6.w1.weight" not in after
    assert json.loads((tmp_path / "out" / "config.json").read_text())["num_local_experts"] == 6
    with pytest.raises(UnsupportedModelError, match="no class for arctic"):
        prune(model, tmp_path / "two", Settings(calibration=("zoo",)))


def changed(source: Path, target: Path, **tensors: Tensor) -> Path:
    """A copy of a checkpoint with some tensors set (dots in names written ``__``)."""
    target.mkdir()
    for file in source.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    new = {name.replace("__", "."): tensor for name, tensor in tensors.items()}
    save_file(
        load_file(target / "model.safetensors") | new,
        target / "model.safetensors",
        metadata={"format": "pt"},
    )
    return target


@pytest.mark.parametrize("family", ["llama", "qwen3_moe"])
@pytest.mark.parametrize("ratios", ["uniform", "outlier_weighed"])
def test_calibration_that_overflows_is_refused(
    family: str, ratios: str, checkpoint: Get, texts: str, tmp_path: Path
) -> None:
    """Layer 2 overflows float16; sorting NaN scores would prune by column index."""
    source = checkpoint(family)
    name = "model.layers.2.self_attn.v_proj.weight"
    weight = load_file(source / "model.safetensors")[name]
    model = changed(source, tmp_path / "model", **{name.replace(".", "__"): weight * 3e4})
    chosen = settings(texts, sparsity=0.5, ratios=ratios)
    with pytest.raises(ResourceError, match=r"squares/.* of layer 2 are NaN or infinite.*--dtype float32"):
        prune(model, tmp_path / "out", chosen, dtype=torch.float16)
    assert not (tmp_path / "out").exists()
    assert prune(model, tmp_path / "out32", chosen).sparsity == pytest.approx(0.5, abs=0.05)


def test_scores_that_overflow_are_refused_by_name() -> None:
    """Finite weights and finite statistics whose product is infinite."""
    weight, norms = torch.full((2, 4), 1e30), torch.full((4,), 1e30)
    with pytest.raises(ResourceError, match=r"scores of mlp\.up_proj\.weight are NaN or infinite"):
        passes.matrix_mask(
            weight, norms, Settings(sparsity=0.5), 0.5, "mlp.up_proj.weight", out=torch.empty(2, 4).bool()
        )


def test_a_tensor_without_dimensions_is_carried(checkpoint: Get, texts: str, tmp_path: Path) -> None:
    scalar = torch.tensor(2.5)
    source = changed(
        checkpoint("llama"), tmp_path / "model", model__layers__1__scale=scalar, extra=scalar.clone()
    )
    prune(source, tmp_path / "out", settings(texts, sparsity=0.5))
    kept = load_file(tmp_path / "out" / "model.safetensors")
    assert torch.equal(kept["model.layers.1.scale"], scalar)
    assert torch.equal(kept["extra"], scalar)


@pytest.mark.parametrize(
    "name", ["model__layers__4__mlp__experts__0__down_proj__weight", "mtp__mlp__experts__1__x"]
)
def test_experts_of_multi_token_prediction_are_an_error(
    name: str, checkpoint: Get, texts: str, tmp_path: Path
) -> None:
    """config.json has one expert count: with fewer experts in the decoder, the layer after it would not match."""
    model = changed(checkpoint("qwen3_moe"), tmp_path / "model", **{name: torch.ones(2, 2)})
    with pytest.raises(UnsupportedModelError, match="multi-token prediction"):
        Pruning(model, settings(texts, sparsity=0.4))
    kept = prune(model, tmp_path / "out", settings(texts, sparsity=0.4, expert_sparsity=0.0))
    assert name.replace("__", ".") in load_file(kept.path / "model.safetensors")
