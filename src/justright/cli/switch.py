"""``justright switch``: slow and fast mode in one model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from justright.adapter.rank_rules.base import RULES
from justright.cli.options import CpuKernels, Device, Dtype, Json, Model, engine_options, is_given
from justright.cli.output import Terminal, output_of
from justright.cli.progress import with_progress
from justright.errors import UsageError
from justright.files import check_new
from justright.readable import readable_bytes, readable_seconds

if TYPE_CHECKING:
    from justright.adapter.extract import Extracted, ExtractEstimate
    from justright.adapter.inspection import Inspected
    from justright.reasoning.scorers import Probe

app = typer.Typer(
    no_args_is_help=True,
    help="Slow and fast mode in one model: the difference between a reasoning model and the model that it was "
    "trained from, as a low-rank adapter (Gold-Switch, arXiv:2510.06750).",
)

_rank = partial(typer.Option, rich_help_panel="Rank")
_work = partial(typer.Option, rich_help_panel="Work")


@app.command("extract")
def extract(
    ctx: typer.Context,
    slow: Annotated[str, typer.Argument(help="The reasoning model.")],
    fast: Annotated[str, typer.Argument(help="The model that it was trained from.")],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="The directory to create.")] = None,
    form: Annotated[
        str,
        typer.Option(
            help="Format of the result. compact: a PEFT adapter with a rank for each matrix; portable: padded to one "
            "rank, for vLLM, SGLang and llama.cpp; merged: a checkpoint with the adapter added to its weights."
        ),
    ] = "compact",
    rule: Annotated[str, _rank(help=f"Rank rule. {RULES.help()}.")] = "energy",
    value: Annotated[float, _rank(help="Share or rank for the rank rule.")] = 0.9,
    power: Annotated[int, _rank(help="Power of the singular values: 1 or 2.")] = 2,
    scope: Annotated[str, _rank(help="What the share refers to: matrix, layer or global.")] = "matrix",
    budget: Annotated[
        int | None,
        _rank(
            min=1,
            metavar="BYTES",
            help="Most bytes of the low-rank factors, instead of --value; other small tensors come on top.  "
            "(default: none)",
        ),
    ] = None,
    max_rank: Annotated[
        int, _rank(min=1, help="Directions computed for each matrix; a rule that needs more is an error.")
    ] = 512,
    factor: Annotated[
        float, typer.Option(help="Adapter scale of a merged checkpoint: 0 is the slow model, 1 the fast one.")
    ] = 1.0,
    exact: Annotated[
        bool | None,
        typer.Option(
            "--exact/--no-exact",
            help="Exact changes of norms, biases and routers in the adapter; only justright reads them.  (default: "
            "--exact, for a portable adapter --no-exact)",
        ),
    ] = None,
    spectra: Annotated[
        Path | None,
        _work(
            metavar="DIR",
            help="Directory for the decompositions, written or reused: another rule then computes none.",
        ),
    ] = None,
    svd: Annotated[
        str,
        _work(
            help="Decomposition: exact, or randomized (much faster where --max-rank is far below the matrices' size)."
        ),
    ] = "exact",
    workers: Annotated[int, _work(min=1, help="Layers decomposed at once.")] = 1,
    device: Annotated[str, _work(help="Torch device for the decomposition.")] = "cpu",
    dtype: Dtype = "float32",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only checks, and estimates of time and memory; writes nothing.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Decompose what reasoning training added to a model, and write an adapter that removes it.

    One matrix at a time, exactly, in float32. If interrupted, the same command continues after the last finished layer.
    """
    output = output_of(ctx)
    if out is None and not dry_run:
        raise UsageError("there is no output directory: give -o DIR, or --dry-run")
    if out is not None:
        check_new(out)
    if factor != 1 and form != "merged":
        raise UsageError(
            f"--factor applies to --form merged only, not to {form}: leave it out, and set the scale of an adapter "
            "when you use it"
        )
    takes = RULES.get(rule).takes
    unused = [
        ("value", "value" not in takes or budget is not None),
        ("power", "power" not in takes),
        ("dtype", form == "merged"),
    ]
    for name, ignored in unused:
        if ignored and is_given(ctx, name):
            raise UsageError(f"--{name} has no effect with the other options given: leave it out")
    if budget is not None and rule != "energy":
        raise UsageError(
            f"--budget works with --rule energy only, not with {rule}: leave out --budget or --rule"
        )
    with output.status("reading both models"):
        from justright.adapter.extract import estimate
        from justright.adapter.extract import extract as run
        from justright.adapter.pair import Pair
        from justright.adapter.ranks import RankRule
        from justright.checkpoint.sources import resolve
        from justright.engine.options import EngineOptions

        wanted = RankRule(rule, value, power, scope)  # type: ignore[arg-type]  # validated there
        options = EngineOptions(dtype=dtype, device=device)
        torch_device = options.torch_device
        pair = Pair(resolve(slow).path, resolve(fast).path)
    for note in pair.notes():
        output.note(f"note: {note}")
    carried = form != "portable" if exact is None else exact
    if dry_run:
        _show_estimate(output, estimate(pair, max_rank, svd, torch_device, exact=carried))  # type: ignore[arg-type]  # validated there
        return
    assert out is not None
    found = with_progress(
        output,
        lambda tick: run(
            pair,
            out,
            wanted,
            form=form,  # type: ignore[arg-type]  # validated there
            budget=budget,
            factor=factor,
            max_rank=max_rank,
            exact=exact,
            svd=svd,  # type: ignore[arg-type]  # validated there
            workers=workers,
            device=torch_device,
            dtype=options.torch_dtype,
            spectra=spectra,
            tick=tick,
        ),
    )
    if output.json:
        output.object(found.to_dict())
    else:
        _show(output, found)


def _show_estimate(output: Terminal, found: ExtractEstimate) -> None:
    if output.json:
        output.object(asdict(found))
        return
    output.text(
        f"{found.matrices} matrices, {found.numbers:,} parameters: about {readable_seconds(found.seconds)} to "
        f"decompose, at most {readable_bytes(found.spectra_bytes)} of spectra, "
        f"{readable_bytes(found.memory_bytes)} of memory for the largest matrix"
    )
    _show_residuals(output, found.residuals)


@app.command("inspect")
def inspect(
    ctx: typer.Context,
    adapter: Annotated[str, typer.Argument(help="A switch: its directory or hub id.")],
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="FILE.png", help="Picture of spectra and ranks (PNG)."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Show a switch's spectra, its size and cost at each share of the energy, and where noise begins."""
    from justright.checkpoint.sources import resolve_adapter
    from justright.files import check_output

    output = output_of(ctx)
    if out is not None:
        check_output(out)
        if out.suffix != ".png":
            raise UsageError(f"the picture {out} is not a PNG file: give a name that ends in .png")
        from justright.bench.demo_picture import need_matplotlib

        need_matplotlib()
    path = resolve_adapter(adapter, progress=output.progress)
    with output.status("reading the spectra"):
        from justright.adapter.adapter import read_adapter
        from justright.adapter.inspection import draw, inspect_switch

        read_adapter(path)  # a damaged adapter is an error, whatever its spectra
        found = inspect_switch(path)
    if out is not None:
        draw(found, out)
    if output.json:
        output.object(found.to_dict())
        return
    _show_inspected(output, adapter, found)
    if out is not None:
        output.note(f"written: {out}")


def _show_inspected(output: Terminal, adapter: str, found: Inspected) -> None:
    from justright.bench.tables import rich_table

    rows = [
        (
            f"{one.tau:g}",
            str(one.median_rank),
            str(one.largest_rank),
            readable_bytes(one.bytes),
            f"{one.size:.1%}",
        )
        if one.known
        else (f"{one.tau:g}", *["unknown"] * 4)
        for one in found.taus
    ]
    header = (
        "energy",
        "median rank",
        "largest rank",
        "size in bfloat16",
        "share of the matrices' size and compute",
    )
    output.table(rich_table(adapter, header, rows, left=1))
    kinds = [
        (kind, str(one["matrices"]), str(one["full_rank"]), str(one["median_signal"] or "unknown"))
        for kind, one in found.to_dict()["kinds"].items()
    ]  # fmt: skip
    columns = ("matrix", "number", "full rank", "median signal rank")
    output.table(rich_table("Above the noise", columns, kinds, left=1))
    _show_residuals(output, dict(found.report.get("residuals", {})))


@app.command("calibrate")
def calibrate(
    ctx: typer.Context,
    model: Model,
    switch: Annotated[str, typer.Option(help="Directory of the adapter; auto.json is written there.")],
    problems: Annotated[
        list[str],
        typer.Option(
            help='Problems: JSON lines {"question": ..., "answer": ...}, or a set of an installed package (zoo, '
            "zoo:chain-3); repeatable. Some hundreds, similar to the intended use."
        ),
    ],
    floor: Annotated[
        float,
        typer.Option(
            min=0.0,
            max=1.0,
            help="Least accuracy; the threshold with the fewest tokens that reaches it is chosen.",
        ),
    ] = 0.9,
    max_tokens: Annotated[
        int, typer.Option(min=1, help="Most tokens of an answer, reasoning included.")
    ] = 1024,
    judge: Annotated[
        list[str] | None,
        typer.Option(
            "--filter",
            help="Filter of lm-eval that extracts the final answer from a text: its name, or JSON such as "
            '{"function": "regex", "regex_pattern": "#### ([0-9]+)"}; repeatable, applied in order.  (default: '
            "built-in rules)",
        ),
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Problems answered at once.")] = 16,
    dtype: Dtype = "float32",
    device: Device = "auto",
    cpu_kernels: CpuKernels = None,
    as_json: Json = False,
) -> None:
    """Learn which prompts need reasoning: fit the probe of --effort auto and the threshold of escalate.

    Every problem is answered in both modes. A probe on the prompt's last hidden state learns where the fast answer is
    wrong; the threshold is the one with the fewest tokens that meets the floor on held-out problems. The answers are
    kept for another --floor or --filter. If interrupted, the same command continues after the last 32 problems.
    """
    from justright.checkpoint.sources import resolve_adapter

    output = output_of(ctx)
    folder = resolve_adapter(switch, progress=output.progress)
    with output.status("starting torch"):
        from justright.engine.llm import LLM
        from justright.engine.options import EngineOptions
        from justright.evaluate.both_modes import calibrate as run
        from justright.evaluate.both_modes import read_questions
        from justright.evaluate.judge import filtered, is_right
        from justright.evaluate.run import need_lm_eval
        from justright.reasoning.thresholds import ADVISED, check_asked

    questions = read_questions(problems)
    check_asked(len(questions), floor)
    if judge:
        need_lm_eval()
    judged = filtered(judge) if judge else is_right
    if len(questions) < ADVISED:
        output.note(
            f"note: with {len(questions)} problems intervals are wide and thresholds uncertain: give {ADVISED} or more"
        )
    own = {"slots": batch, "draft": "none", "switch": str(folder), "generation_config": "none"}
    options = EngineOptions(**engine_options(ctx, **own))
    with output.status(f"loading {model}"):
        engine = LLM(model, options)
    try:
        probe = with_progress(
            output,
            lambda tick: run(
                engine,
                questions,
                folder,
                floor=floor,
                max_tokens=max_tokens,
                judge=judged,
                identity={"dtype": dtype},
                tick=tick,
            ),
        )
    except KeyboardInterrupt:
        output.note(
            f"interrupted: the answers so far are kept in {folder}.calibration; the same command continues from there"
        )
        raise
    if output.json:
        output.object({"adapter": str(folder), "threshold": probe.threshold} | dict(probe.about))
    else:
        _show_calibrated(output, folder, probe)


def _show_calibrated(output: Terminal, folder: Path, probe: Probe) -> None:
    from justright.bench.tables import rich_table

    about = probe.about
    points = {
        f"always {mode}" if mode != "oracle" else mode: point for mode, point in about["always"].items()
    }
    points |= {"auto": about["auto"], "escalate": about["escalate"]}
    rows = [
        (
            name,
            _with_interval(one, "accuracy"),
            _with_interval(one, "tokens", ""),
            _with_interval(one, "slow"),
            f"{one['threshold']:.3f}" if name in ("auto", "escalate") else "",
        )
        for name, one in points.items()
    ]
    title = f"{about['problems']} problems, accuracy floor {about['floor']:.0%} (95% intervals)"
    output.table(rich_table(title, ("mode", "accuracy", "tokens", "slow mode", "threshold"), rows, left=1))
    output.note(f"written: {folder / 'auto.json'}")


def _with_interval(one: Mapping[str, Any], name: str, unit: str = "%") -> str:
    """Format a figure with its 95% interval: ``87% (83 to 90)``."""
    scale = 100 if unit == "%" else 1
    value, low, high = (f"{scale * number:.0f}" for number in (one[name], *one[f"{name}_95"]))
    return f"{value}{unit} ({low} to {high})"


def _show(output: Terminal, found: Extracted) -> None:
    ranks = sorted(found.ranks.values())
    output.text(
        f"{found.path}: {found.form}, {len(ranks)} matrices of rank {ranks[0]} to {ranks[-1]} "
        f"(median {ranks[len(ranks) // 2]}), {readable_bytes(found.bytes)}, {found.energy:.1%} of the energy"
    )
    _show_residuals(output, found.residuals)


def _show_residuals(output: Terminal, residuals: Mapping[str, float]) -> None:
    largest = sorted(
        ((name, distance) for name, distance in residuals.items() if distance > 0), key=lambda one: -one[1]
    )
    if largest:
        shown = ", ".join(f"{name} {distance:.3f}" for name, distance in largest[:3])
        output.note(
            f"note: {len(largest)} tensors that differ keep the slow model's values; largest: {shown}"
        )
