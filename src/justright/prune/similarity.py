"""Behavioural similarity of experts from router weights and coactivation."""

from __future__ import annotations

import torch
from torch import Tensor


def router_distance(rows: Tensor) -> Tensor:
    """Euclidean distance between router rows.

    Args:
        rows: ``[num_experts, hidden_size]``.

    Returns:
        ``[num_experts, num_experts]`` float64, zero diagonal.

    Source: arXiv:2409.06211, Eq. 4 (the term of the router's weights).
    """
    wide = rows.double()
    # Direct form: the expanded one loses precision for nearly equal rows.
    return torch.stack([(wide - row).norm(dim=1) for row in wide])


def behavioural_similarity(
    rows: Tensor, coactivation: Tensor | None, router_weight: float = 1.0, coactivation_weight: float = 1.0
) -> Tensor:
    """``b_ij = -w_r * d_ij / mean(d) + w_c * a_ij / mean(a)``.

    Args:
        rows: Router rows ``[num_experts, hidden_size]``.
        coactivation: ``[num_experts, num_experts]`` counts; None leaves the term out.
        router_weight: Lambda 1.
        coactivation_weight: Lambda 2.

    Returns:
        ``[num_experts, num_experts]`` float64, symmetric; the diagonal has no meaning.

    Source: arXiv:2409.06211, Eq. 4.
    Differs: both terms are divided by their mean over i != j, so that the mix does not depend on the model's scale; a
        term whose mean is zero (top-1 routing has no coactivation) is left out.
    """
    distance = router_distance(rows)
    similarity = -router_weight * _normalised(distance)
    if coactivation is not None:
        similarity = similarity + coactivation_weight * _normalised(coactivation.double())
    return similarity


def _normalised(values: Tensor) -> Tensor:
    """Divide by the off-diagonal mean; return zeros if it is zero."""
    count = len(values)
    if count < 2:
        return torch.zeros_like(values)
    mean = (values.sum() - values.diagonal().sum()) / (count * (count - 1))
    return values / mean if float(mean) > 0 else torch.zeros_like(values)
