"""Validate a pruning request and estimate its sizes and memory before any work."""

from __future__ import annotations

import hashlib
import math
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from justright.architectures.spec import ModelSpec
from justright.checkpoint.finite import check_finite
from justright.checkpoint.reader import Checkpoint
from justright.errors import ResourceError, UsageError
from justright.model.decoder_layer import LayerFormat
from justright.prune.allocation import second_stage_sparsity
from justright.prune.criteria.base import NO_WEIGHTS, WEIGHTS, Clustering
from justright.prune.plan import check_count, least_count
from justright.prune.settings import Settings
from justright.readable import readable_bytes

_MEMORY_BASE = 56 * 2**20
"""Memory of a run besides its layer: other libraries, small tensors, and scoring blocks."""

_STATES = 6
"""Number of tensors of a layer's widest hidden state that are alive at once."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """Parameter counts before and after stage 1, and the sparsity of stage 2.

    Attributes:
        total: Parameters of the whole checkpoint.
        prunable: Parameters of the parts that may be pruned (P).
        by_layer: Prunable parameters of each layer after stage 1.
        removed: Prunable parameters of the removed experts.
        second: Sparsity of stage 2 among the remaining prunable parameters.
    """

    total: int
    prunable: int
    by_layer: tuple[int, ...]
    removed: int
    second: float


def expert_counts(layers: LayerFormat, settings: Settings) -> dict[int, int]:
    """Layer -> number of kept experts; empty for a dense model. In uneven mode only their sum counts.

    Raises:
        UsageError: See `kept_experts`.
    """
    spec = layers.spec
    moe_layers = spec.moe_layers
    kept = kept_experts(layers, settings)
    if not settings.uneven or not moe_layers:
        return dict.fromkeys(moe_layers, kept)
    count, groups = spec.num_experts, spec.expert_groups[0]
    share = settings.sparsity / 2 if settings.expert_sparsity is None else settings.expert_sparsity
    if settings.weight_criterion is None and settings.expert_sparsity is None:
        share = 1 - kept / max(1, count)
    total = count * len(moe_layers) - round(share * count * len(moe_layers) / groups) * groups
    if total < least_count(spec) * len(moe_layers):
        raise UsageError(
            f"{total} experts would be kept in {len(moe_layers)} layers, but each layer needs at least "
            f"{least_count(spec)}: lower --expert-sparsity"
        )
    more, rest = divmod(total // groups, max(1, len(moe_layers)))
    return {layer: groups * (more + (i < rest)) for i, layer in enumerate(moe_layers)}


def kept_experts(layers: LayerFormat, settings: Settings) -> int:
    """Number of kept experts per layer; 0 for a dense model.

    Raises:
        UsageError: Expert pruning is requested for a dense model or for parts without experts, or fewer experts
            stay than routing needs.
    """
    spec = layers.spec
    count = spec.num_experts
    share = settings.expert_sparsity
    if count == 0:
        if settings.weight_criterion is None:
            raise UsageError(
                f"this {layers.architecture.family} is a dense model without experts, so with --weights none nothing "
                f"can be removed: choose --weights {' or '.join(WEIGHTS.names())}"
            )
        if settings.uneven or not isinstance(settings.expert_criterion, Clustering):
            raise UsageError(
                f"this {layers.architecture.family} is a dense model without experts: leave --uneven and --criterion "
                "out"
            )
        if share:
            raise UsageError(
                f"this {layers.architecture.family} is a dense model without experts: leave --expert-sparsity out, and "
                "prune its single weights with --sparsity"
            )
        return 0
    if share and "experts" not in settings.parts:
        raise UsageError(
            "--expert-sparsity removes experts, but --parts excludes them: add experts to --parts"
        )
    if share is not None:
        kept = round(count * (1 - share))
        if not settings.uneven:
            check_count(spec, kept)
        return kept
    if "experts" not in settings.parts:
        return count
    if settings.weight_criterion is None:
        groups = spec.expert_groups[0]  # each loses as many
        share = settings.sparsity * _prunable(layers, settings) / (_of_one_expert(layers) * groups)
        kept = count - round(share) * groups
        if kept == count and settings.sparsity > 0:
            least = "one expert" if groups == 1 else f"one expert in each of the {groups} routing groups"
            raise UsageError(
                f"sparsity {settings.sparsity:.1%} is less than half of {least} per layer, so nothing would be "
                "removed: raise --sparsity"
            )
        check_count(spec, kept)
        return kept
    for kept in range(round(count * (1 - settings.sparsity / 2)), count + 1):
        try:
            check_count(spec, kept)
        except UsageError:
            continue
        return kept
    raise AssertionError(f"the routing does not support its own {count} experts")


def sizes(
    layers: LayerFormat, settings: Settings, counts: Mapping[int, int], *, planned: bool = False
) -> Sizes:
    """Count the parameters that each stage affects.

    Args:
        layers: The checkpoint.
        settings: The prunable parts and the target.
        counts: Layer -> number of kept experts; a missing layer keeps all.
        planned: Whether a plan gives each layer's sparsity, so that the target of the settings does not apply.

    Raises:
        UsageError: The removed experts alone exceed the overall target, or no parameter may be pruned.
    """
    checkpoint, count = layers.checkpoint, layers.spec.num_experts or 1
    stay, removed, prunable = [], 0, 0
    for index in range(layers.spec.num_layers):
        of_layer = gone = 0
        for name in layers.disk_names(index):
            part = layers.spec.part(name)
            if part in settings.parts and is_matrix(layers, name):
                numel = math.prod(checkpoint.shape(name))
                of_layer += numel
                gone += numel * (count - counts.get(index, count)) if part == "experts" else 0
        gone //= count
        prunable += of_layer
        removed += gone
        stay.append(of_layer - gone)
    if prunable == 0:
        raise UsageError(f"the model has none of the parts {', '.join(settings.parts)}: name other --parts")
    if planned or settings.weight_criterion is None:
        second = 0.0
    elif settings.pattern is not None:
        n, m = settings.n_of_m()
        second = 1 - n / m
    else:
        second = second_stage_sparsity(settings.sparsity, prunable, removed)
    total = sum(math.prod(checkpoint.shape(name)) for name in checkpoint)
    return Sizes(total, prunable, tuple(stay), removed, second)


def memory_bytes(
    layers: LayerFormat, *, kept: float, first: bool, second: bool, dtype: torch.dtype, tokens: int
) -> int:
    """Estimate the peak memory of a run, without Python and torch, from the headers alone.

    Memory holds one layer in the checkpoint's dtype, plus a copy in ``dtype`` while it runs, plus the activations and
    the layer's largest matrix (pruned, or as a mask). `benchmarks/prune_cost.py scaling` measures it.

    Args:
        layers: The checkpoint.
        kept: Fraction of the experts that stays.
        first: Whether a pass runs all experts.
        second: Whether a pass runs the kept experts.
        dtype: Dtype in which layers run.
        tokens: Tokens per batch.
    """
    checkpoint, width = layers.checkpoint, dtype.itemsize
    runs = 1.0 if first else kept if second else 0.0
    # One step cuts the gates and ups of the experts, two thirds of them.
    read = 1 + kept * 2 / 3 if kept < 1 else 1.0
    largest = 0.0
    for index in range(layers.spec.num_layers):
        names = layers.disk_names(index)
        stored = sum(checkpoint.plain_bytes(name) for name in names)
        running = width * sum(math.prod(checkpoint.shape(name)) for name in names)
        parts = {name: layers.spec.part(name) for name in names}
        widest = max(max(checkpoint.shape(name), default=0) for name in names if parts[name] != "experts")
        through = _STATES * tokens * width * widest
        largest = max(largest, read * stored, runs * (stored + running) + through if runs else 0)
    embedding = layers.architecture.disk.embedding
    if runs:
        largest = max(
            largest, checkpoint.plain_bytes(embedding) + width * math.prod(checkpoint.shape(embedding))
        )
    others = max((checkpoint.plain_bytes(name) for name in layers.other_names()), default=0)
    return round(_MEMORY_BASE + max(largest, others))


def _prunable(layers: LayerFormat, settings: Settings) -> int:
    """Count the parameters that may be pruned."""
    return sizes(layers, replace(settings, weights=NO_WEIGHTS), {}, planned=True).prunable


def _of_one_expert(layers: LayerFormat) -> int:
    """Count the parameters that removing one expert from every layer removes."""
    only = Settings(weights=NO_WEIGHTS, parts=("experts",))
    return _prunable(layers, only) // layers.spec.num_experts


def check_pattern(layers: LayerFormat, settings: Settings) -> None:
    """Validate that M of an N:M pattern divides the rows of every prunable matrix.

    Raises:
        UsageError: It does not.
    """
    if settings.pattern is None:
        return
    _, m = settings.n_of_m()
    moe = layers.architecture.moe
    for index in range(layers.spec.num_layers):
        for name in layers.disk_names(index):
            part = layers.spec.part(name)
            if part in settings.parts and is_matrix(layers, name):
                turned = part == "experts" and moe is not None and moe.disk.transposed
                columns = layers.checkpoint.shape(name)[-2 if turned else -1]
                if columns % m:
                    raise UsageError(
                        f"the pattern {settings.pattern} needs rows whose length is a multiple of {m}, but {name} has "
                        f"rows of {columns}: choose another pattern"
                    )


def check_room(out: Path, result: int, work: int) -> None:
    """Validate that the disk can hold the result and the work files; a resumed run skips this check.

    Args:
        out: Directory to create.
        result: Bytes of the result.
        work: Bytes of hidden states and masks.

    Raises:
        ResourceError: The disk has too little free space.
    """
    out = Path(os.path.abspath(out))
    if out.with_name(out.name + ".partial").exists():
        return
    folder = next(parent for parent in out.parents if parent.exists())
    free = shutil.disk_usage(folder).free
    if free < result + work:
        raise ResourceError(
            f"the disk of {folder} has {readable_bytes(free)} free, but pruning needs {readable_bytes(result)} for "
            f"the result and {readable_bytes(work)} for work files. Free some space, choose another disk, or "
            "calibrate with fewer or shorter sequences"
        )


def every_device(single: str) -> str:
    """Default device of the layers: all GPUs if there are several, else ``single``."""
    count = torch.cuda.device_count()
    return ",".join(f"cuda:{number}" for number in range(count)) if count > 1 else single


def check_length(spec: ModelSpec, length: int) -> None:
    """Validate that calibration sequences fit the context.

    Raises:
        UsageError: They are longer than the context.
    """
    if length > spec.context:
        raise UsageError(
            f"calibration sequences have {length} tokens, but the context holds {spec.context}: lower --length"
        )


def is_matrix(layers: LayerFormat, name: str) -> bool:
    """Whether a tensor is a matrix or a stack of matrices, not a stack of biases."""
    moe = layers.architecture.moe
    biases = (*moe.memory.biases, *moe.disk.biases) if moe else ()
    return len(layers.checkpoint.shape(name)) >= 2 and not name.endswith(biases or ("\0",))


def check_weights(checkpoint: Checkpoint) -> str:
    """Read every weight once and return a fingerprint of all weights.

    Raises:
        CheckpointError: A weight is NaN or infinite.
    """
    digest = hashlib.sha256()
    for name in sorted(checkpoint):
        tensor = checkpoint.tensor(name, copy=True)
        check_finite({name: tensor}, checkpoint.path)
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data if tensor.numel() else b"")
    return digest.hexdigest()
