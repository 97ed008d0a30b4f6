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
        float, typer.Option(help="Fraction of the prunable parameters to remove in total.")
    ] = 0.4,
    expert_sparsity: Annotated[
        float | None,
        _experts(help="Fraction of each layer's experts to remove; 0: none.  (default: half of --sparsity)"),
    ] = None,
    criterion: Annotated[str, _experts(help=f"Criterion for experts. {EXPERTS.help()}.")] = "stun",
    uneven: Annotated[
        bool,
        _experts(
            "--uneven",
            help="Different numbers of experts per layer, by one threshold for all layers; only justright loads the "
            "result.",
        ),
    ] = False,
    router_weight: Annotated[
        float, _experts(help="Weight of the distance between router rows in stun.")
    ] = 1.0,
    coactivation_weight: Annotated[float, _experts(help="Weight of coactivation in stun.")] = 1.0,
    weights: Annotated[
        str, _weights(help=f"Criterion for single weights. {WEIGHTS.help()}; {NO_WEIGHTS}: experts only.")
    ] = "wanda",
    ratios: Annotated[
        str,
        _weights(help="Sparsity by layer: uniform, or outlier_weighed (lower in layers with more outliers)."),
    ] = "uniform",
    pattern: Annotated[
        str | None,
        _weights(
            metavar="N:M",
            help="N weights kept of every M consecutive ones, such as 2:4; replaces --sparsity in this stage.  "
            "(default: none)",
        ),
    ] = None,
    parts: Annotated[
        str, _weights(help="Parts to prune, separated by commas.")
    ] = "experts,shared_experts,attention,mlp",
    min_tokens: Annotated[
        int,
        _weights(min=0, help="Least calibration tokens of an expert; with fewer it is pruned by magnitude."),
    ] = 32,
    calibration: Annotated[
        list[str] | None,
        _texts(
            metavar="NAME[=SHARE]",
            help="Calibration texts: a file, a folder, zoo, zoo:DOMAIN or hub:OWNER/NAME; repeatable.  (default: zoo)",
        ),
    ] = None,
    sequences: Annotated[int, _texts(min=1, help="Calibration sequences.")] = 128,
    length: Annotated[
        int | None,
        _texts(min=2, help="Tokens of each sequence.  (default: 1024, or the model's context if shorter)"),
    ] = None,
    statistics: Annotated[
        Path | None,
        _texts(
            metavar="DIR",
            help="Directory for the statistics of the first pass, written or reused: another sparsity or criterion "
            "then skips that pass.",
        ),
    ] = None,
    plan: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="A plan.json to follow, of another run or edited; without --calibration, single weights are then "
            "removed by magnitude.",
        ),
    ] = None,
    seed: Annotated[
        int, typer.Option(help="Seed of the calibration windows and of the random criterion.")
    ] = 0,
    dtype: Annotated[str, typer.Option(help="Data type in which layers run during calibration.")] = "float32",
    device: Annotated[
        str,
        typer.Option(
            help="Devices for the layers: auto (all GPUs, or the CPU), cpu, cuda, ...; several, separated by commas, "
            "run several layers at once."
        ),
    ] = "auto",
    rows: Annotated[int, typer.Option(min=1, help="Sequences in a batch.")] = 4,
    store: Annotated[
        str,
        _result(
            help="Format of the result: dense, an ordinary checkpoint, or sparse, a smaller one that only justright "
            "loads (`justright unpack` converts it)."
        ),
    ] = "dense",
    evaluate: Annotated[
        str,
        _result(
            "--eval",
            metavar="TASKS",
            help="lm-eval tasks to evaluate before and after, as `justright eval` does; separated by commas.",
        ),
    ] = "",
    eval_limit: Annotated[int | None, _result(min=1, help="Documents per task.  (default: all)")] = None,
    eval_chat: Annotated[
        bool, _result("--eval-chat/--no-eval-chat", help="Questions in the chat template.")
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="Only checks, and estimates of sizes, memory and time; writes nothing."
        ),
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
        context = checkpoint.spec.context
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
            "these criteria need no calibration texts: leave --calibration out, or choose other criteria"
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
        _show_estimate(output, estimate, seconds)
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
        raise UsageError("there is no output directory: give --out DIR, or --dry-run")
    if store not in ("dense", "sparse"):
        raise UsageError(f"store {store!r}; allowed: dense, sparse")
    if not given["evaluate"] and (given["eval_limit"] is not None or given["eval_chat"]):
        raise UsageError(
            "--eval-limit and --eval-chat have no effect without --eval TASKS: give tasks, or leave them out"
        )
    if out is not None and not given["evaluate"] and not dry_run:
        check_new(out)
    decided = (
        *("sparsity", "expert_sparsity", "criterion", "uneven"),
        *("router_weight", "coactivation_weight", "ratios", "pattern"),
    )
    if plan is not None and (unused := [name for name in decided if is_given(ctx, name)]):
        raise UsageError(
            f"--plan replaces these options: leave out --{', --'.join(unused).replace('_', '-')}"
        )
    if plan is not None and not given["calibration"]:
        unused = [name for name in ("sequences", "length", "seed", "min_tokens") if is_given(ctx, name)]
        if is_given(ctx, "weights") and weights != NO_WEIGHTS and WEIGHTS.get(weights).needs_inputs:
            unused.append("weights")
        if unused:
            raise UsageError(
                "--plan without --calibration removes single weights by magnitude: give --calibration, or leave out --"
                + ", --".join(unused).replace("_", "-")
            )
    if weights == NO_WEIGHTS and given["expert_sparsity"] is not None and is_given(ctx, "sparsity"):
        raise UsageError(
            "--weights none removes only experts: give --sparsity (of all prunable parameters) or --expert-sparsity, "
            "not both"
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


def _show_estimate(output: Terminal, estimate: PruneEstimate, seconds: float) -> None:
    from dataclasses import asdict

    if output.json:
        output.object(asdict(estimate) | {"seconds": seconds})
        return
    experts = (
        f"experts per layer: {estimate.experts_before} -> {estimate.experts_after:.4g}; "
        if estimate.experts_before
        else ""
    )
    output.text(
        f"{readable_count(estimate.parameters)} parameters, {readable_count(estimate.prunable)} of them prunable\n"
        f"{experts}zeros among the remaining weights: {estimate.second_stage_sparsity:.1%}\n"
        f"{estimate.passes} passes over the calibration texts: about {seconds / 60:.1f} minutes here\n"
        f"memory {readable_bytes(estimate.memory_bytes)} in addition to Python's own, work files "
        f"{readable_bytes(estimate.work_bytes)}, result {readable_bytes(estimate.size_bytes)}"
    )


def _show(output: Terminal, found: Pruned, estimate: PruneEstimate) -> None:
    from justright.bench.tables import rich_table

    layers = [
        (str(number), f"{one.kept} of {one.experts}" if one.experts else "none", f"{one.zeros:.1%}")
        for number, one in enumerate(found.layers)
    ]
    columns = ("layer", "experts", "zeros in the remaining weights")
    output.table(rich_table(f"{found.path}: {found.source}, pruned", columns, layers))
    output.text(found.summary)
    before, middle, after = ("none" if value is None else f"{value:.2f}" for value in found.kurtosis)
    output.text(f"kurtosis of the weights: {before}, after stage 1 {middle}, after stage 2 {after}")
    if found.evaluation:
        from justright.prune.report import rows

        header = ("task", "metric", "before", "after")
        output.table(rich_table("evaluation (95% intervals)", header, rows(found.evaluation), left=2))
    else:
        output.text("quality: not measured (--eval TASKS measures it before and after)")
    output.text(f"report: {found.path / 'report.html'}")
    if found.unrouted:
        output.note(f"note: {found.unrouted} experts received no calibration token: give more or other texts")
    if found.uncalibrated:
        output.note(
            f"note: {found.uncalibrated} experts received too few tokens and were pruned by magnitude"
        )
