"""Sparsity targets: exact, split by the formula, denser for layers with more outliers."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from justright.errors import UsageError
from justright.prune.allocation import outlier_share, outlier_weighed_sparsity, second_stage_sparsity


@given(
    st.lists(st.tuples(st.floats(0, 0.5), st.integers(1, 10**9)), min_size=1, max_size=12),
    st.floats(0.0, 0.99),
)
def test_the_target_is_met_by_parameters(layers: list[tuple[float, int]], sparsity: float) -> None:
    shares, sizes = zip(*layers, strict=True)
    found = outlier_weighed_sparsity(shares, sizes, sparsity)
    assert all(0 <= s < 1 for s in found)
    reached = sum(s * n for s, n in zip(found, sizes, strict=True)) / sum(sizes)
    assert abs(reached - sparsity) < 1e-6


@given(st.lists(st.floats(0, 0.5), min_size=2, max_size=12), st.floats(0.2, 0.8))
def test_more_outliers_more_density_and_the_spread_is_right(shares: list[float], sparsity: float) -> None:
    assume(max(shares) - min(shares) > 1e-3)
    found = outlier_weighed_sparsity(shares, [1] * len(shares), sparsity)
    order = sorted(range(len(shares)), key=lambda i: shares[i])
    assert all(found[a] >= found[b] - 1e-9 for a, b in itertools.pairwise(order))
    assert max(found) - min(found) == pytest.approx(0.16, abs=1e-6)


@given(st.floats(0, 0.99), st.integers(1, 10**9), st.floats(0, 1))
def test_the_two_stages_add_up(target: float, total: int, part: float) -> None:
    removed = int(total * target * part)
    second = second_stage_sparsity(target, total, removed)
    assert 0 <= second < 1
    assert removed + second * (total - removed) == pytest.approx(target * total, rel=1e-9, abs=1e-6)


@pytest.mark.parametrize(("target", "removed"), [(1.0, 0), (-0.1, 0), (0.3, 40)])
def test_impossible_targets_are_refused(target: float, removed: int) -> None:
    with pytest.raises(UsageError, match=r"allowed|more than"):
        second_stage_sparsity(target, 100, removed)


def test_outliers_are_counted_over_all_matrices() -> None:
    scores = [torch.ones(10), torch.tensor([100.0] + [1.0] * 9)]
    assert outlier_share(lambda: scores) == 1 / 20
