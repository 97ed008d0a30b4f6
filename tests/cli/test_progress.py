"""Progress of long work without a terminal."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from justright.cli import progress
from justright.cli.output import Terminal
from justright.cli.progress import with_words


def work(tell: Callable[[str, int, int, str], None]) -> str:
    tell("data", 0, 0, "")
    for done in range(1, 9):
        tell("data", done, 8, "900 tokens/s")
    tell("training", 5, 9, "loss 1.00, acceptance length 1.50")
    return "made"


def lines(output: Terminal, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    seconds = iter(range(0, 1000, 13))
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(seconds))
    assert with_words(output, work) == "made"
    return capsys.readouterr().err.splitlines()


def test_a_log_has_evaluations_and_a_line_now_and_then(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    told = lines(Terminal(), capsys, monkeypatch)
    assert told[-1] == "training: 5/9, loss 1.00, acceptance length 1.50"
    assert told[0] == "data: 2/8, 900 tokens/s"
    assert 2 <= len(told) <= 4


@pytest.mark.parametrize("output", [Terminal(quiet=True), Terminal(json=True)])
def test_no_line_where_none_is_wanted(
    output: Terminal, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert lines(output, capsys, monkeypatch) == []
