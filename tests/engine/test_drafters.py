"""Every drafter in the engine: greedy output equals the model's, sampled output has the model's distribution."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch
from scipy.stats import chisquare

from draft_helpers import saved_attention_drafter, saved_drafter
from engine_helpers import greedy, prompt_of, reference, verifier_of
from justright.engine.attention import ATTENTION_NAME
from justright.engine.decode_loop import DecodeLoop
from justright.engine.model_runner import Verifier
from justright.engine.request import Request
from justright.engine.sampler import SamplingParams
from justright.engine.step_cost import StepCost
from justright.speculative.base import Drafter
from justright.speculative.registry import create_drafter
from tiny import ALL, tiny_model

REPEATING = prompt_of(12) * 3
TOKENS = 40
NAMES = ("lstm", "hybrid", "recycling", "attention")


def drafter_for(name: str, verifier: Verifier, folder: Path, **options: object) -> Drafter:
    if name != "recycling":
        path = folder / ("attention" if name == "attention" else "lstm")
        if not path.exists():
            (saved_attention_drafter if name == "attention" else saved_drafter)(verifier.model, path)
        options |= {"path": str(path), "min_prob": 0.0}
    drafter = create_drafter(name, **options)
    assert drafter is not None
    drafter.bind(verifier.model, None)
    return drafter


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("family", ALL)
def test_no_drafter_changes_a_token(family: str, name: str, tmp_path: Path) -> None:
    """Every family with every drafter; each family and each drafter with both caches."""
    cache = ("grow", "static")[(ALL.index(family) + NAMES.index(name)) % 2]
    expected = greedy(family, REPEATING, TOKENS)
    verifier = verifier_of(family, prefill_chunk=16, cache=cache)
    drafter = drafter_for(name, verifier, tmp_path)
    request = Request(REPEATING, max_tokens=TOKENS)
    for _ in DecodeLoop(verifier, drafter=drafter, max_draft=12).run([request]):
        pass
    assert request.token_ids == expected
    assert request.stats.drafted > 0


@pytest.mark.parametrize("options", [{"top_k": 1}, {"spec": False}, {"nodes": 3, "depth": 2}])
def test_chains_and_trees_with_and_without_spec(options: dict[str, object], tmp_path: Path) -> None:
    expected = greedy("gemma3_text", REPEATING, TOKENS)
    verifier = verifier_of("gemma3_text")
    drafter = drafter_for("lstm", verifier, tmp_path, **options)
    request = Request(REPEATING, max_tokens=TOKENS)
    for _ in DecodeLoop(verifier, drafter=drafter, max_draft=12).run([request]):
        pass
    assert request.token_ids == expected
    assert verifier.spec_embedding is None or options.get("spec", True)


def test_a_batch_with_a_drafter_equals_each_request_alone(tmp_path: Path) -> None:
    prompts = [prompt_of(length, seed=length) for length in (3, 40, 17, 25)]
    verifier = verifier_of("qwen3", slots=3, prefill_chunk=16)
    for name in NAMES:
        requests = [Request(p, max_tokens=TOKENS - 5 * i) for i, p in enumerate(prompts)]
        drafter = drafter_for(name, verifier, tmp_path)
        for _ in DecodeLoop(verifier, drafter=drafter, max_draft=10).run(requests):
            pass
        for request in requests:
            assert request.token_ids == greedy("qwen3", request.prompt_ids, request.max_tokens)


def test_up_to_the_last_token_of_the_context(tmp_path: Path) -> None:
    """If the context has no more space for [SPEC], drafts continue without it."""
    length = len(REPEATING) + TOKENS
    verifier = verifier_of("llama", max_tokens=length)
    request = Request(REPEATING, max_tokens=TOKENS)
    drafter = drafter_for("lstm", verifier, tmp_path)
    for _ in DecodeLoop(verifier, drafter=drafter, max_draft=12).run([request]):
        pass
    assert request.token_ids == greedy("llama", REPEATING, TOKENS)


SHORT_PROMPT = [5, 7, 9, 4, 11, 8]  # modulo the size of the vocabulary
SAMPLING = {"temperature": 1.5, "top_k": 3}
FEW = 6
"""Tokens of the model whose distribution is compared."""


def sampled(count: int, enough: int, name: str, folder: Path, words: int, **options: object) -> list[Request]:
    """Outputs of ``enough`` or more tokens, one a seed, of a model of so few tokens that drafts are often accepted."""
    model = tiny_model("llama", vocab_size=words, num_hidden_layers=2)
    model.set_attn_implementation(ATTENTION_NAME)
    verifier = Verifier(model, slots=32)  # many at once: few steps
    drafter = None if name == "none" else drafter_for(name, verifier, folder, **options)
    requests = [
        Request(
            [token % words for token in SHORT_PROMPT], SamplingParams(**SAMPLING, seed=seed), max_tokens=16
        )  # type: ignore[arg-type]
        for seed in range(count)
    ]
    for emission in DecodeLoop(verifier, drafter=drafter, max_draft=8).run(requests):
        if len(emission.request.token_ids) >= enough:
            emission.request.cancel()
    assert name == "none" or sum(request.stats.accepted for request in requests) > count // 4
    return requests


@pytest.mark.parametrize("name", NAMES)
def test_a_seed_gives_the_same_sample_with_every_deterministic_drafter(name: str, tmp_path: Path) -> None:
    """So its output has the distribution of plain sampling, which the next test compares."""
    plain, drafted = (sampled(16, 16, one, tmp_path, 12) for one in ("none", name))
    clear = [(a, b) for a, b in zip(plain, drafted, strict=True) if not a.stats.near_ties + b.stats.near_ties]
    assert len(clear) > 12
    for one, other in clear:
        assert one.token_ids == other.token_ids


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("none", {}),
        ("lstm", {"temperature": 0.3, "top_k": 1, "depth": 3}),
        ("lstm", {"temperature": 0.3, "top_k": 3, "nodes": 6}),
        ("hybrid", {"temperature": 0.3, "top_k": 2, "nodes": 4}),
    ],
)
def test_sampled_output_has_the_models_distribution(
    name: str, options: dict[str, object], tmp_path: Path
) -> None:
    """The joint distribution of three tokens, by a chi-squared test against the exact one of transformers.

    The drafter's distribution is far from uniform and from the model's. So the test fails (p of 1e-4 or less) if the
    sampler takes another proposal than the drafter's, or draws from the model's distribution instead of the residual.
    """
    runs = 400
    found = Counter(
        tuple(request.token_ids[:3]) for request in sampled(runs, 3, name, tmp_path, FEW, **options)
    )
    expected = exact()
    assert set(found) <= set(expected)
    often = [path for path, prob in expected.items() if prob * runs >= 5]
    seen = [found[path] for path in often] + [sum(n for path, n in found.items() if path not in often)]
    wanted = [expected[path] * runs for path in often]
    wanted.append(runs - sum(wanted))
    if wanted[-1] < 5:
        seen[-2:], wanted[-2:] = [sum(seen[-2:])], [sum(wanted[-2:])]
    assert chisquare(seen, wanted).pvalue > 1e-3


def exact() -> dict[tuple[int, ...], float]:
    """Probability of every output of three tokens."""
    model = tiny_model("llama", vocab_size=FEW, num_hidden_layers=2)
    model.set_attn_implementation("eager")
    paths: dict[tuple[int, ...], float] = {(): 1.0}
    for _ in range(3):
        longer = {}
        for path, prob in paths.items():
            with torch.no_grad():
                logits = model(
                    torch.tensor([[*(token % FEW for token in SHORT_PROMPT), *path]]), use_cache=False
                ).logits[0, -1]
            best = (logits / SAMPLING["temperature"]).topk(SAMPLING["top_k"])
            for token, p in zip(best.indices.tolist(), best.values.softmax(-1).tolist(), strict=True):
                longer[(*path, token)] = prob * p
        paths = longer
    return paths


def test_drafts_that_never_pay_are_no_longer_requested(tmp_path: Path) -> None:
    """If its cost exceeds its gain, an untrained drafter is not used after a few tries."""
    verifier = verifier_of("llama")
    drafter = drafter_for("lstm", verifier, tmp_path)
    calls = []
    propose = drafter.propose
    drafter.propose = lambda *args: calls.append(1) or propose(*args)  # type: ignore[method-assign,func-returns-value]
    cost = StepCost((1, 8), (0.001, 0.1), (0.0, 0.0))
    request = Request(prompt_of(20), max_tokens=120)
    for _ in DecodeLoop(verifier, drafter=drafter, cost=cost, max_draft=8).run([request]):
        pass
    assert request.token_ids == reference(tiny_model("llama"), prompt_of(20), 120)
    assert request.stats.plain_steps > 100
    assert len(calls) < 40
