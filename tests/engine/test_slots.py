"""Requests join and leave between steps: tokens do not change, memory is bounded, prefixes are reused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from engine_helpers import alone, letters_tokenizer, prompt_of, verifier_of
from justright.engine.decode_loop import DecodeLoop
from justright.engine.request import Emission, Request
from justright.engine.sampler import SamplingParams
from justright.errors import ResourceError
from justright.speculative.base import Draft, Drafter
from justright.speculative.suffix import SuffixDrafter

LENGTHS = (3, 9, 17, 30, 41)
PROMPTS = [prompt_of(length, seed=length) for length in LENGTHS]
LETTERS = letters_tokenizer()


@settings(max_examples=15)
@given(data=st.data())
@pytest.mark.parametrize("cache", ["grow", "static", "trimmed"])
def test_whoever_joins_or_leaves_everyone_gets_the_own_tokens(cache: Any, data: st.DataObject) -> None:
    """Any arrivals, lengths and cancellations; prompts in chunks of 4 beside decoding requests."""
    verifier = verifier_of("llama", slots=3, prefill_chunk=4, cache=cache)
    loop = DecodeLoop(
        verifier,
        drafter=data.draw(st.sampled_from([None, SuffixDrafter()])),
        reuse_prefix=data.draw(st.booleans()),
        cache_tokens=data.draw(st.sampled_from([None, 300])),
        prefill_share=data.draw(st.sampled_from([None, 4, 8])),
    )
    requests = [
        Request(prompt, max_tokens=data.draw(st.integers(1, 24)))
        for prompt in data.draw(st.lists(st.sampled_from(PROMPTS), min_size=1, max_size=7))
    ]
    coming = list(requests)
    while coming or loop.busy:
        for _ in range(data.draw(st.integers(0, 2)) if loop.busy else 1):
            if coming:
                loop.waiting.append(coming.pop(0))
        if data.draw(st.integers(0, 9)) == 0:
            data.draw(st.sampled_from(requests)).cancel()
        for _ in loop.advance():
            pass
    for request in requests:
        whole = alone(request.prompt_ids, 24)[: request.max_tokens]
        if request.cancelled and request.finish_reason == "cancelled":
            assert request.token_ids == whole[: len(request.token_ids)]
        else:
            assert request.token_ids == whole
    assert not loop.places.all


def test_a_long_prompt_does_not_stop_the_others() -> None:
    """Decoding requests take a step between two chunks of a prompt."""
    verifier = verifier_of("llama", slots=2, prefill_chunk=4)
    loop = DecodeLoop(verifier, prefill_share=4)
    short, long = Request(PROMPTS[0], max_tokens=24), Request(PROMPTS[4], max_tokens=4)
    loop.waiting.append(short)
    list(loop.advance())
    loop.waiting.append(long)
    steps = 0
    while not long.token_ids:
        before = len(short.token_ids)
        list(loop.advance())
        steps += 1
        assert len(short.token_ids) == before + 1
    assert steps == -(-len(PROMPTS[4]) // 4)
    list(loop.run([]))
    assert (short.token_ids, long.token_ids) == (alone(PROMPTS[0], 24), alone(PROMPTS[4], 24)[:4])


def test_a_prefix_is_found_in_whatever_slot_it_lies() -> None:
    verifier = verifier_of("llama", slots=3)
    loop = DecodeLoop(verifier, reuse_prefix=True)
    list(loop.run([Request(prompt, max_tokens=4) for prompt in PROMPTS[2:5]]))
    for prompt in (PROMPTS[3], PROMPTS[4], PROMPTS[2]):
        again = Request([*prompt, 7, 8], max_tokens=4)
        list(loop.run([again]))
        assert again.stats.reused_tokens >= len(prompt)
        assert again.token_ids == alone([*prompt, 7, 8], 4)


@pytest.mark.parametrize("cache", ["grow", "static"])
@pytest.mark.parametrize("limit", [None, 400])
def test_a_prefix_of_one_that_still_runs_is_copied(cache: Any, limit: int | None) -> None:
    """The choices of a request, and conversations with one system prompt, run only their own tokens."""
    verifier = verifier_of("llama", slots=3, cache=cache)
    loop = DecodeLoop(verifier, reuse_prefix=True, cache_tokens=limit)
    prompt = PROMPTS[3]
    requests = [
        Request(prompt, max_tokens=24),
        Request(prompt, max_tokens=9),
        Request([*prompt, 5, 6], max_tokens=24),
    ]
    list(loop.run(requests))
    assert [r.stats.reused_tokens for r in requests] == [0, len(prompt) - 1, len(prompt)]
    assert [r.token_ids for r in requests] == [
        alone(prompt, 24), alone(prompt, 24)[:9], alone([*prompt, 5, 6], 24)
    ]  # fmt: skip


def test_a_copy_leaves_finished_sequences_alone() -> None:
    """A finished sequence is not cut for a prompt whose prefix a running sequence also has."""
    verifier = verifier_of("llama", slots=3)
    loop = DecodeLoop(verifier, reuse_prefix=True)
    begin = PROMPTS[3][:6]
    running, finished = Request([*begin, *PROMPTS[4]], max_tokens=24), Request(PROMPTS[3], max_tokens=4)
    other, again = Request([*begin, 7, 8], max_tokens=4), Request([*PROMPTS[3], 9], max_tokens=4)
    for request in (running, finished, other, again):
        loop.waiting.append(request)
        while not (request.token_ids if request is running else request.finish_reason):
            list(loop.advance())
    assert running.finish_reason is None
    assert [r.stats.reused_tokens for r in (finished, other, again)] == [6, 6, len(PROMPTS[3])]
    assert again.token_ids == alone([*PROMPTS[3], 9], 4)


def test_no_memory_for_a_copy_leaves_an_empty_slot(monkeypatch: pytest.MonkeyPatch) -> None:
    verifier = verifier_of("llama", slots=2)
    loop = DecodeLoop(verifier, reuse_prefix=True)
    list(loop.run([Request(PROMPTS[0], max_tokens=4), Request(PROMPTS[3], max_tokens=4)]))
    monkeypatch.setattr(verifier.cache, "reserve", no_memory)
    with pytest.raises(ResourceError):
        verifier.copy(1, 0, 5)
    assert verifier.shared(0, PROMPTS[0]) == 0


def no_memory(*_: Any) -> None:
    raise ResourceError("none left")


def test_the_budget_is_kept_and_finished_sequences_make_room() -> None:
    verifier = verifier_of("llama", slots=3)
    requests = [Request(prompt, max_tokens=8) for prompt in PROMPTS * 2]
    limit = 2 * max(DecodeLoop(verifier).places.needed(request) for request in requests)
    loop = DecodeLoop(verifier, reuse_prefix=True, cache_tokens=limit)
    loop.waiting.extend(requests)
    most = 0
    while loop.busy:
        list(loop.advance())
        assert loop.places.reserved_tokens <= limit
        assert sum(verifier.cache.capacities) <= limit, "the memory itself, finished sequences' included"
        most = max(most, len(loop.places.all))
    assert most >= 2
    assert [r.token_ids for r in requests] == [alone(r.prompt_ids, 24)[:8] for r in requests]
    with pytest.raises(ResourceError, match=r"need \d+ tokens of the KV cache, which holds"):
        loop.check_room(Request(PROMPTS[0], max_tokens=limit))


def test_one_slot_s_budget_is_its_context() -> None:
    """A request that fits the context also fits the budget of a single slot, drafts included."""
    verifier = verifier_of("llama", max_tokens=60)
    request = Request(PROMPTS[2], max_tokens=60 - len(PROMPTS[2]))
    list(DecodeLoop(verifier, cache_tokens=60).run([request]))
    assert len(request.token_ids) == request.max_tokens


def test_a_request_that_grew_beyond_the_budget_runs_alone() -> None:
    """Escalation uses a longer prompt than was checked; it must not block the head of the queue."""
    verifier = verifier_of("llama", slots=2)
    loop = DecodeLoop(verifier, cache_tokens=120)
    grown = Request(PROMPTS[4], max_tokens=24)
    loop.waiting.extend([Request(PROMPTS[0], max_tokens=8), grown, Request(PROMPTS[1], max_tokens=8)])
    while loop.busy:
        list(loop.advance())
    assert grown.token_ids == alone(PROMPTS[4], 24)


class Only:
    """A constraint that allows even tokens, and records its calls."""

    failure = None
    complete = True

    def __init__(self) -> None:
        self.taken: list[int] = []

    def mask(self, scores: Tensor) -> Tensor:
        scores = scores.clone()
        scores[1::2] = -torch.inf
        return scores

    def take(self, token_id: int) -> None:
        self.taken.append(token_id)

    def begin(self) -> None:
        self.taken.clear()


@pytest.mark.parametrize("params", [SamplingParams(), SamplingParams(temperature=0.9, seed=3, top_k=5)])
@pytest.mark.parametrize("draft", [False, True])
def test_a_constraint_holds_and_draws_as_it_would_without_drafts(params: SamplingParams, draft: bool) -> None:
    request = Request(PROMPTS[1], params, max_tokens=24, constraint=(constraint := Only()))
    list(DecodeLoop(verifier_of("llama"), drafter=SuffixDrafter() if draft else None).run([request]))
    assert all(token % 2 == 0 for token in request.token_ids)
    assert constraint.taken == request.token_ids
    plain = Request(PROMPTS[1], params, max_tokens=24, constraint=Only())
    list(DecodeLoop(verifier_of("llama")).run([plain]))
    assert request.token_ids == plain.token_ids


@pytest.mark.parametrize("draft", [False, True])
def test_logprobs_are_the_model_s_own(draft: bool) -> None:
    """Log-softmax of a plain forward's logits, at any temperature and with any drafts."""
    params = SamplingParams(temperature=0.5, seed=1)
    request = Request(PROMPTS[2], params, max_tokens=20, top_logprobs=3)
    verifier = verifier_of("llama")
    emissions: list[Emission] = list(
        DecodeLoop(verifier, drafter=SuffixDrafter() if draft else None).run([request])
    )
    told = [one for emission in emissions for one in emission.logprobs]
    assert told == request.logprobs
    assert [one.token_id for one in told] == request.token_ids
    ids = torch.tensor([[*PROMPTS[2], *request.token_ids]])
    model = verifier.model
    model.set_attn_implementation("sdpa")
    with torch.inference_mode():
        rows = model(ids).logits[0, len(PROMPTS[2]) - 1 : -1].log_softmax(-1)
    for row, one in zip(rows, told, strict=True):
        assert one.logprob == pytest.approx(float(row[one.token_id]), abs=1e-4)
        assert [value for _, value in one.top] == pytest.approx(row.topk(3).values.tolist(), abs=1e-4)


class Wide(Drafter):
    """Drafts right chains of the maximum length, and requests [SPEC] after each token."""

    name, needs_hidden = "wide", False

    def __init__(self, right: list[int], spec_embedding: Tensor | None) -> None:
        self.right, self.spec_embedding, self.at = right, spec_embedding, 0
        self.longest = 0

    def start(self, request_id: Any, prompt_ids: Any) -> None:
        self.at = 0

    def observe(self, request_id: Any, token_ids: Any, hidden: Any = None) -> None:
        self.at += len(token_ids)

    def propose(self, request_id: Any, max_nodes: int) -> Draft:
        tokens = self.right[self.at : self.at + max_nodes]
        self.longest = max(self.longest, len(tokens))
        parents = [n - 1 for n in range(len(tokens))]
        return Draft(tokens, parents, [1.0] * len(tokens), spec=self.spec_embedding is not None)

    def stop(self, request_id: Any) -> None:
        pass


@pytest.mark.parametrize("spec", [True, False])
@pytest.mark.parametrize("max_draft", [1, 32, 100])
def test_no_sequence_outgrows_its_reservation(spec: bool, max_draft: int) -> None:
    """The rows that each step reserves in the cache, against the stated maximum."""
    prompt, tokens = PROMPTS[1], 120
    right = alone(prompt, tokens)
    verifier = verifier_of("llama")
    drafter = Wide(right, torch.zeros(verifier.spec.hidden_size) if spec else None)
    loop = DecodeLoop(verifier, drafter=drafter, max_draft=max_draft, cache_tokens=500)
    request = Request(prompt, max_tokens=tokens)
    most, reserve = 0, verifier.cache.reserve

    def counted(slot: int, count: int) -> None:
        nonlocal most
        most = max(most, verifier.cache.lengths[slot] + count)
        reserve(slot, count)

    verifier.cache.reserve = counted  # type: ignore[method-assign]
    needed = loop.places.needed(request)
    loop.waiting.append(request)
    while loop.busy:
        list(loop.advance())
        assert sum(verifier.cache.capacities) <= needed, "the memory itself"
    assert request.token_ids == right
    assert drafter.longest == max_draft
    assert most <= needed
    # The last step ends with the last token but one; at most a [SPEC] follows it and each guess.
    assert needed <= len(prompt) + tokens + (max_draft + 1 if spec else 0)
