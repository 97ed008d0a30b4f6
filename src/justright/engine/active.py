"""A request while it holds a slot, and what it puts into a step and takes out of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from justright.draft.base import EMPTY_DRAFT, Draft
from justright.engine.request import FinishReason, Request
from justright.engine.sampling import (
    Constraint,
    NoTokenError,
    Sampler,
    TokenLogprob,
    Verified,
    token_logprobs,
)
from justright.engine.speculation import Speculation
from justright.engine.step import StepInput, StepOutput
from justright.engine.text import TextStream
from justright.switch.thinking import ThoughtTracker


@dataclass(slots=True)
class Active:
    """A request that holds a slot."""

    request: Request
    sampler: Sampler
    record: Speculation
    stream: TextStream | None
    tracker: ThoughtTracker | None
    last_token: int = -1
    confidence: float = 1.0
    drafting: bool = False
    logprobs: list[TokenLogprob] = field(default_factory=list)

    @property
    def factor(self) -> float:
        """Of the switch, in the next step."""
        return self.request.plan.factor if self.tracker is None else self.tracker.factor

    @property
    def forced(self) -> list[int]:
        """Tokens that come next whatever the model thinks."""
        return [] if self.tracker is None else self.tracker.forced

    def ends_step(self, token_id: int) -> bool:
        """Note a chosen token; True if what follows needs another forward, or another look at it."""
        if self.tracker is None:
            return False
        thinking = self.tracker.thinking
        changed = self.tracker.push(token_id)
        return changed or (self.request.constraint is not None and self.tracker.thinking != thinking)

    @property
    def constraint(self) -> Constraint | None:
        """On the next token: thoughts are free."""
        return None if self.tracker is not None and self.tracker.thinking else self.request.constraint

    def verify_or_end(self, draft: Draft, output: StepOutput) -> Verified:
        """`verify`; where no token can be chosen, the request is cancelled with that error and emits nothing."""
        try:
            return self.verify(draft, output)
        except NoTokenError as error:
            self.request.error = error
            self.request.cancel()
            return Verified([0], [], 0)

    def verify(self, draft: Draft, output: StepOutput) -> Verified:
        """What stands of a draft, and the token behind it; with the log-probabilities that the request asks for."""
        request = self.request
        forced_before = request.stats.forced_tokens
        verified = self._choose(draft, output)
        forced_alone = request.stats.forced_tokens - forced_before == len(verified.token_ids)
        if request.top_logprobs is not None:
            rows = output.logits[verified.path].float().log_softmax(-1)
            told = token_logprobs(rows, verified.token_ids, request.top_logprobs)
            self.logprobs = [replace(one, thought=self._is_thought(n)) for n, one in enumerate(told)]
        if request.route is not None and not forced_alone:
            chances = output.logits[verified.path].float().softmax(-1)
            chosen = torch.tensor(verified.token_ids, device=chances.device)[:, None]
            self.confidence = min(self.confidence, float(chances.gather(1, chosen).min()))
        return verified

    def _is_thought(self, index: int) -> bool:
        """Whether a token is of a thought: that of ``index`` among those that were chosen since the last emission."""
        return self.tracker is not None and self.tracker.flags[len(self.request.token_ids) + index][0]

    def _choose(self, draft: Draft, output: StepOutput) -> Verified:
        """What stands of a draft, or of forced tokens in its place, and the token behind it."""
        done: list[int] = []
        if self.forced:
            self.sampler.check(output.logits)
        for token in draft.token_ids if self.forced else ():
            done.append(token)
            self.forced.pop(0)
            self.request.stats.forced_tokens += 1
            if self.ends_step(token):
                self.sampler.take(done)
                return Verified(list(range(len(done))), done, 0)
        if self.forced:  # no room was left for all of them in the step: the next is no choice either
            done.append(self.forced.pop(0))
            self.request.stats.forced_tokens += 1
            self.ends_step(done[-1])
            self.sampler.take(done)
            return Verified(list(range(len(done))), done, 0)
        if done:
            self.sampler.take(done)
            last = self.sampler.verify(EMPTY_DRAFT, output.logits[-1:], self.ends_step, self.constraint)
            return Verified(list(range(len(done) + 1)), [*done, *last.token_ids], last.near_ties)
        return self.sampler.verify(draft, output.logits, self.ends_step, self.constraint)

    def cut(self, token_ids: Sequence[int]) -> tuple[list[int], list[str], FinishReason | None]:
        """Tokens up to the first that ends the request, their text, and why it ends."""
        request = self.request
        kept: list[int] = []
        pieces: list[str] = []
        reason: FinishReason | None = None
        for token in token_ids:
            kept.append(token)
            if token in request.stop_token_ids:
                reason = "stop"
            elif self.stream is not None:
                pieces.append(self.stream.push(token))
                reason = "stop" if self.stream.stopped_by is not None else None
            if reason is None and len(request.token_ids) + len(kept) >= request.max_tokens:
                reason = "length"
            if reason is not None:
                break
        return kept, pieces, reason


def state_to_draft_from(output: StepOutput, node: int) -> Tensor:
    """What a drafter goes on from behind ``node``: [SPEC]'s state if it was run there, else the node's own."""
    return output.hidden[node] if output.spec_hidden is None else output.spec_hidden[node]


def prefill_factor(request: Request) -> float:
    """Of the switch, on the prompt."""
    plan = request.plan
    return plan.factor if plan.prefill is None else plan.prefill


def chain(token_ids: Sequence[int]) -> Draft:
    """A draft of tokens that are certain."""
    return Draft(list(token_ids), [i - 1 for i in range(len(token_ids))], [1.0] * len(token_ids))


def step_input(slot: int, active: Active, draft: Draft) -> StepInput:
    """What is run of a sequence: the last token, the draft below it, and [SPEC] behind each if the draft wants it."""
    tokens = [active.last_token, *draft.token_ids]
    straight = all(parent == index - 1 for index, parent in enumerate(draft.parents))
    parents = None if straight else [parent + 1 for parent in draft.parents]
    spec = len(tokens) if draft.spec and len(draft) else 0
    return StepInput(slot, tokens, parents, active.factor, spec)
