"""The two passes over the calibration texts, layer by layer; both resume after an interruption."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from justright.calibration.statistics import ALL, Collector, LayerStatistics
from justright.calibration.stream import LayerStream, Stage
from justright.checkpoint.reader import Checkpoint
from justright.errors import ResourceError
from justright.files import save_tensors
from justright.heap import trim
from justright.model.decoder_layer import LayerFormat, State
from justright.model.experts import keep_experts, replace_expert
from justright.model.matrices import Matrix, expand, matrices
from justright.progress import ProgressCallback
from justright.prune.experts import KeptExperts
from justright.prune.plan import Plan
from justright.prune.settings import Settings
from justright.prune.weights import n_of_m_mask, row_mask, scores_by_rows

_WEIGHTS = frozenset({"squares", "counts"})
"""The statistics that stage 2 needs."""


@dataclass(frozen=True, slots=True)
class CalibrationRun:
    """How layers run: token ids ``[sequences, length]``, device, dtype, and sequences per batch."""

    ids: Tensor
    device: str = "cpu"
    dtype: torch.dtype = torch.float32
    rows: int = 1

    def stream(self, checkpoint: Checkpoint, config: dict[str, Any], folder: Path) -> LayerStream:
        """The sequences on their way through the layers of ``checkpoint``."""
        options = {"device": self.device, "dtype": self.dtype, "rows": self.rows}
        return LayerStream(checkpoint, config, self.ids, folder, **options)  # type: ignore[arg-type]


def collect(
    layers: LayerFormat,
    run: CalibrationRun,
    folder: Path,
    tick: ProgressCallback,
    needs: Collection[str] = ALL,
) -> list[LayerStatistics]:
    """Collect statistics of the unpruned model's layers in one pass; save each finished layer to ``folder``.

    ``needs`` names the fields of `LayerStatistics` to collect.
    """
    hidden = folder / "hidden"
    done = _finished(folder, layers.spec.num_layers)
    if done < layers.spec.num_layers:
        stream = run.stream(layers.checkpoint, layers.checkpoint.config, hidden)
        while (first := stream.position) < layers.spec.num_layers:
            tick("calibrating", first, layers.spec.num_layers)
            flight = range(first, min(first + len(stream.devices), layers.spec.num_layers))
            watching = {i: _watch(stream, i, layers.read(i), needs) for i in flight}
            stages = [Stage(index, collector) for index, collector in watching.items()]
            stream.fly(stages, len(stages) - 1, before=lambda: _save(watching, folder))  # noqa: B023
            for index in flight:
                stream.release(index)
        stream.discard()
    tick("calibrating", layers.spec.num_layers, layers.spec.num_layers)
    return [
        LayerStatistics.from_tensors(load_file(_file(folder, i))).check(i)
        for i in range(layers.spec.num_layers)
    ]


def prune_experts(layers: LayerFormat, index: int, choice: KeptExperts | None) -> State:
    """Return layer ``index``'s state with only the experts of ``choice``, or with all if it has none."""
    state = layers.read(index)
    cut_experts(layers, state, choice)
    return state


def cut_experts(layers: LayerFormat, state: State, choice: KeptExperts | None) -> None:
    """Keep only the experts of ``choice`` in a layer's state, in place; do nothing without a choice."""
    if choice is None:
        return
    moe = layers.architecture.moe
    assert moe is not None
    if choice.averaged:
        for expert, members in zip(choice.kept, choice.clusters, strict=True):
            if len(members) > 1:
                replace_expert(state, moe, expert, members)
    keep_experts(state, moe, choice.kept)


def mask_layer(
    state: State,
    found: Sequence[Matrix],
    settings: Settings,
    sparsity: float,
    statistics: LayerStatistics | None,
) -> tuple[dict[str, Tensor], int]:
    """Prune the single weights of a layer in place, one matrix at a time.

    Args:
        state: State of the layer.
        found: Its prunable matrices, expanded.
        settings: Criterion, pattern and ``min_tokens``.
        sparsity: Sparsity of each row.
        statistics: Statistics of the same layer with the same experts; None scores by magnitude.

    Returns:
        ``(masks, uncalibrated)``: matrix name -> mask of the kept weights ``[..., out, in]``, packed by `pack`; and
        the number of experts scored by magnitude because they received too few tokens.
    """
    inputs = statistics is not None and settings.needs_inputs
    masks = {}
    uncalibrated: set[int] = set()
    for matrix in found:
        weight = matrix.rows(state[matrix.name])
        norms = statistics.squares[matrix.name].sqrt().float() if statistics is not None and inputs else None
        mask = torch.empty(weight.shape, dtype=torch.bool)
        if not matrix.stacked:
            matrix_mask(weight, norms, settings, sparsity, matrix.name, out=mask)
        else:
            few = set[int]()
            if statistics is not None and statistics.counts is not None and inputs:
                few = set((statistics.counts < settings.min_tokens).nonzero().flatten().tolist())
            uncalibrated |= few
            for expert, one in enumerate(weight):
                own = None if norms is None or expert in few else norms[expert]
                name = f"{matrix.name}, expert {expert}"
                matrix_mask(one, own, settings, sparsity, name, out=mask[expert])
        masks[matrix.name] = pack(mask)
        weight.masked_fill_(mask.logical_not_(), 0)
    return masks, len(uncalibrated)


def matrix_mask(
    weight: Tensor, norms: Tensor | None, settings: Settings, sparsity: float, name: str, *, out: Tensor
) -> None:
    """Compute the mask of the kept weights of one matrix.

    Args:
        weight: ``[out, in]``.
        norms: L2 norms of its inputs, ``[in]``; None if unknown, see `scores_by_rows`.
        settings: Criterion and pattern.
        sparsity: Sparsity of each row.
        name: Name of the matrix, for messages.
        out: Output mask, ``[out, in]`` bool.

    Raises:
        ResourceError: A score is NaN or infinite, so the scores cannot be ranked.
    """
    at = 0
    criterion = settings.weight_criterion
    assert criterion is not None
    for scores in scores_by_rows(weight, norms, criterion):
        if not bool(torch.isfinite(scores).all()):
            raise ResourceError(
                f"the scores of {name} are NaN or infinite, because its weights times their inputs overflow float32. "
                "Use --weights magnitude, or exclude this part with --parts"
            )
        if settings.pattern is None:
            out[at : at + len(scores)] = row_mask(scores, sparsity)
        else:
            out[at : at + len(scores)] = n_of_m_mask(scores, *settings.n_of_m())
        at += len(scores)


def prune_weights(
    layers: LayerFormat,
    plan: Plan,
    config: dict[str, Any],
    settings: Settings,
    run: CalibrationRun | None,
    folder: Path,
    tick: ProgressCallback,
) -> list[int]:
    """Save the masks of each finished layer to ``folder``; return the number of uncalibrated experts per layer.

    Layers run in order, and each layer receives the outputs of the pruned layers before it.

    Args:
        layers: The unpruned checkpoint.
        plan: The kept experts and the sparsity of each layer.
        config: ``config.json`` for the kept experts.
        settings: How to score.
        run: How layers run; None scores without calibration.
        folder: Folder for masks and hidden states.
        tick: Progress callback.

    Source: arXiv:2306.11695, section 3.
    """
    stream, ahead = None, None
    done = _finished(folder, layers.spec.num_layers)
    if run is not None and done < layers.spec.num_layers:
        stream = run.stream(layers.checkpoint, config, folder / "hidden")
        done = stream.position
    for index in range(done, layers.spec.num_layers):
        tick("weights", index, layers.spec.num_layers)
        state = prune_experts(layers, index, plan.experts.get(index))
        found = expand(matrices(layers.spec, index, settings.parts), state)
        if stream is not None and ahead is None:
            ahead = _watch(stream, index, state)
            with ahead:
                stream.measure(index)
        statistics = ahead.statistics.check(index) if ahead is not None else None
        packed, few = mask_layer(state, found, settings, plan.sparsity.get(index, 0.0), statistics)
        packed["uncalibrated"] = torch.tensor([few])
        if stream is None:
            save_tensors(packed, _file(folder, index))
            del state
            trim()
        else:
            stream.materialise(index, state)
            del state  # the layer runs with a copy
            stages, ahead = [Stage(index)], None
            if len(stream.devices) > 1 and index + 1 < layers.spec.num_layers:
                # The same pipelined run also measures the next layer on the outputs of this one.
                following = prune_experts(layers, index + 1, plan.experts.get(index + 1))
                ahead = _watch(stream, index + 1, following)
                del following
                stages.append(Stage(index + 1, ahead))
            stream.fly(stages, 0, before=lambda: save_tensors(packed, _file(folder, index)))  # noqa: B023
            stream.release(index)
    if stream is not None:
        stream.discard()
    tick("weights", layers.spec.num_layers, layers.spec.num_layers)
    return [int(load_file(_file(folder, i))["uncalibrated"]) for i in range(layers.spec.num_layers)]


def apply_masks(state: State, found: Sequence[Matrix], folder: Path, index: int) -> None:
    """Apply the masks that `prune_weights` saved for layer ``index``, in place."""
    packed = load_file(_file(folder, index))
    for matrix in found:
        weight = matrix.rows(state[matrix.name])
        weight.masked_fill_(unpack(packed[matrix.name], weight.shape).logical_not_(), 0)


def pack(mask: Tensor) -> Tensor:
    """Pack a mask into bits, eight per uint8."""
    import numpy as np

    return torch.from_numpy(np.packbits(mask.cpu().numpy().reshape(-1)))


def unpack(bits: Tensor, shape: Sequence[int]) -> Tensor:
    """The inverse of `pack`."""
    import math

    import numpy as np

    flat = np.unpackbits(bits.numpy(), count=math.prod(shape))
    return torch.from_numpy(flat).view(torch.bool).reshape(tuple(shape))


def _finished(folder: Path, count: int) -> int:
    """Count the finished layers from the first, by their files."""
    folder.mkdir(parents=True, exist_ok=True)
    done = 0
    while done < count and _file(folder, done).exists():
        done += 1
    return done


def _file(folder: Path, index: int) -> Path:
    return folder / f"layer-{index:05d}.safetensors"


def _watch(stream: LayerStream, index: int, state: State, needs: Collection[str] = _WEIGHTS) -> Collector:
    """Materialise layer ``index`` and return its statistics collector."""
    return Collector(stream, index, stream.materialise(index, state), needs)


def _save(watching: Mapping[int, Collector], folder: Path) -> None:
    for index, collector in watching.items():
        save_tensors(collector.statistics.check(index).to_tensors(), _file(folder, index))
