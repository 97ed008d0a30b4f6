"""Write the pruned checkpoint layer by layer, and summarise the result."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from justright.calibration.statistics import LayerStatistics
from justright.checkpoint.reader import read_json
from justright.checkpoint.writer import CheckpointWriter
from justright.errors import CheckpointError
from justright.heap import trim
from justright.model.decoder_layer import LayerFormat, State
from justright.model.matrices import expand, matrices
from justright.progress import ProgressCallback
from justright.prune.kurtosis import Kurtosis
from justright.prune.passes import apply_masks, cut_experts
from justright.prune.plan import FILE_NAME as PLAN
from justright.prune.plan import Plan
from justright.prune.preflight import Sizes
from justright.prune.settings import Settings
from justright.readable import readable_bytes

JSON, HTML = "prune.json", "report.html"


@dataclass(frozen=True, slots=True)
class LayerOutcome:
    """The pruning result of one decoder layer.

    Attributes:
        experts: Experts before pruning; 0 for a layer without experts.
        kept: Experts after pruning.
        zeros: Fraction of zeros among its remaining prunable parameters.
        uncalibrated: Experts whose weights were pruned by magnitude, because they received too few tokens.
        unrouted: Experts that received no calibration token.
        tokens: Calibration tokens of each expert; None without a first pass.
        kurtosis: Kurtosis of the nonzero prunable weights before, after stage 1, and after stage 2; None without
            weights.
    """

    experts: int
    kept: int
    zeros: float
    uncalibrated: int
    unrouted: int
    tokens: list[int] | None
    kurtosis: tuple[float | None, float | None, float | None]


@dataclass(frozen=True, slots=True)
class Pruned:
    """The result of a run, also written as ``prune.json`` beside the weights.

    Attributes:
        path: The new checkpoint.
        source: Name of the source: its hub id, else its folder's name.
        settings: The settings in JSON form.
        plan: The applied plan.
        sizes: Parameters before and after stage 1.
        sparsity: Reached overall sparsity of the prunable parameters.
        layers: The result of each layer.
        kurtosis: `LayerOutcome.kurtosis` of the whole model.
        parameters: Parameters of the checkpoint, before and after (zeros count).
        memory_bytes: Bytes of all weights as dense tensors, before and after.
        disk_bytes: Bytes of the weight files, before and after.
        store: Storage of the weights: "dense" or "sparse".
        evaluation: Figures of source and result, ``{"asked", "before", "after"}``; None if not requested. "after"
            is None until it is measured.
    """

    path: Path
    source: str
    settings: dict[str, Any]
    plan: Plan
    sizes: Sizes
    sparsity: float
    layers: tuple[LayerOutcome, ...]
    kurtosis: tuple[float | None, float | None, float | None]
    parameters: tuple[int, int]
    memory_bytes: tuple[int, int]
    disk_bytes: tuple[int, int]
    store: str
    evaluation: dict[str, Any] | None = None

    @property
    def uncalibrated(self) -> int:
        """Number of experts whose weights were pruned by magnitude, over all layers."""
        return sum(layer.uncalibrated for layer in self.layers)

    @property
    def unrouted(self) -> int:
        """Number of experts that received no calibration token, over all layers."""
        return sum(layer.unrouted for layer in self.layers)

    @property
    def experts_removed(self) -> float | None:
        """Fraction of the experts that are removed, over all layers; None for a dense model."""
        total = sum(layer.experts for layer in self.layers)
        return 1 - sum(layer.kept for layer in self.layers) / total if total else None

    @property
    def zeros(self) -> float:
        """Fraction of zeros among the remaining prunable parameters, over all layers."""
        pairs = list(zip(self.sizes.by_layer, self.layers, strict=True))
        return sum(n * layer.zeros for n, layer in pairs) / max(1, sum(n for n, _ in pairs))

    @property
    def summary(self) -> str:
        """What was removed and what it saves, in one line."""
        parts = [] if self.experts_removed is None else [f"experts removed: {self.experts_removed:.0%}"]
        parts.append(f"zeros in the remaining weights: {self.zeros:.0%} (no memory saved)")
        for where, (before, after) in (("memory", self.memory_bytes), ("disk", self.disk_bytes)):
            parts.append(f"{where}: {readable_bytes(before)} to {readable_bytes(after)}")
        return "; ".join(parts)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self) | {
            "path": str(self.path),
            "plan": json.loads(self.plan.to_json()),
            "uncalibrated": self.uncalibrated,
            "unrouted": self.unrouted,
        }


def read_pruned(path: Path) -> Pruned:
    """Read the result of a run from the ``prune.json`` beside the weights.

    Raises:
        CheckpointError: The file is missing, or another version wrote it.
    """
    found = read_json(path / JSON)
    try:
        return Pruned(
            Path(os.path.abspath(path)),
            found["source"],
            found["settings"],
            Plan.read(path / PLAN),
            Sizes(**found["sizes"] | {"by_layer": tuple(found["sizes"]["by_layer"])}),
            found["sparsity"],
            tuple(LayerOutcome(**one | {"kurtosis": tuple(one["kurtosis"])}) for one in found["layers"]),
            tuple(found["kurtosis"]),
            tuple(found["parameters"]),
            tuple(found["memory_bytes"]),
            tuple(found["disk_bytes"]),
            found["store"],
            found["evaluation"],
        )
    except (KeyError, TypeError) as error:
        raise CheckpointError(
            f"{path / JSON} was not written by this version ({error!r}): prune the model again"
        ) from error


@dataclass(slots=True)
class PrunedWriter:
    """Writes the layers of the pruned checkpoint and summarises the result.

    Args:
        layers: The unpruned checkpoint.
        plan: The plan to apply.
        settings: The prunable parts.
        masks: Folder of the masks.
        uncalibrated: Number of uncalibrated experts of each layer.
        found: Statistics of the first pass.
    """

    layers: LayerFormat
    plan: Plan
    settings: Settings
    masks: Path
    uncalibrated: Sequence[int]
    found: Sequence[LayerStatistics] | None

    def run(self, writer: CheckpointWriter, sizes: Sizes, tick: ProgressCallback) -> Pruned:
        """Add every tensor to ``writer``."""
        checkpoint, total = self.layers.checkpoint, self.layers.spec.num_layers
        whole = (Kurtosis(), Kurtosis(), Kurtosis())
        outcomes: list[LayerOutcome] = []
        parameters = memory = 0

        def add(tensors: Mapping[str, Any]) -> None:
            nonlocal parameters, memory
            for name, tensor in tensors.items():
                writer.add(name, tensor)
                parameters += tensor.numel()
                memory += tensor.nbytes

        for name in self.layers.other_names():
            add({name: checkpoint.tensor(name, copy=True)})
        for index in range(total):
            tick("writing", index, total)
            state, outcome, kurtosis = self._layer(index)
            for all_layers, one in zip(whole, kurtosis, strict=True):
                all_layers.merge(one)
            outcomes.append(outcome)
            add(self.layers.write(index, state))
            del state  # before the next is read
            trim()
        nonzero = sum(n * (1 - o.zeros) for n, o in zip(sizes.by_layer, outcomes, strict=True))
        before = sum(checkpoint.plain_bytes(name) for name in checkpoint)
        return Pruned(
            writer.out, _name_of(checkpoint.path), self.settings.to_dict(), self.plan, sizes,
            1 - nonzero / sizes.prunable, tuple(outcomes), _values(whole),
            (sizes.total, parameters), (before, memory), (checkpoint.nbytes, writer.nbytes), writer.store,
        )  # fmt: skip

    def _layer(self, index: int) -> tuple[State, LayerOutcome, tuple[Kurtosis, Kurtosis, Kurtosis]]:
        """Apply both stages to layer ``index`` in place; return its state and its result."""
        layers, choice = self.layers, self.plan.experts.get(index)
        prunable = matrices(layers.spec, index, self.settings.parts)
        kurtosis = (Kurtosis(), Kurtosis(), Kurtosis())
        state = layers.read(index)
        kurtosis[0].add_all(state[matrix.name] for matrix in expand(prunable, state))
        cut_experts(layers, state, choice)
        found = expand(prunable, state)
        kurtosis[1].add_all(state[matrix.name] for matrix in found)
        if any(self.plan.sparsity.values()):
            apply_masks(state, found, self.masks, index)
        tensors = [state[matrix.name] for matrix in found]
        kurtosis[2].add_all(tensors)
        count = sum(tensor.numel() for tensor in tensors)
        zeros = count - sum(int(tensor.count_nonzero()) for tensor in tensors)
        experts = layers.spec.experts[index]
        counts = self.found[index].counts if self.found else None
        tokens = counts.tolist() if counts is not None else None
        outcome = LayerOutcome(
            experts,
            len(choice.kept) if choice else experts,
            zeros / max(1, count),
            self.uncalibrated[index] if self.uncalibrated else 0,
            tokens.count(0) if tokens else 0,
            tokens,
            _values(kurtosis),
        )
        return state, outcome, kurtosis


def _name_of(model: Path) -> str:
    """A model's hub id, from its folder in the hub's cache; otherwise the folder's name."""
    *_, repo, kind, name = ("", "", *model.resolve().parts)
    return repo.removeprefix("models--").replace("--", "/") if kind == "snapshots" else name


def card(done: Pruned, settings: Settings) -> str:
    """Build the model card; it replaces the source's figures, which no longer hold."""
    plan, source = done.plan, done.source
    experts = (
        f"{plan.kept_text} of {plan.num_experts} experts per layer are kept, and " if plan.experts else ""
    )
    how = [f"experts by {settings.criterion}"] if plan.experts else []
    how += [f"single weights by {settings.weights}"] if settings.weight_criterion else []
    only = ""
    if len(set(plan.counts.values())) > 1:
        only = " Layers have different numbers of experts, so only justright loads this model."
    if done.store == "sparse":
        only += (
            " Weights in `model.sparse*` files are packed: only justright loads them, and `justright unpack` converts "
            "them to an ordinary checkpoint."
        )
    return (
        f"# {source}, pruned\n\n"
        f"Pruned by justright from `{source}` ({plan.family}): {experts}{done.zeros:.1%} of the remaining "
        f"prunable weights are zero ({', '.join(how) or 'nothing'}).{only} `{PLAN}` lists what is kept, `{JSON}` and "
        f"`{HTML}` hold the results, and `provenance.json` holds the settings. The source's licence applies. Figures "
        "in the source's card do not hold for this model: measure it.\n"
    )


def _values(kurtosis: Sequence[Kurtosis]) -> tuple[float | None, float | None, float | None]:
    before, middle, after = (k.value if math.isfinite(k.value) else None for k in kurtosis)
    return before, middle, after
