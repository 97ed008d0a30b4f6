"""The demonstration's picture: accepted tokens along each output, and both throughputs. Needs matplotlib."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from justright.bench.contenders import PLAIN, Generation
from justright.bench.tables import machine_line, steadiness_line
from justright.errors import MissingExtraError, UsageError, install_command
from justright.files import check_output

if TYPE_CHECKING:
    from justright.bench.decode import Cell, Results

# Okabe and Ito's colours, which colour-blind people can distinguish.
_BLUE, _ORANGE, _GREY = "#0072B2", "#E69F00", "#595959"


def need_matplotlib() -> None:
    """Check that matplotlib is installed.

    Raises:
        MissingExtraError: it cannot be imported.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise MissingExtraError(
            f"the picture needs matplotlib; {install_command('plots')}, or give --no-picture"
        ) from error


def check_picture(file: Path) -> None:
    """Check before the work that a picture can be drawn and written.

    Raises:
        UsageError: the folder does not exist, or matplotlib does not support the format.
        MissingExtraError: matplotlib is not installed.
    """
    check_output(file)
    need_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    known = FigureCanvasAgg.get_supported_filetypes()
    if file.suffix.removeprefix(".").lower() not in known:
        raise UsageError(
            f"the file name of the picture is {file}; allowed endings: .png, .svg, .pdf and other picture formats"
        )


def save_picture(results: Results, draft: str, file: Path) -> Path:
    """Draw the tasks that both ``plain`` and ``draft`` have run, one row each."""
    need_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = [(task, row) for task, row in results.cells.items() if PLAIN in row and draft in row]
    figure = Figure(figsize=(11, 1.9 * len(rows) + 1.5), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(len(rows), 2, squeeze=False, width_ratios=(2.6, 1), sharex="col")
    top = max(step[2] + 1 for _, row in rows for step in _steps(row[draft].runs[0]))
    fastest = max(row[name].spread("tokens_per_s")[1] for _, row in rows for name in (PLAIN, draft))
    for (task, row), (left, right) in zip(rows, grid, strict=True):
        _acceptance(left, task, row[draft], top)
        _speeds(right, row, draft, fastest)
    grid[-1][0].set_xlabel("position in the output (tokens)")
    grid[-1][1].set_xlabel("decode speed (tokens/s)")
    figure.suptitle(
        f"Plain decoding and {draft} drafts: the same tokens, verified several at a time",
        fontsize=13,
        weight="bold",
    )
    figure.supxlabel(
        f"{machine_line(results.machine)}\n{steadiness_line(results)}",
        fontsize=8,
        color=_GREY,
    )
    figure.savefig(file, dpi=130)
    return file


def _steps(run: Generation) -> list[tuple[int, int, int]]:
    return run.steps or [(1, 0, 0)]


def _acceptance(axes: Any, task: str, cell: Cell, top: int) -> None:
    """Draw a bar per verification; width and height are the number of tokens that it yields."""
    run = cell.runs[0]
    steps = _steps(run)
    end = len(run.token_ids)
    given = [min(accepted + 1, end - start) for start, _, accepted in steps]
    axes.bar(
        [start for start, _, _ in steps],
        [accepted + 1 for _, _, accepted in steps],
        width=given,
        align="edge",
        color=_ORANGE,
        edgecolor="white",
        linewidth=0.6,
    )
    mean = run.acceptance_length
    axes.axhline(mean, color=_BLUE, linewidth=1.4, linestyle="--")
    kind, _, context = task.partition("@")
    axes.set_title(f"{kind}, {context} tokens of context", loc="left", fontsize=10, weight="bold")
    axes.set_title(f"mean {mean:.2f} tokens per verification (dashed)", loc="right", fontsize=9, color=_BLUE)
    axes.set_ylim(0, top + 1)
    axes.set_xlim(0, end)
    axes.set_ylabel("tokens per\nverification", fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)


def _speeds(axes: Any, row: dict[str, Cell], draft: str, fastest: float) -> None:
    names = [draft, PLAIN]
    values = [row[name].median("tokens_per_s") for name in names]
    axes.barh(names, values, color=[_ORANGE, _BLUE], height=0.62)
    for name, value in zip(names, values, strict=True):
        note = f"{value:.1f}" if name == PLAIN else f"{value:.1f}  ({value / values[1]:.2f}x)"
        axes.text(value + 0.02 * fastest, name, note, va="center", fontsize=9)
    axes.set_xlim(0, fastest * 1.45)
    verdict = str(row[draft].agreement or "")
    axes.set_title(f"output: {verdict}", loc="left", fontsize=9, color=_GREY)
    axes.spines[["top", "right"]].set_visible(False)
