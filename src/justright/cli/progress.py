"""Progress bars for work that tells its stages."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from justright.cli.output import Output

T = TypeVar("T")


@contextmanager
def kept_work(output: Output, out: Path) -> Iterator[None]:
    """Say, on Ctrl-C, what became of the work."""
    try:
        yield
    except KeyboardInterrupt:
        where = (
            f"{out} is complete but for its figures"
            if out.exists()
            else f"what is done is kept in {out}.partial"
        )
        output.note(f"interrupted: {where}; the same command goes on from there")
        raise


def with_progress(output: Output, run: Callable[[Callable[[str, int, int], None]], T]) -> T:
    """Call ``run`` with a function ``(stage, done, in all)`` that draws a bar for every stage, if bars are wanted."""
    if not output.progress:
        return run(lambda *_: None)
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=output.console(stderr=True), transient=True) as bar:
        rows: dict[str, Any] = {}

        def tick(stage: str, done: int, total: int) -> None:
            if stage not in rows:
                rows[stage] = bar.add_task(stage, total=total)
            bar.update(rows[stage], completed=done, total=total)

        return run(tick)
