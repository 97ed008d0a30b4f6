"""Split the target sparsity over the two stages and over the layers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from justright.errors import UsageError

OUTLIER_MULTIPLE = 3.0
OUTLIER_SPREAD = 0.08


def second_stage_sparsity(target: float, total: int, removed: int) -> float:
    """Sparsity of stage 2 after expert removal: ``s2 = (S * P - removed) / (P - removed)``.

    Args:
        target: Overall sparsity S of the prunable parameters, in [0, 1).
        total: Prunable parameters P before pruning.
        removed: Prunable parameters of the removed experts.

    Raises:
        UsageError: The target is outside [0, 1), or the removed experts alone exceed it.
    """
    if not 0 <= target < 1:
        raise UsageError(f"sparsity {target}; allowed: 0 to below 1, the fraction of parameters to remove")
    share = removed / total
    if removed > target * total + 1e-9 * total:
        raise UsageError(
            f"the removed experts hold {share:.1%} of the prunable parameters, more than the overall sparsity of "
            f"{target:.1%}: raise --sparsity or lower --expert-sparsity"
        )
    return max(0.0, (target * total - removed) / (total - removed))


def outlier_share(scores: Callable[[], Iterable[Tensor]], multiple: float = OUTLIER_MULTIPLE) -> float:
    """Return the fraction of a layer's scores above ``multiple`` times their mean.

    Args:
        scores: Yields all scores in blocks. It is called twice, so all scores are never in memory at once.
        multiple: Outlier threshold as a multiple of the mean.

    Source: arXiv:2310.05175, Eq. 2 (layer outlier distribution).
    """
    total, count = 0.0, 0
    for some in scores():
        total += float(some.double().sum())
        count += some.numel()
    limit = multiple * total / count
    return sum(int((some > limit).sum()) for some in scores()) / count


def outlier_weighed_sparsity(
    shares: Sequence[float], sizes: Sequence[int], sparsity: float, spread: float = OUTLIER_SPREAD
) -> list[float]:
    """Return each layer's sparsity; layers with more outliers get a lower one.

    Densities are an affine map of the shares. Their range is ``2 * spread``, and their mean, weighted by the layers'
    parameters, is exactly ``1 - sparsity``.

    Args:
        shares: `outlier_share` of each layer.
        sizes: Prunable parameters of each layer.
        sparsity: Overall sparsity.
        spread: Lambda; half the distance between the densest and the sparsest layer.

    Returns:
        Sparsity of each layer, in [0, 1).

    Source: arXiv:2310.05175, section 3.3.
    Differs: the mean is weighted by parameters, so the target is met exactly; if a layer would leave [0, 1], the
        other layers absorb the remainder.
    """
    found = torch.tensor(shares, dtype=torch.float64)
    weights = torch.tensor(sizes, dtype=torch.float64)
    span = float(found.max() - found.min())
    raw = found * (2 * spread / span) if span > 0 else torch.zeros_like(found)
    low, high = -2.0 - float(raw.max()), 2.0
    for _ in range(200):  # bisection: the clamped mean rises monotonically with the shift
        shift = (low + high) / 2
        mean = float(((raw + shift).clamp(0, 1) * weights).sum() / weights.sum())
        low, high = (shift, high) if mean < 1 - sparsity else (low, shift)
    density = (raw + high).clamp(0, 1)
    return [min(1 - float(d), 1 - 1e-9) for d in density]
