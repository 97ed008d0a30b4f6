"""Ranks by rule equal their definitions, on matrices from hypothesis."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from justright.adapter.ranks import (
    RankRule,
    choose_ranks,
    factor_bytes,
    pooled_ranks,
    rule_for_budget,
)
from justright.errors import UsageError


def energy_rank(values: torch.Tensor, share: float, power: int = 2) -> int:
    return choose_ranks({"": values}, RankRule("energy", share, power))[""]


def entropy_rank(values: torch.Tensor) -> int:
    return choose_ranks({"": values}, RankRule("entropy"))[""]


VALUES = st.lists(st.floats(0, 100, width=32), min_size=1, max_size=12).map(
    lambda found: torch.tensor(sorted(found, reverse=True))
)
SHARES = st.floats(0.01, 1)


@given(VALUES, SHARES, st.sampled_from([1, 2]))
def test_the_energy_rule_is_its_definition(values: torch.Tensor, share: float, power: int) -> None:
    rank = energy_rank(values, share, power)
    energy = [float(v) ** power for v in values]
    total = sum(energy)
    if total == 0:
        assert rank == 0
        return
    close = 1e-9 * total
    assert sum(energy[:rank]) >= share * total - close
    assert rank == 1 or sum(energy[: rank - 1]) <= share * total + close


@given(VALUES, SHARES, SHARES)
def test_more_energy_never_has_less_rank(values: torch.Tensor, a: float, b: float) -> None:
    low, high = sorted((a, b))
    assert (
        energy_rank(values, low) <= energy_rank(values, high) <= int((values > 0).sum()) or values.sum() == 0
    )


def test_entropy_of_equal_values_is_their_number() -> None:
    assert entropy_rank(torch.full((7,), 3.0)) == 7
    assert entropy_rank(torch.tensor([5.0, 0.0, 0.0])) == 1
    assert entropy_rank(torch.zeros(3)) == 0
    q = torch.tensor([0.7, 0.2, 0.1])
    assert entropy_rank(q * 9) == math.ceil(float((-(q * q.log()).sum()).exp()))


@given(st.lists(VALUES, min_size=1, max_size=4), SHARES)
def test_pooled_ranks_keep_the_largest_of_all(spectra: list[torch.Tensor], share: float) -> None:
    named = {str(i): values for i, values in enumerate(spectra)}
    ranks = pooled_ranks(named, RankRule("energy", share))
    kept = [float(v) for n, values in named.items() for v in values[: ranks[n]]]
    left = [float(v) for n, values in named.items() for v in values[ranks[n] :]]
    assert not kept or not left or min(kept) >= max(left)
    assert len(kept) == energy_rank(torch.cat(spectra).sort(descending=True).values, share)


def test_scopes_and_rules() -> None:
    spectra = {
        "a.0": torch.tensor([9.0, 1.0]),
        "a.1": torch.tensor([1.0, 1.0]),
        "b.0": torch.tensor([2.0, 0.0]),
    }
    layer = lambda name: name[0]  # noqa: E731
    assert choose_ranks(spectra, RankRule("energy", 0.9)) == {"a.0": 1, "a.1": 2, "b.0": 1}
    assert choose_ranks(spectra, RankRule("energy", 0.9, scope="layer"), layer) == {
        "a.0": 1,
        "a.1": 0,
        "b.0": 1,
    }
    assert choose_ranks(spectra, RankRule("energy", 0.9, scope="global")) == {"a.0": 1, "a.1": 0, "b.0": 0}
    assert choose_ranks(spectra, RankRule("fixed", 2)) == {"a.0": 2, "a.1": 2, "b.0": 1}
    assert choose_ranks(spectra, RankRule("ratio", 0.5)) == {"a.0": 1, "a.1": 1, "b.0": 1}
    assert choose_ranks({"z": torch.zeros(3)}, RankRule("fixed", 2)) == {"z": 0}


@given(st.lists(VALUES, min_size=1, max_size=3), st.integers(0, 400), st.sampled_from(["matrix", "global"]))
def test_a_budget_is_met_and_used(spectra: list[torch.Tensor], budget: int, scope: str) -> None:
    named = {str(i): values for i, values in enumerate(spectra)}
    shapes = {name: (len(values), 3) for name, values in named.items()}
    try:
        rule = rule_for_budget(named, shapes, budget, RankRule(scope=scope), 2)  # type: ignore[arg-type]
    except UsageError:
        least = choose_ranks(named, RankRule("energy", 1e-9, scope=scope))  # type: ignore[arg-type]
        assert factor_bytes(least, shapes, 2) > budget
        return
    assert factor_bytes(choose_ranks(named, rule), shapes, 2) <= budget
    if rule.value < 1 - 1e-6:
        more = RankRule("energy", min(1.0, rule.value + 1e-6), scope=rule.scope)
        assert factor_bytes(choose_ranks(named, more), shapes, 2) >= factor_bytes(
            choose_ranks(named, rule), shapes, 2
        )


@pytest.mark.parametrize(
    "values",
    [
        {"rule": "luck"},
        {"scope": "town"},
        {"rule": "fixed", "value": 0},
        {"rule": "fixed", "value": 1.5},
        {"value": 0.0},
        {"value": 1.1},
        {"power": 3},
        {"rule": "fixed", "value": 4, "scope": "global"},
    ],
)
def test_what_is_not_allowed_is_refused(values: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        RankRule(**values)  # type: ignore[arg-type]
