"""Kurtosis of weights, a measure of outliers, accumulated tensor by tensor."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor

_AT_ONCE = 1 << 20


@dataclass(slots=True)
class Kurtosis:
    """The fourth standardised moment of all non-zero weights given to `add` (3 for a normal distribution).

    Source: arXiv:2409.06211, section 5 (the order of the stages and the kurtosis after each).
    """

    powers: Tensor = field(default_factory=lambda: torch.zeros(5, dtype=torch.float64))

    def add(self, weights: Tensor) -> None:
        """Add the weights of one tensor."""
        for part in torch.split(weights.flatten(), _AT_ONCE):
            values = part[part != 0].double()
            one = values.clone()
            self.powers[0] += len(values)
            for power in range(1, 5):
                self.powers[power] += one.sum()
                one *= values

    def add_all(self, tensors: Iterable[Tensor]) -> None:
        """Add the weights of several tensors."""
        for tensor in tensors:
            self.add(tensor)

    def merge(self, other: Kurtosis) -> None:
        """Add all weights of another accumulator."""
        self.powers += other.powers

    @property
    def value(self) -> float:
        """The kurtosis; nan without weights."""
        count = float(self.powers[0])
        if count == 0:
            return float("nan")
        m1, m2, m3, m4 = (float(p) / count for p in self.powers[1:])
        variance = m2 - m1 * m1
        fourth = m4 - 4 * m1 * m3 + 6 * m1 * m1 * m2 - 3 * m1**4
        return fourth / variance**2 if variance > 0 else float("nan")
