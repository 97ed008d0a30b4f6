"""Clusters: exact counts, no cluster across groups, complete linkage equal to SciPy's and to the definition."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from justright.errors import UsageError
from justright.prune.clusters import cluster, counts_at_one_threshold, merge_tree


def similarity(experts: int, seed: int, ties: bool = False) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    values = torch.rand(experts, experts, generator=generator, dtype=torch.float64)
    if ties:
        values = (values * 3).round()
    return values + values.T


def by_definition(values: torch.Tensor, count: int) -> set[frozenset[int]]:
    """Repeatedly merge the two clusters whose least similar members are the most similar."""
    clusters = [frozenset([i]) for i in range(len(values))]
    while len(clusters) > count:
        pairs = [(a, b) for i, a in enumerate(clusters) for b in clusters[i + 1 :]]
        best = max(pairs, key=lambda pair: min(float(values[i, j]) for i in pair[0] for j in pair[1]))
        clusters = [c for c in clusters if c not in best] + [best[0] | best[1]]
    return set(clusters)


@settings(max_examples=40)
@given(st.integers(1, 12), st.data(), st.integers(0, 10_000))
def test_it_is_complete_linkage(experts: int, data: st.DataObject, seed: int) -> None:
    count = data.draw(st.integers(1, experts))
    values = similarity(experts, seed)
    found = cluster(values, count)
    assert {frozenset(members) for members in found.members} == by_definition(values, count)


@settings(max_examples=60)
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


@settings(max_examples=60)
@given(st.integers(1, 4), st.integers(2, 8), st.integers(1, 3), st.data(), st.integers(0, 10_000))
def test_one_threshold_cuts_all_layers_to_the_total(
    layers: int, experts: int, least: int, data: st.DataObject, seed: int
) -> None:
    least = min(least, experts)
    total = data.draw(st.integers(least * layers, experts * layers))
    alike = {layer: similarity(experts, seed + layer) * (layer + 1) for layer in range(layers)}
    counts = counts_at_one_threshold(alike, total, least)
    assert sum(counts.values()) == total
    assert all(least <= count <= experts for count in counts.values())
    heights = {layer: merge_tree(values)[:, 2] for layer, values in alike.items()}
    done = [h for layer, count in counts.items() for h in heights[layer][: experts - count]]
    left = [h for layer, count in counts.items() for h in heights[layer][experts - count : experts - least]]
    assert not done or not left or max(done) <= min(left)


def test_heights_are_those_of_the_similarity() -> None:
    values = torch.tensor([[0.0, 3.0, 1.0], [3.0, 0.0, 2.0], [1.0, 2.0, 0.0]])
    assert merge_tree(values)[:, 2].tolist() == [-3.0, -1.0]


def test_groups_lose_together_and_totals_have_limits() -> None:
    alike = {0: similarity(8, 0), 1: similarity(8, 1)}
    counts = counts_at_one_threshold(alike, 12, 4, groups=2)
    assert sum(counts.values()) == 12
    assert all(count % 2 == 0 for count in counts.values())
    for wrong in (7, 17, 11):
        with pytest.raises(UsageError, match="allowed: 8 to 16, in steps of 2"):
            counts_at_one_threshold(alike, wrong, 4, groups=2)
