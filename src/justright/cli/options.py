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
_REASONING = "Reasoning"

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
        help="Results as JSON on stdout, one object per line; errors as {'error': {...}}.",
    ),
]
Stats = Annotated[
    bool,
    typer.Option(
        "--stats/--quiet",
        callback=_set_quiet,
        is_eager=True,
        help="Speed and acceptance on stderr; --quiet: no statistics and no progress.",
    ),
]

Draft = Annotated[
    str | None,
    typer.Option(
        help="Drafter of speculative decoding: suffix, lstm, hybrid, recycling, attention or none. Greedy output stays "
        "the same; drafting pauses where it saves no time.  (default: the bundle's, else suffix; in eval none)",
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
Dtype = Annotated[
    str, typer.Option(help="Data type: float32, bfloat16 or float16.", rich_help_panel=_LOADING)
]
Device = Annotated[
    str, typer.Option(help="A torch device; auto: CUDA if available, else cpu.", rich_help_panel=_LOADING)
]
CpuKernels = Annotated[
    str | None,
    typer.Option(
        help="CPU kernels: packed or plain.  (default: packed on a CPU in float32)",
        rich_help_panel=_LOADING,
        show_default=False,
    ),
]
MaxContext = Annotated[
    int | None,
    typer.Option(
        help="Most tokens of a sequence, prompt and output.  (default: the model's context)",
        rich_help_panel=_LOADING,
        show_default=False,
    ),
]
Cache = Annotated[
    str,
    typer.Option(
        help="Allocation of the KV cache: grow, or static (the whole context at once).",
        rich_help_panel=_LOADING,
    ),
]

GenerationConfig = Annotated[
    str,
    typer.Option(
        metavar="auto|none",
        help="Source of the sampling options that are not given. auto: when sampling, the model's "
        "generation_config.json (each mode of a switch has its own); none: the defaults shown here.",
        rich_help_panel=_SAMPLING,
    ),
]
MaxTokens = Annotated[
    int, typer.Option(min=1, metavar="N", help="Most tokens of an answer.", rich_help_panel=_SAMPLING)
]
Temperature = Annotated[
    float, typer.Option(help="Sampling temperature; 0: greedy.", rich_help_panel=_SAMPLING)
]
TopK = Annotated[
    int, typer.Option(help="Most likely tokens to sample from; 0: all.", rich_help_panel=_SAMPLING)
]
TopP = Annotated[
    float,
    typer.Option(
        help="Total probability of the most likely tokens to sample from; 1: all.", rich_help_panel=_SAMPLING
    ),
]
MinP = Annotated[
    float,
    typer.Option(
        help="Least probability of a token to sample, as a share of the most likely token's; 0: all.",
        rich_help_panel=_SAMPLING,
    ),
]
RepetitionPenalty = Annotated[
    float,
    typer.Option(help="Penalty on tokens that occurred before; 1: none.", rich_help_panel=_SAMPLING),
]
Seed = Annotated[
    int | None,
    typer.Option(
        help="Seed of the sampling.  (default: random)", rich_help_panel=_SAMPLING, show_default=False
    ),
]
Stop = Annotated[
    list[str] | None,
    typer.Option(
        help="Stop text: the output ends before it, in the content only, not in reasoning; repeatable.",
        rich_help_panel=_SAMPLING,
        show_default=False,
    ),
]
StopInReasoning = Annotated[
    bool,
    typer.Option(
        "--stop-in-reasoning",
        help="Search reasoning for --stop too; a match ends the whole output.",
        rich_help_panel=_SAMPLING,
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
        help="Switch to the fast mode, from `justright switch extract`: a directory or a hub id; none: not even the "
        "bundle's.  (default: the bundle's)",
        rich_help_panel=_REASONING,
        show_default=False,
    ),
]
Effort = Annotated[
    str | None,
    typer.Option(
        metavar="EFFORT",
        help="Reasoning effort. none, minimal: fast mode. low, medium, high: at most 20, 50, 80% of --max-tokens for "
        "reasoning. auto: by a score of the prompt. escalate: fast first, then slow if the answer is uncertain or "
        "truncated.  (default: the bundle's, else the model's own behaviour)",
        rich_help_panel=_REASONING,
        show_default=False,
    ),
]
ThinkingBudget = Annotated[
    int | None,
    typer.Option(
        min=0,
        metavar="N",
        help="Most reasoning tokens; then the closing tag is injected and the answer follows.  (default: no limit)",
        rich_help_panel=_REASONING,
        show_default=False,
    ),
]
Factor = Annotated[
    float | None,
    typer.Option(
        min=0.0,
        max=1.0,
        help="Adapter scale of the switch, instead of an effort: 0 slow, 1 fast, between: soft.",
        rich_help_panel=_REASONING,
        show_default=False,
    ),
]
Closing = Annotated[
    str | None,
    typer.Option(
        metavar="TEXT",
        help=r"Text injected when the reasoning budget is spent, with the closing tag; \n is a line break. It may "
        r"begin the answer: '\n</think>\nThe answer is'.  (default: '\n</think>\n')",
        rich_help_panel=_REASONING,
        show_default=False,
    ),
]
ScorerName = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        help="Scorer of auto: probe (fitted by `justright switch calibrate`) or heuristic.",
        rich_help_panel=_REASONING,
    ),
]
Threshold = Annotated[
    float | None,
    typer.Option(
        help="Threshold of slow mode. auto: above this score; escalate: below this probability.  (default: as "
        "calibrated)",
        rich_help_panel=_REASONING,
        show_default=False,
    ),
]
