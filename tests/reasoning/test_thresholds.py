"""Thresholds keep the accuracy floor with the fewest tokens; a probe learns a learnable signal."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest, sem

from justright.errors import UsageError
from justright.reasoning.scorers import Heuristic, Probe
from justright.reasoning.thresholds import Outcomes, always, cheapest, curve, fit_probe


def outcomes(count: int, seed: int, *, noise: float = 0.3) -> Outcomes:
    """Problems whose first hidden dimension shows, with noise, whether the fast answer is wrong."""
    generator = torch.Generator().manual_seed(seed)
    hard = torch.rand(count, generator=generator) < 0.5
    hidden = torch.randn(count, 8, generator=generator) * noise
    hidden[:, 0] += hard.float()
    return Outcomes(
        hidden,
        torch.where(hard, 0.4, 0.9) + 0.05 * torch.rand(count, generator=generator),
        ~hard,
        torch.rand(count, generator=generator) < 0.95,
        torch.full((count,), 8),
        torch.randint(100, 400, (count,), generator=generator),
    )


@given(st.integers(0, 99), st.floats(0.05, 1.0), st.booleans())
@settings(max_examples=30)
def test_the_cheapest_threshold_that_holds_the_floor(seed: int, floor: float, both: bool) -> None:
    """Compared with an exhaustive search over thresholds."""
    found = outcomes(40, seed)
    scores = torch.rand(40, generator=torch.Generator().manual_seed(seed)).double()
    best = None
    for threshold in [-1.0, *scores.tolist()]:
        right, tokens = 0, 0
        for i in range(40):
            slow = bool(scores[i] > threshold)
            right += bool(found.slow_right[i] if slow else found.fast_right[i])
            tokens += int(found.slow_tokens[i]) * slow + int(found.fast_tokens[i]) * (both or not slow)
        if right / 40 >= floor and (best is None or tokens < best):
            best = tokens
    points = curve(scores, found, both=both)
    if best is None:
        with pytest.raises(UsageError, match="no threshold reaches"):
            cheapest(points, floor)
        return
    point = cheapest(points, floor)
    assert point.accuracy >= floor
    assert point.tokens * 40 == pytest.approx(best)


def test_a_probe_finds_what_is_hard(tmp_path: Path) -> None:
    known, new = outcomes(300, 1), outcomes(300, 2)
    probe = fit_probe(known, 0.9)
    wrong = probe.scores(new.hidden) > probe.threshold
    assert float((wrong == ~new.fast_right).double().mean()) > 0.85, "on problems that it has never seen"
    limits = always(known)
    assert limits["oracle"].accuracy >= max(limits["slow"].accuracy, limits["fast"].accuracy)
    assert limits["fast"].tokens == 8
    assert probe.about["auto"]["tokens"] < limits["slow"].tokens
    assert 0.4 < probe.about["escalate"]["threshold"] <= 0.9
    probe.save(tmp_path)
    again = Probe.read(tmp_path, 8)
    torch.testing.assert_close(again.scores(new.hidden), probe.scores(new.hidden), rtol=1e-4, atol=1e-5)
    with pytest.raises(UsageError, match="fitted for hidden size"):
        Probe.read(tmp_path, 9)


def test_nothing_to_tell_apart_is_fitted_too() -> None:
    """If fast is always right, never reason; if only slow is right, always."""
    found = outcomes(60, 3)
    easy = Outcomes(found.hidden, found.confidence, torch.ones(60, dtype=torch.bool), *_rest(found))
    assert fit_probe(easy, 0.9).about["auto"]["slow"] == 0
    hard = Outcomes(found.hidden, found.confidence, torch.zeros(60, dtype=torch.bool), *_rest(found))
    floor = float(found.slow_right.double().mean())
    assert fit_probe(hard, floor).about["auto"]["accuracy"] == pytest.approx(floor)


def _rest(found: Outcomes) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return found.slow_right, found.fast_tokens, found.slow_tokens


def test_every_figure_has_its_interval() -> None:
    """Shares against scipy's Wilson interval, tokens against the normal one."""
    found = outcomes(100, 5)
    record = fit_probe(found, 0.5).about
    slow = int(found.slow_right.sum())
    wilson = binomtest(slow, 100).proportion_ci(0.95, "wilson")
    always_slow = record["always"]["slow"]
    assert always_slow["accuracy"] == slow / 100
    assert always_slow["accuracy_95"] == pytest.approx([wilson.low, wilson.high], abs=1e-4)
    assert always_slow["slow_95"] == pytest.approx([0.963, 1], abs=1e-3)
    tokens = found.slow_tokens.double().numpy()
    half = 1.96 * float(sem(tokens))
    assert always_slow["tokens_95"] == pytest.approx([tokens.mean() - half, tokens.mean() + half])
    for one in (record["auto"], record["escalate"], *record["always"].values()):
        for name in ("accuracy", "tokens", "slow"):
            low, high = one[f"{name}_95"]
            assert low - 1e-9 <= one[name] <= high + 1e-9


def test_the_oracle_where_thinking_always_helps() -> None:
    found = outcomes(40, 0)
    wrong, right = torch.zeros(40, dtype=torch.bool), torch.ones(40, dtype=torch.bool)
    helps = Outcomes(found.hidden, found.confidence, wrong, right, found.fast_tokens, found.slow_tokens)
    assert always(helps)["oracle"] == always(helps)["slow"]


@pytest.mark.parametrize("floor", [0.0, 1.5])
def test_floors_that_are_none_and_too_few_problems(floor: float) -> None:
    with pytest.raises(UsageError, match="accuracy floor"):
        fit_probe(outcomes(50, 0), floor)
    with pytest.raises(UsageError, match="too few"):
        fit_probe(outcomes(20, 0), 0.5)


def test_the_heuristic_rises_with_what_hard_prompts_have() -> None:
    easy, hard = "What is 3 + 4?", "What is 3 + 4 - 2 + 8 - 1 + 9? Then prove why each step is optimal."
    scores = [Heuristic().score(text, torch.zeros(1)) for text in ("Hi", easy, hard)]
    assert scores == sorted(scores)
    assert 0 <= scores[0] < 0.5 < scores[2] < 1
