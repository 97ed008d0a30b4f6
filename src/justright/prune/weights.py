"""Masks of single weights that keep the highest scores in every row."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from justright.errors import UsageError
from justright.prune.criteria.base import WeightCriterion
from justright.prune.criteria.magnitude import Magnitude

_AT_ONCE = 1 << 18
"""Weights per scoring block; scores and their order take about thirty bytes per weight."""


def scores_by_rows(
    weight: Tensor, input_norms: Tensor | None, criterion: WeightCriterion
) -> Iterator[Tensor]:
    """Yield the scores of a matrix ``[out, in]`` in blocks of rows ``[rows, in]``, in order.

    Args:
        weight: ``[out, in]``.
        input_norms: ``[in]``; None if unknown, and then magnitude replaces a criterion that needs them.
        criterion: The weight criterion.
    """
    if input_norms is None and criterion.needs_inputs:
        criterion = Magnitude()
    for rows in torch.split(weight, max(1, _AT_ONCE // weight.shape[-1])):
        yield criterion.scores(rows, input_norms)


def row_mask(scores: Tensor, sparsity: float) -> Tensor:
    """Keep all but the lowest ``int(in * sparsity)`` of every row; among equal scores, later ones are removed first.

    Args:
        scores: ``[..., out, in]``.
        sparsity: The fraction removed, in [0, 1).

    Returns:
        ``[..., out, in]`` bool, True = kept.

    Source: arXiv:2306.11695, section 3 (compared within each output).
    """
    if not 0 <= sparsity < 1:
        raise UsageError(f"sparsity {sparsity} of a matrix; allowed: [0, 1)")
    return keep_highest(scores, scores.shape[-1] - int(scores.shape[-1] * sparsity))


def keep_highest(scores: Tensor, count: int) -> Tensor:
    """True for the ``count`` highest of the last axis; among equal ones, the earlier stay."""
    order = scores.sort(dim=-1, descending=True, stable=True).indices
    mask = torch.zeros(scores.shape, dtype=torch.bool, device=scores.device)
    return mask.scatter_(-1, order[..., :count], True)


def n_of_m_mask(scores: Tensor, n: int, m: int) -> Tensor:
    """Keep the ``n`` highest of every ``m`` consecutive weights of a row (2:4 and the like).

    Args:
        scores: ``[..., out, in]``.
        n: Kept weights per group.
        m: Weights per group; must divide ``in``.

    Raises:
        UsageError: ``n`` is not below ``m``, or ``m`` does not divide the inputs.
    """
    if not 0 < n < m:
        raise UsageError(f"pattern {n}:{m}; allowed: N:M with 0 < N < M, as in 2:4")
    if scores.shape[-1] % m:
        raise UsageError(
            f"the pattern {n}:{m} needs rows whose length is a multiple of {m}, not {scores.shape[-1]}"
        )
    grouped = scores.reshape(*scores.shape[:-1], -1, m)
    return keep_highest(grouped, n).flatten(-2)
