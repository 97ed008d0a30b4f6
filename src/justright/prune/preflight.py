"""Before any work: does the model fit the request, how much goes where, what will it take."""

from __future__ import annotations

import hashlib
import math
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from justright.architectures.spec import context_length, expert_groups, num_experts, parameter_part
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
"""What a run takes beside its layer: the rest of the libraries, small tensors, blocks that are scored at once."""

_STATES = 6
"""Tensors of a layer's widest states that live at once while it runs."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """Parameters, and what the target makes of them.

    Attributes:
        total: of the whole checkpoint.
        prunable: of the parts that may be pruned (P).
        by_layer: prunable parameters of each layer that stay after stage 1.
        removed: prunable parameters of the experts that go.
        second: sparsity of stage 2 among those that stay.
    """

    total: int
    prunable: int
    by_layer: tuple[int, ...]
    removed: int
    second: float


def expert_counts(layers: LayerFormat, settings: Settings) -> dict[int, int]:
    """Layer -> experts that stay; empty for a dense model. In uneven mode what counts is their sum.

    Raises:
        UsageError: see `kept_experts`.
    """
    moe_layers = sorted(layers.moe_layers)
    kept = kept_experts(layers, settings)
    if not settings.uneven or not moe_layers:
        return dict.fromkeys(moe_layers, kept)
    count, groups = num_experts(layers.config), expert_groups(layers.config)[0]
    share = settings.sparsity / 2 if settings.expert_sparsity is None else settings.expert_sparsity
    if settings.weight_criterion is None and settings.expert_sparsity is None:
        share = 1 - kept / max(1, count)
    total = count * len(moe_layers) - round(share * count * len(moe_layers) / groups) * groups
    if total < least_count(layers.config) * len(moe_layers):
        raise UsageError(
            f"{total} experts would stay in {len(moe_layers)} layers, and each needs {least_count(layers.config)} at "
            "least: ask for a lower --expert-sparsity"
        )
    more, rest = divmod(total // groups, max(1, len(moe_layers)))
    return {layer: groups * (more + (i < rest)) for i, layer in enumerate(moe_layers)}


def kept_experts(layers: LayerFormat, settings: Settings) -> int:
    """Experts that stay in every layer; 0 for a dense model.

    Raises:
        UsageError: experts to go from a dense model or from parts without experts, or fewer than routing needs.
    """
    config = layers.config
    count = num_experts(config) if layers.moe_layers else 0
    asked = settings.expert_sparsity
    if count == 0:
        if settings.weight_criterion is None:
            raise UsageError(
                f"{layers.architecture.family} here is a dense model, and weights none leaves only experts to remove: "
                f"choose {' or '.join(WEIGHTS.names())}"
            )
        if settings.uneven or not isinstance(settings.expert_criterion, Clustering):
            raise UsageError(
                f"{layers.architecture.family} here is a dense model, it has no experts to choose: leave --uneven and "
                "--criterion out"
            )
        if asked:
            raise UsageError(
                f"{layers.architecture.family} here is a dense model, it has no experts to remove: leave "
                "--expert-sparsity out; --sparsity prunes its single weights"
            )
        return 0
    if asked and "experts" not in settings.parts:
        raise UsageError("--expert-sparsity removes experts, and --parts leaves them out: name experts there")
    if asked is not None:
        kept = round(count * (1 - asked))
        if not settings.uneven:
            check_count(config, kept)
        return kept
    if "experts" not in settings.parts:
        return count
    if settings.weight_criterion is None:
        groups = expert_groups(config)[0]  # each loses as many
        share = settings.sparsity * _prunable(layers, settings) / (_of_one_expert(layers) * groups)
        kept = count - round(share) * groups
        if kept == count and settings.sparsity > 0:
            least = "one expert" if groups == 1 else f"one expert in each of the {groups} routing groups"
            raise UsageError(
                f"{settings.sparsity:.1%} is less than half of {least} a layer, so nothing would go: ask for more"
            )
        check_count(config, kept)
        return kept
    for kept in range(round(count * (1 - settings.sparsity / 2)), count + 1):
        try:
            check_count(config, kept)
        except UsageError:
            continue
        return kept
    raise AssertionError(f"all {count} experts do not fit their own routing")


def sizes(
    layers: LayerFormat, settings: Settings, counts: Mapping[int, int], *, planned: bool = False
) -> Sizes:
    """Parameters by what happens to them.

    Args:
        layers: the checkpoint.
        settings: what may be pruned, and the target.
        counts: layer -> experts that stay; all of those that are not named.
        planned: a plan says how sparse each layer becomes; the target of the settings does not count.

    Raises:
        UsageError: the experts alone are more than the overall target, or nothing may be pruned.
    """
    checkpoint, count = layers.checkpoint, num_experts(layers.config) or 1
    stay, removed, prunable = [], 0, 0
    for index in range(layers.layers):
        of_layer = gone = 0
        for name in layers.disk_names(index):
            part = parameter_part(layers.architecture, name, layers.layers)
            if part in settings.parts and is_matrix(layers, name):
                numel = math.prod(checkpoint.shape(name))
                of_layer += numel
                gone += numel * (count - counts.get(index, count)) if part == "experts" else 0
        gone //= count
        prunable += of_layer
        removed += gone
        stay.append(of_layer - gone)
    if prunable == 0:
        raise UsageError(f"nothing to prune: the model has none of the parts {', '.join(settings.parts)}")
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
    """About the most memory that a run takes beside Python and torch, from the headers alone.

    A layer is in memory once as the checkpoint has it, and while it runs once more in ``dtype``. To that come what
    runs through it, and its largest matrix: cut, or as a mask. Measured by `benchmarks/prune_cost.py scaling`.

    Args:
        layers: the checkpoint.
        kept: the share of its experts that stays.
        first: whether a pass runs all experts.
        second: whether a pass runs those that stay.
        dtype: in which layers run.
        tokens: that run at once.
    """
    checkpoint, width = layers.checkpoint, dtype.itemsize
    runs = 1.0 if first else kept if second else 0.0
    # One step cuts the gates and ups of the experts, two thirds of them.
    read = 1 + kept * 2 / 3 if kept < 1 else 1.0
    largest = 0.0
    for index in range(layers.layers):
        names = layers.disk_names(index)
        stored = sum(checkpoint.plain_bytes(name) for name in names)
        running = width * sum(math.prod(checkpoint.shape(name)) for name in names)
        parts = {name: parameter_part(layers.architecture, name, layers.layers) for name in names}
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
    """Parameters that may be pruned."""
    return sizes(layers, replace(settings, weights=NO_WEIGHTS), {}, planned=True).prunable


def _of_one_expert(layers: LayerFormat) -> int:
    """Parameters that go with one expert less in every layer."""
    only = Settings(weights=NO_WEIGHTS, parts=("experts",))
    return _prunable(layers, only) // num_experts(layers.config)


def check_pattern(layers: LayerFormat, settings: Settings) -> None:
    """Refuse an N:M pattern that does not divide some matrix' rows.

    Raises:
        UsageError: it does not.
    """
    if settings.pattern is None:
        return
    _, m = settings.n_of_m()
    moe = layers.architecture.moe
    for index in range(layers.layers):
        for name in layers.disk_names(index):
            part = parameter_part(layers.architecture, name, layers.layers)
            if part in settings.parts and is_matrix(layers, name):
                turned = part == "experts" and moe is not None and moe.disk.transposed
                columns = layers.checkpoint.shape(name)[-2 if turned else -1]
                if columns % m:
                    raise UsageError(
                        f"the pattern {settings.pattern} needs rows of a multiple of {m}, and those of {name} have "
                        f"{columns}"
                    )


def check_room(out: Path, result: int, work: int) -> None:
    """Refuse a disk without room for the result and the files that a run works with; not for one that goes on.

    Args:
        out: to be created.
        result: bytes of it.
        work: bytes of hidden states and masks.

    Raises:
        ResourceError: not enough room.
    """
    out = Path(os.path.abspath(out))
    if out.with_name(out.name + ".partial").exists():
        return
    folder = next(parent for parent in out.parents if parent.exists())
    free = shutil.disk_usage(folder).free
    if free < result + work:
        raise ResourceError(
            f"not enough room on the disk of {folder}: {readable_bytes(result)} for the result and "
            f"{readable_bytes(work)} to work with are needed, {readable_bytes(free)} are free. Free some, write "
            "elsewhere, or calibrate with fewer or shorter sequences"
        )


def every_device(single: str) -> str:
    """Where layers run unless somebody says it: on all GPUs, where there are several, else on ``single``."""
    count = torch.cuda.device_count()
    return ",".join(f"cuda:{number}" for number in range(count)) if count > 1 else single


def check_length(config: dict[str, Any], length: int) -> None:
    """Refuse calibration sequences longer than the context.

    Raises:
        UsageError: they are.
    """
    context = context_length(config)
    if length > context:
        raise UsageError(
            f"calibration sequences of {length} tokens, and a context of {context}: shorten them"
        )


def is_matrix(layers: LayerFormat, name: str) -> bool:
    """Whether a tensor is one or a stack of matrices, and no stack of biases."""
    moe = layers.architecture.moe
    biases = (*moe.memory.biases, *moe.disk.biases) if moe else ()
    return len(layers.checkpoint.shape(name)) >= 2 and not name.endswith(biases or ("\0",))


def check_weights(checkpoint: Checkpoint, tick: Callable[[int], None] = lambda _: None) -> str:
    """Read every weight once; returns a fingerprint of all of them.

    Args:
        checkpoint: open.
        tick: told the bytes of each tensor read.

    Raises:
        CheckpointError: a weight is NaN or infinite.
    """
    import torch

    digest = hashlib.sha256()
    for name in sorted(checkpoint):
        tensor = checkpoint.tensor(name, copy=True)
        check_finite({name: tensor}, checkpoint.path)
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data if tensor.numel() else b"")
        tick(tensor.nbytes)
    return digest.hexdigest()
