"""Intervals against published Wilson tables and the closed form of the normal interval."""

from __future__ import annotations

import math

import pytest

from justright.intervals import interval


def test_intervals() -> None:
    assert interval([1, 1, 0, 0] * 25, 0.5) == (
        pytest.approx(0.4038, abs=1e-4),
        pytest.approx(0.5962, abs=1e-4),
    )
    assert interval([1.0] * 20, 1.0) == (pytest.approx(0.8389, abs=1e-4), pytest.approx(1))
    half = 1.96 * 0.4 / math.sqrt(3)
    assert interval([0.1, 0.5, 0.9], 0.5) == (pytest.approx(0.5 - half), pytest.approx(0.5 + half))
    assert interval([], 1.0) == (None, None)
