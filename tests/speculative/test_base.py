"""A draft is a tree in topological order; a drafter follows its life cycle."""

from __future__ import annotations

import pytest
import torch

from justright.speculative.base import EMPTY_DRAFT, Draft, Drafter
from justright.speculative.suffix import SuffixDrafter, SuffixOptions

TREE = Draft(token_ids=[5, 6, 7, 8], parents=[-1, -1, 0, 2], probs=[0.5, 0.25, 0.25, 0.125])


def test_score_is_the_expected_number_of_accepted_tokens() -> None:
    assert len(TREE) == 4
    assert TREE.score == 1.125
    assert len(EMPTY_DRAFT) == 0
    assert EMPTY_DRAFT.score == 0.0


@pytest.mark.parametrize("count", range(6))
def test_first_keeps_a_tree(count: int) -> None:
    cut = TREE.first(count)
    assert list(cut.token_ids) == [5, 6, 7, 8][:count]
    assert len(cut.parents) == len(cut.probs) == len(cut)
    assert all(parent < node for node, parent in enumerate(cut.parents))
    assert (cut is TREE) == (count >= 4)


def test_first_cuts_the_proposal_alike() -> None:
    proposal = torch.rand(5, 3)
    cut = Draft(TREE.token_ids, TREE.parents, TREE.probs, proposal).first(2)
    assert cut.proposal is not None
    assert torch.equal(cut.proposal, proposal[:3])
    assert cut == TREE.first(2), "the proposal is left out of comparisons"


@pytest.mark.parametrize("tree", [False, True])
def test_drafters_keep_the_promises_of_a_draft(tree: bool) -> None:
    drafter: Drafter = SuffixDrafter(SuffixOptions(backend="python", tree=tree, max_spec_factor=4.0))
    drafter.start("request", [1, 2, 3, 1, 2, 4, 1, 2, 3, 1, 2])
    for _ in range(8):
        draft = drafter.propose("request", 5)
        assert 0 < len(draft) <= 5
        assert len(draft.token_ids) == len(draft.parents) == len(draft.probs)
        assert all(-1 <= parent < node for node, parent in enumerate(draft.parents))
        assert len(set(zip(draft.parents, draft.token_ids, strict=True))) == len(draft)
        for parent, prob in zip(draft.parents, draft.probs, strict=True):
            assert 0 < prob <= (1 if parent < 0 else draft.probs[parent])
        drafter.observe("request", [*draft.token_ids[:1], 2])
    drafter.stop("request")
