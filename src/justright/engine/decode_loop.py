"""The decode loop: admit, draft, verify and emit, for several sequences at once, each with its own draft."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from justright.engine.draft_selection import choose, preferred
from justright.engine.model_runner import Verifier
from justright.engine.request import Emission, FinishReason, Request
from justright.engine.sampler import Verification
from justright.engine.sequence import Active, chain, state_to_draft_from, step_input
from justright.engine.slots import Slots
from justright.engine.step import StepOutput
from justright.engine.step_cost import StepCost
from justright.errors import ResourceError
from justright.reasoning.routing import Turn
from justright.speculative.base import EMPTY_DRAFT, Draft, Drafter


class DecodeLoop:
    """Runs requests to completion, as many at once as the verifier has slots.

    Args:
        verifier: the model.
        tokenizer: for text and stop strings; None emits tokens only.
        drafter: proposes tokens; None decodes without speculation.
        cost: the cost of a step on this machine; None speculates at every step (for tests and measurements).
        max_draft: the maximum number of draft tokens per sequence and step.
        reuse_prefix: keep a finished sequence in its slot, and run only the new part of a prompt that shares its
            prefix (chats).
        cache_tokens: the maximum number of tokens in the KV cache; a request waits until it fits.
        prefill_share: prompt tokens (rounded up to a chunk) after which `advance` turns to the decoding sequences and
            returns; None runs whole prompts.
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
        cache_tokens: int | None = None,
        prefill_share: int | None = None,
    ) -> None:
        self.verifier = verifier
        self.tokenizer = tokenizer
        self.drafter = drafter
        verifier.spec_embedding = None if drafter is None else drafter.spec_embedding
        self.cost = cost
        self.max_draft = max_draft
        self.prefill_share = prefill_share
        # One [SPEC] row for the last token and one for each draft token.
        spec_rows = 0 if verifier.spec_embedding is None else max_draft + 1
        self.places = Slots(
            verifier, reuse_prefix=reuse_prefix, cache_tokens=cache_tokens, spec_rows=spec_rows
        )
        self.waiting: deque[Request] = deque()
        self._joining: Iterator[Emission | int] | None = None

    def run(self, requests: Iterable[Request]) -> Iterator[Emission]:
        """Run ``requests`` and yield output as it is generated; closing the iterator early cancels the rest.

        A request that fails ends alone, with its `error` set.

        Raises:
            ResourceError: a request can never fit in the cache; raised before any request runs.
        """
        for request in (requests := list(requests)):
            self.check_room(request)
        self.waiting.extend(requests)
        try:
            while self.busy:
                yield from self.advance()
        finally:
            self.cancel_all()

    @property
    def busy(self) -> bool:
        """Whether any request waits or runs."""
        return bool(self.waiting or self.places.all)

    def advance(self) -> Iterator[Emission]:
        """Admit waiting requests while there is capacity, then take one step with all decoding sequences.

        Callers may append requests to ``waiting`` between two calls; they must exhaust the iterator.
        """
        yield from self._join()
        if self.places.decoding:
            yield from self._step()

    def cancel_all(self) -> None:
        """End all waiting and running requests."""
        for request in self.waiting:
            request.finish_reason = "cancelled"
        self.waiting.clear()
        self._joining = None
        for active in list(self.places.all):
            active.request.text += self._finish(active, "cancelled")

    def _join(self) -> Iterator[Emission]:
        """Run prompts: whole ones, or ``prefill_share`` tokens of them."""
        run = 0
        while True:
            if self._joining is None:
                if not (self.waiting and self.places.has_room(self.waiting[0])):
                    return
                self._joining = self._admit(self.waiting.popleft())
            for event in self._joining:
                if isinstance(event, Emission):
                    yield event
                    continue
                run += event
                if self.prefill_share is not None and run >= self.prefill_share:
                    return
            self._joining = None

    def _admit(self, request: Request) -> Iterator[Emission | int]:
        """Prefill a request into the next free slot and emit its first token; yielded ints count the tokens run."""
        if request.cancelled:
            request.finish_reason = "cancelled"
            yield Emission(request, [], "", 0, "cancelled")
            return
        stats = request.stats
        active = self._begin(request)
        output = yield from self._prefill(active)
        if output is not None and request.route is not None:
            stats.decision, turn = request.route.after_prefill(output.hidden[0])
            if turn is not None:
                self._free(active)
                request.take(turn)
                active = self._begin(request)
                output = yield from self._prefill(active)
            elif not request.route.holds_output:
                request.route = None  # decided: nothing reads the confidence any more
        if output is None:
            yield self._emit(active, [], 0, None)
            return
        begin = time.perf_counter()
        verified = active.verify_or_end(EMPTY_DRAFT, output)
        self.places.seat(active)
        stats.prefill_s += time.perf_counter() - begin
        stats.near_ties += self._near_ties(request, verified)
        yield self._emit(active, verified.token_ids, 0, state_to_draft_from(output, 0))

    def _begin(self, request: Request) -> Active:
        """Give a request the next free slot, and keep only the prefix that it can reuse."""
        request.stats.prompt_tokens = len(request.prompt_ids)
        active = Active.of(request, self.tokenizer)
        request.stats.reused_tokens = self.places.take(active, reuse=not self._reads)
        if self.drafter is not None:
            started = time.perf_counter()
            self.drafter.start(request.id, request.prompt_ids)  # may index the whole prompt
            request.stats.prefill_s += time.perf_counter() - started
            active.drafting = True
        return active

    def _prefill(self, active: Active) -> Generator[int, None, StepOutput | None]:
        """Run a request's prompt in chunks and yield the token count of each; returns None if it was cancelled."""
        request, verifier = active.request, self.verifier
        output: StepOutput | None = None
        new = request.prompt_ids[request.stats.reused_tokens :]
        states: list[Tensor] | None = [] if self._reads else None
        for begin, end in verifier.prefill_spans(len(new)):
            if request.cancelled:
                return None
            started = time.perf_counter()
            slot = self.places.slot(active)  # other requests may have ended since
            output = verifier.prefill_one(
                slot,
                new[begin:end],
                request.plan.factor,
                last=end == len(new),
                spec=verifier.spec_embedding is not None,
                states=states,
            )
            request.stats.prefill_s += time.perf_counter() - started
            yield end - begin
        if request.cancelled:
            return None
        if self.drafter is not None and states is not None:
            started = time.perf_counter()
            self.drafter.read(request.id, torch.cat(states))
            request.stats.prefill_s += time.perf_counter() - started
        return output

    @property
    def _reads(self) -> bool:
        """Whether the drafter needs the states of all tokens; an earlier run's prefix cannot be reused then."""
        return self.drafter is not None and self.drafter.needs_states

    def _step(self) -> Iterator[Emission]:
        """One verification for all active sequences."""
        batch = list(self.places.decoding)
        begin = time.perf_counter()
        proposals, drafts = self._draft(batch)
        forced = [bool(active.forced) for active in batch]
        drafted = time.perf_counter()
        outputs = self.verifier.step(
            [step_input(i, a, d) for i, (a, d) in enumerate(zip(batch, drafts, strict=True))]
        )
        forced_before = [active.request.stats.forced_tokens for active in batch]
        verified = [a.verify_or_end(d, o) for a, d, o in zip(batch, drafts, outputs, strict=True)]
        self._learn_cost(batch, drafts, time.perf_counter() - drafted)
        for slot, one in enumerate(verified):
            self.verifier.keep(slot, one.path)
        self._recycle(batch, drafts, outputs)
        checked = time.perf_counter()
        # Injected tokens do not count as draft tokens.
        drafts = [EMPTY_DRAFT if was else d for was, d in zip(forced, drafts, strict=True)]
        accepts = [one.guessed if len(d) else 0 for d, one in zip(drafts, verified, strict=True)]
        for active, before, proposal, draft, accepted, one in zip(
            batch, forced_before, proposals, drafts, accepts, verified, strict=True
        ):
            active.record.emitted(one.token_ids)
            if len(draft):
                active.record.verified(proposal, len(draft), accepted)
                if self.drafter is not None:
                    self.drafter.verified(active.request.id, draft, accepted)
            stats = active.request.stats
            stats.verifications += 1
            stats.forced_steps += stats.forced_tokens - before == len(one.token_ids)
            stats.plain_steps += not len(draft)
            stats.drafted += len(draft)
            stats.near_ties += self._near_ties(active.request, one)
            stats.steps.append((len(active.request.token_ids), len(draft), accepted))
        end = time.perf_counter()
        # Build all chunks before the first yield, so that closing the iterator leaves every request consistent.
        emissions = []
        for active, output, accepted, one in zip(batch, outputs, accepts, verified, strict=True):
            if self.drafter is not None and self.drafter.needs_states:
                self.drafter.read(active.request.id, output.hidden[one.path])
            stats = active.request.stats
            stats.draft_s += drafted - begin + end - checked
            stats.verify_s += checked - drafted
            stats.decode_s += end - begin
            state = state_to_draft_from(output, one.path[-1])
            emissions.append(self._emit(active, one.token_ids, accepted, state))
        yield from emissions

    def _near_ties(self, request: Request, verified: Verification) -> int:
        """Tokens that could be others in another batch or with other drafts.

        There are none where a row has the same bits in every step: in fused layers, without an adapter, after a prompt
        that was run as a whole.
        """
        exact = self.verifier.fused and not request.plan.factor and not request.stats.reused_tokens
        return 0 if exact else verified.near_ties

    def _draft(self, batch: Sequence[Active]) -> tuple[list[Draft], list[Draft]]:
        """The full proposals, and the same cut to the profitable size; injected tokens take precedence over drafts."""
        proposals, drafts = self._guess(batch)
        for slot, active in enumerate(batch):
            if active.forced:
                left = active.request.max_tokens - len(active.request.token_ids) - 1
                proposals[slot] = drafts[slot] = chain(active.forced[: max(left, 0)])
        return proposals, drafts

    def _guess(self, batch: Sequence[Active]) -> tuple[list[Draft], list[Draft]]:
        """The drafter's proposals, and the same cut to the profitable size."""
        if self.drafter is None:
            return [EMPTY_DRAFT] * len(batch), [EMPTY_DRAFT] * len(batch)
        proposals = [self._propose(self.drafter, slot, active) for slot, active in enumerate(batch)]
        if self.cost is None:
            return proposals, list(proposals)
        records, pasts = [active.record for active in batch], self.verifier.cache.lengths[: len(batch)]
        for slot, (draft, record) in enumerate(zip(proposals, records, strict=True)):
            proposals[slot] = preferred(draft, record, pasts[slot], self.cost, len(batch))
            if draft.instead is not None:
                record.set_aside(draft if proposals[slot] is draft.instead else draft.instead)
        chosen = choose(proposals, records, pasts, self.cost)
        for active, proposal, draft in zip(batch, proposals, chosen, strict=True):
            if len(proposal) and not len(draft):
                active.record.set_aside(proposal)
        return proposals, chosen

    def _propose(self, drafter: Drafter, slot: int, active: Active) -> Draft:
        """One sequence's proposal, within the limits of its request and of the cache."""
        left = active.request.max_tokens - len(active.request.token_ids) - 1
        room = self.verifier.max_tokens - self.verifier.cache.lengths[slot] - 1
        limit = min(self.max_draft, left, room)
        if limit < 1:
            return EMPTY_DRAFT
        rests = self.cost is not None and active.record.rests()
        propose = drafter.propose_cheaply if rests else drafter.propose
        begin = time.perf_counter()
        draft = propose(active.request.id, limit).first(limit)
        if rests and draft == EMPTY_DRAFT:  # not worth a measurement
            return EMPTY_DRAFT
        active.record.drafted(draft, time.perf_counter() - begin)
        if draft.rows() > room + 1:  # no row left for its [SPEC]
            return replace(draft, spec=False)
        return draft

    def _recycle(
        self, batch: Sequence[Active], drafts: Sequence[Draft], outputs: Sequence[StepOutput]
    ) -> None:
        """Pass the top tokens after every token of the step to a drafter that uses them."""
        if self.drafter is None or not self.drafter.candidates:
            return
        for active, draft, output in zip(batch, drafts, outputs, strict=True):
            found = output.logits.topk(self.drafter.candidates, dim=-1).indices.tolist()
            self.drafter.recycle(active.request.id, [active.last_token, *draft.token_ids], found)

    def _learn_cost(self, batch: Sequence[Active], drafts: Sequence[Draft], seconds: float) -> None:
        if self.cost is not None:
            tokens = sum(draft.rows() for draft in drafts)
            past = sum(self.verifier.cache.lengths[: len(batch)]) // len(batch)
            self.cost.observe(tokens, past, seconds)

    def _emit(
        self, active: Active, token_ids: Sequence[int], accepted: int, hidden: Tensor | None
    ) -> Emission:
        """Append verified tokens, and end the request if the last of them ends it.

        Args:
            active: the sequence.
            token_ids: verified tokens.
            accepted: how many of them, from the first, were drafted.
            hidden: ``[hidden_size]``, the state that predicted the last of them; None without tokens.
        """
        token_ids = active.constrained(token_ids)
        request, reason = active.request, active.check_constraint(active.reason)
        accepted = min(accepted, len(token_ids))
        request.token_ids += token_ids
        logprobs = tuple(active.logprobs[: len(token_ids)])
        request.logprobs += logprobs
        stats = request.stats
        stats.accepted += accepted
        stats.output_tokens = len(request.token_ids)
        stats.reasoning_tokens = active.tracker.reasoning_tokens(stats.output_tokens)
        stats.fast_tokens = stats.output_tokens if request.plan.factor > 0 else 0
        if reason is None and request.cancelled:
            reason = "cancelled"
        if token_ids:
            self._observe(active, token_ids, hidden)
        route = request.route if request.route is not None and request.route.holds_output else None
        if route is not None and reason in ("stop", "length"):
            stats.decision, turn = route.after_answer(reason, active.confidence)
            if turn is not None:
                self._again(active, turn)
                return Emission(request, [], "", 0, None)
        text = "".join(active.pieces)
        if reason is not None:
            text += self._finish(active, reason)
        request.text += text
        if reason is not None:
            active.count_thought(self.tokenizer)
        if route is None:
            return Emission(request, list(token_ids), text, accepted, request.finish_reason, logprobs)
        if reason is None:
            return Emission(request, [], "", 0, None)
        whole = list(request.token_ids), request.text, 0, request.finish_reason, tuple(request.logprobs)
        return Emission(request, *whole)

    def _again(self, active: Active, turn: Turn) -> None:
        """Discard an answer and restart the request ahead of all waiting ones."""
        request = active.request
        self._free(active)
        request.stats.discarded_tokens += len(request.token_ids)
        request.token_ids, request.text, request.logprobs = [], "", []
        if request.constraint is not None:
            request.constraint.begin()
        request.take(turn)
        self.waiting.appendleft(request)

    def _observe(self, active: Active, token_ids: Sequence[int], hidden: Tensor | None) -> None:
        """Pass the emitted tokens to the drafter."""
        active.last_token = token_ids[-1]
        if self.drafter is None:
            return
        begin = time.perf_counter()
        self.drafter.observe(active.request.id, token_ids, hidden if self.drafter.needs_hidden else None)
        seconds, stats = time.perf_counter() - begin, active.request.stats
        if stats.verifications:
            stats.draft_s += seconds
            stats.decode_s += seconds
        else:
            stats.prefill_s += seconds

    def check_room(self, request: Request) -> None:
        """Validate that the request fits in the cache, before it gets a slot.

        Raises:
            ResourceError: prompt and output together exceed the cache.
        """
        total = len(request.prompt_ids) + request.max_tokens
        if total > self.verifier.max_tokens + 1:
            raise ResourceError(
                f"a prompt of {len(request.prompt_ids)} tokens and max_tokens {request.max_tokens} exceed the context "
                f"of {self.verifier.max_tokens} tokens: shorten the prompt or lower max_tokens"
            )
        limit, needed = self.places.cache_tokens, self.places.needed(request)
        if limit is not None and needed > limit:
            raise ResourceError(
                f"a prompt of {len(request.prompt_ids)} tokens and max_tokens {request.max_tokens} need {needed} "
                f"tokens of the KV cache, which holds {limit}: shorten the prompt or lower max_tokens"
            )

    def _finish(self, active: Active, reason: FinishReason) -> str:
        """End a request; returns the text that was held back."""
        request, stream = active.request, active.stream
        self._free(active)
        rest = "" if stream is None else stream.finish()
        request.stopped_by = None if stream is None else stream.stopped_by
        # Text that was held back as a possible tag may contain the stop string.
        request.finish_reason = "stop" if reason == "length" and request.stopped_by else reason
        return rest

    def _free(self, active: Active) -> None:
        """Release a request's slot."""
        self.places.free(active)
        if active.drafting and self.drafter is not None:
            self.drafter.stop(active.request.id)
