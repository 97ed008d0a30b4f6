"""Speculative sampling preserves the model's distribution, and the tests detect broken rules."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare
from torch import Tensor

from justright.engine import sampler as sampling
from justright.engine.sampler import NoTokenError, Sampler, SamplingParams, speculative_sample
from justright.errors import UsageError
from justright.speculative.base import EMPTY_DRAFT, Draft

VOCAB = 4
HORIZON = 3  # tokens whose joint distribution is compared
TRIALS = 1000
# Seeds are fixed, so a correct rule always passes; a broken rule must deviate clearly.
RIGHT, BROKEN = 1e-3, 1e-7

Rule = Callable[[Tensor, Tensor, Sequence[int], torch.Generator], tuple[int | None, Tensor]]


# One step, exactly: the test supplies the uniform numbers, and finds acceptance probabilities by bisection.


class Scripted:
    """Replaces ``torch.rand`` in sampling; returns the listed numbers."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.numbers: list[float] = []
        monkeypatch.setattr(sampling.torch, "rand", self)

    def __call__(self, *_: object, **__: object) -> float:
        return self.numbers.pop(0)

    def outcome(self, rule: Rule, p: Tensor, q: Tensor, guesses: Sequence[int], numbers: list[float]):
        self.numbers = [*numbers, *[1 - 1e-12] * len(guesses)]
        return rule(p, q, guesses, torch.Generator())


def emitted(script: Scripted, rule: Rule, p: Tensor, q: Tensor, count: int) -> Tensor:
    """The distribution of the emitted token, over all draws of ``count`` guesses from ``q``: ``[vocab]``."""
    out = torch.zeros(len(p), dtype=torch.float64)
    for guesses in itertools.permutations([x for x in range(len(q)) if q[x] > 0], count):
        drawn, left = 1.0, 1.0
        for guess in guesses:
            drawn *= float(q[guess]) / left
            left -= float(q[guess])
        for index, guess in enumerate(guesses):
            low, high = 0.0, 1.0  # the number below which the guess is accepted, all before it rejected
            for _ in range(36):
                middle = (low + high) / 2
                found, _ = script.outcome(rule, p, q, guesses, [1 - 1e-12] * index + [middle])
                low, high = (middle, high) if found == index else (low, middle)
            out[guess] += drawn * low
            drawn *= 1 - low
        if drawn > 1e-9:
            _, residual = script.outcome(rule, p, q, guesses, [])
            out += drawn * residual
    return out


def distribution(draw: st.DrawFn, size: int) -> Tensor:
    weights = draw(st.lists(st.integers(0, 9), min_size=size, max_size=size).filter(any))
    return torch.tensor(weights, dtype=torch.float64) / sum(weights)


@st.composite
def cases(draw: st.DrawFn) -> tuple[Tensor, Tensor, int]:
    size = draw(st.integers(2, 4))
    p, q = distribution(draw, size), distribution(draw, size)
    return p, q, draw(st.integers(1, min(2, int((q > 0).sum()))))


@settings(max_examples=25)
@given(cases())
def test_one_step_emits_the_target_exactly(case: tuple[Tensor, Tensor, int]) -> None:
    p, q, count = case
    with pytest.MonkeyPatch.context() as monkeypatch:
        got = emitted(Scripted(monkeypatch), speculative_sample, p, q, count)
    assert torch.allclose(got, p, atol=1e-7)


def test_guesses_that_the_proposal_could_not_draw_are_rejected() -> None:
    p, q = torch.tensor([0.5, 0.5]), torch.tensor([0.0, 1.0])
    index, residual = speculative_sample(p, q, [0], torch.Generator())
    assert index is None
    assert residual.tolist() == [1.0, 0.0]


# Deliberately broken rules.


def rule(
    target: Tensor,
    proposal: Tensor,
    guesses: Sequence[int],
    generator: torch.Generator,
    *,
    ratio: Callable[[float, float], float] = lambda p, q: p / q,
    residual: bool = True,
    reduce_p: bool = True,
    reduce_q: bool = True,
) -> tuple[int | None, Tensor]:
    """A second implementation of `speculative_sample` whose parts can be disabled."""
    p, q = target.double(), proposal.double()
    for index, token in enumerate(guesses):
        if float(torch.rand((), generator=generator, dtype=torch.float64)) < ratio(
            float(p[token]), float(q[token])
        ):
            return index, p
        if reduce_p:
            rest = (p - q).clamp_min(0)
            p = rest / rest.sum() if rest.sum() > 0 else p
        if reduce_q:
            q = q.index_fill(0, torch.tensor(token), 0)
            q = q / q.sum() if q.sum() > 0 else q
    return None, p if residual else target


def broken(**parts: object) -> Rule:
    return lambda *args: rule(*args, **parts)  # type: ignore[arg-type]


BROKEN_RULES = {
    "always accept": broken(ratio=lambda p, q: 1.0),
    "accept with q / p": broken(ratio=lambda p, q: q / max(p, 1e-9)),
    "accept with p": broken(ratio=lambda p, q: p),
    "draw from p, not from the residual": broken(residual=False),
    "siblings tried against the full p": broken(reduce_p=False),
    "q keeps a rejected sibling": broken(reduce_q=False),
}
ONLY_SIBLINGS = {"siblings tried against the full p", "q keeps a rejected sibling"}


@pytest.mark.parametrize("name", BROKEN_RULES)
def test_the_exact_test_notices(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    p = torch.tensor([0.6, 0.1, 0.1, 0.2], dtype=torch.float64)
    q = torch.tensor([0.2, 0.3, 0.4, 0.1], dtype=torch.float64)
    script = Scripted(monkeypatch)
    assert torch.allclose(emitted(script, rule, p, q, 2), p, atol=1e-7), (
        "with all its parts it is the same rule"
    )
    assert float((emitted(script, BROKEN_RULES[name], p, q, 2) - p).abs().max()) > 0.01


# Whole drafts, statistically: several steps, chains and trees, the joint distribution of what is emitted.


@cache
def table(path: tuple[int, ...], kind: str) -> Tensor:
    """Logits ``[vocab]`` after ``path``, of the model or the drafter, generated from the path."""
    seed = hash((path, kind == "model")) % 2**31
    return torch.randn(VOCAB, generator=torch.Generator().manual_seed(seed)) * 1.3


def random_draft(
    path: tuple[int, ...], widths: Sequence[int], rng: torch.Generator, *, sampled: bool
) -> Draft:
    """A draft below ``path`` with ``widths[d]`` children for each node at depth d, breadth first."""
    tokens: list[int] = []
    parents: list[int] = []
    proposal: list[Tensor] = []
    level = [(-1, path)]
    rows: dict[int, Tensor] = {}
    for width in widths:
        coming = []
        for parent, behind in level:
            q = torch.softmax(table(behind, "drafter"), dim=-1)
            rows[parent] = q
            for token in torch.multinomial(q, width, replacement=False, generator=rng).tolist():
                coming.append((len(tokens), (*behind, token)))
                tokens.append(token)
                parents.append(parent)
        level = coming
    nothing = torch.full((VOCAB,), 1 / VOCAB)
    proposal = [rows.get(node, nothing) for node in range(-1, len(tokens))]
    return Draft(tokens, parents, [0.5] * len(tokens), torch.stack(proposal) if sampled else None)


def paths_of(draft: Draft, path: tuple[int, ...]) -> list[tuple[int, ...]]:
    found = [path]
    for token, parent in zip(draft.token_ids, draft.parents, strict=True):
        found.append((*found[parent + 1], token))
    return found


def exact(params: SamplingParams) -> Tensor:
    """Ancestral probabilities of all token sequences of the horizon: ``[vocab ** horizon]``."""
    processors = params.processors()
    out = []
    for tokens in itertools.product(range(VOCAB), repeat=HORIZON):
        probability = 1.0
        for depth, token in enumerate(tokens):
            context = torch.tensor([tokens[:depth]], dtype=torch.long)
            scores = processors(context, table(tokens[:depth], "model")[None].clone())[0]
            probability *= float(torch.softmax(scores.double(), dim=-1)[token])
        out.append(probability)
    return torch.tensor(out, dtype=torch.float64)


def p_value(params: SamplingParams, widths: Sequence[int], *, sampled: bool, trials: int = TRIALS) -> float:
    """The p-value of a chi-square test of our outputs against the exact distribution."""
    rng = torch.Generator().manual_seed(1)
    counts = torch.zeros(VOCAB**HORIZON, dtype=torch.float64)
    for trial in range(trials):
        sampler = Sampler(params, [])
        sampler._generator.manual_seed(trial)
        path: tuple[int, ...] = ()
        while len(path) < HORIZON:
            draft = random_draft(path, widths, rng, sampled=sampled)
            logits = torch.stack([table(p[: HORIZON + 2], "model") for p in paths_of(draft, path)])
            verified = sampler.verify(draft, logits)
            assert len(verified.path) == len(verified.token_ids)
            path += tuple(verified.token_ids)
        index = 0
        for token in path[:HORIZON]:
            index = index * VOCAB + token
        counts[index] += 1
    expected = exact(params) * trials
    assert counts[expected == 0].sum() == 0 or not sampled, "a token that the warpers forbid came out"
    common = expected >= 5  # the rule of thumb for chi-square; the others form one class
    observed = [*counts[common].tolist(), counts[~common].sum().item()]
    wanted = [*expected[common].tolist(), expected[~common].sum().item()]
    if wanted[-1] < 5:
        observed[0] += observed.pop()
        wanted[0] += wanted.pop()
    return float(chisquare(observed, wanted).pvalue)


CHAIN, TREE, WIDE = (1, 1, 1), (2, 2), (3,)
WARPED = SamplingParams(temperature=0.7, top_k=3, repetition_penalty=1.3)


@pytest.mark.parametrize(
    ("widths", "sampled"),
    [(CHAIN, True), (TREE, True), (WIDE, True), (TREE, False)],
    ids=["chain", "tree", "wide", "deterministic tree"],
)
def test_drafts_leave_the_distribution_as_it_is(widths: Sequence[int], sampled: bool) -> None:
    assert p_value(SamplingParams(temperature=1.0), widths, sampled=sampled) > RIGHT


def test_drafts_leave_the_warped_distribution_as_it_is() -> None:
    assert p_value(WARPED, TREE, sampled=True) > RIGHT


@pytest.mark.parametrize("name", BROKEN_RULES)
def test_the_statistical_test_notices(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling, "speculative_sample", BROKEN_RULES[name])
    widths, trials = (WIDE, 2 * TRIALS) if name in ONLY_SIBLINGS else (CHAIN, TRIALS)
    assert p_value(SamplingParams(temperature=1.0), widths, sampled=True, trials=trials) < BROKEN


def test_the_statistical_test_notices_deterministic_drafts_taken_on_trust(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def trusting(self: Sampler, scores: Tensor, candidates: Sequence[int], draft: Draft, *rest: object):
        if candidates:
            return draft.token_ids[candidates[0] - 1], candidates[0], False
        return whole(self, scores, candidates, draft, *rest)

    whole = Sampler._choose
    monkeypatch.setattr(Sampler, "_choose", trusting)
    assert p_value(SamplingParams(temperature=1.0), CHAIN, sampled=False) < BROKEN


# Tree walks, options, and ties.


@given(st.lists(st.lists(st.floats(-5, 5), min_size=3, max_size=3), min_size=4, max_size=4), st.data())
def test_greedy_follows_the_argmax(rows: list[list[float]], data: st.DataObject) -> None:
    parents = [data.draw(st.integers(-1, i - 1)) for i in range(3)]
    tokens = [data.draw(st.integers(0, 2)) for _ in range(3)]
    logits = torch.tensor(rows)
    got = Sampler(SamplingParams(), []).verify(Draft(tokens, parents, [0.5] * 3), logits)
    path, out = [0], []
    while True:
        out.append(int(logits[path[-1]].argmax()))
        below = [i + 1 for i in range(3) if parents[i] + 1 == path[-1] and tokens[i] == out[-1]]
        if not below:
            break
        path.append(below[0])
    assert (got.path, got.token_ids) == (path, out)


def test_processors_are_those_of_generate() -> None:
    from transformers import GenerationConfig

    from tiny import tiny_model

    generator = torch.Generator().manual_seed(0)
    context = torch.randint(0, 320, (1, 9), generator=generator)
    logits = torch.randn(1, 320, generator=generator) * 4
    model = tiny_model("llama")
    for temperature, top_k, top_p, min_p, penalty in itertools.product(
        (0.0, 0.6), (0, 7), (1.0, 0.8), (0.0, 0.1), (1.0, 1.3)
    ):
        params = SamplingParams(temperature, top_k, top_p, min_p, penalty)
        options = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p}
        config = GenerationConfig(
            do_sample=temperature > 0, repetition_penalty=penalty, **(options if temperature else {})
        )
        model._prepare_special_tokens(config)
        wanted = model._get_logits_processor(config, input_ids_seq_length=9)(context, logits.clone())
        sampler = Sampler(params, context[0].tolist())
        assert torch.equal(sampler._process(logits[0].clone(), None), wanted[0]), params


def test_repetition_penalty_sees_accepted_guesses_and_not_rejected_ones() -> None:
    logits = torch.tensor([[2.0, 1.9, 0.0], [2.0, 1.9, 0.0], [0.0, 0.0, 5.0]])
    draft = Draft([0, 2], [-1, -1], [0.5, 0.5])
    got = Sampler(SamplingParams(repetition_penalty=2.0), []).verify(draft, logits)
    assert got.token_ids == [0, 1], "token 0 was emitted, so that it is now worth half"
    assert got.path == [0, 1]


@pytest.mark.parametrize("penalty", [1.0, 1.5], ids=["all at once", "node by node"])
@pytest.mark.parametrize(
    ("dtype", "gap", "tie"),
    [
        (torch.float32, 0.0, True),
        (torch.float32, 5e-5, True),  # the top logit is 10: a relative 5e-6
        (torch.float32, 1e-3, False),
        (torch.bfloat16, 0.0625, True),  # one unit in the last place
        (torch.bfloat16, 1.0, False),
        (torch.float16, 0.0625, True),
        (torch.float16, 0.25, False),
    ],
)
def test_near_ties_are_counted(dtype: torch.dtype, gap: float, tie: bool, penalty: float) -> None:
    logits = torch.tensor([[1.0, 10.0 - gap, 10.0]], dtype=dtype)
    got = Sampler(SamplingParams(repetition_penalty=penalty), []).verify(EMPTY_DRAFT, logits)
    assert got.near_ties == tie
    assert got.token_ids == [int(logits[0].argmax())]


@pytest.mark.parametrize("penalty", [1.0, 1.5], ids=["all at once", "node by node"])
def test_of_equal_logits_the_first_is_taken_as_generate_does(penalty: float) -> None:
    """bfloat16 logits often tie, and ``topk`` may return either."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randint(-3, 3, (20, 5000), generator=generator).to(torch.bfloat16)
    for row in logits:
        sampler = Sampler(SamplingParams(repetition_penalty=penalty), [])
        got = sampler.verify(EMPTY_DRAFT, row[None])
        assert got.token_ids == [int(row.argmax())]
        assert got.near_ties == 1


def test_draw_at_the_borders_of_the_distribution() -> None:
    p = torch.tensor([0.25, 0.0, 0.5, 0.25, 0.0])
    assert sampling.draw(p, 0.0) == (0, False), "0 is no border between two tokens"
    assert sampling.draw(p, math.nextafter(0.25, 0)) == (0, True)
    assert sampling.draw(p, 0.25) == (2, True), "a token without probability is never drawn"
    assert sampling.draw(p, 0.5) == (2, False)
    assert sampling.draw(p, 0.75) == (3, True)
    assert sampling.draw(p, math.nextafter(1.0, 0)) == (3, False), "no token comes after the last"
    assert sampling.draw(p, 0.255) == (2, False)
    assert sampling.draw(p, 0.255, torch.bfloat16) == (2, True), "coarser logits, wider borders"


@given(st.lists(st.integers(0, 5), min_size=1, max_size=6).filter(any), st.floats(0, 1, exclude_max=True))
def test_draw_inverts_the_distribution(weights: list[int], uniform: float) -> None:
    p = torch.tensor(weights, dtype=torch.float64) / sum(weights)
    token, _ = sampling.draw(p, uniform)
    assert p[token] > 0
    assert float(p[:token].sum()) - 1e-12 <= uniform <= float(p[: token + 1].sum()) + 1e-12


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": -1},
        {"temperature": math.inf},
        {"temperature": math.nan},
        {"top_k": -1},
        {"top_p": 0},
        {"top_p": 1.1},
        {"min_p": -0.1},
        {"min_p": 1.5},
        {"repetition_penalty": 0},
        {"seed": 2**64},
    ],
)
def test_options_out_of_range(options: dict[str, float]) -> None:
    from justright.errors import UsageError

    [name] = options
    with pytest.raises(UsageError, match=f"{name} is .*; allowed: "):
        SamplingParams(**options)


def bad_logits(*numbers: float) -> Tensor:
    return torch.tensor([[1.0, 0.5, *numbers]])


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(),
        SamplingParams(repetition_penalty=1.2),
        SamplingParams(temperature=1.0, seed=0),
        SamplingParams(temperature=0.7, top_k=2, top_p=0.9, min_p=0.1, seed=0),
    ],
)
@pytest.mark.parametrize(
    ("logits", "found"),
    [
        (bad_logits(math.nan, 0.1), "nan"),
        (bad_logits(math.inf, 0.1), "inf"),
        (torch.full((1, 4), -math.inf), "-inf"),
        (torch.full((1, 4), math.nan), "nan"),
    ],
)
def test_logits_that_are_not_finite_stop_it(params: SamplingParams, logits: Tensor, found: str) -> None:
    for ask in (lambda sampler: sampler.verify(EMPTY_DRAFT, logits), lambda sampler: sampler.check(logits)):
        with pytest.raises(NoTokenError, match=f"the model's largest logit is {found},"):
            ask(Sampler(params, [0]))


class Nothing:
    """A constraint that allows no token."""

    def mask(self, scores: Tensor) -> Tensor:
        return torch.full_like(scores, -math.inf)

    def take(self, token_id: int) -> None:
        raise AssertionError("nothing is allowed")

    def begin(self) -> None: ...


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_constraint_that_allows_nothing_stops_it(temperature: float) -> None:
    sampler = Sampler(SamplingParams(temperature=temperature), [0])
    with pytest.raises(NoTokenError, match="the constraint allows no token"):
        sampler.verify(EMPTY_DRAFT, bad_logits(0.2), constraint=Nothing())


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_penalty_that_overflows_stops_it(temperature: float) -> None:
    """Positive logits are divided by the penalty: 1 / 1e-45 is more than float32 holds."""
    sampler = Sampler(SamplingParams(temperature=temperature, repetition_penalty=1e-45), [0])
    with pytest.raises(NoTokenError, match=r"largest logit is 1.0, and with .*repetition_penalty 1e-45"):
        sampler.verify(EMPTY_DRAFT, bad_logits(0.2))


@pytest.mark.parametrize("temperature", [1e-38, 1e-300, math.nan, math.inf, -1.0])
def test_a_temperature_that_no_logit_survives_is_refused(temperature: float) -> None:
    with pytest.raises(UsageError, match=r"temperature is .*allowed: 0 \(greedy\), or 1e-30 or more"):
        SamplingParams(temperature=temperature)


@given(
    logits=st.lists(st.floats(-1e4, 1e4, width=32), min_size=2, max_size=6, unique=True),
    temperature=st.sampled_from([1e-30, 1e-6, 0.3, 1.0, 2.0, 1e30]),
    top_k=st.integers(0, 9),
    top_p=st.sampled_from([1e-300, 1e-9, 0.5, 1 - 1e-12, 1.0]),
    min_p=st.sampled_from([0.0, 1e-300, 0.5, 1.0]),
    seed=st.integers(0, 99),
)
@settings(max_examples=200)
def test_any_sampling_names_a_token_that_may_be_drawn(
    logits: list[float], temperature: float, top_k: int, top_p: float, min_p: float, seed: int
) -> None:
    """One of the ``top_k`` most likely tokens; the most likely one if the others are cut or a thousandth as likely."""
    sampler = Sampler(SamplingParams(temperature, top_k, top_p, min_p, seed=seed), [])
    [token] = sampler.verify(EMPTY_DRAFT, torch.tensor([logits])).token_ids
    rank = sorted(logits, reverse=True).index(logits[token])
    assert rank < (top_k or len(logits))
    if top_p <= 1e-9 or (min_p == 1.0 and temperature < 1e30):
        assert logits[token] == pytest.approx(max(logits), abs=1e-3)
