"""The options that several commands share, each defined once."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Annotated, Any, TypeVar

import typer

from justright.cli.output import output_of
from justright.readable import key_values

T = TypeVar("T")


def _set_json(ctx: typer.Context, value: bool) -> bool:
    output_of(ctx).json |= value
    return value


def _set_quiet(ctx: typer.Context, value: bool) -> bool:
    output_of(ctx).quiet |= not value
    return value


def is_given(ctx: typer.Context, name: str) -> bool:
    """Return whether the user gave option ``name``."""
    source = ctx.get_parameter_source(name)
    return source is not None and source.name != "DEFAULT"


def chosen(ctx: typer.Context, name: str, value: T, default: T) -> T:
    """Return the user's value of option ``name``, or ``default`` if the user did not give it."""
    return value if is_given(ctx, name) else default


def named(ctx: typer.Context, names: Iterable[str]) -> dict[str, Any]:
    """Return the values of those options among ``names`` that the command has."""
    return {name: ctx.params[name] for name in names if name in ctx.params}


def engine_options(ctx: typer.Context, **others: Any) -> dict[str, Any]:
    """Return the fields of `EngineOptions` that the command's options give, and ``others``.

    Raises:
        UsageError: a --draft-option is no KEY=VALUE.
    """
    found = named(ctx, _OF_ENGINE)
    if "draft_option" in ctx.params:
        found["draft_options"] = key_values(ctx.params["draft_option"] or [], "--draft-option")
    return found | others


_OF_ENGINE = (
    "dtype", "device", "cpu_kernels", "max_context", "cache", "slots", "draft", "switch", "generation_config",
)  # fmt: skip
_loading = partial(typer.Option, rich_help_panel="Loading and running")
_sampling = partial(typer.Option, rich_help_panel="Sampling")
_thinking = partial(typer.Option, rich_help_panel="Thinking")

Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="A checkpoint directory, a hub id org/name or org/name@revision, packaged:NAME or zoo:NAME.",
        show_default=False,
    ),
]
Json = Annotated[
    bool,
    typer.Option(
        "--json",
        callback=_set_json,
        is_eager=True,
        expose_value=True,
        help="Results as JSON on stdout, one object a line; an error as {'error': {...}}.",
    ),
]
Stats = Annotated[
    bool,
    typer.Option(
        "--stats/--quiet",
        callback=_set_quiet,
        is_eager=True,
        help="Speed and acceptance on stderr; --quiet: neither that nor progress.",
    ),
]

Draft = Annotated[
    str | None,
    _loading(
        help="Who guesses ahead: suffix, lstm, hybrid, recycling, attention, none. Never changes greedy output; stops "
        "by itself where it does not pay.  (default: a bundle's own, else suffix; in eval none)"
    ),
]
DraftOption = Annotated[
    list[str] | None,
    _loading(
        "--draft-option", metavar="KEY=VALUE", help="An option of the drafter, such as tree=true; repeatable."
    ),
]
Dtype = Annotated[str, _loading(help="float32, bfloat16 or float16.")]
Device = Annotated[str, _loading(help="A torch device; auto: CUDA if there is one.")]
CpuKernels = Annotated[str | None, _loading(help="packed or plain.  (default: packed on a CPU in float32)")]
MaxContext = Annotated[
    int | None, _loading(help="Most tokens of a sequence.  (default: the model's context)")
]
Cache = Annotated[str, _loading(help="grow, or static (whole context allocated at once).")]

GenerationConfig = Annotated[
    str,
    _sampling(
        metavar="auto|none",
        help="auto: where tokens are sampled, what is not said is as in the model's generation_config.json; each mode "
        "of a switch has its own. none: that file's sampling settings are not read.",
    ),
]
MaxTokens = Annotated[int, _sampling(min=1, metavar="N", help="Most tokens of an answer.")]
Temperature = Annotated[float, _sampling(help="0: always the most likely token.")]
TopK = Annotated[int, _sampling(help="Keep the K most likely tokens; 0: all.")]
TopP = Annotated[float, _sampling(help="Keep the fewest tokens with this probability together.")]
MinP = Annotated[float, _sampling(help="Keep tokens at least this share as likely as the likeliest.")]
RepetitionPenalty = Annotated[float, _sampling(help="Above 1: tokens seen before become less likely.")]
Seed = Annotated[int | None, _sampling(help="Of the sampling.  (default: random)")]
Stop = Annotated[
    list[str] | None,
    _sampling(help="End before this text, where it stands in the content and not in reasoning; repeatable."),
]
StopInReasoning = Annotated[
    bool, _sampling("--stop-in-reasoning", help="--stop ends reasoning too, and all with it.")
]
System = Annotated[str | None, typer.Option(help="The system message; needs a chat template.")]

Switch = Annotated[
    str | None,
    _thinking(
        metavar="ADAPTER",
        help="The switch to the model's fast twin, from `justright switch extract`: a directory or a hub id; none: not "
        "even a bundle's own.",
    ),
]
Effort = Annotated[
    str | None,
    _thinking(
        metavar="EFFORT",
        help="none, minimal: fast mode. low, medium, high: think for up to 20, 50, 80% of --max-tokens. auto: a score "
        "of the prompt decides. escalate: fast first, slow if unsure or cut.  (default: a bundle's own, else as the "
        "model does by itself)",
    ),
]
ThinkingBudget = Annotated[
    int | None,
    _thinking(
        min=0, metavar="N", help="Most tokens of thought; then its end is forced, and the answer comes."
    ),
]
Factor = Annotated[
    float | None,
    _thinking(min=0.0, max=1.0, help="Of the switch, instead of an effort: 0 slow, 1 fast, between: soft."),
]
Closing = Annotated[
    str | None,
    _thinking(
        metavar="TEXT",
        help=r"What ends a thought that its budget cuts, the closing tag in it; \n is a line break. It may begin the "
        r"answer: '\n</think>\nThe answer is'.",
    ),
]
ScorerName = Annotated[
    str,
    _thinking(
        metavar="NAME", help="Who scores for auto: probe (`justright switch calibrate` fits it) or heuristic."
    ),
]
Threshold = Annotated[
    float | None,
    _thinking(
        help="auto: think above this score; escalate: below this probability.  (default: as calibrated)"
    ),
]
