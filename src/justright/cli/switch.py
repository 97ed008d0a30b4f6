"""``justright switch``: slow and fast thinking in one model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from justright.cli.options import Dtype, Json, chosen
from justright.cli.output import Output, output_of
from justright.cli.progress import with_progress
from justright.errors import UsageError
from justright.readable import readable_bytes

if TYPE_CHECKING:
    from justright.switch.extract import Extracted

app = typer.Typer(
    no_args_is_help=True,
    help="Slow and fast thinking in one model: the difference between a reasoning model and the model that it was "
    "trained from, as a low-rank adapter (Gold-Switch, arXiv:2510.06750).",
)

_RANK = "Rank"


@app.command("extract")
def extract(
    ctx: typer.Context,
    slow: Annotated[str, typer.Argument(help="The reasoning model.", show_default=False)],
    fast: Annotated[str, typer.Argument(help="The model that it was trained from.", show_default=False)],
    out: Annotated[Path, typer.Option("--out", "-o", help="The directory to create.", show_default=False)],
    form: Annotated[
        str,
        typer.Option(
            help="compact: a PEFT adapter, each matrix with its own rank; portable: padded to one rank, for vLLM, "
            "SGLang and llama.cpp; merged: a checkpoint with the adapter baked in."
        ),
    ] = "compact",
    rule: Annotated[
        str, typer.Option(help="energy, entropy, fixed or ratio.", rich_help_panel=_RANK)
    ] = "energy",
    value: Annotated[
        float,
        typer.Option(
            help="energy: the share of sum s^power that is kept; fixed: the rank; ratio: the share of the full rank.",
            rich_help_panel=_RANK,
        ),
    ] = 0.9,
    power: Annotated[int, typer.Option(help="Of the singular values: 1 or 2.", rich_help_panel=_RANK)] = 2,
    scope: Annotated[
        str,
        typer.Option(help="The share is of every matrix, layer, or of all (global).", rich_help_panel=_RANK),
    ] = "matrix",
    budget: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="BYTES",
            help="The most energy whose factors fit, instead of --value.",
            rich_help_panel=_RANK,
            show_default=False,
        ),
    ] = None,
    max_rank: Annotated[
        int,
        typer.Option(min=1, help="Directions of each matrix that --spectra keeps.", rich_help_panel=_RANK),
    ] = 512,
    factor: Annotated[
        float, typer.Option(help="Of a merged checkpoint: 0 is the slow model, 1 the fast one.")
    ] = 1.0,
    spectra: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Keep the decompositions here, or take them from here: another rule then needs none.",
            show_default=False,
        ),
    ] = None,
    dtype: Dtype = "float32",
    as_json: Json = False,
) -> None:
    """Decompose what reasoning added to a model, and write what takes it away again.

    One matrix at a time, exactly, in float32. Interrupted, the same command goes on at the last finished layer.
    """
    output = output_of(ctx)
    if out.exists():
        raise UsageError(f"{out} exists already: choose another output, or remove it first")
    if factor != 1 and form != "merged":
        raise UsageError(
            "--factor is baked into a merged checkpoint only; an adapter is scaled where it is used"
        )
    unused = [
        ("value", rule == "entropy" or budget is not None),
        ("power", rule != "energy"),
        ("dtype", form == "merged"),
    ]
    for name, ignored in unused:
        if ignored and chosen(ctx, name, True, False):
            raise UsageError(f"--{name} has no meaning beside the other options: leave it out")
    if budget is not None and rule != "energy":
        raise UsageError(
            f"--budget finds the most energy that fits, and {rule} looks at no energy: leave one out"
        )
    with output.status("reading both models"):
        from justright.engine.options import EngineOptions
        from justright.models.sources import resolve
        from justright.switch.extract import extract as run
        from justright.switch.pair import Pair
        from justright.switch.ranks import RankRule

        wanted = RankRule(rule, value, power, scope)  # type: ignore[arg-type]  # checked there
        options = EngineOptions(dtype=dtype)
        pair = Pair(resolve(slow).path, resolve(fast).path)
    found = with_progress(
        output,
        lambda tick: run(
            pair,
            out,
            wanted,
            form=form,  # type: ignore[arg-type]  # checked there
            budget=budget,
            factor=factor,
            max_rank=max_rank,
            dtype=options.torch_dtype,
            spectra=spectra,
            tick=tick,
        ),
    )
    if output.json:
        output.object(found.to_dict())
    else:
        _show(output, found)


def _show(output: Output, found: Extracted) -> None:
    ranks = sorted(found.ranks.values())
    output.text(
        f"{found.path}: {found.form}, {len(ranks)} matrices of rank {ranks[0]} to {ranks[-1]} "
        f"(median {ranks[len(ranks) // 2]}), {readable_bytes(found.bytes)} of factors, {found.energy:.1%} of the energy"
    )
    far = [(name, distance) for name, distance in found.residuals.items() if distance > 0]
    if far:
        shown = ", ".join(f"{name} {distance:.3f}" for name, distance in far[:3])
        output.note(
            f"note: {len(far)} tensors differ and are not covered (norms, embeddings, head, routers); farthest: {shown}"
        )
