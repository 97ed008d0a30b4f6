"""The options for loading and running a model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from justright.engine.model_runner import CacheKind, CpuKernels
from justright.errors import UsageError
from justright.kernels.quantised import FORMATS, AsFloats, Weights

_DTYPES = {
    "float32": torch.float32,
    "fp32": torch.float32,
    "bfloat16": torch.bfloat16,
    "bf16": torch.bfloat16,
    "float16": torch.float16,
    "fp16": torch.float16,
}
_MAX_DRAFT = 32
NO_SWITCH = "none"


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """How to load and run a model.

    Attributes:
        dtype: "float32" (fp32), "bfloat16" (bf16), "float16" (fp16).
        device: any torch device, or "auto": the first CUDA device, else the CPU.
        cpu_kernels: "packed" or "plain"; None uses packed where available (float32 on a CPU).
        weights: "int8" or "int4": quantise the decoder's matrices and the head while loading (float32 on a CPU);
            "float": expand the blocks of a GGUF file to ``dtype``; None: as they are in the model's files.
        slots: number of sequences decoded concurrently.
        cache: "grow", or "static" (the whole context allocated, shapes constant).
        max_context: cap on the tokens of a sequence; the model's context by default.
        draft: name of the drafter, "none" for plain decoding; None: the bundle's own, else none.
        draft_options: the drafter's own options, by name.
        max_draft: the maximum number of draft tokens per sequence and step.
        adaptive: speculate only as far as it pays by measured cost; False verifies every draft in full.
        prefill_chunk: tokens per prefill forward.
        reuse_prefix: run only the new part of a prompt that shares a prefix with another sequence in the cache.
        switch: the adapter of the fast mode: a directory or a hub id, "none" for none; None: the bundle's own, else
            none.
        generation_config: "auto": requests that sample take unset parameters from ``generation_config.json``;
            "none": that file's sampling settings are not read.
    """

    dtype: str = "float32"
    device: str = "auto"
    cpu_kernels: CpuKernels | None = None
    weights: Weights | AsFloats | None = None
    slots: int = 1
    cache: CacheKind = "grow"
    max_context: int | None = None
    draft: str | None = None
    draft_options: Mapping[str, Any] = field(default_factory=dict)
    max_draft: int = _MAX_DRAFT
    adaptive: bool = True
    prefill_chunk: int = 512
    reuse_prefix: bool = False
    switch: str | None = None
    generation_config: str = "auto"

    def __post_init__(self) -> None:
        _one_of("dtype", self.dtype, _DTYPES)
        _one_of("cache", self.cache, ("grow", "static"))
        _one_of("generation_config", self.generation_config, ("auto", "none"))
        if self.cpu_kernels is not None:
            _one_of("cpu_kernels", self.cpu_kernels, ("packed", "plain"))
        if self.weights is not None:
            _one_of("weights", self.weights, (*FORMATS, "float"))
        for name in ("slots", "max_draft", "prefill_chunk"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} is {getattr(self, name)}; allowed: 1 or more")
        if self.max_context is not None and self.max_context < 2:
            raise UsageError(f"max_context is {self.max_context}; allowed: 2 or more")
        check_nodes(self.draft_options, self.max_draft)

    @property
    def torch_dtype(self) -> torch.dtype:
        """``dtype`` as a torch dtype."""
        return _DTYPES[self.dtype]

    @property
    def torch_device(self) -> torch.device:
        """``device`` as a torch device, "auto" resolved.

        Raises:
            UsageError: torch does not know the device or it is not available.
        """
        if self.device == "auto":
            return torch.device("cuda" if torch.cuda.is_available() else "cpu")
        try:
            device = torch.device(self.device)
            torch.empty(1, device=device)
        except (RuntimeError, AssertionError) as error:
            reason = str(error).splitlines()[0]
            raise UsageError(f"device {self.device!r} cannot be used ({reason}): try cpu or auto") from error
        return device


def _one_of(name: str, value: str, allowed: Any) -> None:
    if value not in allowed:
        raise UsageError(f"{name} is {value!r}; allowed: {', '.join(allowed)}")


def check_nodes(draft_options: Mapping[str, Any], max_draft: int) -> None:
    """Validate that a step can verify the drafter's trees in full.

    Raises:
        UsageError: ``nodes`` exceeds the engine's ``max_draft``.
    """
    nodes = draft_options.get("nodes")
    if isinstance(nodes, int) and nodes > max_draft:
        raise UsageError(
            f"nodes is {nodes}; allowed: at most max_draft ({max_draft}), the drafted tokens of a step"
        )
