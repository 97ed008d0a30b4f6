"""Criteria: hand-computed scores, required statistics, and a criterion that follows the six steps of docs/prune.md."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from doc_blocks import module_from
from justright.calibration.statistics import LayerStatistics
from justright.checkpoint.reader import Checkpoint
from justright.errors import UsageError
from justright.model.decoder_layer import LayerFormat
from justright.prune import pipeline
from justright.prune.criteria.base import EXPERTS, WEIGHTS, ExpertLayer, Ranking
from justright.prune.decide import choose_experts
from justright.prune.pipeline import Pruning
from justright.prune.settings import Settings

NEEDS = {
    "frequency": {"counts"},
    "output_norm": {"output_norms", "counts"},
    "random": set(),
    "reap": {"gated_norms", "counts"},
    "router": set(),
    "stun": {"coactivation"},
}
WEIGHTS_NEED_INPUTS = {"magnitude": False, "wanda": True}
SCORES = {"frequency": [4.0, 0.0, 2.0], "output_norm": [2.0, 0.0, 3.0], "reap": [0.5, 0.0, 2.5]}


def test_the_matrix_has_every_criterion() -> None:
    assert {name: set(one.needs) for name, one in EXPERTS.known().items() if name in NEEDS} == NEEDS
    assert {n: one.needs_inputs for n, one in WEIGHTS.known().items()} == WEIGHTS_NEED_INPUTS
    files = {file.stem for file in Path(pipeline.__file__).parent.glob("criteria/*.py")}
    assert files == {*NEEDS, *WEIGHTS_NEED_INPUTS, "base", "__init__"}


@pytest.mark.parametrize("name", SCORES)
def test_scores_by_hand(checkpoint: Callable[[str], Path], name: str) -> None:
    statistics = LayerStatistics(
        counts=torch.tensor([4, 0, 2]),
        output_norms=torch.tensor([8.0, 0.0, 6.0], dtype=torch.float64),
        gated_norms=torch.tensor([2.0, 0.0, 5.0], dtype=torch.float64),
    )
    criterion = EXPERTS.get(name)
    assert isinstance(criterion, Ranking)
    layers = LayerFormat(Checkpoint.open(checkpoint("olmoe")))
    assert criterion.scores(ExpertLayer(layers, 0, Settings(), statistics)).tolist() == SCORES[name]


def test_random_scores_differ_by_seed_and_layer(checkpoint: Callable[[str], Path]) -> None:
    criterion, layers = EXPERTS.get("random"), LayerFormat(Checkpoint.open(checkpoint("olmoe")))
    assert isinstance(criterion, Ranking)
    layer = ExpertLayer(layers, 0, Settings(), LayerStatistics())
    scores = criterion.scores(layer)
    assert torch.equal(scores, criterion.scores(layer))
    assert not torch.equal(scores, criterion.scores(replace(layer, index=1)))
    assert not torch.equal(scores, criterion.scores(replace(layer, settings=Settings(seed=1))))


@pytest.mark.parametrize("name", NEEDS)
def test_a_run_collects_what_its_criterion_needs(
    checkpoint: Callable[[str], Path], texts: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Only the required statistics are collected, and the plan equals that of a run with all of them."""
    collected: list[set[str]] = []
    collect = pipeline.collect

    def spy(*args: object) -> list[LayerStatistics]:
        found = collect(*args)  # type: ignore[arg-type]
        collected.append({key.partition("/")[0] for one in found for key in one.to_tensors()} - {"tokens"})
        return found

    monkeypatch.setattr(pipeline, "collect", spy)
    chosen = Settings(
        sparsity=0.0, expert_sparsity=0.25, criterion=name, weights="none", calibration=(texts,), sequences=4, length=20
    )  # fmt: skip
    done = Pruning(checkpoint("olmoe"), chosen).run(tmp_path / "out")
    if not NEEDS[name]:
        assert collected == []
        return
    norms = {"output_norms", "gated_norms"} if NEEDS[name] & {"output_norms", "gated_norms"} else set()
    assert collected == [NEEDS[name] | {"counts"} | norms]
    all_of_them = Pruning(checkpoint("olmoe"), chosen, statistics=tmp_path / "kept").run(tmp_path / "again")
    assert collected[1] == {"squares", "counts", "coactivation", "output_norms", "gated_norms"}
    assert all_of_them.plan.experts == done.plan.experts


@pytest.fixture
def unregister(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove what a test registers."""
    for registry in (EXPERTS, WEIGHTS):
        registry.known()
        monkeypatch.setattr(registry, "_found", dict(registry._found))


@pytest.mark.usefixtures("unregister")
def test_the_criterion_of_the_docs_prunes_a_mixture(
    checkpoint: Callable[[str], Path], texts: str, tmp_path: Path
) -> None:
    module_from("prune.md", "Add a criterion in six steps", "load")
    chosen = Settings(
        sparsity=0.0, expert_sparsity=0.25, criterion="load", weights="none", calibration=(texts,),
        sequences=4, length=20,
    )  # fmt: skip
    done = Pruning(checkpoint("olmoe"), chosen, statistics=tmp_path / "kept").run(tmp_path / "out")
    assert "load: rank by the sum" in EXPERTS.help()
    from safetensors.torch import load_file

    for layer, choice in done.plan.experts.items():
        sums = load_file(tmp_path / "kept" / f"layer-{layer:05d}.safetensors")["gated_norms"]
        assert set(choice.kept) == set(sums.topk(len(choice.kept)).indices.tolist())


@pytest.mark.usefixtures("unregister")
def test_bad_criteria_are_refused(checkpoint: Callable[[str], Path]) -> None:
    class Bad(Ranking):
        name, help = "bad", "gives NaN"

        def scores(self, layer: ExpertLayer) -> torch.Tensor:
            return torch.full((layer.num_experts,), float("nan"))

    EXPERTS.register(Bad)
    layers = LayerFormat(Checkpoint.open(checkpoint("olmoe")))
    with pytest.raises(UsageError, match="criterion bad returned"):
        choose_experts(layers, 0, 4, Settings(criterion="bad"), LayerStatistics())
    with pytest.raises(UsageError, match=r"'best'.*stun"):
        Settings(criterion="best")
    with pytest.raises(UsageError, match="needs the unknown statistic 'luck'"):
        EXPERTS.register(type("Lucky", (Ranking,), {"name": "lucky", "help": "", "needs": ("luck",)}))
    with pytest.raises(UsageError, match="exists already"):
        EXPERTS.register(type("Reap", (Ranking,), {"name": "reap", "help": ""}))
