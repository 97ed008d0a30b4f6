"""Which single weights go: scores, and masks that keep the highest in every row."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from justright.errors import UsageError

_AT_ONCE = 1 << 18
"""Weights that are scored at once: scores and their order take some thirty bytes a weight."""

WEIGHT_CRITERIA = ("wanda", "magnitude", "none")
"""``none``: no single weight goes, so the whole target is experts."""


def wanda_scores(weight: Tensor, input_norms: Tensor) -> Tensor:
    """``|W_ij| * ||X_j||``.

    Args:
        weight: ``[out, in]``.
        input_norms: ``[in]``, the L2 norm of each input over all calibration tokens.

    Returns:
        ``[out, in]`` float32.

    Source: arXiv:2306.11695, Eq. 1.
    """
    return weight.float().abs() * input_norms.float()


def magnitude_scores(weight: Tensor) -> Tensor:
    """``|W_ij|``, ``[out, in]`` float32."""
    return weight.float().abs()


def weight_scores(weight: Tensor, input_norms: Tensor | None) -> Tensor:
    """`wanda_scores`, or without norms `magnitude_scores`."""
    return magnitude_scores(weight) if input_norms is None else wanda_scores(weight, input_norms)


def scores_by_rows(weight: Tensor, input_norms: Tensor | None) -> Iterator[Tensor]:
    """`weight_scores` of a matrix ``[out, in]``, some rows ``[rows, in]`` at a time, in order."""
    for rows in torch.split(weight, max(1, _AT_ONCE // weight.shape[-1])):
        yield weight_scores(rows, input_norms)


def row_mask(scores: Tensor, sparsity: float) -> Tensor:
    """Keep all but the lowest ``int(in * sparsity)`` of every row; of equal scores the later goes first.

    Args:
        scores: ``[..., out, in]``.
        sparsity: the fraction removed, in [0, 1).

    Returns:
        ``[..., out, in]`` bool, True = kept.

    Source: arXiv:2306.11695, section 3 (compared within each output).
    """
    if not 0 <= sparsity < 1:
        raise UsageError(f"sparsity {sparsity} of a matrix: allowed is [0, 1)")
    return keep_highest(scores, scores.shape[-1] - int(scores.shape[-1] * sparsity))


def keep_highest(scores: Tensor, count: int) -> Tensor:
    """True for the ``count`` highest of the last axis; of equal ones the earlier stay."""
    order = scores.sort(dim=-1, descending=True, stable=True).indices
    mask = torch.zeros(scores.shape, dtype=torch.bool, device=scores.device)
    return mask.scatter_(-1, order[..., :count], True)


def n_of_m_mask(scores: Tensor, n: int, m: int) -> Tensor:
    """Keep the ``n`` highest of every ``m`` consecutive weights of a row (2:4 and the like).

    Args:
        scores: ``[..., out, in]``.
        n: kept of each group.
        m: weights of a group; must divide ``in``.

    Raises:
        UsageError: n is not below m, or m does not divide the inputs.
    """
    if not 0 < n < m:
        raise UsageError(f"the pattern {n}:{m} keeps {n} of {m}: allowed is 0 < n < m, as in 2:4")
    if scores.shape[-1] % m:
        raise UsageError(f"the pattern {n}:{m} needs rows of a multiple of {m}, not {scores.shape[-1]}")
    grouped = scores.reshape(*scores.shape[:-1], -1, m)
    return keep_highest(grouped, n).flatten(-2)
