"""The result type of a command run, for the command line's tests."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Result:
    """Exit code, stdout and stderr of a run."""

    code: int
    out: str
    err: str


Run = Callable[..., Result]
