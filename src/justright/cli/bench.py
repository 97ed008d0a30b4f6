"""``justright bench`` and ``justright demo``: measurements of the engine, and a demonstration."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from justright.cli.options import CpuKernels, Device, Dtype, Json, Model, chosen, is_given
from justright.cli.output import Terminal, output_of
from justright.cli.progress import with_words
from justright.errors import UsageError
from justright.files import check_output

if TYPE_CHECKING:
    from justright.bench.decode import Results
    from justright.bench.demo import Demo
    from justright.progress import ProgressCallback

T = TypeVar("T")

app = typer.Typer(name="bench", help="Measure the engine, compared with transformers.", no_args_is_help=True)

_WIDE = 140
"""Width of the output of `bench longspec`, in terminal columns."""
_DEMO_MODEL = "packaged:smollm2-135m-instruct"
_QUICK_CONTEXT = 1024
_BUCKETS = "1024,2048,4096,8192,16384,32768,65536"
_Kinds = Annotated[
    str, typer.Option(help="Kinds of tasks, separated by commas.  (default: all)", show_default=False)
]
_Tokens = Annotated[int, typer.Option(min=2, help="Output tokens of each run.")]
_Seed = Annotated[int, typer.Option(help="Seed of the choice of texts.")]
_Results = Annotated[
    Path | None,
    typer.Option(
        help="JSON file for results, written after each run; an interrupted benchmark continues from it."
    ),
]


@app.command("decode")
def decode(
    ctx: typer.Context,
    model: Model,
    context: Annotated[
        str, typer.Option(help="Prompt lengths in tokens, separated by commas.")
    ] = "1024,4096",
    tasks: _Kinds = "",
    contenders: Annotated[
        str,
        typer.Option(
            help="Contenders, separated by commas: plain, a drafter's name, transformers, transformers-lookup.  "
            "(default: all, with the drafter of --draft)",
            show_default=False,
        ),
    ] = "",
    tokens: _Tokens = 128,
    repeats: Annotated[int, typer.Option(min=1, help="Runs per task and contender, interleaved.")] = 3,
    draft: Annotated[
        str | None,
        typer.Option(help="Drafter of the default contenders.  (default: the bundle's, else suffix)"),
    ] = None,
    memory: Annotated[
        bool, typer.Option("--memory", help="Peak memory too; each contender runs in its own process.")
    ] = False,
    quick: Annotated[
        bool,
        typer.Option(
            "--quick",
            help="Smaller defaults: a context of 1,024 tokens (or what fits), 32 output tokens, one repeat.",
        ),
    ] = False,
    dtype: Dtype = "float32",
    device: Device = "auto",
    cpu_kernels: CpuKernels = None,
    out: _Results = None,
    as_json: Json = False,
) -> None:
    """Decode the same prompts in several ways, and report speeds, ratios, and whether the outputs agree.

    Exits with code 1 if an output differs by more than floating-point noise.
    """
    output = output_of(ctx)
    if quick:
        tokens, repeats = chosen(ctx, "tokens", tokens, 32), chosen(ctx, "repeats", repeats, 1)
    with output.status("starting torch"):
        from justright.bench.contenders import bundled_choice
        from justright.bench.decode import DecodeSetting, fitting_length
        from justright.bench.demo import refuse_mismatches
        from justright.bench.running import DecodePlan, numbers, run_plan, words
        from justright.bench.tasks import KINDS
        from justright.checkpoint.sources import resolve

    if not contenders:
        draft = draft or bundled_choice(resolve(model).path) or "suffix"
    names = contenders or f"plain,{draft},transformers,transformers-lookup"
    engine = {"dtype": dtype, "device": device, "cpu_kernels": cpu_kernels}
    setting = DecodeSetting(tuple(words(names)), tokens, repeats, engine)
    kinds = tuple(words(tasks)) or KINDS
    lengths = numbers(context)
    if quick and not is_given(ctx, "context"):
        lengths = (fitting_length(resolve(model).path, kinds, _QUICK_CONTEXT, tokens),)
    plan = DecodePlan(model, kinds, lengths, setting, memory)
    results = _measured(output, lambda progress: run_plan(plan, out, progress))
    if output.json:
        output.object(results.to_dict())
    else:
        _show(output, results)
    refuse_mismatches(results)


@app.command("longspec")
def longspec(
    ctx: typer.Context,
    model: Model,
    draft: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[LABEL=]NAME[:OPTION=VALUE;...]",
            help="A contender: plain, a drafter (your own too), transformers, transformers-lookup; repeatable.  "
            "(default: plain, suffix, recycling; with a trained drafter also lstm, hybrid)",
        ),
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(
            help="File of prompts from `justright bench longset`.  (default: prompts from the zoo's texts)"
        ),
    ] = None,
    buckets: Annotated[
        str, typer.Option(help="Prompt lengths in tokens; those beyond the model's context are left out.")
    ] = _BUCKETS,
    kinds: _Kinds = "",
    per_cell: Annotated[int, typer.Option(min=1, help="Prompts of each kind and length.")] = 1,
    tokens: _Tokens = 128,
    repeats: Annotated[int, typer.Option(min=1, help="Runs per prompt and contender, interleaved.")] = 3,
    seed: _Seed = 0,
    dtype: Dtype = "float32",
    device: Device = "auto",
    cpu_kernels: CpuKernels = None,
    out: _Results = None,
    picture: Annotated[
        Path | None,
        typer.Option(help="File for a picture of acceptance, speed and cost by length (needs matplotlib)."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Measure drafters on long prompts (LongSpecBench): acceptance, speed and cost by length and by kind of task.

    Exits with code 1 if an output differs by more than floating-point noise.
    """
    output = output_of(ctx)
    if picture is not None:
        from justright.bench.demo_picture import check_picture

        check_picture(picture)
    with output.status("starting torch"):
        from justright.bench.decode import DecodeSetting
        from justright.bench.demo import refuse_mismatches
        from justright.bench.longset import KINDS
        from justright.bench.longspec import LongPlan, draw, left_out, run_longspec, summaries
        from justright.bench.running import numbers, words
        from justright.checkpoint.sources import resolve
        from justright.speculative.store import drafter_at_hand

    if not draft:
        draft = ["plain", "suffix", "recycling"]
        draft += ["lstm", "hybrid"] if drafter_at_hand(resolve(model).path) else []
    engine = {"dtype": dtype, "device": device, "cpu_kernels": cpu_kernels}
    setting = DecodeSetting(tuple(draft), tokens, repeats, engine)
    plan = LongPlan(model, setting, prompts, numbers(buckets), tuple(words(kinds)) or KINDS, per_cell, seed)
    results = _measured(output, lambda progress: run_longspec(plan, out, progress))
    if picture is not None:
        draw(results, picture)
    if output.json:
        from dataclasses import asdict

        tables = {by: [asdict(one) for one in summaries(results, by=by)] for by in ("length", "kind")}
        output.object({"summaries": tables, "left_out": left_out(plan, results), **results.to_dict()})
    else:
        _show_longspec(output, results)
        if missing := left_out(plan, results):
            output.text(f"Left out (beyond the context, or no text): {', '.join(missing)}")
    refuse_mismatches(results)


def _show_longspec(output: Terminal, results: Results) -> None:
    from justright.bench.longspec import HEADER, NARROW, narrow_rows, summaries, table_rows
    from justright.bench.tables import fitted, machine_line, rich_table, steadiness_line

    width = output.console().width
    for by in ("length", "kind"):
        found = summaries(results, by=by)
        if width < _WIDE:
            output.table(rich_table(f"By {by}", NARROW, narrow_rows(found)))
        else:
            shown, body = fitted((by, *HEADER[1:]), table_rows(found), width)
            output.table(rich_table(f"By {by}", shown, body, left=2))
    output.table(machine_line(results.machine), steadiness_line(results))


@app.command("longset")
def longset(
    ctx: typer.Context,
    out: Annotated[Path, typer.Option(help="The file of prompts (JSON lines).")],
    tokenizer: Annotated[
        str, typer.Option(metavar="MODEL", help="Model whose tokenizer counts the tokens.")
    ] = _DEMO_MODEL,
    texts: Annotated[
        Path | None, typer.Option(help="A folder of texts and programs.  (default: the zoo's texts)")
    ] = None,
    wildchat: Annotated[
        bool, typer.Option("--wildchat", help="Conversations of WildChat from the hub, instead of --texts.")
    ] = False,
    buckets: Annotated[str, typer.Option(help="Most tokens of a prompt, separated by commas.")] = _BUCKETS,
    kinds: _Kinds = "",
    per_cell: Annotated[int, typer.Option(min=1, help="Prompts of each kind and bucket.")] = 2,
    seed: _Seed = 0,
    as_json: Json = False,
) -> None:
    """Generate a set of long prompts: multi-turn, summarise, quote-and-answer, edit-code, continue.

    The same texts, tokenizer and seed give the same file.
    """
    output = output_of(ctx)
    check_output(out)
    if wildchat and texts:
        raise UsageError("--wildchat and --texts are two sources: give one of them")
    from justright.bench.longset import KINDS, build, from_conversations, notes, read_folder, write
    from justright.bench.running import numbers, words

    with output.status("starting transformers"):
        from justright.bench.longtexts import counter, wildchat_rows, zoo_texts

    count = counter(tokenizer)
    with output.status("making prompts"):
        if wildchat:
            prompts = from_conversations(
                wildchat_rows(), count, buckets=numbers(buckets), per_bucket=per_cell
            )
        else:
            sources = read_folder(texts) if texts else zoo_texts()
            for note in notes(texts) if texts else ():
                output.note(f"note: {note}")
            wanted = tuple(words(kinds)) or KINDS
            prompts = build(
                sources, count, buckets=numbers(buckets), kinds=wanted, per_cell=per_cell, seed=seed
            )
    write(prompts, out)
    cells: dict[tuple[str, int], int] = {}
    for prompt in prompts:
        cells[prompt.kind, prompt.bucket] = cells.get((prompt.kind, prompt.bucket), 0) + 1
    if output.json:
        found = [{"kind": kind, "bucket": bucket, "prompts": n} for (kind, bucket), n in cells.items()]
        output.object({"file": str(out), "prompts": len(prompts), "cells": found})
        return
    from rich.table import Table

    table = Table(title=f"{len(prompts)} prompts in {out}")
    lengths = sorted({bucket for _, bucket in cells})
    for title in ("kind", *map(str, lengths)):
        table.add_column(title, justify="left" if title == "kind" else "right")
    for kind in dict.fromkeys(kind for kind, _ in cells):
        table.add_row(kind, *(str(cells.get((kind, bucket), 0)) for bucket in lengths))
    output.table(table)


def demo(
    ctx: typer.Context,
    model: Annotated[
        str, typer.Argument(metavar="[MODEL]", help="A model with a chat template.")
    ] = _DEMO_MODEL,
    out: Annotated[Path, typer.Option(help="Directory for the results and the picture.")] = Path("demo-out"),
    context: Annotated[
        int, typer.Option(min=1, help="Prompt tokens.  (default: 2048, or what fits in the model's context)")
    ] = 2048,
    tokens: _Tokens = 96,
    repeats: Annotated[int, typer.Option(min=1, help="Runs per task and decoder, interleaved.")] = 2,
    draft: Annotated[str, typer.Option(help="Drafter.")] = "suffix",
    picture: Annotated[bool, typer.Option(help="A picture of the results (needs matplotlib).")] = True,
    as_json: Json = False,
) -> None:
    """Decode four long-context tasks without and with drafts: the same tokens in less time.

    Exits with code 1 if an output differs by more than floating-point noise.
    """
    from justright.bench.demo_picture import need_matplotlib

    output = output_of(ctx)
    if picture:
        need_matplotlib()
    with output.status("starting torch"):
        from justright.bench.decode import fitting_length
        from justright.bench.demo import TASKS, DemoSetting, refuse_mismatches, run_demo
        from justright.checkpoint.sources import resolve

    if not is_given(ctx, "context"):
        context = fitting_length(resolve(model).path, TASKS, context, tokens)
    setting = DemoSetting(model, context, tokens, repeats, draft)
    done = _measured(output, lambda progress: run_demo(setting, out, picture=picture, progress=progress))
    if output.json:
        files = [str(file) for file in done.files]
        summary = {
            "speed_ratio": done.speed_ratio,
            "acceptance_length": done.acceptance_length,
            "files": files,
        }
        output.object(summary | done.results.to_dict())
    else:
        _show(output, done.results)
        _conclude(output, done)
    refuse_mismatches(done.results)


def _show(output: Terminal, results: Results) -> None:
    from justright.bench.tables import (
        HEADER,
        cost_rows,
        fitted,
        machine_line,
        rich_table,
        rows,
        steadiness_line,
    )

    header, body = fitted(HEADER, rows(results), output.console().width)
    output.table(rich_table("Decoding", header, body, left=2))
    if results.cost is not None:
        output.table(rich_table("Cost of verifying n tokens", *cost_rows(results.cost)))
    output.table(machine_line(results.machine), steadiness_line(results))


def _conclude(output: Terminal, done: Demo) -> None:
    verdicts = [str(cell.agreement) for row in done.results.cells.values() for cell in row.values()]
    same = "identical on every task" if set(verdicts) == {"identical"} else "compared as above"
    output.text(
        f"Outputs: {same}. Medians over the tasks: acceptance length {done.acceptance_length:.2f}, "
        f"{done.speed_ratio:.2f}x the speed of plain decoding."
    )
    output.text(f"Written: {', '.join(str(file) for file in done.files)}")


def _measured(output: Terminal, run: Callable[[ProgressCallback], T]) -> T:
    """Call ``run`` with a function ``(what, done, total)`` that shows its progress."""

    def reported(report: Callable[[str, int, int, str], None]) -> T:
        report("measuring", 0, 0, "loading")
        return run(lambda what, done, total: report("measuring", done, total, what))

    return with_words(output, reported)
