"""Tiny pairs: a fast model, and a slow model whose matrices differ by a change of low or full rank."""

from __future__ import annotations

import json
import re
import shutil
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


@pytest.fixture(scope="session")
def kept_pair(tmp_path_factory: pytest.TempPathFactory) -> MakePair:
    """``(slow, fast)``, made once and to be left as they are.

    ``rank`` of the change of every matrix, None for full; ``norms``: change all small tensors too. Further arguments
    change the config.
    """
    kept: dict[str, tuple[Path, Path]] = {}

    def get(
        family: str, rank: int | None = None, *, norms: bool = False, **changes: Any
    ) -> tuple[Path, Path]:
        key = json.dumps([family, rank, norms, changes], sort_keys=True)
        if key not in kept:
            kept[key] = make(tmp_path_factory.mktemp(family), family, rank, norms, changes)
        return kept[key]

    def make(
        folder: Path, family: str, rank: int | None, norms: bool, changes: dict[str, Any]
    ) -> tuple[Path, Path]:
        fast, slow = (save_tiny(family, folder / name, **changes) for name in ("fast", "slow"))
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

    return get


@pytest.fixture
def make_pair(kept_pair: MakePair, tmp_path: Path) -> MakePair:
    """Copies of `kept_pair`, which a test may change."""

    def copied(*args: Any, **options: Any) -> tuple[Path, Path]:
        slow, fast = kept_pair(*args, **options)
        for path in (slow, fast):
            shutil.copytree(path, tmp_path / path.name, dirs_exist_ok=True)
        return tmp_path / "slow", tmp_path / "fast"

    return copied
