"""Randomized decompositions meet their stated error bound, on falling and on flat spectra."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from justright.adapter.adapter import read_adapter
from justright.adapter.extract import extract
from justright.adapter.pair import Pair
from justright.adapter.ranks import RankRule
from justright.adapter.spectra import TOLERANCE, Spectrum, decompose
from justright.errors import UsageError

MakePair = Callable[..., tuple[Path, Path]]


def matrix(rows: int, columns: int, decay: float, seed: int) -> torch.Tensor:
    """Random directions, singular values ``i^-decay``."""
    generator = torch.Generator().manual_seed(seed)
    delta = torch.randn(rows, columns, generator=generator)
    u, s, vt = torch.linalg.svd(delta, full_matrices=False)
    falling = torch.arange(1, len(s) + 1, dtype=torch.float32) ** -decay
    return (u * falling) @ vt


@given(st.integers(60, 140), st.integers(60, 140), st.sampled_from([0.0, 0.3, 1.0, 3.0]), st.integers(1, 30))
@settings(max_examples=30)
def test_a_randomized_decomposition_meets_its_error_bound(
    rows: int, columns: int, decay: float, kept: int
) -> None:
    delta = matrix(rows, columns, decay, seed=rows * columns)
    u, s, vt = decompose(delta, kept, "randomized")
    best = torch.linalg.svdvals(delta.double())[:kept].square().sum()
    total = delta.double().square().sum()
    known = s[:kept].double().square().sum()
    assert float(best - known) <= TOLERANCE * float(total) + 1e-6
    error = (delta.double() - (u.double() * s[: u.shape[1]].double()) @ vt.double()).square().sum()
    assert float(error) == pytest.approx(float(total - known), rel=1e-3, abs=1e-5 * float(total))
    torch.testing.assert_close(u.T @ u, torch.eye(u.shape[1]), rtol=0, atol=1e-4)


def test_ranks_of_a_randomized_decomposition(make_pair: MakePair, tmp_path: Path) -> None:
    """Ranks by energy are exact within the computed values; beyond, and for rules that need all values, it raises."""
    slow, fast = make_pair("llama", rank=5)
    pair, rule = Pair(slow, fast), RankRule("energy", 0.7)
    exact = extract(pair, tmp_path / "exact", rule)
    found = extract(pair, tmp_path / "randomized", rule, svd="randomized", max_rank=8)
    assert found.ranks == exact.ranks
    assert found.energy == pytest.approx(exact.energy, rel=1e-3)
    full, _ = make_pair("llama")
    with pytest.raises(UsageError, match="max-rank"):
        extract(Pair(full, fast), tmp_path / "out", RankRule("energy", 0.99), svd="randomized", max_rank=8)
    for other in (RankRule("entropy"), RankRule("energy", 0.5, power=1)):
        with pytest.raises(UsageError, match="all singular values"):
            extract(pair, tmp_path / "out", other, svd="randomized")
    assert not (tmp_path / "out").exists()


def test_workers_change_nothing(make_pair: MakePair, tmp_path: Path) -> None:
    slow, fast = make_pair("qwen3_moe")
    pair, rule = Pair(slow, fast), RankRule("energy", 0.7)
    one, three = (extract(pair, tmp_path / str(n), rule, workers=n) for n in (1, 3))
    assert one.ranks == three.ranks
    assert one.bytes == three.bytes
    expected, found = (read_adapter(done.path).low_rank for done in (one, three))
    for (
        name,
        change,
    ) in expected.items():  # threads add up in another order, so signs and last bits may differ
        torch.testing.assert_close(found[name].b @ found[name].a, change.b @ change.a, rtol=1e-3, atol=1e-4)


def test_unknown_values_share_what_is_left() -> None:
    one = Spectrum(torch.tensor([4.0, 2.0]), (4, 7), energy=16 + 4 + 2)
    assert not one.whole
    assert one.filled().tolist() == [4.0, 2.0, 1.0, 1.0]
    assert Spectrum(torch.tensor([4.0, 2.0]), (2, 7), 20.0).whole
