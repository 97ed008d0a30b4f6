"""Summarise a checkpoint from its config and file headers, without reading weights.

The config's defaults come from transformers, whose import takes most of the time.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from justright.architectures.schema import Architecture, Part
from justright.architectures.spec import ModelSpec
from justright.checkpoint.format import TensorInfo
from justright.checkpoint.reader import Checkpoint
from justright.checkpoint.sources import check_tokenizer_files
from justright.errors import CheckpointError
from justright.model.decoder_layer import check_layers

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
_FLOATS = frozenset(["F64", "F32", "F16", "BF16"])
# Tensors in quantised or old checkpoints that are not parameters.
_COMPANIONS = ("_scales", "_scale", "_scale_inv", "inv_freq", "masked_bias")

Status = Literal["yes", "no"]


@dataclass(frozen=True, slots=True)
class Capability:
    """Whether justright can do something with a model.

    Attributes:
        name: "run", "draft", "prune experts", "prune weights" or "switch".
        status: Whether it is supported.
        reason: Why, or why not.
    """

    name: str
    status: Status
    reason: str


@dataclass(frozen=True, slots=True)
class Experts:
    """The mixture of a mixture-of-experts model.

    Attributes:
        count: Routed experts per layer; the maximum if layers differ.
        least: The minimum over the layers with experts.
        total: Sum over all layers.
        top_k: Experts per token.
        layers: Number of layers with experts.
        groups: (groups the experts are divided into, groups a token may use); (1, 1) without groups.
        shared: Whether every token also passes through a shared expert.
    """

    count: int
    least: int
    total: int
    top_k: int
    layers: int
    groups: tuple[int, int]
    shared: bool


@dataclass(frozen=True, slots=True)
class Inspection:
    """What a checkpoint is and what it needs.

    Attributes:
        path: Its directory.
        family: The config's ``model_type``.
        layers: Decoder layers.
        vocabulary: tokens.
        context: Positions that the model was trained for.
        usable_context: Positions that the engine uses (fewer where rotary frequencies switch).
        windows: Attention reach -> number of layers; "full", "sliding 4096", "chunked 8192".
        experts: None for a dense model.
        parameters: By part; a tied head counts once, as the embedding. "other" is outside the text decoder.
        total: All parameters of the text decoder.
        active: Parameters that one token uses; equals ``total`` for a dense model.
        tied_embeddings: Whether the head is the embedding.
        disk_dtypes: Name of the type in the files (of safetensors or GGUF) -> bytes on disk.
        disk_bytes: Sum of these bytes.
        store: "sparse" for a container of `justright.checkpoint.sparse`, which only justright reads; else "dense".
        quantization: The quantisation method that the config names, or None.
        weights_bytes: Dtype -> bytes of the loaded weights.
        cache_bytes_per_1k: Dtype -> bytes of the KV cache for 1,024 tokens of one sequence, as the engine
            stores them (latent attention expanded, sliding layers whole).
        capabilities: What justright can do with it.
    """

    path: Path
    family: str
    layers: int
    vocabulary: int
    context: int
    usable_context: int
    windows: dict[str, int]
    experts: Experts | None
    parameters: dict[Part, int]
    total: int
    active: int
    tied_embeddings: bool
    disk_dtypes: dict[str, int]
    disk_bytes: int
    store: str
    quantization: str | None
    weights_bytes: dict[str, int]
    cache_bytes_per_1k: dict[str, int]
    capabilities: tuple[Capability, ...]

    def to_dict(self) -> dict[str, Any]:
        """All of it, ready for JSON."""
        return asdict(self) | {"path": str(self.path)}


def inspect(path: Path) -> Inspection:
    """Inspect a checkpoint directory.

    Raises:
        CheckpointError: It is damaged or incomplete, or its config is invalid.
        UnsupportedModelError: Its family is unknown or not supported.
    """
    with Checkpoint.open(path) as checkpoint:
        spec = checkpoint.spec
        quantization = _quantization(checkpoint.config)
        infos = [checkpoint.info(name) for name in checkpoint]
        disk = Counter[str]()
        for info in infos:
            disk[checkpoint.stored_as(info.name)] += info.nbytes
        odd = None if checkpoint.gguf is not None else _packed(disk)
        packed = bool(checkpoint.packed)
    experts = _mixture(spec)
    parameters = _parameters(spec, infos)
    total = sum(count for part, count in parameters.items() if part != "other")
    idle = 0
    if experts:
        used = experts.top_k * experts.layers
        idle = parameters["experts"] * (experts.total - used) // experts.total
    if quantization is None:
        check_layers(path, spec, (info.name for info in infos))
    windows = Counter("full" if w is None else f"{w.kind} {w.size}" for w in spec.windows)
    return Inspection(
        path=path,
        family=spec.architecture.family,
        layers=spec.num_layers,
        vocabulary=spec.vocab_size,
        context=spec.context,
        usable_context=spec.usable_context,
        windows=dict(windows.most_common()),
        experts=experts,
        parameters=parameters,
        total=total,
        active=total - idle,
        tied_embeddings=spec.tied,
        disk_dtypes=dict(disk.most_common()),
        disk_bytes=disk.total(),
        store="sparse" if packed else "dense",
        quantization=quantization,
        weights_bytes={dtype: total * size for dtype, size in DTYPE_BYTES.items()},
        cache_bytes_per_1k={dtype: 1024 * spec.cached_values * size for dtype, size in DTYPE_BYTES.items()},
        capabilities=_capabilities(path, spec, experts, quantization or odd),
    )


def _parameters(spec: ModelSpec, infos: list[TensorInfo]) -> dict[Part, int]:
    """Count parameters by part on disk; a tied head counts as the embedding."""
    counts: dict[Part, int] = dict.fromkeys(get_args(Part), 0)
    for info in infos:
        if info.name.endswith(_COMPANIONS):
            continue
        part = spec.part(info.name)
        packed = 2 if info.name.endswith("_blocks") else 1  # MXFP4: two values per byte
        counts[part] += math.prod(info.shape) * packed
    if spec.tied:
        if not counts["embedding"]:
            counts["embedding"] = counts["head"]
        counts["head"] = 0
    if not counts["embedding"]:
        architecture = spec.architecture
        raise CheckpointError(
            f"the checkpoint has no tensor {architecture.disk.embedding}, which every {architecture.family} checkpoint "
            "has: config.json and weights are of different models. Fetch both again"
        )
    return counts


def _mixture(spec: ModelSpec) -> Experts | None:
    layers = spec.moe_layers
    if not layers:
        return None
    return Experts(
        spec.num_experts,
        min(spec.experts[layer] for layer in layers),
        sum(spec.experts),
        spec.experts_per_token,
        len(layers),
        spec.expert_groups,
        any(module.part == "shared_experts" for module in spec.linears),
    )


def _quantization(config: Mapping[str, Any]) -> str | None:
    settings = config.get("quantization_config")
    if not settings:
        return None
    return str(settings.get("quant_method", "unknown")) if isinstance(settings, Mapping) else "unknown"


def _packed(disk: Mapping[str, int]) -> str | None:
    """Non-floating-point dtypes on disk, if they make up most of the bytes."""
    odd = [dtype for dtype in disk if dtype not in _FLOATS]
    return ", ".join(odd) if sum(disk[d] for d in odd) * 2 > sum(disk.values()) else None


def _capabilities(
    path: Path, spec: ModelSpec, experts: Experts | None, quantization: str | None
) -> tuple[Capability, ...]:
    run, draft = _can_run(path, spec.architecture, quantization)
    blocked = f"its weights are quantised ({quantization}): use the unquantised checkpoint"
    matrices = len(spec.linears)
    status: Status = "no"
    if experts is None:
        reason = "a dense model has no experts"
    elif quantization:
        reason = blocked
    elif experts.least < experts.count:
        reason = f"its layers already have different numbers of experts ({experts.least} to {experts.count})"
    elif experts.count <= experts.top_k:
        reason = f"every token uses all {experts.count} experts, so none can be removed"
    else:
        status = "yes"
        reason = f"{experts.count} experts in {experts.layers} layers, {experts.top_k} per token"
    prune_experts = Capability("prune experts", status, reason)
    if quantization:
        weights, switch = Capability("prune weights", "no", blocked), Capability("switch", "no", blocked)
    else:
        also = ", and those of the experts" if experts is not None else ""
        weights = Capability("prune weights", "yes", f"{matrices} plain linear matrices{also}")
        partner = "needs a reasoning model and the model that it was trained from"
        switch = Capability("switch", "yes", f"low-rank factors of {matrices} matrices; {partner}")
    return run, draft, prune_experts, weights, switch


def _can_run(
    path: Path, architecture: Architecture, quantization: str | None
) -> tuple[Capability, Capability]:
    reason = None
    if not architecture.stock:
        reason = "transformers has no class for this family"
    elif quantization:
        reason = f"its weights are quantised ({quantization}), and the engine is not tested with these"
    else:
        try:
            check_tokenizer_files(path)
        except CheckpointError:
            reason = "it has no tokenizer: copy the tokenizer's files from the original repository"
    if reason:
        return Capability("run", "no", reason), Capability("draft", "no", "it cannot be run")
    return (
        Capability("run", "yes", "all layers use attention, so rejected drafts can be rolled back"),
        Capability("draft", "yes", "suffix drafts need no training; an LSTM drafter can be trained"),
    )
