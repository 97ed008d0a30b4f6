"""Draft trees keep the most probable paths, and are valid trees."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from justright.speculative.base import Draft
from justright.speculative.sampled import sample_tree
from justright.speculative.tree import TreeShape, grow

VOCAB = 12


class Model:
    """A made-up language model: the next token's distribution depends on the path."""

    def __init__(self, seed: int, k: int) -> None:
        self.seed, self.k = seed, k
        self.paths: list[tuple[int, ...]] = []

    def probs(self, path: tuple[int, ...]) -> Tensor:
        generator = torch.Generator().manual_seed(hash((self.seed, *path)) % 2**31)
        return torch.softmax(2 * torch.randn(VOCAB, generator=generator), dim=-1)

    def _go(self, rows: Tensor | None, tokens: Tensor | None) -> Tensor:
        if rows is None or tokens is None:
            self.paths = [()]
        else:
            pairs = zip(rows.tolist(), tokens.tolist(), strict=True)
            self.paths = [(*self.paths[row], token) for row, token in pairs]
        return torch.stack([self.probs(path) for path in self.paths])

    def expand(self, rows: Tensor | None, tokens: Tensor | None) -> tuple[Tensor, Tensor]:
        best = self._go(rows, tokens).log().topk(self.k, dim=-1)
        return best.values, best.indices

    def distribution(self, rows: Tensor | None, tokens: Tensor | None, temperature: float) -> Tensor:
        return self._go(rows, tokens)


def paths(draft: Draft) -> list[tuple[int, ...]]:
    found: list[tuple[int, ...]] = []
    for token, parent in zip(draft.token_ids, draft.parents, strict=True):
        found.append((*(found[parent] if parent >= 0 else ()), token))
    return found


SHAPES = st.builds(
    TreeShape,
    nodes=st.integers(1, 40),
    depth=st.integers(1, 6),
    top_k=st.integers(1, 5),
    min_prob=st.sampled_from([0.0, 0.02, 0.2]),
)


@given(st.integers(0, 1000), SHAPES)
def test_a_grown_tree_is_a_tree_of_the_models_probabilities(seed: int, shape: TreeShape) -> None:
    model = Model(seed, shape.top_k)
    draft = grow(model.expand, shape)
    assert 1 <= len(draft) <= shape.nodes
    assert all(parent < index for index, parent in enumerate(draft.parents))
    found = paths(draft)
    assert len(set(found)) == len(found), "siblings carry distinct tokens"
    assert max(map(len, found)) <= shape.depth
    for path, prob in zip(found, draft.probs, strict=True):
        expected = 1.0
        for index, token in enumerate(path):
            expected *= float(model.probs(path[:index])[token])
        assert abs(prob - expected) < 1e-4
    assert draft.probs == sorted(draft.probs, reverse=True), "cutting it leaves the most probable nodes"


@given(st.integers(0, 1000), st.integers(1, 12))
def test_with_enough_width_it_keeps_the_most_probable_paths_of_all(seed: int, nodes: int) -> None:
    model = Model(seed, VOCAB)
    draft = grow(model.expand, TreeShape(nodes, 2, VOCAB))
    everything = []
    for first in range(VOCAB):
        start = float(model.probs(())[first])
        everything.append(start)
        everything += [start * float(p) for p in model.probs((first,))]
    expected = sorted(everything, reverse=True)[:nodes]
    assert torch.allclose(torch.tensor(draft.probs), torch.tensor(expected), atol=1e-5)


def test_a_width_of_one_makes_a_chain() -> None:
    draft = grow(Model(3, 1).expand, TreeShape(10, 4, 1))
    assert list(draft.parents) == [-1, 0, 1, 2]


@given(st.integers(0, 200), SHAPES, st.integers(0, 5))
def test_a_drawn_trees_shape_does_not_depend_on_the_draws(seed: int, shape: TreeShape, other: int) -> None:
    one = sample_tree(Model(seed, 3).distribution, shape, 1.0, torch.Generator().manual_seed(1))
    two = sample_tree(Model(seed, 3).distribution, shape, 1.0, torch.Generator().manual_seed(2 + other))
    assert list(one.parents) == list(two.parents)
    assert len(one) <= shape.nodes
    assert one.proposal is not None
    assert one.proposal.shape == (len(one) + 1, VOCAB)
    for path, row in zip([(), *paths(one)], one.proposal, strict=True):
        if float(row.sum()):
            torch.testing.assert_close(row, Model(seed, 3).probs(path))
    assert len(set(paths(one))) == len(one)
