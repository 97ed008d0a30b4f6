"""Capabilities of this processor."""

from __future__ import annotations

import platform
from pathlib import Path

import torch


def has_bfloat16() -> bool:
    """Whether it has instructions for bfloat16 matrix products (without them, these are much slower)."""
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def processor_name() -> str:
    """The processor's name from Linux, else from Python."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
