"""``justright prune``: removes whole experts first, then single weights."""

from __future__ import annotations

from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from justright.cli.options import Json, Model, is_given, named
from justright.cli.output import Terminal, output_of
from justright.cli.progress import kept_work, with_progress
from justright.files import check_new
from justright.prune.criteria.base import EXPERTS, NO_WEIGHTS, WEIGHTS
from justright.readable import readable_bytes, readable_count

if TYPE_CHECKING:
    from justright.engine.options import EngineOptions
    from justright.prune.evaluation import Evaluate
    from justright.prune.outcome import Pruned
    from justright.prune.pipeline import PruneEstimate

_experts = partial(typer.Option, rich_help_panel="Stage 1: experts")
_weights = partial(typer.Option, rich_help_panel="Stage 2: single weights")
_texts = partial(typer.Option, rich_help_panel="Calibration")
_result = partial(typer.Option, rich_help_panel="Result")
_SLOTS = 16
"""Sequences at once in an evaluation."""


def prune(
    ctx: typer.Context,
    model: Model,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="The directory to create.")] = None,
    sparsity: Annotated[
        float, typer.Option(help="Fraction of the prunable parameters that goes in all.")
    ] = 0.4,
    expert_sparsity: Annotated[
        float | None,
        _experts(help="Fraction of each layer's experts that goes.  (default: half of --sparsity; 0: none)"),
    ] = None,
    criterion: Annotated[str, _experts(help=f"{EXPERTS.help()}.")] = "stun",
    uneven: Annotated[
        bool,
        _experts(
            "--uneven",
            help="Layers keep different numbers of experts, by one threshold for all; only justright loads the result.",
        ),
    ] = False,
    router_weight: Annotated[float, _experts(help="Weight of the routers' distance in stun.")] = 1.0,
    coactivation_weight: Annotated[float, _experts(help="Weight of coactivation in stun.")] = 1.0,
    weights: Annotated[str, _weights(help=f"{WEIGHTS.help()}; {NO_WEIGHTS}: experts only.")] = "wanda",
    ratios: Annotated[
        str, _weights(help="uniform, or outlier_weighed: less in layers with more outliers.")
    ] = "uniform",
    pattern: Annotated[
        str | None,
        _weights(
            metavar="N:M", help="Keep N of every M consecutive weights, as 2:4, whatever --sparsity says."
        ),
    ] = None,
    parts: Annotated[
        str, _weights(help="What may be pruned, with commas.")
    ] = "experts,shared_experts,attention,mlp",
    min_tokens: Annotated[int, _weights(min=0, help="Experts that saw fewer are pruned by magnitude.")] = 32,
    calibration: Annotated[
        list[str] | None,
        _texts(
            metavar="NAME[=SHARE]",
            help="A file, a folder, zoo, zoo:DOMAIN or hub:OWNER/NAME; repeatable.  (default: zoo)",
        ),
    ] = None,
    sequences: Annotated[int, _texts(min=1, help="Sequences in all.")] = 128,
    length: Annotated[
        int | None, _texts(min=2, help="Tokens of each.  (default: 1024, or the model's context)")
    ] = None,
    statistics: Annotated[
        Path | None,
        _texts(
            metavar="DIR",
            help="Keep the first pass's statistics here, or take them from here: another sparsity or criterion "
            "then needs no second first pass.",
        ),
    ] = None,
    plan: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Do what a plan.json says (another run's, edited or not) instead of deciding; without "
            "--calibration, single weights then go by magnitude.",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the calibration windows and the random criterion.")] = 0,
    dtype: Annotated[str, typer.Option(help="In which layers run while calibrating.")] = "float32",
    device: Annotated[
        str,
        typer.Option(
            help="auto (all GPUs, or the CPU), cpu, cuda, ...; several with commas run several layers at a time."
        ),
    ] = "auto",
    rows: Annotated[int, typer.Option(min=1, help="Sequences at once.")] = 4,
    store: Annotated[
        str,
        _result(
            help="dense: an ordinary checkpoint; sparse: a smaller one on disk, which only justright loads "
            "(`justright unpack` makes it ordinary)."
        ),
    ] = "dense",
    evaluate: Annotated[
        str,
        _result(
            "--eval",
            metavar="TASKS",
            help="Measure these lm-eval tasks before and after, as `justright eval` does; several with commas.",
        ),
    ] = "",
    eval_limit: Annotated[int | None, _result(min=1, help="Documents a task.  (default: all)")] = None,
    eval_chat: Annotated[
        bool, _result("--eval-chat/--no-eval-chat", help="Put questions into the chat template.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything; tell sizes, memory and time; write nothing.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Prune a checkpoint: whole experts first, single weights second (STUN, arXiv:2409.06211).

    It works layer by layer: memory holds one layer. If interrupted, the same command continues after the last finished
    layer. The result is an ordinary checkpoint with plan.json (what is kept), prune.json and report.html (the results).
    """
    from justright.checkpoint.sources import check_tokenizer_files, resolve
    from justright.errors import UsageError

    output = output_of(ctx)
    _check_options(ctx)
    source = resolve(model, progress=not (output.quiet or output.json))
    with output.status("starting torch"):
        from justright.architectures.spec import context_length
        from justright.calibration.texts import notes
        from justright.checkpoint.reader import Checkpoint
        from justright.engine.options import EngineOptions
        from justright.prune.pipeline import Pruning
        from justright.prune.plan import Plan
        from justright.prune.settings import Settings
    devices = _devices(device)
    options = EngineOptions(
        dtype=dtype, device=devices[0], draft="none", switch="none", generation_config="none"
    )
    with Checkpoint.open(source.path) as checkpoint:
        context = context_length(checkpoint.config)
    texts = tuple(calibration or (() if plan else ("zoo",)))
    given = named(ctx, (field.name for field in fields(Settings)))
    given |= {"parts": tuple(part for part in parts.split(",") if part), "calibration": texts}
    settings = Settings(**given | {"length": length or min(1024, context)})
    check_tokenizer_files(source.path)
    with output.status("reading the texts"):
        pruning = Pruning(
            source.path,
            settings,
            plan=Plan.read(plan) if plan else None,
            device=",".join(devices),
            dtype=options.torch_dtype,
            rows=rows,
            statistics=statistics,
        )
    if calibration and pruning.calibration is None:
        raise UsageError(
            "this run needs no calibration texts: leave --calibration out, or choose other criteria"
        )
    for note in notes(texts if pruning.calibration is not None else ()):
        output.note(f"note: {note}")
    estimate = pruning.estimate(store)  # type: ignore[arg-type]  # validated above
    measure, asked = (
        _evaluation(evaluate, eval_limit, eval_chat, options, output) if evaluate else (None, None)
    )
    if dry_run:
        with output.status("timing one layer"):
            seconds = pruning.seconds()
        _tell(output, estimate, seconds)
        return
    assert out is not None
    with kept_work(output, out):
        found = with_progress(
            output,
            lambda tick: pruning.run(out, tick, store=store, evaluate=measure, asked=asked),  # type: ignore[arg-type]
        )
    if output.json:
        output.object(found.to_dict())
    else:
        _show(output, found, estimate)


def _check_options(ctx: typer.Context) -> None:
    """Check that no options contradict each other or have no effect, before anything is read.

    Raises:
        UsageError: an option contradicts another or would be ignored.
    """
    from justright.errors import UsageError

    given, dry_run = ctx.params, ctx.params["dry_run"]
    out, plan, weights, store = (given[name] for name in ("out", "plan", "weights", "store"))
    if out is None and not dry_run:
        raise UsageError("give --out DIR, or --dry-run")
    if store not in ("dense", "sparse"):
        raise UsageError(f"store {store!r}: there are dense and sparse")
    if not given["evaluate"] and (given["eval_limit"] is not None or given["eval_chat"]):
        raise UsageError(
            "--eval-limit and --eval-chat say how to run --eval TASKS: name tasks, or leave them out"
        )
    if out is not None and not given["evaluate"] and not dry_run:
        check_new(out)
    decided = (
        *("sparsity", "expert_sparsity", "criterion", "uneven"),
        *("router_weight", "coactivation_weight", "ratios", "pattern"),
    )
    if plan is not None and (unused := [name for name in decided if is_given(ctx, name)]):
        raise UsageError(f"--plan decides that already: leave out --{', --'.join(unused).replace('_', '-')}")
    if plan is not None and not given["calibration"]:
        unused = [name for name in ("sequences", "length", "seed", "min_tokens") if is_given(ctx, name)]
        if is_given(ctx, "weights") and weights != NO_WEIGHTS and WEIGHTS.get(weights).needs_inputs:
            unused.append("weights")
        if unused:
            raise UsageError(
                "--plan without --calibration removes single weights by magnitude: give texts too, or leave out --"
                + ", --".join(unused).replace("_", "-")
            )
    if weights == NO_WEIGHTS and given["expert_sparsity"] is not None and is_given(ctx, "sparsity"):
        raise UsageError(
            "with --weights none only experts go: give --sparsity (of all prunable parameters) or --expert-sparsity"
        )


def _devices(text: str) -> list[str]:
    """Return the devices for the layers, each validated; ``auto`` is every GPU, or the CPU if there is none."""
    from justright.engine.options import EngineOptions
    from justright.prune.preflight import every_device

    found = [str(EngineOptions(device=name.strip()).torch_device) for name in text.split(",")]
    return every_device(*found).split(",") if text == "auto" else found


def _evaluation(
    tasks: str, limit: int | None, chat: bool, options: EngineOptions, output: Terminal
) -> tuple[Evaluate, dict[str, Any]]:
    """Return a function that evaluates a checkpoint, and its settings; validates the tasks before any work."""
    with output.status("starting lm-eval"):
        from justright.evaluate.run import check_tasks, need_lm_eval, quieten, task_manager
        from justright.evaluate.run import evaluate as run

        need_lm_eval()
        quieten()
        manager = task_manager()
    names = check_tasks([name.strip() for name in tasks.split(",") if name.strip()], manager)
    asked = {"tasks": names, "limit": limit, "chat": chat}

    def measure(path: Path) -> list[dict[str, Any]]:
        from justright.engine.llm import LLM

        engine = LLM(str(path), replace(options, slots=_SLOTS))
        found = run(engine, names, manager, limit=limit, chat=chat, progress=False)
        return [figure.to_dict() for figure in found]

    return measure, asked


def _tell(output: Terminal, estimate: PruneEstimate, seconds: float) -> None:
    from dataclasses import asdict

    if output.json:
        output.object(asdict(estimate) | {"seconds": seconds})
        return
    experts = (
        f"{estimate.experts_before} experts a layer become {estimate.experts_after:.4g}; "
        if estimate.experts_before
        else ""
    )
    output.text(
        f"{readable_count(estimate.parameters)} parameters, {readable_count(estimate.prunable)} of them prunable\n"
        f"{experts}{estimate.second_stage_sparsity:.1%} of the weights that stay become zero\n"
        f"{estimate.passes} passes over the calibration texts: about {seconds / 60:.1f} minutes here\n"
        f"memory {readable_bytes(estimate.memory_bytes)} beside Python's own, work files "
        f"{readable_bytes(estimate.work_bytes)}, result {readable_bytes(estimate.size_bytes)}"
    )


def _show(output: Terminal, found: Pruned, estimate: PruneEstimate) -> None:
    from rich.table import Table

    table = Table(title=f"{found.path}: {found.sparsity:.1%} of the prunable parameters are gone")
    for name in ("layer", "experts", "zeros among the rest"):
        table.add_column(name, justify="right")
    for number, layer in enumerate(found.layers):
        experts = f"{layer.kept} of {layer.experts}" if layer.experts else "none"
        table.add_row(str(number), experts, f"{layer.zeros:.1%}")
    output.table(table)
    sizes = (
        f"{name} {readable_bytes(before)} -> {readable_bytes(after)}"
        for name, (before, after) in (("in memory", found.memory_bytes), ("on disk", found.disk_bytes))
    )
    output.text(", ".join(sizes))
    before, middle, after = ("none" if value is None else f"{value:.2f}" for value in found.kurtosis)
    output.text(f"kurtosis of the weights: {before}, after the experts {middle}, after both {after}")
    if found.evaluation:
        from justright.bench.tables import rich_table
        from justright.prune.report import rows

        header = ("task", "metric", "before", "after")
        output.table(rich_table("evaluation (95% intervals)", header, rows(found.evaluation), left=2))
    output.text(f"pictures: {found.path / 'report.html'}")
    if found.unrouted:
        output.note(
            f"note: {found.unrouted} experts got no token of the calibration texts: give more, or others"
        )
    if found.uncalibrated:
        output.note(f"note: {found.uncalibrated} experts saw too few tokens and were pruned by magnitude")
