"""A failing constraint ends only its own request, with an error and without the violating token."""

from __future__ import annotations

import pytest
from torch import Tensor

from engine_helpers import alone, letters_tokenizer, prompt_of, verifier_of
from justright.engine.decode_loop import DecodeLoop
from justright.engine.request import Request
from justright.engine.sampler import SamplingParams
from justright.errors import ConstraintError
from justright.speculative.suffix import SuffixDrafter

PROMPT, OTHER = prompt_of(17, seed=17), prompt_of(9, seed=9)


class Fails:
    """A constraint that allows everything, up to a number of tokens."""

    def __init__(self, tokens: int, *, complete: bool = True, when_taken: bool = False) -> None:
        self.left, self.complete, self.when_taken = tokens, complete, when_taken
        self.failure: str | None = None

    def mask(self, scores: Tensor) -> Tensor:
        assert self.failure is None
        if not self.left and not self.when_taken:
            self.failure = "nothing is left"
        return scores

    def take(self, token_id: int) -> None:
        if not self.left:
            self.failure = "nothing is left"
        self.left -= 1

    def begin(self) -> None:
        raise AssertionError


def run(*requests: Request, draft: bool) -> None:
    loop = DecodeLoop(
        verifier_of("llama", slots=2),
        drafter=SuffixDrafter() if draft else None,
        tokenizer=letters_tokenizer(),
    )
    emitted: dict[int, list[int]] = {request.id: [] for request in requests}
    for emission in loop.run(requests):
        emitted[emission.request.id] += emission.token_ids
    assert all(emitted[request.id] == request.token_ids for request in requests)
    assert not loop.places.all


@pytest.mark.parametrize("draft", [False, True])
@pytest.mark.parametrize("params", [SamplingParams(), SamplingParams(temperature=1.0, top_k=1)])
@pytest.mark.parametrize("tokens", [0, 1, 6, 20])
@pytest.mark.parametrize("when_taken", [False, True])
def test_a_failure_ends_one_request(
    tokens: int, params: SamplingParams, draft: bool, when_taken: bool
) -> None:
    constraint = Fails(tokens, when_taken=when_taken)
    request = Request(PROMPT, params, max_tokens=24, constraint=constraint, top_logprobs=2)
    other = Request(OTHER, max_tokens=24)
    run(request, other, draft=draft)
    assert request.token_ids == alone(PROMPT, 24)[:tokens]
    assert [one.token_id for one in request.logprobs] == alone(PROMPT, 24)[:tokens]
    assert request.finish_reason == "cancelled"
    assert isinstance(request.error, ConstraintError)
    assert "nothing is left" in str(request.error)
    assert (other.token_ids, other.finish_reason, other.error) == (alone(OTHER, 24), "length", None)


@pytest.mark.parametrize("draft", [False, True])
def test_what_ends_before_the_failure_ends_as_it_would(draft: bool) -> None:
    cut = Request(PROMPT, max_tokens=6, constraint=Fails(6, complete=False))
    run(cut, draft=draft)
    assert (cut.token_ids, cut.finish_reason, cut.error) == (alone(PROMPT, 24)[:6], "length", None)
    whole = Request(PROMPT, max_tokens=24)
    run(whole, draft=draft)
    stopped = Request(PROMPT, max_tokens=24, stop=(whole.text[:3],), constraint=Fails(9, complete=False))
    run(stopped, draft=draft)
    assert (stopped.finish_reason, stopped.stopped_by, stopped.error) == ("stop", whole.text[:3], None)


@pytest.mark.parametrize("draft", [False, True])
@pytest.mark.parametrize("complete", [False, True])
def test_an_end_token_ends_only_what_is_complete(draft: bool, complete: bool) -> None:
    end = alone(PROMPT, 24)[5]
    request = Request(
        PROMPT, max_tokens=24, stop_token_ids=frozenset({end}), constraint=Fails(24, complete=complete)
    )
    run(request, draft=draft)
    assert request.token_ids == alone(PROMPT, 24)[: alone(PROMPT, 24).index(end) + 1]
    assert request.finish_reason == ("stop" if complete else "cancelled")
    assert isinstance(request.error, ConstraintError) is not complete
