"""A tiny verifier and texts to train a drafter on."""

from __future__ import annotations

from pathlib import Path

import pytest

from tiny import save_tiny

_WORDS = [
    "the",
    "cat",
    "sat",
    "on",
    "a",
    "mat",
    "and",
    "the",
    "dog",
    "ran",
    "to",
    "the",
    "cat",
    "with",
    "a",
    "hat",
]


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny verifier; tests must not change it."""
    return save_tiny("llama", tmp_path_factory.mktemp("verifier") / "model")


@pytest.fixture
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of words, which a test may change."""
    file = tmp_path_factory.mktemp("texts") / "words.txt"
    file.write_text(" ".join(_WORDS[(i * i) % len(_WORDS)] for i in range(6000)))
    return file
