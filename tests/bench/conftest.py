"""One tiny model with room for the tasks, shared by the tests here."""

from __future__ import annotations

from pathlib import Path

import pytest

from tiny import save_tiny


@pytest.fixture(scope="session")
def tiny_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(
        "llama",
        tmp_path_factory.mktemp("bench") / "tiny",
        max_position_embeddings=6144,
        tie_word_embeddings=False,
    )
