"""Texts that travel with the package, for benchmarks and demonstrations; their sources: ``README.md`` here."""

from __future__ import annotations

from importlib.resources import files


def read_text(name: str) -> str:
    """The text of the data file ``name``, such as ``emma.txt``."""
    return files(__name__).joinpath(name).read_text(encoding="utf-8")
