"""Losslessness: the engine's output equals the model's own, token for token."""

from __future__ import annotations

import pytest

from engine_helpers import ScriptedDrafter, greedy, prompt_of, reference, verifier_of
from justright.engine.decode_loop import DecodeLoop
from justright.engine.model_runner import Verifier
from justright.engine.request import Request
from justright.kernels import packed as kernels
from justright.speculative.suffix import SuffixDrafter, SuffixOptions
from tiny import ALL, tiny_model

PROMPT = prompt_of(37)
TOKENS = 40


def run(verifier: Verifier, drafter: object = None, prompts: list[list[int]] | None = None) -> list[Request]:
    requests = [Request(prompt, max_tokens=TOKENS) for prompt in prompts or [PROMPT]]
    for _ in DecodeLoop(verifier, drafter=drafter, max_draft=12).run(requests):
        pass
    return requests


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "packed"])
@pytest.mark.parametrize("family", ALL)
def test_plain_decoding_equals_generate(family: str, packed: bool) -> None:
    expected = greedy(family, PROMPT, TOKENS)
    verifier = verifier_of(family, prefill_chunk=16)
    if packed:
        kernels.pack(verifier.model)
    [request] = run(verifier)
    assert request.token_ids == expected


@pytest.mark.parametrize("chain", [True, False], ids=["chain", "tree"])
@pytest.mark.parametrize("cache", ["grow", "static"])
@pytest.mark.parametrize("family", ALL)
def test_speculation_changes_no_token(family: str, cache: str, chain: bool) -> None:
    expected = greedy(family, PROMPT, TOKENS)
    verifier = verifier_of(family, prefill_chunk=16, cache=cache)
    for seed in range(3):
        drafter = ScriptedDrafter({tuple(PROMPT): expected}, seed, chain=chain)
        [request] = run(verifier, drafter)
        assert request.token_ids == expected
        assert request.stats.accepted > 0, "the test must see accepted drafts"
        assert request.stats.drafted > request.stats.accepted, "and rejected ones"
        assert request.stats.acceptance_length > 1


@pytest.mark.parametrize("cache", ["grow", "static", "trimmed"])
@pytest.mark.parametrize(
    "family", ["llama", "gemma2", "gemma3_text", "gpt_oss", "deepseek_v3", "llama4_text"]
)
def test_batch_of_different_lengths(family: str, cache: str) -> None:
    """Sequences join and leave between steps, and each gets the same tokens as alone."""
    prompts = [prompt_of(length, seed=length) for length in (3, 40, 17, 25, 9)]
    truth = {tuple(p): greedy(family, p, TOKENS) for p in prompts}
    verifier = verifier_of(family, slots=3, prefill_chunk=16, cache=cache)
    drafter = ScriptedDrafter(truth, seed=5)
    requests = [Request(p, max_tokens=TOKENS - 7 * i) for i, p in enumerate(prompts)]
    for _ in DecodeLoop(verifier, drafter=drafter, max_draft=10).run(requests):
        pass
    for request in requests:
        assert request.token_ids == truth[tuple(request.prompt_ids)][: request.max_tokens]
        assert request.finish_reason == "length"
    assert sorted(drafter.stopped) == sorted(r.id for r in requests)
    assert verifier.cache.lengths == [0, 0, 0]


@pytest.mark.parametrize("tree", [False, True], ids=["chain", "tree"])
def test_suffix_drafts_are_accepted_where_text_repeats(tree: bool) -> None:
    prompt = prompt_of(12) * 3
    expected = reference(tiny_model("llama"), prompt, TOKENS)
    drafter = SuffixDrafter(SuffixOptions(tree=tree))
    [request] = run(verifier_of("llama"), drafter, [prompt])
    assert request.token_ids == expected
    assert request.stats.drafted > 0


def test_repetition_penalty_equals_generate() -> None:
    from justright.engine.sampler import SamplingParams

    expected = reference(tiny_model("qwen3"), PROMPT, TOKENS, repetition_penalty=1.4)
    drafter = ScriptedDrafter({tuple(PROMPT): expected}, 1)
    request = Request(PROMPT, SamplingParams(repetition_penalty=1.4), max_tokens=TOKENS)
    for _ in DecodeLoop(verifier_of("qwen3"), drafter=drafter, max_draft=12).run([request]):
        pass
    assert request.token_ids == expected
    assert request.stats.accepted > 0


def test_reused_prefix_changes_no_token() -> None:
    """A second turn runs only the new tokens, and gives the answer of a full run."""
    verifier = verifier_of("gemma3_text", prefill_chunk=16)
    loop = DecodeLoop(verifier, reuse_prefix=True)
    first = Request(PROMPT, max_tokens=12)
    for _ in loop.run([first]):
        pass
    turn = [*PROMPT, *first.token_ids, *prompt_of(9, seed=3)]
    second = Request(turn, max_tokens=TOKENS)
    for _ in loop.run([second]):
        pass
    # The last emitted token was never run, so the cache does not hold it.
    assert second.stats.reused_tokens == len(PROMPT) + 11
    assert second.token_ids == reference(tiny_model("gemma3_text"), turn, TOKENS)
    other = Request(prompt_of(20, seed=4), max_tokens=4)
    for _ in loop.run([other]):
        pass
    assert other.stats.reused_tokens == 0
    assert other.token_ids == reference(tiny_model("gemma3_text"), prompt_of(20, seed=4), 4)
