"""Progress bars for work that reports its stages."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from justright.cli.output import Terminal

T = TypeVar("T")
_LINE_S = 30.0
"""Least seconds between two lines in a log."""


@contextmanager
def kept_work(output: Terminal, out: Path) -> Iterator[None]:
    """On Ctrl-C, report what is kept of the work."""
    try:
        yield
    except KeyboardInterrupt:
        where = (
            f"{out} is complete except for its evaluation"
            if out.exists()
            else f"the finished work is kept in {out}.partial"
        )
        output.note(f"interrupted: {where}; the same command continues from there")
        raise


def with_progress(output: Terminal, run: Callable[[Callable[[str, int, int], None]], T]) -> T:
    """Call ``run`` with a function ``(stage, done, total)`` that draws a bar for every stage, if bars are shown."""
    return with_words(output, lambda report: run(lambda stage, done, total: report(stage, done, total, "")))


def with_words(output: Terminal, run: Callable[[Callable[[str, int, int, str], None]], T]) -> T:
    """Like `with_progress`, with a status text: ``(stage, done, total, text)``.

    In a log, print a line for every evaluation, and otherwise at most one every half minute.
    """
    if output.json or output.quiet:
        return run(lambda *_: None)
    if not output.progress:
        return run(_lines(output))
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=output.console(stderr=True), transient=True) as bar:
        rows: dict[str, Any] = {}

        def report(stage: str, done: int, total: int, word: str) -> None:
            if stage not in rows:
                rows[stage] = bar.add_task(stage, total=total or None)
            if "acceptance" in word:
                bar.console.print(f"{stage}: {done}/{total}, {word}")
            bar.update(
                rows[stage],
                completed=done,
                total=total or None,
                description=f"{stage}: {word}" if word else stage,
            )

        return run(report)


def _lines(output: Terminal) -> Callable[[str, int, int, str], None]:
    """Return a function that prints progress lines to a log."""
    last = time.monotonic()

    def report(stage: str, done: int, total: int, word: str) -> None:
        nonlocal last
        if "acceptance" in word or time.monotonic() - last >= _LINE_S:
            last = time.monotonic()
            output.note(
                ", ".join([f"{stage}: {done}/{total}" if total else stage, *([word] if word else [])])
            )

    return report
