"""Masks: exact in every row, without the lowest scores; n of m in every group."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from justright.errors import UsageError
from justright.prune.criteria.base import WEIGHTS
from justright.prune.weights import n_of_m_mask, row_mask, scores_by_rows


@settings(max_examples=60)
@given(st.integers(1, 6), st.integers(1, 40), st.floats(0, 0.999), st.integers(0, 999), st.booleans())
def test_every_row_loses_exactly_its_lowest(
    rows: int, columns: int, sparsity: float, seed: int, ties: bool
) -> None:
    scores = torch.rand(2, rows, columns, generator=torch.Generator().manual_seed(seed))
    if ties:
        scores = (scores * 4).round()
    mask = row_mask(scores, sparsity)
    gone = int(columns * sparsity)
    assert ((~mask).sum(-1) == gone).all()
    if gone:
        lowest_kept = scores.masked_fill(~mask, float("inf")).amin(-1)
        highest_gone = scores.masked_fill(mask, float("-inf")).amax(-1)
        assert (highest_gone <= lowest_kept).all()


@settings(max_examples=40)
@given(st.sampled_from([(1, 2), (2, 4), (1, 4), (4, 8), (3, 4)]), st.integers(1, 5), st.integers(0, 999))
def test_n_of_every_m(pattern: tuple[int, int], groups: int, seed: int) -> None:
    n, m = pattern
    scores = torch.rand(3, groups * m, generator=torch.Generator().manual_seed(seed))
    mask = n_of_m_mask(scores, n, m)
    assert (mask.unflatten(-1, (-1, m)).sum(-1) == n).all()
    best = scores.unflatten(-1, (-1, m)).topk(n, dim=-1).values.sum()
    torch.testing.assert_close((scores * mask).sum(), best)


def test_wanda_is_weight_times_input_norm() -> None:
    weight, norms = torch.tensor([[1.0, -3.0], [0.5, 0.1]]), torch.tensor([10.0, 1.0])
    [scores] = scores_by_rows(weight, norms, WEIGHTS.get("wanda"))
    assert scores.tolist() == [[10.0, 3.0], [5.0, pytest.approx(0.1)]]
    assert row_mask(scores, 0.5).tolist() == [[True, False], [True, False]]
    [unknown] = scores_by_rows(weight, None, WEIGHTS.get("wanda"))
    [magnitude] = scores_by_rows(weight, norms, WEIGHTS.get("magnitude"))
    assert unknown.tolist() == magnitude.tolist() == weight.abs().tolist()


@pytest.mark.parametrize("sparsity", [-0.1, 1.0])
def test_impossible_sparsities_are_refused(sparsity: float) -> None:
    with pytest.raises(UsageError, match="allowed"):
        row_mask(torch.ones(2, 2), sparsity)


@pytest.mark.parametrize(("n", "m", "columns"), [(4, 4, 8), (0, 4, 8), (2, 4, 6)])
def test_impossible_patterns_are_refused(n: int, m: int, columns: int) -> None:
    with pytest.raises(UsageError, match="pattern"):
        n_of_m_mask(torch.ones(2, columns), n, m)
