"""Tiny pairs: a fast model, and a slow model whose matrices differ by a change of low or full rank."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tiny import save_tiny

APART = "correction|sinks|statics"
"""Small tensors that no module of their own uses: they cannot be switched."""

MakePair = Callable[..., tuple[Path, Path]]


@pytest.fixture
def make_pair(tmp_path: Path) -> MakePair:
    """``(slow, fast)``; ``rank`` of the change of every matrix, None for full; ``norms``: change all small tensors too.

    Further arguments change the config.
    """

    def make(
        family: str, rank: int | None = None, *, norms: bool = False, **changes: Any
    ) -> tuple[Path, Path]:
        fast, slow = (save_tiny(family, tmp_path / name, **changes) for name in ("fast", "slow"))
        tensors = load_file(slow / "model.safetensors")
        generator = torch.Generator().manual_seed(1)
        for name, tensor in tensors.items():
            if "vision" in name:
                continue
            routing = "gate.weight" in name or "router" in name
            if tensor.ndim >= 2 and ".layers." in name and not routing and "bias" not in name:
                change = torch.randn(tensor.shape, generator=generator) * 0.02
                if rank is not None:
                    u, s, vt = torch.linalg.svd(change, full_matrices=False)
                    change = (u[..., :rank] * s[..., None, :rank]) @ vt[..., :rank, :]
                tensors[name] = tensor + change
            elif norms and re.search(r"\.layers\.|model\.norm\.", name) and not re.search(APART, name):
                tensors[name] = tensor + torch.randn(tensor.shape, generator=generator) * 0.02
        save_file(tensors, slow / "model.safetensors", {"format": "pt"})
        return slow, fast

    return make
