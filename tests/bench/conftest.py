"""A tiny model whose context fits the tasks, shared by these tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tiny import save_tiny


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep the step costs that tests measure out of the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JUSTRIGHT_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def tiny_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(
        "llama",
        tmp_path_factory.mktemp("bench") / "tiny",
        max_position_embeddings=6144,
        tie_word_embeddings=False,
    )
