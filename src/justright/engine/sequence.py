"""A request while it holds a slot: the input and the output of its steps."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from justright.engine.detokenizer import TextStream
from justright.engine.draft_selection import DraftRecord
from justright.engine.request import FinishReason, Request
from justright.engine.sampler import (
    Constraint,
    NoTokenError,
    Sampler,
    TokenLogprob,
    Verification,
    token_logprobs,
)
from justright.engine.step import StepInput, StepOutput
from justright.errors import ConstraintError
from justright.reasoning.budget import SLOW, ReasoningTracker, ThinkingTags, closing_ids
from justright.reasoning.routing import BY_OUTPUT
from justright.speculative.base import EMPTY_DRAFT, Draft


@dataclass(slots=True)
class Active:
    """A request that holds a slot.

    `verify` chooses tokens up to the one that ends the request, so all counts (log-probabilities, confidence,
    near ties, accepted draft tokens) cover emitted tokens only.

    Attributes:
        pieces: text completed by the tokens of the last `verify`.
        reason: why the last of them ends the request; None if it continues.
        confidence: the least probability of a token that the model chose.
        logprobs: of the tokens of the last `verify`, if requested.
    """

    request: Request
    sampler: Sampler
    record: DraftRecord
    stream: TextStream | None
    tracker: ReasoningTracker
    last_token: int = -1
    confidence: float = 1.0
    drafting: bool = False
    logprobs: list[TokenLogprob] = field(default_factory=list)
    pieces: list[str] = field(default_factory=list)
    reason: FinishReason | None = None

    @classmethod
    def of(cls, request: Request, tokenizer: PreTrainedTokenizerFast | None) -> Active:
        """The initial state of a request; without a tokenizer there is no text, and all is content."""
        sampler = Sampler(request.params, request.prompt_ids)
        if tokenizer is None:
            return cls(request, sampler, DraftRecord(), None, ReasoningTracker(request.plan.budget))
        stream = TextStream(
            tokenizer,
            request.stop,
            request.tags,
            opened=request.opened,
            may_open=request.constraint is None,
            stop_in_reasoning=request.stop_in_reasoning,
        )
        closing = [] if request.tags is None else closing_ids(request.tags, tokenizer)
        tracker = ReasoningTracker(request.plan.budget, closing, thinking=stream.in_reasoning)
        return cls(request, sampler, DraftRecord(), stream, tracker)

    @property
    def forced(self) -> list[int]:
        """The next tokens that are injected whatever the model predicts."""
        return self.tracker.forced

    @property
    def constraint(self) -> Constraint | None:
        """The constraint on the next token; reasoning has none."""
        return None if self.tracker.thinking else self.request.constraint

    def verify_or_end(self, draft: Draft, output: StepOutput) -> Verification:
        """`verify`; if no token can be chosen, the request is cancelled with that error and emits nothing."""
        try:
            return self.verify(draft, output)
        except NoTokenError as error:
            self.request.error = error
            self.request.cancel()
            return Verification([0], [], 0)

    def verify(self, draft: Draft, output: StepOutput) -> Verification:
        """The accepted part of a draft and the token after it, with the requested log-probabilities."""
        request = self.request
        self.pieces = []
        forced_before = request.stats.forced_tokens
        verified = self._choose(draft, output)
        forced = request.stats.forced_tokens - forced_before
        if request.top_logprobs is not None:
            rows = output.logits[verified.path].float().log_softmax(-1)
            found = token_logprobs(rows, verified.token_ids, request.top_logprobs)
            self.logprobs = [replace(one, thought=self._is_thought(n)) for n, one in enumerate(found)]
        if request.route is not None and forced < len(verified.token_ids):
            chances = output.logits[verified.path[forced:]].float().softmax(-1)
            chosen = torch.tensor(verified.token_ids[forced:], device=chances.device)[:, None]
            self.confidence = min(self.confidence, float(chances.gather(1, chosen).min()))
        return verified

    def _is_thought(self, index: int) -> bool:
        """Whether a token is reasoning; ``index`` counts the tokens chosen since the last output chunk."""
        return self.tracker.flags[len(self.request.token_ids) + index]

    def _choose(self, draft: Draft, output: StepOutput) -> Verification:
        """The accepted part of a draft, or the injected tokens in its place, and the token after it."""
        done: list[int] = []
        if self.forced:
            self.sampler.check(output.logits)
        for _ in draft.token_ids if self.forced else ():
            if self._force(done):
                return Verification(list(range(len(done))), done, 0)
        if self.forced:  # the step did not hold all of them: the next token is injected too
            self._force(done)
            return Verification(list(range(len(done))), done, 0)
        if done:
            last = self.sampler.verify(EMPTY_DRAFT, output.logits[-1:], self._ends_step, self.constraint)
            return Verification(list(range(len(done) + 1)), [*done, *last.token_ids], last.near_ties)
        return self.sampler.verify(draft, output.logits, self._ends_step, self.constraint)

    def _force(self, done: list[int]) -> bool:
        """Take the next injected token as chosen; True if it ends the step."""
        token = self.forced.pop(0)
        done.append(token)
        self.request.stats.forced_tokens += 1
        self.sampler.take([token])
        return self._ends_step(token)

    def _ends_step(self, token_id: int) -> bool:
        """Record a chosen token; True if it ends the request, or the rest needs another forward or constraint."""
        request, tracker = self.request, self.tracker
        if request.constraint is not None and request.constraint.failure is not None:
            tracker.push(inside=False)  # `constrained` drops the token
            return True
        if token_id in request.stop_token_ids:
            self.reason = "stop"
        elif self.stream is not None:
            self.pieces.append(self.stream.push(token_id))
            if self.stream.stopped_by is not None:
                self.reason = "stop"
        before = tracker.thinking
        changed = tracker.push(inside=self.stream is not None and self.stream.in_reasoning)
        if self.reason is None and len(tracker.flags) >= request.max_tokens:
            self.reason = "length"
        freed = request.constraint is not None and tracker.thinking != before
        return changed or freed or self.reason is not None

    def count_thought(self, tokenizer: PreTrainedTokenizerFast | None) -> None:
        """At the end: count as slow a request that reasoned although its chat template alone asked for fast mode.

        A template that closes the reasoning in the prompt is no proof: the model may reason all the same, and then
        close it. What it writes up to that tag is counted as reasoning.
        """
        request, stats = self.request, self.request.stats
        decision, tags = stats.decision, request.tags or ThinkingTags()
        if tokenizer is None or decision is None or decision.mode != "fast" or request.plan.factor != SLOW:
            return
        if request.constraint is not None or not tags.thought_of(request.text):
            return
        if tags.close in request.text:
            ids = request.token_ids
            through = bisect_left(
                range(len(ids)), True, key=lambda n: tags.close in tokenizer.decode(ids[: n + 1])
            )
            stats.reasoning_tokens = max(stats.reasoning_tokens, min(through + 1, len(ids)))
        why = f"{decision.reason}; but the model reasoned"
        stats.decision = replace(decision, mode="slow", by=BY_OUTPUT, reason=why)

    def constrained(self, token_ids: Sequence[int]) -> Sequence[int]:
        """The tokens without the last one if the constraint failed at it."""
        constraint = self.request.constraint
        return token_ids if constraint is None or constraint.failure is None else token_ids[:-1]

    def check_constraint(self, reason: FinishReason | None) -> FinishReason | None:
        """Why the request ends: "cancelled", with an error, if its constraint fails or the model ends too early.

        A stop string or the length may end an answer anywhere.
        """
        request, constraint = self.request, self.request.constraint
        by_end_token = reason == "stop" and (self.stream is None or self.stream.stopped_by is None)
        if constraint is None or (reason is not None and not by_end_token):
            return reason
        failure = constraint.failure
        if by_end_token:
            failure = None if constraint.complete else "the model ended its answer before it was complete"
        if failure is None:
            return reason
        request.error = ConstraintError(f"the answer does not satisfy the JSON schema: {failure}")
        return "cancelled"


def state_to_draft_from(output: StepOutput, node: int) -> Tensor:
    """The state from which a drafter continues after ``node``: [SPEC]'s if it was run there, else the node's own."""
    return output.hidden[node] if output.spec_hidden is None else output.spec_hidden[node]


def chain(token_ids: Sequence[int]) -> Draft:
    """A draft of tokens with probability 1."""
    return Draft(list(token_ids), [i - 1 for i in range(len(token_ids))], [1.0] * len(token_ids))


def step_input(slot: int, active: Active, draft: Draft) -> StepInput:
    """A sequence's input of a step: the last token, the draft below it, and [SPEC] after each if the draft needs it."""
    tokens = [active.last_token, *draft.token_ids]
    straight = all(parent == index - 1 for index, parent in enumerate(draft.parents))
    parents = None if straight else [parent + 1 for parent in draft.parents]
    spec = len(tokens) if draft.spec and len(draft) else 0
    return StepInput(slot, tokens, parents, active.request.plan.factor, spec)
