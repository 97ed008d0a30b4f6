"""``justright zoo``: the small models of the project, their measured results, and how they are trained."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from justright.cli.options import Json
from justright.cli.output import output_of
from justright.cli.progress import with_words
from justright.errors import MissingExtraError, install_command
from justright.readable import readable_bytes, readable_count

app = typer.Typer(
    name="zoo", help="Small trained models that behave like large ones.", invoke_without_command=True
)

Name = Annotated[
    str, typer.Argument(metavar="NAME", help="Name of a zoo model, without `zoo:`.", show_default=False)
]


@app.callback()
def show(ctx: typer.Context, as_json: Json = False) -> None:
    """List the models: what they are, where they come from, their measured results."""
    if ctx.invoked_subcommand is not None:
        return
    _need_zoo()
    from justright_zoo.cards import cards

    output = output_of(ctx)
    found = cards()
    if output.json:
        for card in found:
            output.object(card.to_dict())
        return
    if not found:
        output.text("This copy of justright-zoo contains no model; `justright zoo build NAME` trains one.")
        return
    from rich.table import Table

    table = Table(title="The zoo", show_lines=True)
    for title in ("model", "description", "made from", "size", "results"):
        table.add_column(title)
    for card in found:
        table.add_row(
            f"zoo:{card.name}", card.description, card.origin, readable_bytes(card.size_bytes), card.summary
        )
    output.table(table)
    output.text(
        "justright zoo measure NAME: measure a model again; justright zoo build NAME: rerun its recipe"
    )


@app.command("measure")
def measure(
    ctx: typer.Context,
    name: Name,
    problems: Annotated[int, typer.Option(min=1, max=200, help="Problems of each kind and level.")] = 50,
    model: Annotated[
        Path | None,
        typer.Option(help="Checkpoint to measure, such as your own build.  (default: the packaged one)"),
    ] = None,
    picture: Annotated[
        Path | None, typer.Option(help="File for a picture of the expert routing (PNG).")
    ] = None,
    as_json: Json = False,
) -> None:
    """Measure what the model's card reports, from its weights, on held-out problems.

    Accuracy and tokens by difficulty; for zoo:moe also perplexity by domain, compared with the dense model of its
    active size, and how its experts share the domains.
    """
    _need_zoo()
    if picture is not None:
        from justright.bench.demo_picture import check_picture

        check_picture(picture)
    output = output_of(ctx)
    with output.status("starting torch"):
        from justright_zoo.cards import measure_model, tables

    with output.status(f"measuring zoo:{name}"):
        measured = measure_model(name, problems, picture, folder=model)
    if output.json:
        output.object(measured)
    else:
        for title, header, rows in tables(measured):
            output.table(_table(title, header, rows))


@app.command("build")
def build(
    ctx: typer.Context,
    name: Name,
    out: Annotated[Path | None, typer.Option(help="The directory to create.  (default: zoo-NAME)")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Two steps only, and an estimate for this machine.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Train a model of the zoo again, by its original recipe. If interrupted, the same command continues."""
    _need_zoo()
    output = output_of(ctx)
    with output.status("starting torch"):
        from justright_zoo.recipes.build import build as run
        from justright_zoo.recipes.build import check, estimate, work_folder

    check(name)
    work = work_folder()
    if dry_run:
        with output.status("preparing the texts and timing two steps"):
            found = estimate(name, work)
        if output.json:
            output.object(found.to_dict())
        else:
            output.text(
                f"{readable_count(found.parameters)} parameters, {readable_count(found.tokens)} tokens: about "
                f"{found.seconds / 60:.0f} minutes here; result {readable_bytes(found.size_bytes)}"
            )
        return

    def reported(report: Callable[[str, int, int, str], None]) -> Path:
        report(name, 0, 0, "preparing")
        made: Path = run(
            name,
            work,
            out or Path(f"zoo-{name}"),
            lambda step, steps, loss, rate: report(
                name, step, steps, f"loss {loss:.3f}, {rate:.0f} tokens/s"
            ),
        )
        return made

    path = with_words(output, reported)
    if output.json:
        output.object({"path": str(path)})
    else:
        output.text(str(path))


def _table(title: str, header: list[str], rows: list[list[str]]) -> Any:
    from rich.table import Table

    table = Table(title=title)
    for name in header:
        table.add_column(name, justify="left" if name == header[0] else "right")
    for row in rows:
        table.add_row(*row)
    return table


def _need_zoo() -> None:
    """Check that the package with the models is installed.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        import justright_zoo  # noqa: F401
    except ImportError as error:
        raise MissingExtraError(
            f"the zoo is a package of its own; {install_command(folder='packages/justright-zoo')}"
        ) from error
