"""``justright bench decode`` measures what its options request."""

from __future__ import annotations

from pathlib import Path

import pytest

from cli_helpers import Run
from justright.errors import UsageError


@pytest.mark.parametrize(
    ("options", "asked"),
    [
        ([], ((1024, 4096), 128, 3)),
        (["--quick"], ((1024,), 32, 1)),
        (["--quick", "--tokens", "128", "--context", "300"], ((300,), 128, 1)),
        (["--repeats", "2", "--quick"], ((1024,), 32, 2)),
    ],
)
def test_quick_changes_defaults_and_not_given_options(
    run: Run,
    tiny_llama: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: list[str],
    asked: tuple[object, ...],
) -> None:
    def refuse(plan: object, *_: object) -> None:
        raise UsageError(f"asked: {(plan.contexts, plan.decode.tokens, plan.decode.repeats)}")  # type: ignore[attr-defined]

    # Another test covers which length fits.
    monkeypatch.setattr("justright.bench.decode.fitting_length", lambda path, kinds, most, tokens: most)
    monkeypatch.setattr("justright.bench.running.run_plan", refuse)
    assert f"asked: {asked}" in run("bench", "decode", tiny_llama, *options).err
