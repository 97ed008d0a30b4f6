"""``justright prune``: experts first, single weights second."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from justright.cli.options import Device, Json, Model
from justright.cli.output import Output, output_of, readable_bytes, readable_count

if TYPE_CHECKING:
    from justright.prune.pipeline import Estimate, Pruned

_EXPERTS = "Stage 1: experts"
_WEIGHTS = "Stage 2: single weights"
_TEXTS = "Calibration"


def prune(
    ctx: typer.Context,
    model: Model,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="The directory to create.", show_default=False)
    ] = None,
    sparsity: Annotated[
        float, typer.Option(help="Fraction of the prunable parameters that goes in all.")
    ] = 0.4,
    expert_sparsity: Annotated[
        float | None,
        typer.Option(
            help="Fraction of each layer's experts that goes.  (default: half of --sparsity; 0: none)",
            rich_help_panel=_EXPERTS,
            show_default=False,
        ),
    ] = None,
    criterion: Annotated[
        str,
        typer.Option(
            help="stun (clusters by router and coactivation), router (needs no calibration), reap, frequency, "
            "output_norm, random.",
            rich_help_panel=_EXPERTS,
        ),
    ] = "stun",
    router_weight: Annotated[
        float, typer.Option(help="Weight of the routers' distance in stun.", rich_help_panel=_EXPERTS)
    ] = 1.0,
    coactivation_weight: Annotated[
        float, typer.Option(help="Weight of coactivation in stun.", rich_help_panel=_EXPERTS)
    ] = 1.0,
    weights: Annotated[
        str,
        typer.Option(
            help="wanda, magnitude (needs no calibration), or none: experts only.", rich_help_panel=_WEIGHTS
        ),
    ] = "wanda",
    ratios: Annotated[
        str,
        typer.Option(
            help="uniform, or outlier_weighed: less in layers with more outliers.", rich_help_panel=_WEIGHTS
        ),
    ] = "uniform",
    pattern: Annotated[
        str | None,
        typer.Option(
            metavar="N:M",
            help="Keep N of every M consecutive weights, as 2:4, whatever --sparsity says.",
            rich_help_panel=_WEIGHTS,
            show_default=False,
        ),
    ] = None,
    parts: Annotated[
        str, typer.Option(help="What may be pruned, with commas.", rich_help_panel=_WEIGHTS)
    ] = "experts,shared_experts,attention,mlp",
    min_tokens: Annotated[
        int,
        typer.Option(min=0, help="Experts that saw fewer are pruned by magnitude.", rich_help_panel=_WEIGHTS),
    ] = 32,
    calibration: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME[=SHARE]",
            help="A file, a folder, zoo, zoo:DOMAIN or hub:OWNER/NAME; repeatable.  (default: zoo)",
            rich_help_panel=_TEXTS,
            show_default=False,
        ),
    ] = None,
    sequences: Annotated[int, typer.Option(min=1, help="Sequences in all.", rich_help_panel=_TEXTS)] = 128,
    length: Annotated[
        int | None,
        typer.Option(
            min=2,
            help="Tokens of each.  (default: 1024, or the model's context)",
            rich_help_panel=_TEXTS,
            show_default=False,
        ),
    ] = None,
    statistics: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Keep the first pass's statistics here, or take them from here: another sparsity or criterion "
            "then needs no second first pass.",
            rich_help_panel=_TEXTS,
            show_default=False,
        ),
    ] = None,
    plan: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Do what a plan.json says (another run's, edited or not) instead of deciding; without "
            "--calibration, single weights then go by magnitude.",
            show_default=False,
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the calibration windows and the random criterion.")] = 0,
    dtype: Annotated[str, typer.Option(help="In which layers run while calibrating.")] = "float32",
    device: Device = "auto",
    rows: Annotated[int, typer.Option(min=1, help="Sequences at once.")] = 4,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything; tell sizes, memory and time; write nothing.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Prune a checkpoint: whole experts first, single weights second (STUN, arXiv:2409.06211).

    Layer by layer, so that memory is one layer's. Interrupted, the same command goes on at the last finished layer.
    The result is an ordinary checkpoint, with plan.json (what stays) and prune.json (what was reached) beside it.
    """
    from justright.errors import UsageError
    from justright.models.sources import check_tokenizer_files, resolve

    output = output_of(ctx)
    if out is None and not dry_run:
        raise UsageError("give --out DIR, or --dry-run")
    if out is not None and out.exists():
        raise UsageError(f"{out} exists already: choose another output, or remove it first")
    decided = (
        "sparsity",
        "expert_sparsity",
        "criterion",
        "router_weight",
        "coactivation_weight",
        "ratios",
        "pattern",
    )
    if plan is not None and (given := [name for name in decided if _is_given(ctx, name)]):
        raise UsageError(f"--plan decides that already: leave out --{', --'.join(given).replace('_', '-')}")
    if weights == "none" and expert_sparsity is not None and _is_given(ctx, "sparsity"):
        raise UsageError(
            "with --weights none only experts go: give --sparsity (of all prunable parameters) or --expert-sparsity"
        )
    source = resolve(model, progress=not (output.quiet or output.json))
    with output.status("starting torch"):
        from justright.engine.api import EngineOptions
        from justright.models.architectures import context_length
        from justright.models.reading import Checkpoint
        from justright.prune.pipeline import Pruning
        from justright.prune.plan import Plan
        from justright.prune.settings import Settings
    options = EngineOptions(dtype=dtype, device=device)
    with Checkpoint.open(source.path) as checkpoint:
        context = context_length(checkpoint.config)
    texts = tuple(calibration or (() if plan else ("zoo",)))
    settings = Settings(
        sparsity=sparsity,
        expert_sparsity=expert_sparsity,
        criterion=criterion,
        router_weight=router_weight,
        coactivation_weight=coactivation_weight,
        weights=weights,
        ratios=ratios,  # type: ignore[arg-type]  # checked there
        pattern=pattern,
        parts=tuple(part for part in parts.split(",") if part),
        calibration=texts,
        sequences=sequences,
        length=length or min(1024, context),
        min_tokens=min_tokens,
        seed=seed,
    )
    check_tokenizer_files(source.path)
    with output.status("reading the texts"):
        pruning = Pruning(
            source.path,
            settings,
            plan=Plan.read(plan) if plan else None,
            device=str(options.torch_device),
            dtype=options.torch_dtype,
            rows=rows,
            statistics=statistics,
        )
    estimate = pruning.estimate()
    if dry_run:
        with output.status("timing one layer"):
            seconds = pruning.seconds()
        _tell(output, estimate, seconds)
        return
    assert out is not None
    found = _with_progress(output, lambda tick: pruning.run(out, tick))
    if output.json:
        output.object(found.to_dict())
    else:
        _show(output, found, estimate)


def _is_given(ctx: typer.Context, name: str) -> bool:
    """Whether the user named an option, whatever its value."""
    source = ctx.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def _tell(output: Output, estimate: Estimate, seconds: float) -> None:
    from dataclasses import asdict

    if output.json:
        output.object(asdict(estimate) | {"seconds": seconds})
        return
    experts = (
        f"{estimate.experts_before} experts a layer become {estimate.experts_after}; "
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


def _show(output: Output, found: Pruned, estimate: Estimate) -> None:
    from rich.table import Table

    table = Table(title=f"{found.path}: {found.sparsity:.1%} of the prunable parameters are gone")
    for name in ("layer", "experts", "zeros among the rest"):
        table.add_column(name, justify="right")
    for layer, zeros in enumerate(found.zeros_by_layer):
        choice = found.plan.experts.get(layer)
        experts = f"{len(choice.kept)} of {estimate.experts_before}" if choice else "all"
        table.add_row(str(layer), experts, f"{zeros:.1%}")
    output.table(table)
    before, middle, after = found.kurtosis
    output.text(
        f"kurtosis of the weights: {before:.2f}, after the experts {middle:.2f}, after both {after:.2f}"
    )
    if found.unrouted:
        output.note(
            f"note: {found.unrouted} experts got no token of the calibration texts: give more, or others"
        )
    if found.uncalibrated:
        output.note(f"note: {found.uncalibrated} experts saw too few tokens and were pruned by magnitude")


def _with_progress(output: Output, run: Callable[[Any], Pruned]) -> Pruned:
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
