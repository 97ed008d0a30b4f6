"""Tables of results, for the terminal (rich) and for documents (Markdown)."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from justright.bench.contenders import LOOKUP, PLAIN, TRANSFORMERS

if TYPE_CHECKING:
    from rich.table import Table

    from justright.bench.decode import Cell, Results

STEADY = 1.25
"""Limit of `unsteadiness`; above it, ratios are not reliable."""

HEADER = (
    "task", "contender", "tokens/s", "min-max", "x transformers", "x plain", "tokens/step", "prefill s", "output",
)  # fmt: skip


def rows(results: Results) -> list[tuple[str, ...]]:
    """One row per task and contender; ratios are those of medians."""
    found = []
    for task, row in results.cells.items():
        for name, cell in row.items():
            if cell.runs:
                found.append(_row(task, name, cell, row))
    return found


def _row(task: str, name: str, cell: Cell, others: dict[str, Cell]) -> tuple[str, ...]:
    low, high = cell.spread("tokens_per_s")
    cells = [
        task,
        name,
        f"{cell.median('tokens_per_s'):.1f}",
        f"{low:.1f}-{high:.1f}",
        ratio(cell, others.get(TRANSFORMERS)),
        ratio(cell, others.get(PLAIN)),
        f"{cell.median('acceptance_length'):.2f}",
        f"{cell.median('prefill_s'):.2f}",
        str(cell.agreement or "-"),
    ]
    if cell.peak_bytes is not None:
        cells[-1] += f"; peak {cell.peak_bytes / 2**20:.0f} MiB"
    return tuple(cells)


def speed_ratio(cell: Cell, other: Cell | None) -> float | None:
    """Ratio of the median throughputs of two cells; None without results."""
    if other is None or not other.runs or not cell.runs:
        return None
    return cell.median("tokens_per_s") / other.median("tokens_per_s")


def ratio(cell: Cell, other: Cell | None) -> str:
    """`speed_ratio` as text."""
    value = speed_ratio(cell, other)
    return "" if value is None else f"{value:.2f}"


def median_ratio(results: Results, name: str, other: str) -> float | None:
    """Median over the tasks of the speed ratio of two contenders."""
    found = [speed_ratio(row[name], row.get(other)) for row in results.cells.values() if name in row]
    known = [value for value in found if value is not None]
    return statistics.median(known) if known else None


def unsteadiness(results: Results) -> float:
    """Largest ratio of times that the same work took within the measurement; 1 is best.

    The same work: a cell's repeats, and the prefills of one task by justright's contenders.
    """
    worst = 1.0
    for row in results.cells.values():
        groups = [[run.tokens_per_s for run in cell.runs] for cell in row.values()]
        ours = [cell for name, cell in row.items() if name not in (TRANSFORMERS, LOOKUP)]
        prefills = [run.prefill_s for cell in ours for run in cell.runs]
        groups.append([seconds for seconds in prefills if seconds is not None])
        worst = max([worst, *(max(group) / max(min(group), 1e-9) for group in groups if group)])
    return worst


def steadiness_line(results: Results) -> str:
    """A sentence on the reliability of the ratios."""
    worst = unsteadiness(results)
    repeats = max((len(cell.runs) for row in results.cells.values() for cell in row.values()), default=0)
    if worst < STEADY and repeats < 2:
        return "One repeat: whether the machine was steady is not known."
    if worst < STEADY:
        return f"The machine was steady: the same work took the same time within {worst:.2f}x."
    return f"THE MACHINE WAS BUSY: the same work differed by up to {worst:.1f}x in time. Stop other work and repeat."


def cost_rows(cost: dict[str, Any]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Header and rows of the verification cost: milliseconds, and the ratio of 8 tokens to 1."""
    sizes = cost["sizes"]
    header = ("context", *(f"{size} token{'s' if size > 1 else ''}" for size in sizes), "cost(8) / cost(1)")
    found = []
    for context, times in zip(cost["contexts"], cost["ms"], strict=True):
        eight = f"{times[sizes.index(8)] / times[0]:.2f}" if 8 in sizes else ""
        found.append((str(context), *(f"{one:.1f} ms" for one in times), eight))
    return header, found


def fitted(
    header: Sequence[str], body: Sequence[Sequence[str]], width: int
) -> tuple[list[str], list[list[str]]]:
    """Header and rows for a terminal: no empty columns, each task's name once, fewer columns if it is narrow."""
    dropped = ("min-max", "prefill s") if width < 120 else ()
    used = [i for i, name in enumerate(header) if name not in dropped and any(row[i] for row in body)]
    kept = [[row[i] for i in used] for row in body]
    for index in range(len(kept) - 1, 0, -1):
        if kept[index][0] == kept[index - 1][0]:
            kept[index][0] = ""
    return [header[i] for i in used], kept


def rich_table(title: str, header: Sequence[str], body: Sequence[Sequence[str]], left: int = 1) -> Table:
    """A terminal table; the first ``left`` columns, and the last one if ``left > 1``, are text, the others numbers."""
    from rich.box import SIMPLE_HEAD
    from rich.markup import escape
    from rich.table import Table

    table = Table(
        title=escape(title), title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False
    )
    for index, name in enumerate(header):
        text = index < left or (index == len(header) - 1 and left > 1)
        table.add_column(name, justify="left" if text else "right", overflow="fold", no_wrap=index < left)
    for row in body:
        table.add_row(*(escape(cell) for cell in row))
    return table


def markdown_table(header: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [" | ".join(header), " | ".join("---" for _ in header), *(" | ".join(row) for row in body)]
    return "\n".join(f"| {line} |" for line in lines) + "\n"


def machine_line(machine: dict[str, Any]) -> str:
    """One line on machine and versions, for below a table."""
    versions = machine["versions"]
    threads = f"{machine['threads']} thread{'s' if machine['threads'] > 1 else ''}"
    place = machine["gpu"] or f"{machine['processor']}, {machine['cores']} cores, {threads}"
    return (
        f"{place}; {machine['created'][:10]}; justright {machine['justright']}, torch {versions.get('torch')}, "
        f"transformers {versions.get('transformers')}, Python {versions.get('python')}"
    )
