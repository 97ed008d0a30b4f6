"""The options that several commands share, each defined once."""

from __future__ import annotations

from typing import Annotated, TypeVar

import typer

from justright.cli.output import output_of

T = TypeVar("T")


def _set_json(ctx: typer.Context, value: bool) -> bool:
    output_of(ctx).json |= value
    return value


def _set_quiet(ctx: typer.Context, value: bool) -> bool:
    output_of(ctx).quiet |= not value
    return value


def chosen(ctx: typer.Context, name: str, value: T, default: T) -> T:
    """Return the user's value of option ``name``, or ``default`` if the user did not give it."""
    source = ctx.get_parameter_source(name)
    return default if source is None or source.name == "DEFAULT" else value


_LOADING = "Loading and running"
_SAMPLING = "Sampling"
_THINKING = "Thinking"

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
    typer.Option(
        help="Who guesses ahead: suffix, lstm, hybrid, recycling, attention, none. Never changes greedy output; stops "
        "by itself where it does not pay.  (default: a bundle's own, else suffix; in eval none)",
        rich_help_panel=_LOADING,
        show_default=False,
    ),
]
DraftOption = Annotated[
    list[str] | None,
    typer.Option(
        "--draft-option",
        metavar="KEY=VALUE",
        help="An option of the drafter, such as tree=true; repeatable.",
        rich_help_panel=_LOADING,
        show_default=False,
    ),
]
Dtype = Annotated[str, typer.Option(help="float32, bfloat16 or float16.", rich_help_panel=_LOADING)]
Device = Annotated[
    str, typer.Option(help="A torch device; auto: CUDA if there is one.", rich_help_panel=_LOADING)
]
CpuKernels = Annotated[
    str | None,
    typer.Option(
        help="packed or plain.  (default: packed on a CPU in float32)",
        rich_help_panel=_LOADING,
        show_default=False,
    ),
]
Weights = Annotated[
    str | None,
    typer.Option(
        "--weights",
        help="Quantise while loading: int8 or int4 (CPU, changes the output a little).  (default: as stored)",
        rich_help_panel=_LOADING,
        show_default=False,
    ),
]
MaxContext = Annotated[
    int | None,
    typer.Option(
        help="Most tokens of a sequence.  (default: the model's context)",
        rich_help_panel=_LOADING,
        show_default=False,
    ),
]
Cache = Annotated[
    str, typer.Option(help="grow, or static (whole context allocated at once).", rich_help_panel=_LOADING)
]

GenerationConfig = Annotated[
    str,
    typer.Option(
        metavar="auto|none",
        help="auto: where tokens are sampled, what is not said is as in the model's generation_config.json; each mode "
        "of a switch has its own. none: that file's sampling settings are not read.",
        rich_help_panel=_SAMPLING,
    ),
]
MaxTokens = Annotated[
    int, typer.Option(min=1, metavar="N", help="Most tokens of an answer.", rich_help_panel=_SAMPLING)
]
Temperature = Annotated[
    float, typer.Option(help="0: always the most likely token.", rich_help_panel=_SAMPLING)
]
TopK = Annotated[int, typer.Option(help="Keep the K most likely tokens; 0: all.", rich_help_panel=_SAMPLING)]
TopP = Annotated[
    float,
    typer.Option(help="Keep the fewest tokens with this probability together.", rich_help_panel=_SAMPLING),
]
MinP = Annotated[
    float,
    typer.Option(
        help="Keep tokens at least this share as likely as the likeliest.", rich_help_panel=_SAMPLING
    ),
]
RepetitionPenalty = Annotated[
    float,
    typer.Option(help="Above 1: tokens seen before become less likely.", rich_help_panel=_SAMPLING),
]
Seed = Annotated[
    int | None,
    typer.Option(help="Of the sampling.  (default: random)", rich_help_panel=_SAMPLING, show_default=False),
]
Stop = Annotated[
    list[str] | None,
    typer.Option(
        help="End before this text, where it stands in the content and not in reasoning; repeatable.",
        rich_help_panel=_SAMPLING,
        show_default=False,
    ),
]
StopInReasoning = Annotated[
    bool,
    typer.Option(
        "--stop-in-reasoning", help="--stop ends reasoning too, and all with it.", rich_help_panel=_SAMPLING
    ),
]
System = Annotated[
    str | None,
    typer.Option(help="The system message; needs a chat template.", show_default=False),
]

Switch = Annotated[
    str | None,
    typer.Option(
        metavar="ADAPTER",
        help="The switch to the model's fast twin, from `justright switch extract`: a directory or a hub id; none: not "
        "even a bundle's own.",
        rich_help_panel=_THINKING,
        show_default=False,
    ),
]
Effort = Annotated[
    str | None,
    typer.Option(
        metavar="EFFORT",
        help="none, minimal: fast mode. low, medium, high: think for up to 20, 50, 80% of --max-tokens. auto: a score "
        "of the prompt decides. escalate: fast first, slow if unsure or cut.  (default: a bundle's own, else as the "
        "model does by itself)",
        rich_help_panel=_THINKING,
        show_default=False,
    ),
]
ThinkingBudget = Annotated[
    int | None,
    typer.Option(
        min=0,
        metavar="N",
        help="Most tokens of thought; then its end is forced, and the answer comes.",
        rich_help_panel=_THINKING,
        show_default=False,
    ),
]
Factor = Annotated[
    float | None,
    typer.Option(
        min=0.0,
        max=1.0,
        help="Of the switch, instead of an effort: 0 slow, 1 fast, between: soft.",
        rich_help_panel=_THINKING,
        show_default=False,
    ),
]
Closing = Annotated[
    str | None,
    typer.Option(
        metavar="TEXT",
        help=r"What ends a thought that its budget cuts, the closing tag in it; \n is a line break. It may begin the "
        r"answer: '\n</think>\nThe answer is'.",
        rich_help_panel=_THINKING,
        show_default=False,
    ),
]
ScorerName = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        help="Who scores for auto: probe (`justright switch calibrate` fits it) or heuristic.",
        rich_help_panel=_THINKING,
    ),
]
Threshold = Annotated[
    float | None,
    typer.Option(
        help="auto: think above this score; escalate: below this probability.  (default: as calibrated)",
        rich_help_panel=_THINKING,
        show_default=False,
    ),
]
