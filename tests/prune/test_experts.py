"""Kept experts: each cluster's representative, or the highest scores, equally many in each routing group."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from justright.calibration.statistics import LayerStatistics
from justright.prune.clusters import Clusters
from justright.prune.experts import highest, representatives, unrouted


def test_the_representative_is_nearest_the_mean() -> None:
    weights = torch.tensor([[0.0, 0.0], [1.0, 0.0], [2.2, 0.0], [9.0, 9.0], [5.0, 5.0], [5.0, 6.0]])
    found = representatives(Clusters(((0, 1, 2), (3,), (4, 5)), ()), weights.__getitem__)
    assert found.kept == (1, 3, 4)
    assert found.clusters == ((0, 1, 2), (3,), (4, 5))
    assert not found.averaged


def test_fewer_than_three_clusters_are_averaged() -> None:
    found = representatives(Clusters(((0, 2), (1,)), ()), torch.eye(3).__getitem__)
    assert found.averaged
    assert found.kept == (0, 1)


@given(st.sampled_from([1, 2, 4]), st.integers(1, 4), st.data(), st.integers(0, 999))
def test_the_highest_of_each_group(groups: int, size: int, data: st.DataObject, seed: int) -> None:
    each = data.draw(st.integers(1, size))
    scores = torch.randint(0, 4, (groups * size,), generator=torch.Generator().manual_seed(seed)).double()
    found = highest(scores, groups * each, groups)
    assert list(found.kept) == sorted(set(found.kept))
    for group in range(groups):
        kept = [e for e in found.kept if e // size == group]
        gone = [e for e in range(group * size, (group + 1) * size) if e not in kept]
        assert len(kept) == each
        assert all(scores[k] > scores[g] or (scores[k] == scores[g] and k < g) for k in kept for g in gone)


def test_experts_without_tokens_are_counted() -> None:
    found = LayerStatistics(counts=torch.tensor([4, 0, 2]))
    assert unrouted([found, LayerStatistics()]) == 1
