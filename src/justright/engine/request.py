"""A request and its output chunks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Literal

from justright.engine.sampler import Constraint, SamplingParams, TokenLogprob
from justright.engine.stats import RequestStats
from justright.reasoning.budget import ModePlan, ThinkingTags
from justright.reasoning.routing import Route, Turn

FinishReason = Literal["stop", "length", "cancelled"]

_ids = count()


@dataclass(slots=True, eq=False)
class Request:
    """One sequence to generate, with its state and its results.

    The caller fills the first block and may call `cancel` at any time, from any thread; the loop owns the rest.

    Attributes:
        prompt_ids: the prompt's tokens.
        params: sampling parameters.
        slow_params: the same, except for the seed, in the slow turn that ``route`` may take; None: as ``params``.
        max_tokens: the maximum number of tokens to emit.
        stop: stop strings (need a tokenizer).
        stop_token_ids: end tokens; the end token is emitted as a token and not as text.
        plan: the adapter scale and the reasoning budget.
        tags: how the model marks reasoning; None treats all output as content (needs a tokenizer).
        opened: whether the chat template has opened the reasoning in the prompt.
        stop_in_reasoning: whether stop strings apply to reasoning too, not to content alone.
        route: decides between this prompt and plan, the fast ones, and slow ones; None: decided.
        top_logprobs: number of most likely tokens to report with the log-probability of each emitted one; None
            reports no log-probabilities.
        constraint: on the content; reasoning is free, and only the chat template can open it.
        token_ids: the emitted tokens.
        logprobs: of ``token_ids``, if requested.
        text: the emitted text, up to the stop string.
        finish_reason: "stop" (end token or stop string), "length", "cancelled"; None while it runs.
        stopped_by: the stop string, if one ended it.
        stats: counts and times.
        timed_out: whether a timeout cancelled it.
        error: the error that ended it; a `ConstraintError` if its constraint failed.
    """

    prompt_ids: Sequence[int]
    params: SamplingParams = field(default_factory=SamplingParams)
    max_tokens: int = 256
    stop: tuple[str, ...] = ()
    stop_token_ids: frozenset[int] = frozenset()
    plan: ModePlan = field(default_factory=ModePlan)
    tags: ThinkingTags | None = None
    opened: bool = False
    stop_in_reasoning: bool = False
    route: Route | None = None
    slow_params: SamplingParams | None = None
    top_logprobs: int | None = None
    constraint: Constraint | None = None
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    text: str = ""
    finish_reason: FinishReason | None = None
    stopped_by: str | None = None
    stats: RequestStats = field(default_factory=RequestStats)
    id: int = field(default_factory=lambda: next(_ids))
    cancelled: bool = False
    timed_out: bool = False
    error: BaseException | None = None

    def again(self, params: SamplingParams, constraint: Constraint | None) -> Request:
        """A fresh copy of a request that has not run, with sampling parameters ``params``."""
        return replace(
            self,
            params=params,
            constraint=constraint,
            token_ids=[],
            logprobs=[],
            stats=replace(self.stats, steps=[]),
            id=next(_ids),
        )

    def take(self, turn: Turn) -> None:
        """Switch to the turn that its route has chosen."""
        self.prompt_ids, self.plan, self.opened, self.route = turn.prompt_ids, turn.plan, turn.opened, None
        if self.slow_params is not None:
            self.params = replace(self.slow_params, seed=self.params.seed)
        if turn.stop_token_ids is not None:
            kept = self.stop_token_ids if self.constraint is not None else frozenset[int]()
            self.stop_token_ids = turn.stop_token_ids | kept

    def cancel(self) -> None:
        """Stop at the next step; the emitted output stays."""
        self.cancelled = True


@dataclass(frozen=True, slots=True)
class Emission:
    """One output chunk of a request; ``finish_reason`` is set on the last one.

    Attributes:
        request: its request.
        token_ids: new tokens, possibly none in the last chunk.
        text: new text that is final (stop strings hold some back).
        drafted: how many of ``token_ids`` came from a draft.
        logprobs: of ``token_ids``, if requested.
    """

    request: Request
    token_ids: list[int]
    text: str
    drafted: int
    finish_reason: FinishReason | None
    logprobs: tuple[TokenLogprob, ...] = ()
