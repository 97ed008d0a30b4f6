"""Kurtosis from blocks against SciPy's on all values."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.stats import kurtosis

from justright.prune.kurtosis import Kurtosis


def test_it_is_scipys() -> None:
    values = torch.randn(3, 500, generator=torch.Generator().manual_seed(0)) ** 3
    found = Kurtosis()
    for row in values:
        found.add(row)
    assert found.value == pytest.approx(kurtosis(values.flatten().double().numpy(), fisher=False), rel=1e-9)


def test_zeros_do_not_count() -> None:
    found, other = Kurtosis(), Kurtosis()
    found.add(torch.tensor([1.0, 2.0, 0.0, -4.0, 0.0]))
    other.add(torch.tensor([1.0, 2.0, -4.0]))
    assert found.value == other.value
    assert math.isnan(Kurtosis().value)
