"""``justright eval``: lm-eval's tasks on any model that the engine runs."""

from __future__ import annotations

import json
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from justright.cli.options import (
    CpuKernels,
    Device,
    Draft,
    Dtype,
    Effort,
    Json,
    Switch,
    ThinkingBudget,
    Weights,
    engine_options,
)
from justright.cli.output import Terminal, output_of
from justright.errors import UsageError
from justright.files import check_output, write_whole
from justright.provenance import collect
from justright.readable import key_values

if TYPE_CHECKING:
    from justright.evaluate.run import TaskMetric


def evaluate(
    ctx: typer.Context,
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="MODEL", help="A checkpoint directory, a hub id org/name, packaged:NAME or zoo:NAME."
        ),
    ] = None,
    tasks: Annotated[
        str, typer.Option(help="Tasks, groups or patterns such as zoo_chain_*, separated by commas.")
    ] = "",
    list_tasks: Annotated[
        bool,
        typer.Option(
            "--list", help="List of the tasks that need no network (installed packages and --include-path)."
        ),
    ] = False,
    include_path: Annotated[Path | None, typer.Option(help="Directory of further lm-eval tasks.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Documents per task.  (default: all)")] = None,
    few_shot: Annotated[
        int | None, typer.Option(min=0, help="Examples before a question.  (default: the task's)")
    ] = None,
    chat: Annotated[
        bool, typer.Option("--chat/--no-chat", help="Questions in the model's chat template.")
    ] = False,
    template: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="An argument of the chat template, in JSON; repeatable."),
    ] = None,
    max_tokens: Annotated[
        int, typer.Option(min=1, help="Most tokens of an answer, unless the task sets it.")
    ] = 256,
    batch: Annotated[int, typer.Option(min=1, help="Questions answered at once.")] = 16,
    draft: Draft = None,
    switch: Switch = None,
    effort: Effort = None,
    thinking_budget: ThinkingBudget = None,
    dtype: Dtype = "float32",
    device: Device = "auto",
    cpu_kernels: CpuKernels = None,
    weights: Weights = None,
    out: Annotated[Path | None, typer.Option(help="JSON file for the results.")] = None,
    as_json: Json = False,
) -> None:
    """Evaluate a model on lm-eval tasks: results with 95% intervals, and the tokens that the answers took.

    Tasks of the zoo need no network; others (gsm8k, mmlu, ...) fetch their data from the hub.
    """
    output = output_of(ctx)
    arguments = key_values(template or [], "--template")
    if not list_tasks and (model is None or not tasks):
        raise UsageError("there is no model or no task: give MODEL and --tasks, or --list")
    if out is not None:
        check_output(out)
    with output.status("starting lm-eval"):
        from justright.evaluate.run import check_tasks, local_tasks, need_lm_eval, quieten, task_manager
        from justright.evaluate.run import evaluate as run

        need_lm_eval()
        quieten()
    if list_tasks:
        listed = local_tasks(include_path)
        if output.json:
            output.object({"tasks": listed})
        else:
            output.text("\n".join(listed))
        return
    manager = task_manager(include_path)
    assert model is not None
    names = check_tasks([name.strip() for name in tasks.split(",") if name.strip()], manager)
    with output.status(f"loading {model}"):
        from justright.cli.thinking import settled_thinking, thinking_of
        from justright.engine.chat_modes import Reasoning
        from justright.engine.llm import LLM
        from justright.engine.options import EngineOptions
        from justright.engine.prepared import prepare_model

        options = EngineOptions(**engine_options(ctx, slots=batch, generation_config="none"))
        ready = prepare_model(model, options)
        options = ready.options
        thinking = settled_thinking(thinking_of(ctx), ready.defaults, None if chat else "give --chat")
        effort = thinking.effort
        ready.check_reasoning(thinking)
        engine = LLM(ready)
    asked: dict[str, Any] = {
        "limit": limit,
        "few_shot": few_shot,
        "chat": chat,
        "max_tokens": max_tokens,
        "template": arguments,
    }
    asks = thinking != Reasoning()
    found = run(
        engine, names, manager, **asked, thinking=thinking if asks else None, progress=output.progress
    )
    asked |= {"effort": effort, "thinking_budget": thinking_budget}
    made = {"model": model, "tasks": names, "options": asdict(options) | asked, "made_by": _made_by()}
    figures = [figure.to_dict() for figure in found]
    if out is not None:
        write_whole(out, json.dumps(made | {"figures": figures}, indent=1) + "\n")
    if output.json:
        for figure in figures:
            output.object(figure | made)
    else:
        _show(output, model, found)


def _show(output: Terminal, model: str, found: list[TaskMetric]) -> None:
    from justright.bench.tables import rich_table

    header = ("task", "metric", "value", "95% interval", "documents", "tokens per answer")
    rows = [
        (
            one.task,
            one.metric,
            f"{one.value:.3f}",
            "" if one.low is None else f"{one.low:.3f} to {one.high:.3f}",
            str(one.documents),
            "" if one.tokens is None else f"{one.tokens:.0f}",
        )
        for one in found
    ]
    output.table(rich_table(model, header, rows, left=2))


def _made_by() -> dict[str, Any]:
    """Return the code and package versions that determine the results."""
    record = asdict(collect())
    kept = {name: record[name] for name in ("argv", "justright", "git_revision", "platform", "created")}
    return kept | {"versions": record["versions"] | {"lm_eval": version("lm_eval")}}
