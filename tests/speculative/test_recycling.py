"""Token recycling: the table, and the trees that it makes."""

from __future__ import annotations

from typing import Any

import pytest

from justright.errors import UsageError
from justright.speculative.recycling import RecyclingDrafter, RecyclingOptions


def test_it_walks_what_the_verifier_once_thought_likely() -> None:
    drafter = RecyclingDrafter(RecyclingOptions(candidates=2, depth=2, nodes=10, min_prob=0.0))
    drafter.start("r", [1, 2])
    assert len(drafter.propose("r", 10)) == 0
    drafter.recycle("r", [2, 5, 6], [[5, 6], [7, 8], [9, 5]])
    assert len(drafter.propose("r", 10)) == 0, "not before the verification is reported"
    drafter.observe("r", [2])
    draft = drafter.propose("r", 10)
    children = {t: [] for t in (-1, 5, 6)}
    for token, parent in zip(draft.token_ids, draft.parents, strict=True):
        children[draft.token_ids[parent] if parent >= 0 else -1].append(token)
    assert children == {-1: [5, 6], 5: [7, 8], 6: [9, 5]}
    assert len(drafter.propose("r", 1)) == 1
    drafter.stop("r")
    drafter.start("other", [2])
    assert len(drafter.propose("other", 10)) == 6, "the table outlives the request"


def test_ranks_are_tried_by_how_often_they_were_right() -> None:
    drafter = RecyclingDrafter(RecyclingOptions(candidates=2, depth=1, min_prob=0.0))
    drafter.start("r", [1])
    drafter.recycle("r", [1], [[5, 6]])
    drafter.observe("r", [1])
    assert list(drafter.propose("r", 2).token_ids) == [5, 6]
    for _ in range(100):
        drafter.observe("r", [6, 1])
    draft = drafter.propose("r", 2)
    assert list(draft.token_ids) == [6, 5]
    assert draft.probs[0] > 0.6


@pytest.mark.parametrize("wrong", [{"candidates": 9}, {"nodes": 0}, {"depth": True}, {"min_prob": 1.5}])
def test_wrong_options_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="token recycling"):
        RecyclingOptions(**wrong)


def test_its_life_cycle() -> None:
    drafter = RecyclingDrafter()
    drafter.start("r", [1])
    with pytest.raises(UsageError, match="started twice"):
        drafter.start("r", [1])
    drafter.stop("r")
    with pytest.raises(UsageError, match="not active"):
        drafter.propose("r", 4)


def test_ranks_are_judged_by_the_table_as_it_was() -> None:
    """The logits that chose a token always rank it first, so they must not count as evidence."""
    drafter = RecyclingDrafter(RecyclingOptions(candidates=2))
    drafter.start("r", [1])
    for token in range(2, 60):
        drafter.recycle("r", [token - 1], [[token, 0]])
        drafter.observe("r", [token])
    assert drafter._shares[0] <= 0.4
