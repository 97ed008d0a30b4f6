"""The decode loop: admit, draft, verify, keep, emit; several sequences at once, each with its own drafts."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Literal

from torch import Tensor
from transformers import PreTrainedTokenizerFast

from justright.draft.base import EMPTY_DRAFT, Draft, Drafter
from justright.engine.cost import StepCost
from justright.engine.sampling import Sampler, SamplingParams
from justright.engine.speculation import Speculation, choose
from justright.engine.stats import RequestStats
from justright.engine.text import TextStream
from justright.engine.verifier import StepInput, StepOutput, Verifier
from justright.errors import ResourceError

FinishReason = Literal["stop", "length", "cancelled"]

_ids = count()


@dataclass(slots=True, eq=False)
class Request:
    """One sequence to generate, and everything known of it while and after it runs.

    The caller fills the first block and may call `cancel` at any time, from any thread; the loop owns the rest.

    Attributes:
        prompt_ids: the prompt's tokens.
        params: how tokens are chosen.
        max_tokens: the most tokens to emit.
        stop: stop strings (need a tokenizer).
        stop_token_ids: end tokens; the end token is emitted as a token and not as text.
        token_ids: what was emitted.
        text: what was emitted, as text, up to the stop string.
        finish_reason: "stop" (end token or stop string), "length", "cancelled"; None while it runs.
        stopped_by: the stop string, if one ended it.
        stats: counts and times.
    """

    prompt_ids: Sequence[int]
    params: SamplingParams = field(default_factory=SamplingParams)
    max_tokens: int = 256
    stop: tuple[str, ...] = ()
    stop_token_ids: frozenset[int] = frozenset()
    token_ids: list[int] = field(default_factory=list)
    text: str = ""
    finish_reason: FinishReason | None = None
    stopped_by: str | None = None
    stats: RequestStats = field(default_factory=RequestStats)
    id: int = field(default_factory=lambda: next(_ids))
    cancelled: bool = False

    def cancel(self) -> None:
        """Stop at the next step; what was emitted stays."""
        self.cancelled = True


@dataclass(frozen=True, slots=True)
class Emission:
    """New output of one request; ``finish_reason`` is set on its last one.

    Attributes:
        request: whose it is.
        token_ids: new tokens, maybe none on the last.
        text: new text that is certain (stop strings hold some back).
        drafted: how many of ``token_ids`` came from a draft.
    """

    request: Request
    token_ids: list[int]
    text: str
    drafted: int
    finish_reason: FinishReason | None


@dataclass(slots=True)
class _Active:
    """A request that holds a slot."""

    request: Request
    sampler: Sampler
    record: Speculation
    stream: TextStream | None
    last_token: int = -1


class DecodeLoop:
    """Runs requests to their end, as many at once as the verifier has slots.

    Args:
        verifier: the model.
        tokenizer: for text and stop strings; None emits tokens only.
        drafter: what guesses; None decodes plainly.
        cost: what a step costs on this machine; None speculates at every chance (for tests and measurements).
        max_draft: the most draft tokens a sequence and step.
        reuse_prefix: keep a finished sequence in its slot, and run only what is new of a prompt that begins
            alike (chats).
    """

    def __init__(
        self,
        verifier: Verifier,
        tokenizer: PreTrainedTokenizerFast | None = None,
        *,
        drafter: Drafter | None = None,
        cost: StepCost | None = None,
        max_draft: int = 32,
        reuse_prefix: bool = False,
    ) -> None:
        self.verifier = verifier
        self.tokenizer = tokenizer
        self.drafter = drafter
        self.cost = cost
        self.max_draft = max_draft
        self.reuse_prefix = reuse_prefix
        self._active: list[_Active] = []

    def run(self, requests: Iterable[Request]) -> Iterator[Emission]:
        """Run ``requests``, yielding output as it comes; closing the iterator early cancels what is left.

        Raises:
            ResourceError: a request that the cache can never hold, before any of them runs.
        """
        waiting = deque(requests)
        for request in waiting:
            self._check_room(request)
        try:
            while waiting or self._active:
                while waiting and len(self._active) < self.verifier.slots:
                    yield from self._admit(waiting.popleft())
                if self._active:
                    yield from self._step()
        finally:
            for request in waiting:
                request.finish_reason = "cancelled"
            for active in list(self._active):
                active.request.text += self._finish(active, "cancelled")

    def _admit(self, request: Request) -> Iterator[Emission]:
        """Prefill a request into the next free slot and emit its first token."""
        if request.cancelled:
            request.finish_reason = "cancelled"
            yield Emission(request, [], "", 0, "cancelled")
            return
        slot = len(self._active)
        stats = request.stats
        stats.prompt_tokens = len(request.prompt_ids)
        stream = TextStream(self.tokenizer, request.stop) if self.tokenizer is not None else None
        active = _Active(request, Sampler(request.params, request.prompt_ids), Speculation(), stream)
        if self.reuse_prefix:
            stats.reused_tokens = self.verifier.reuse(slot, request.prompt_ids)
        else:
            self.verifier.clear(slot)
        if self.drafter is not None:
            self.drafter.start(request.id, request.prompt_ids)
        self._active.append(active)  # behind the start: what was not started is not stopped
        begin = time.perf_counter()
        output: StepOutput | None = None
        for chunk in self.verifier.prefill(slot, request.prompt_ids[stats.reused_tokens :]):
            output = chunk
            if request.cancelled:
                yield self._emit(active, [], 0, None)
                return
        assert output is not None
        verified = active.sampler.verify(EMPTY_DRAFT, output.logits)
        stats.prefill_s = time.perf_counter() - begin
        stats.near_ties += verified.near_ties
        yield self._emit(active, verified.token_ids, 0, output.hidden[0])

    def _step(self) -> Iterator[Emission]:
        """One verification for all active sequences."""
        batch = list(self._active)
        begin = time.perf_counter()
        proposals, drafts = self._draft(batch)
        drafted = time.perf_counter()
        outputs = self.verifier.step(
            [_step_input(i, a, d) for i, (a, d) in enumerate(zip(batch, drafts, strict=True))]
        )
        verified = [a.sampler.verify(d, o.logits) for a, d, o in zip(batch, drafts, outputs, strict=True)]
        self._learn_cost(batch, drafts, time.perf_counter() - drafted)
        for slot, one in enumerate(verified):
            self.verifier.keep(slot, one.path)
        checked = time.perf_counter()
        for active, proposal, draft, one in zip(batch, proposals, drafts, verified, strict=True):
            accepted = len(one.path) - 1
            active.record.emitted(one.token_ids)
            if len(draft):
                active.record.verified(proposal, len(draft), accepted)
            stats = active.request.stats
            stats.verifications += 1
            stats.plain_steps += not len(draft)
            stats.drafted += len(draft)
            stats.near_ties += one.near_ties
            stats.steps.append((len(active.request.token_ids), len(draft), accepted))
        end = time.perf_counter()
        for active, output, one in zip(batch, outputs, verified, strict=True):
            stats = active.request.stats
            stats.draft_s += drafted - begin + end - checked
            stats.verify_s += checked - drafted
            stats.decode_s += end - begin
            yield self._emit(active, one.token_ids, len(one.path) - 1, output.hidden[one.path[-1]])

    def _draft(self, batch: Sequence[_Active]) -> tuple[list[Draft], list[Draft]]:
        """Proposals of the drafter, and the same cut to what pays."""
        if self.drafter is None:
            nothing = [EMPTY_DRAFT] * len(batch)
            return nothing, nothing
        proposals = []
        for slot, active in enumerate(batch):
            left = active.request.max_tokens - len(active.request.token_ids) - 1
            room = self.verifier.max_tokens - self.verifier.cache.lengths[slot] - 1
            limit = min(self.max_draft, left, room)
            draft = self.drafter.propose(active.request.id, limit) if limit > 0 else EMPTY_DRAFT
            proposals.append(draft.first(max(limit, 0)))
        if self.cost is None:
            return proposals, proposals
        records = [active.record for active in batch]
        chosen = choose(proposals, records, self.verifier.cache.lengths[: len(batch)], self.cost)
        for active, proposal, draft in zip(batch, proposals, chosen, strict=True):
            if not len(draft):
                active.record.set_aside(proposal)
        return proposals, chosen

    def _learn_cost(self, batch: Sequence[_Active], drafts: Sequence[Draft], seconds: float) -> None:
        if self.cost is not None:
            tokens = sum(len(draft) + 1 for draft in drafts)
            past = sum(self.verifier.cache.lengths[: len(batch)]) // len(batch)
            self.cost.observe(tokens, past, seconds)

    def _emit(
        self, active: _Active, token_ids: Sequence[int], accepted: int, hidden: Tensor | None
    ) -> Emission:
        """Append tokens up to the first that ends the request, and end it if one does.

        Args:
            active: whose they are.
            token_ids: verified tokens.
            accepted: how many of them, from the first, were drafted.
            hidden: ``[hidden_size]``, the state that predicted the last of them; None without tokens.
        """
        request = active.request
        kept: list[int] = []
        pieces: list[str] = []
        reason: FinishReason | None = None
        for token in token_ids:
            kept.append(token)
            if token in request.stop_token_ids:
                reason = "stop"
            elif active.stream is not None:
                pieces.append(active.stream.push(token))
                reason = "stop" if active.stream.stopped_by is not None else None
            if reason is None and len(request.token_ids) + len(kept) >= request.max_tokens:
                reason = "length"
            if reason is not None:
                break
        accepted = min(accepted, len(kept))
        request.token_ids += kept
        stats = request.stats
        stats.accepted += accepted
        stats.output_tokens = len(request.token_ids)
        if stats.steps and kept:
            position, drafted, _ = stats.steps[-1]
            stats.steps[-1] = (position, drafted, accepted)
        if reason is None and request.cancelled:
            reason = "cancelled"
        if kept:
            self._observe(active, kept, hidden)
        if reason is not None:
            pieces.append(self._finish(active, reason))
        text = "".join(pieces)
        request.text += text
        return Emission(request, kept, text, accepted, reason)

    def _observe(self, active: _Active, token_ids: list[int], hidden: Tensor | None) -> None:
        """Tell the drafter what was emitted."""
        active.last_token = token_ids[-1]
        if self.drafter is None:
            return
        begin = time.perf_counter()
        self.drafter.observe(active.request.id, token_ids, hidden if self.drafter.needs_hidden else None)
        seconds = time.perf_counter() - begin
        if active.request.stats.verifications:
            active.request.stats.draft_s += seconds
            active.request.stats.decode_s += seconds

    def _check_room(self, request: Request) -> None:
        """Refuse what the cache can never hold, before the request has any slot.

        Raises:
            ResourceError: prompt and output together exceed the cache.
        """
        total = len(request.prompt_ids) + request.max_tokens
        if total > self.verifier.max_tokens + 1:
            raise ResourceError(
                f"a prompt of {len(request.prompt_ids)} tokens and {request.max_tokens} new ones do not fit "
                f"the {self.verifier.max_tokens} tokens of context: shorten the prompt or lower max_tokens"
            )

    def _finish(self, active: _Active, reason: FinishReason) -> str:
        """Free the request's slot, keeping live slots together; returns text that was held back."""
        request = active.request
        request.finish_reason = reason
        slot = self._active.index(active)
        last = len(self._active) - 1
        if slot != last:
            self._active[slot] = self._active[last]
            self.verifier.move(last, slot)
        elif not self.reuse_prefix:
            self.verifier.clear(slot)
        self._active.pop()
        if self.drafter is not None:
            self.drafter.stop(request.id)
        if active.stream is None:
            return ""
        request.stopped_by = active.stream.stopped_by
        return active.stream.finish()


def _step_input(slot: int, active: _Active, draft: Draft) -> StepInput:
    tokens = [active.last_token, *draft.token_ids]
    chain = all(parent == index - 1 for index, parent in enumerate(draft.parents))
    return StepInput(slot, tokens, None if chain else [parent + 1 for parent in draft.parents])
