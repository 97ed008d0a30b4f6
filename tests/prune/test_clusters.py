"""Clusters: exact counts, no group left, complete linkage as SciPy's and as the definition says."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from justright.errors import UsageError
from justright.prune.clusters import cluster


def similarity(experts: int, seed: int, ties: bool = False) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    values = torch.rand(experts, experts, generator=generator, dtype=torch.float64)
    if ties:
        values = (values * 3).round()
    return values + values.T


def by_definition(values: torch.Tensor, count: int) -> set[frozenset[int]]:
    """Merge, again and again, the two clusters whose least alike members are the most alike."""
    clusters = [frozenset([i]) for i in range(len(values))]
    while len(clusters) > count:
        pairs = [(a, b) for i, a in enumerate(clusters) for b in clusters[i + 1 :]]
        best = max(pairs, key=lambda pair: min(float(values[i, j]) for i in pair[0] for j in pair[1]))
        clusters = [c for c in clusters if c not in best] + [best[0] | best[1]]
    return set(clusters)


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 12), st.data(), st.integers(0, 10_000))
def test_it_is_complete_linkage(experts: int, data: st.DataObject, seed: int) -> None:
    count = data.draw(st.integers(1, experts))
    values = similarity(experts, seed)
    found = cluster(values, count)
    assert {frozenset(members) for members in found.members} == by_definition(values, count)


@settings(deadline=None, max_examples=60)
@given(st.sampled_from([1, 2, 3]), st.integers(1, 5), st.data(), st.integers(0, 10_000), st.booleans())
def test_the_count_is_exact_and_no_expert_leaves_its_group(
    groups: int, size: int, data: st.DataObject, seed: int, ties: bool
) -> None:
    each = data.draw(st.integers(1, size))
    found = cluster(similarity(groups * size, seed, ties), groups * each, groups)
    assert sorted(e for members in found.members for e in members) == list(range(groups * size))
    assert len(found.members) == groups * each
    for members in found.members:
        assert len({e // size for e in members}) == 1
        assert list(members) == sorted(members)
    of_groups = [members[0] // size for members in found.members]
    assert all(of_groups.count(group) == each for group in range(groups))
    assert len(found.merges) == groups


@pytest.mark.parametrize(("count", "groups"), [(0, 1), (9, 1), (3, 2)])
def test_impossible_counts_are_refused(count: int, groups: int) -> None:
    with pytest.raises(UsageError, match="allowed"):
        cluster(similarity(8, 0), count, groups)


def test_the_diagonal_means_nothing() -> None:
    values = similarity(6, 1)
    other = values.clone().fill_diagonal_(99.0)
    assert cluster(values, 3).members == cluster(other, 3).members
