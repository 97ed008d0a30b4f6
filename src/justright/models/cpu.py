"""What this processor does well."""

from __future__ import annotations

import torch


def has_bfloat16() -> bool:
    """Whether it multiplies bfloat16 matrices by instructions of its own (without, it is much slower)."""
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
