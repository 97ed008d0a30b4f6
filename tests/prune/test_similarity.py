"""Behavioural similarity against the explicit formula, and its invariances."""

from __future__ import annotations

import torch

from justright.prune.similarity import behavioural_similarity, router_distance

ROWS = torch.randn(5, 7, generator=torch.Generator().manual_seed(0))
COUNTS = torch.tensor([[0, 3, 1, 0, 2], [3, 0, 4, 1, 0], [1, 4, 0, 2, 2], [0, 1, 2, 0, 6], [2, 0, 2, 6, 0]])


def test_it_is_the_formula() -> None:
    pairs = [(i, j) for i in range(5) for j in range(5) if i != j]
    distance = {(i, j): float((ROWS[i].double() - ROWS[j].double()).norm()) for i, j in pairs}
    mean_distance = sum(distance.values()) / len(pairs)
    mean_count = sum(int(COUNTS[i, j]) for i, j in pairs) / len(pairs)
    found = behavioural_similarity(ROWS, COUNTS, 0.7, 1.3)
    for i, j in pairs:
        expected = -0.7 * distance[i, j] / mean_distance + 1.3 * int(COUNTS[i, j]) / mean_count
        assert abs(float(found[i, j]) - expected) < 1e-12


def test_the_scale_of_the_model_does_not_matter() -> None:
    a = behavioural_similarity(ROWS, COUNTS)
    b = behavioural_similarity(ROWS * 100, COUNTS * 7)
    torch.testing.assert_close(a, b)


def test_top_1_routing_leaves_the_router_alone() -> None:
    a = behavioural_similarity(ROWS, torch.zeros(5, 5, dtype=torch.int64))
    torch.testing.assert_close(a, behavioural_similarity(ROWS, None))


def test_near_twins_in_bfloat16_are_distinguished() -> None:
    rows = torch.ones(3, 64, dtype=torch.bfloat16)
    rows[1, 0] += 0.0078125
    assert float(router_distance(rows)[0, 1]) > 0
    assert float(router_distance(rows)[0, 2]) == 0
