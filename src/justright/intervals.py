"""Confidence intervals of means."""

from __future__ import annotations

import math
from collections.abc import Sequence

_Z = 1.96


def interval(scores: Sequence[float], value: float) -> tuple[float, float] | tuple[None, None]:
    """95% interval of the mean ``value`` of per-document scores; None with fewer than two scores.

    Wilson's score interval if all scores are 0 or 1, otherwise the normal interval.
    """
    count = len(scores)
    if count < 2:
        return None, None
    if all(score in (0, 1) for score in scores):
        centre = value + _Z * _Z / (2 * count)
        half = _Z * math.sqrt(value * (1 - value) / count + _Z * _Z / (4 * count * count))
        scale = 1 + _Z * _Z / count
        return max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale)
    mean = sum(scores) / count
    deviation = math.sqrt(sum((score - mean) ** 2 for score in scores) / (count - 1))
    return value - _Z * deviation / math.sqrt(count), value + _Z * deviation / math.sqrt(count)
