"""Tiny checkpoints and calibration texts; tests must not change them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tiny import save_tiny


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    found: dict[str, Path] = {}

    def get(family: str) -> Path:
        if family not in found:
            found[family] = save_tiny(family, tmp_path_factory.mktemp(family) / "model")
        return found[family]

    return get


@pytest.fixture(scope="session")
def texts(tmp_path_factory: pytest.TempPathFactory) -> str:
    file = tmp_path_factory.mktemp("texts") / "words.txt"
    file.write_text("the quick brown fox jumps over the lazy dog, and the dog sleeps on. " * 60)
    return str(file)
