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
    "dtype", "device", "cpu_kernels", "weights", "max_context", "cache", "slots", "draft", "switch",
    "generation_config",
)  # fmt: skip
_loading = partial(typer.Option, rich_help_panel="Loading and running")
_sampling = partial(typer.Option, rich_help_panel="Sampling")
_reasoning = partial(typer.Option, rich_help_panel="Reasoning")

Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="A checkpoint directory, a GGUF file, a hub id org/name, org/name@revision or org/name:Q4_K_M (GGUF), "
        "packaged:NAME or zoo:NAME.",
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
    _loading(
        help="Drafter of speculative decoding: suffix, lstm, hybrid, recycling, attention or none. Greedy output stays "
        "the same; drafting pauses where it saves no time.  (default: the bundle's, else suffix; in eval none)"
    ),
]
DraftOption = Annotated[
    list[str] | None,
    _loading(
        "--draft-option", metavar="KEY=VALUE", help="An option of the drafter, such as tree=true; repeatable."
    ),
]
Dtype = Annotated[str, _loading(help="Data type: float32, bfloat16 or float16.")]
Device = Annotated[str, _loading(help="A torch device; auto: CUDA if available, else cpu.")]
CpuKernels = Annotated[
    str | None, _loading(help="CPU kernels: packed or plain.  (default: packed on a CPU in float32)")
]
Weights = Annotated[
    str | None,
    _loading(
        help="Quantise while loading: int8 or int4, float32 on a CPU; float: expand the blocks of a GGUF file.  "
        "(default: as stored)"
    ),
]
MaxContext = Annotated[
    int | None, _loading(help="Most tokens of a sequence, prompt and output.  (default: the model's context)")
]
Cache = Annotated[
    str, _loading(help="Allocation of the KV cache: grow, or static (the whole context at once).")
]

GenerationConfig = Annotated[
    str,
    _sampling(
        metavar="auto|none",
        help="Source of the sampling options that are not given. auto: when sampling, the model's "
        "generation_config.json (each mode of a switch has its own); none: the defaults shown here.",
    ),
]
MaxTokens = Annotated[int, _sampling(min=1, metavar="N", help="Most tokens of an answer.")]
Temperature = Annotated[float, _sampling(help="Sampling temperature; 0: greedy.")]
TopK = Annotated[int, _sampling(help="Most likely tokens to sample from; 0: all.")]
TopP = Annotated[float, _sampling(help="Total probability of the most likely tokens to sample from; 1: all.")]
MinP = Annotated[
    float,
    _sampling(help="Least probability of a token to sample, as a share of the most likely token's; 0: all."),
]
RepetitionPenalty = Annotated[float, _sampling(help="Penalty on tokens that occurred before; 1: none.")]
Seed = Annotated[int | None, _sampling(help="Seed of the sampling.  (default: random)")]
Stop = Annotated[
    list[str] | None,
    _sampling(
        help="Stop text: the output ends before it, in the content only, not in reasoning; repeatable."
    ),
]
StopInReasoning = Annotated[
    bool,
    _sampling("--stop-in-reasoning", help="Search reasoning for --stop too; a match ends the whole output."),
]
System = Annotated[str | None, typer.Option(help="The system message; needs a chat template.")]

Switch = Annotated[
    str | None,
    _reasoning(
        metavar="ADAPTER",
        help="Switch to the fast mode, from `justright switch extract`: a directory or a hub id; none: not even the "
        "bundle's.  (default: the bundle's)",
    ),
]
Effort = Annotated[
    str | None,
    _reasoning(
        metavar="EFFORT",
        help="Reasoning effort. none, minimal: fast mode. low, medium, high: at most 20, 50, 80% of --max-tokens for "
        "reasoning. auto: by a score of the prompt. escalate: fast first, then slow if the answer is uncertain or "
        "truncated.  (default: the bundle's, else the model's own behaviour)",
    ),
]
ThinkingBudget = Annotated[
    int | None,
    _reasoning(
        min=0,
        metavar="N",
        help="Most reasoning tokens; then the closing tag is injected and the answer follows.  (default: no limit)",
    ),
]
Factor = Annotated[
    float | None,
    _reasoning(
        min=0.0,
        max=1.0,
        help="Adapter scale of the switch, instead of an effort: 0 slow, 1 fast, between: soft.",
    ),
]
ShowReasoning = Annotated[
    bool | None,
    _reasoning(
        "--show-reasoning/--hide-reasoning",
        help="Reasoning, with its tags, in the text; or the answer alone, also in --json.  (default: shown; in a "
        "terminal its tokens are counted in one line)",
    ),
]
Closing = Annotated[
    str | None,
    _reasoning(
        metavar="TEXT",
        help=r"Text injected when the reasoning budget is spent, with the closing tag; \n is a line break. It may "
        r"begin the answer: '\n</think>\nThe answer is'.  (default: '\n</think>\n')",
    ),
]
ScorerName = Annotated[
    str,
    _reasoning(
        metavar="NAME", help="Scorer of auto: probe (fitted by `justright switch calibrate`) or heuristic."
    ),
]
Threshold = Annotated[
    float | None,
    _reasoning(
        help="Threshold of slow mode. auto: above this score; escalate: below this probability.  (default: as "
        "calibrated)"
    ),
]
