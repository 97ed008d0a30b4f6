"""The decode loop: ends of requests, no leftover state, and consistent statistics."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import PreTrainedModel

from engine_helpers import ScriptedDrafter, letters_tokenizer, prompt_of, reference, verifier_of
from justright.engine.attention import ATTENTION_NAME
from justright.engine.decode_loop import DecodeLoop
from justright.engine.llm import LLM
from justright.engine.model_runner import Verifier
from justright.engine.request import Emission, Request
from justright.engine.sampler import NoTokenError, SamplingParams
from justright.errors import ResourceError
from justright.speculative.base import Draft
from tiny import VOCAB_SIZE, tiny_model

PROMPT = prompt_of(21)
PROMPTS = [prompt_of(length, seed=length) for length in (21, 5, 33, 12)]
TOKENS = 40
LETTERS = letters_tokenizer()


@pytest.fixture(scope="module")
def truth() -> dict[tuple[int, ...], list[int]]:
    model = tiny_model("llama")
    return {tuple(p): reference(model, p, TOKENS) for p in [PROMPT, *PROMPTS]}


@pytest.fixture(scope="module")
def verifier() -> Verifier:
    """Shared; every test must leave its cache empty."""
    return verifier_of("llama", slots=3, prefill_chunk=8)


@pytest.fixture(autouse=True)
def nothing_is_left(verifier: Verifier) -> Any:
    yield
    assert verifier.cache.lengths == [0, 0, 0], "every slot is free again"


class Perfect(ScriptedDrafter):
    """Drafts chains of the true continuation, so that all tokens are accepted."""

    length = 12

    def propose(self, request_id: Hashable, max_nodes: int) -> Draft:
        truth, done = self.state[request_id]
        coming = list(truth[done : done + min(max_nodes, self.length)])
        return Draft(coming, list(range(-1, len(coming) - 1)), [0.9] * len(coming))


def collect(loop: DecodeLoop, *requests: Request) -> list[Emission]:
    return list(loop.run(requests))


def adds_up(request: Request, emissions: Sequence[Emission]) -> None:
    """All relations between the statistics."""
    mine = [e for e in emissions if e.request is request]
    stats = request.stats
    assert [t for e in mine for t in e.token_ids] == request.token_ids
    assert "".join(e.text for e in mine) == request.text
    assert [e.finish_reason for e in mine] == [None] * (len(mine) - 1) + [request.finish_reason]
    assert stats.prompt_tokens == (len(request.prompt_ids) if request.token_ids else stats.prompt_tokens)
    assert stats.output_tokens == len(request.token_ids)
    assert stats.verifications == len(stats.steps)
    assert stats.drafted == sum(drafted for _, drafted, _ in stats.steps)
    assert stats.plain_steps == sum(drafted == 0 for _, drafted, _ in stats.steps)
    assert stats.accepted == sum(e.drafted for e in mine)
    assert stats.accepted <= stats.drafted
    # Every verification gives its accepted tokens and one more; the last one may be cut off.
    cut = stats.accepted + stats.verifications - max(stats.output_tokens - 1, 0)
    assert cut in ((0, 1) if request.finish_reason == "stop" else (0,))
    assert stats.draft_s + stats.verify_s == pytest.approx(stats.decode_s)
    assert all(value >= 0 for value in (stats.prefill_s, stats.draft_s, stats.verify_s))


@pytest.mark.parametrize("drafter", [None, ScriptedDrafter, Perfect])
def test_figures_add_up(drafter: Any, verifier: Verifier, truth: dict[tuple[int, ...], list[int]]) -> None:
    requests = [Request(p, max_tokens=TOKENS) for p in PROMPTS]
    loop = DecodeLoop(verifier, drafter=drafter and drafter(truth), max_draft=9)
    emissions = collect(loop, *requests)
    for request in requests:
        adds_up(request, emissions)
        assert request.finish_reason == "length"
        assert request.token_ids == truth[tuple(request.prompt_ids)]
        if drafter is None:
            assert request.stats.acceptance_length == 1.0
            assert request.stats.plain_steps == TOKENS - 1
        if drafter is Perfect:
            assert request.stats.acceptance_length == 39 / 4  # 10 + 10 + 10 + 9


@pytest.mark.parametrize("at", [0, 1, 5, 11, 12, 13, 14, 27])
@pytest.mark.parametrize("drafter", [None, Perfect, ScriptedDrafter])
def test_an_end_token_anywhere_in_a_draft(
    at: int, drafter: Any, verifier: Verifier, truth: dict[tuple[int, ...], list[int]]
) -> None:
    tokens = truth[tuple(PROMPT)]
    end = tokens[at]
    request = Request(PROMPT, max_tokens=TOKENS, stop_token_ids=frozenset([end]))
    emissions = collect(DecodeLoop(verifier, drafter=drafter and drafter(truth)), request)
    adds_up(request, emissions)
    assert request.token_ids == tokens[: tokens.index(end) + 1]
    assert request.finish_reason == "stop"


@pytest.mark.parametrize("limit", [1, 2, 7, 13, 14, 15])
def test_max_tokens_anywhere_in_a_draft(
    limit: int, verifier: Verifier, truth: dict[tuple[int, ...], list[int]]
) -> None:
    request = Request(PROMPT, max_tokens=limit)
    emissions = collect(DecodeLoop(verifier, drafter=Perfect(truth)), request)
    adds_up(request, emissions)
    assert request.token_ids == truth[tuple(PROMPT)][:limit]
    assert request.finish_reason == "length"


def text_of(tokens: Sequence[int]) -> str:
    return LETTERS.decode(list(tokens))


@pytest.mark.parametrize("drafter", [None, Perfect])
def test_stop_strings_across_tokens_and_drafts(
    drafter: Any, verifier: Verifier, truth: dict[tuple[int, ...], list[int]]
) -> None:
    """Any piece of the text as a stop string, wherever tokens and drafts begin and end."""
    tokens = truth[tuple(PROMPT)]
    whole = text_of(tokens)
    loop = DecodeLoop(verifier, LETTERS, drafter=drafter and drafter(truth))
    for begin in range(2, len(whole) - 4, 8):
        stop = whole[begin : begin + 4]
        request = Request(PROMPT, max_tokens=TOKENS, stop=(stop, "never in it"))
        emissions = collect(loop, request)
        adds_up(request, emissions)
        assert request.text == whole[: whole.index(stop)]
        assert (request.finish_reason, request.stopped_by) == ("stop", stop)
        assert request.token_ids == tokens[: len(request.token_ids)]
        assert stop in text_of(request.token_ids)
        assert stop not in text_of(request.token_ids[:-1]), "no token beyond the one that completes it"


def test_text_held_back_comes_out_at_the_end(
    verifier: Verifier, truth: dict[tuple[int, ...], list[int]]
) -> None:
    whole = text_of(truth[tuple(PROMPT)])
    request = Request(PROMPT, max_tokens=TOKENS, stop=(whole[-4:] + "never in it",))
    emissions = collect(DecodeLoop(verifier, LETTERS), request)
    adds_up(request, emissions)
    assert request.text == whole
    assert request.stopped_by is None


@settings(max_examples=8)
@given(data=st.data())
def test_cancelling_at_any_time(
    data: st.DataObject, verifier: Verifier, truth: dict[tuple[int, ...], list[int]]
) -> None:
    """Cancelling requests before or while they run does not affect the others."""
    drafter = Perfect(truth)
    drafter.length = data.draw(st.integers(0, 6))
    requests = [Request(p, max_tokens=TOKENS) for p in PROMPTS]
    times = [data.draw(st.none() | st.integers(0, 30), label="cancelled before emission") for _ in requests]
    emissions = []
    loop = DecodeLoop(verifier, LETTERS, drafter=drafter)
    for request, time in zip(requests, times, strict=True):
        if time == 0:
            request.cancel()
    for number, emission in enumerate(loop.run(requests), start=1):
        emissions.append(emission)
        for request, time in zip(requests, times, strict=True):
            if time == number:
                request.cancel()
    for request in requests:
        adds_up(request, emissions)
        whole = truth[tuple(request.prompt_ids)]
        assert request.token_ids == whole[: len(request.token_ids)]
        if request.finish_reason == "length":
            assert request.token_ids == whole
        else:
            assert (request.finish_reason, request.cancelled) == ("cancelled", True)
    assert len(set(drafter.stopped)) == len(drafter.stopped)
    assert not drafter.state


def test_cancelling_between_the_chunks_of_a_prompt(
    verifier: Verifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = Request(prompt_of(100), max_tokens=5)
    prefill, chunks = verifier.prefill_one, []

    def cancelling(*arguments: Any, **options: Any) -> Any:
        chunks.append(prefill(*arguments, **options))
        if len(chunks) == 3:
            request.cancel()
        return chunks[-1]

    monkeypatch.setattr(verifier, "prefill_one", cancelling)
    [emission] = collect(DecodeLoop(verifier), request)
    assert len(chunks) == 3, "the other chunks are not run"
    assert (emission.token_ids, emission.finish_reason) == ([], "cancelled")


HOLDING = tuple(letter + "!" for letter in "abcdefg")
"""Stop strings that hold the last letter back at any time."""


@pytest.mark.parametrize("after", [0, 1, 2, 3, 4, 9])
def test_closing_early_cancels_all_that_is_left(
    after: int, verifier: Verifier, truth: dict[tuple[int, ...], list[int]]
) -> None:
    drafter = Perfect(truth)
    drafter.length = 3
    requests = [Request(p, max_tokens=TOKENS, stop=HOLDING) for p in PROMPTS]
    running = DecodeLoop(verifier, LETTERS, drafter=drafter).run(requests)
    for _ in range(after):
        next(running)
    running.close()
    assert not drafter.state
    if after:
        assert [r.finish_reason for r in requests] == ["cancelled"] * 4
    for request in requests:
        assert request.text == text_of(request.token_ids), "text and tokens agree"


class Failing(Perfect):
    """Fails in one of its calls."""

    where = ""
    calls = 0

    def _maybe(self, where: str) -> None:
        if where == self.where:
            self.calls += 1
            if self.calls == 2:
                raise RuntimeError(f"{where} failed")

    def start(self, request_id: Hashable, prompt_ids: Sequence[int]) -> None:
        self._maybe("start")
        super().start(request_id, prompt_ids)

    def observe(self, request_id: Hashable, token_ids: Sequence[int], hidden: Tensor | None = None) -> None:
        self._maybe("observe")
        super().observe(request_id, token_ids, hidden)

    def propose(self, request_id: Hashable, max_nodes: int) -> Draft:
        self._maybe("propose")
        return super().propose(request_id, max_nodes)


@pytest.mark.parametrize("where", ["start", "observe", "propose", "step"])
def test_a_failure_leaves_no_state(
    where: str, verifier: Verifier, truth: dict[tuple[int, ...], list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    drafter = Failing(truth)
    drafter.where = where
    if where == "step":

        def step(_: object) -> None:
            raise RuntimeError("step failed")

        monkeypatch.setattr(verifier, "step", step)
    requests = [Request(p, max_tokens=TOKENS) for p in PROMPTS]
    with pytest.raises(RuntimeError, match=f"{where} failed"):
        collect(DecodeLoop(verifier, drafter=drafter), *requests)
    assert not drafter.state, "each request that was started is stopped, once (twice would be a KeyError)"
    assert all(r.finish_reason == "cancelled" for r in requests if r.token_ids)
    monkeypatch.undo()
    again = Request(PROMPT, max_tokens=5)
    collect(DecodeLoop(verifier), again)
    assert again.token_ids == truth[tuple(PROMPT)][:5]


def test_drafts_end_with_the_context(truth: dict[tuple[int, ...], list[int]]) -> None:
    """The cache holds prompt and output except the last token; drafts shrink near the end."""
    small = verifier_of("llama", max_tokens=30)
    request = Request(PROMPT, max_tokens=9)
    emissions = collect(DecodeLoop(small, drafter=Perfect(truth), max_draft=5), request)
    adds_up(request, emissions)
    assert request.token_ids == truth[tuple(PROMPT)][:9]
    assert small.cache.lengths == [0]
    with pytest.raises(ResourceError):
        collect(DecodeLoop(small, drafter=Perfect(truth)), Request(PROMPT, max_tokens=40))
    assert small.cache.lengths == [0]


def test_the_drafter_sees_every_token_and_the_state_that_predicted_it(
    verifier: Verifier, truth: dict[tuple[int, ...], list[int]]
) -> None:
    class Watching(ScriptedDrafter):
        needs_hidden = True
        seen: list[tuple[list[int], Tensor]] = []  # noqa: RUF012

        def observe(
            self, request_id: Hashable, token_ids: Sequence[int], hidden: Tensor | None = None
        ) -> None:
            assert hidden is not None
            self.seen.append((list(token_ids), hidden))
            super().observe(request_id, token_ids, hidden)

    drafter = Watching(truth, 3)
    request = Request(PROMPT, max_tokens=20)
    collect(DecodeLoop(verifier, drafter=drafter, max_draft=8), request)
    with torch.inference_mode():
        row = torch.tensor([[*PROMPT, *request.token_ids]])
        states = tiny_model("llama").model(row, use_cache=False).last_hidden_state[0]
    done: list[int] = []
    for tokens, hidden in drafter.seen:
        done += tokens
        torch.testing.assert_close(hidden, states[len(PROMPT) + len(done) - 2], rtol=0, atol=1e-4)
    assert done == request.token_ids


OPTIONS = {
    "temperature": SamplingParams(temperature=1.0, seed=5),
    "top k": SamplingParams(temperature=0.8, top_k=20, seed=6),
    "top p": SamplingParams(temperature=1.2, top_p=0.9, seed=7),
    "min p": SamplingParams(temperature=1.5, min_p=0.05, seed=8),
    "penalty": SamplingParams(temperature=0.9, repetition_penalty=1.3, seed=9),
    "all": SamplingParams(1.1, 50, 0.95, 0.01, 1.2, 10),
    "greedy with penalty": SamplingParams(repetition_penalty=1.3),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_with_one_seed_drafts_change_no_token(name: str, verifier: Verifier) -> None:
    """Chains and trees, alone and in a batch, give plain decoding's samples for the same seed."""

    def run(drafter: Any, prompts: Sequence[list[int]]) -> list[list[int]]:
        requests = [Request(p, OPTIONS[name], max_tokens=12) for p in prompts]
        collect(DecodeLoop(verifier, drafter=drafter, max_draft=8), *requests)
        if drafter is not None:
            assert sum(r.stats.accepted for r in requests) > 0
            assert sum(r.stats.drafted - r.stats.accepted for r in requests) > 0
        return [r.token_ids for r in requests]

    plain = [run(None, [p])[0] for p in PROMPTS]
    found = {tuple(p): tokens for p, tokens in zip(PROMPTS, plain, strict=True)}
    for chain in (True, False):
        assert run(ScriptedDrafter(found, 1, chain=chain), PROMPTS[:1]) == plain[:1]
        assert run(ScriptedDrafter(found, 2, chain=chain), PROMPTS) == plain
    assert len({tuple(tokens) for tokens in plain}) == 4
    assert all(0 <= token < VOCAB_SIZE for tokens in plain for token in tokens)


def test_no_seed_is_another_output_each_time(verifier: Verifier) -> None:
    requests = [Request(PROMPT, SamplingParams(temperature=1.5), max_tokens=30) for _ in range(2)]
    collect(DecodeLoop(verifier), *requests)
    assert requests[0].token_ids != requests[1].token_ids


def test_more_requests_than_slots_wait_their_turn(
    verifier: Verifier, truth: dict[tuple[int, ...], list[int]]
) -> None:
    requests = [Request(PROMPTS[i % 4], max_tokens=3 + 5 * (i % 3)) for i in range(9)]
    active: set[int] = set()
    for emission in DecodeLoop(verifier, drafter=ScriptedDrafter(truth)).run(requests):
        active.add(emission.request.id)
        assert len(active) <= 3
        if emission.finish_reason is not None:
            active.remove(emission.request.id)
    for request in requests:
        assert request.token_ids == truth[tuple(request.prompt_ids)][: request.max_tokens]


def model_with_a_broken_token(token: int) -> PreTrainedModel:
    """The tiny model with a NaN input embedding for one token."""
    model = tiny_model("llama")
    weight = model.get_input_embeddings().weight.detach().clone()
    weight[token] = float("nan")
    model.get_input_embeddings().weight = torch.nn.Parameter(weight, requires_grad=False)
    model.set_attn_implementation(ATTENTION_NAME)
    return model


@pytest.mark.parametrize("cache", ["grow", "static"])
def test_a_request_whose_logits_are_not_finite_ends_alone(
    cache: str, truth: dict[tuple[int, ...], list[int]]
) -> None:
    """Token 99 has a NaN embedding, so a prompt with it fails; other requests before and after it succeed."""
    model = model_with_a_broken_token(99)
    clean = [prompt for prompt in PROMPTS if 99 not in [*prompt, *truth[tuple(prompt)]]]
    assert len(clean) > 1
    loop = DecodeLoop(Verifier(model, slots=2, cache=cache))
    bad = Request([*PROMPT, 99, 5], max_tokens=TOKENS)
    good = [Request(prompt, max_tokens=TOKENS) for prompt in clean]
    loop.waiting.extend([good[0], bad, *good[1:]])
    ended = []
    while loop.busy:
        ended += [emission for emission in loop.advance() if emission.finish_reason is not None]
    assert [one.token_ids for one in good] == [truth[tuple(prompt)] for prompt in clean]
    assert isinstance(bad.error, NoTokenError)
    assert not bad.token_ids
    assert [one.finish_reason for one in ended if one.request is bad] == ["cancelled"]
    assert "the model's largest logit is nan" in str(bad.error)
    again = [one.again(one.params, None) for one in (bad, good[0])]
    engine = LLM.from_parts(Verifier(model, slots=2, cache=cache))
    with pytest.raises(NoTokenError, match="the model's largest logit is nan"):
        engine.generate_requests(again)
    assert again[1].token_ids == good[0].token_ids, "the error is raised when all have ended"


def test_a_guess_that_is_not_finite_changes_no_other_token(truth: dict[tuple[int, ...], list[int]]) -> None:
    """Drafts contain token 99, whose embedding is NaN; the output never has it, and equals that without drafts."""
    model = model_with_a_broken_token(99)
    [prompt] = [prompt for prompt in PROMPTS if 99 not in [*prompt, *truth[tuple(prompt)]]][:1]

    class Poisoned(ScriptedDrafter):
        def propose(self, request_id: Hashable, max_nodes: int) -> Draft:
            return Draft([99, 7, 99], [-1, -1, 1], [0.9] * 3) if max_nodes > 2 else Draft([], [], [])

    for cache in ("grow", "static"):
        request = Request(prompt, max_tokens=TOKENS)
        collect(DecodeLoop(Verifier(model, cache=cache), drafter=Poisoned(truth)), request)
        assert request.token_ids == truth[tuple(prompt)]
        assert request.stats.drafted > TOKENS
