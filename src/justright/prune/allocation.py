"""How much of each part goes: the target split over the two stages, and over the layers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from justright.errors import UsageError

OUTLIER_MULTIPLE = 3.0
OUTLIER_SPREAD = 0.08


def second_stage_sparsity(target: float, total: int, removed: int) -> float:
    """What single weights must give, once experts have gone: ``s2 = (S * P - removed) / (P - removed)``.

    Args:
        target: overall sparsity S of the prunable parameters, in [0, 1).
        total: prunable parameters P before pruning.
        removed: of them, those of the experts that go.

    Raises:
        UsageError: a target outside [0, 1), or the experts alone are more than it.
    """
    if not 0 <= target < 1:
        raise UsageError(f"sparsity {target}: allowed is 0 to below 1, the fraction of parameters that goes")
    share = removed / total
    if removed > target * total + 1e-9 * total:
        raise UsageError(
            f"the experts that go are {share:.1%} of the prunable parameters, more than the overall sparsity "
            f"{target:.1%}: raise --sparsity or lower --expert-sparsity"
        )
    return max(0.0, (target * total - removed) / (total - removed))


def outlier_share(scores: Callable[[], Iterable[Tensor]], multiple: float = OUTLIER_MULTIPLE) -> float:
    """The share of a layer's scores above ``multiple`` times their mean.

    Args:
        scores: gives all of them, some at a time; called twice, so that they are never in memory together.
        multiple: of the mean.

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
    """Per layer, less where there are more outliers.

    Densities are an affine map of the shares whose range is ``2 * spread`` and whose mean, weighed by the layers'
    parameters, is exactly ``1 - sparsity``.

    Args:
        shares: `outlier_share` of each layer.
        sizes: prunable parameters of each layer.
        sparsity: overall.
        spread: lambda; half the distance between the densest and the sparsest layer.

    Returns:
        Sparsity of each layer, in [0, 1).

    Source: arXiv:2310.05175, section 3.3.
    Differs: weighed by parameters, so that the target is met exactly; where a layer would leave [0, 1], the others
        take over what it cannot.
    """
    found = torch.tensor(shares, dtype=torch.float64)
    weights = torch.tensor(sizes, dtype=torch.float64)
    span = float(found.max() - found.min())
    raw = found * (2 * spread / span) if span > 0 else torch.zeros_like(found)
    low, high = -2.0 - float(raw.max()), 2.0
    for _ in range(200):  # the shift at which the clamped mean is right: monotone, so bisection finds it
        shift = (low + high) / 2
        mean = float(((raw + shift).clamp(0, 1) * weights).sum() / weights.sum())
        low, high = (shift, high) if mean < 1 - sparsity else (low, shift)
    density = (raw + high).clamp(0, 1)
    return [min(1 - float(d), 1 - 1e-9) for d in density]
