"""Input and output of one step of the verifier: tokens as chains or trees, followed by [SPEC]."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class StepInput:
    """The tokens of one sequence to run: the last emitted token (not yet in the cache) and a draft below it.

    Attributes:
        slot: cache row.
        token_ids: the root and the draft's nodes, in topological order.
        parents: parent of every node but the root, as indices into ``token_ids``; None for a chain.
        factor: the adapter scale of all of them.
        spec: number of [SPEC] rows, one after each of the last ``spec`` tokens: each sees what its token sees and
            itself, and no other token sees it.
    """

    slot: int
    token_ids: Sequence[int]
    parents: Sequence[int] | None = None
    factor: float = 0.0
    spec: int = 0

    @property
    def rows(self) -> int:
        """Tokens to run, [SPEC] included."""
        return len(self.token_ids) + self.spec

    def laid_out(self) -> StepInput:
        """The same with [SPEC] as tokens: leaves of the tree, one position after their parents."""
        count = len(self.token_ids)
        if not self.spec or (self.spec == 1 and self.parents is None):
            parents = self.parents  # a single [SPEC] at the end of a chain leaves it a chain
        else:
            own = range(count - 1) if self.parents is None else self.parents
            parents = [*own, *range(count - self.spec, count)]
        return StepInput(self.slot, [*self.token_ids, *([0] * self.spec)], parents, self.factor)

    def padded(self, size: int) -> StepInput:
        """The same, padded to ``size`` nodes with meaningless ones that no other node sees."""
        extra = size - len(self.token_ids)
        parents = None if self.parents is None else [*self.parents, *([0] * extra)]
        return StepInput(self.slot, [*self.token_ids, *([0] * extra)], parents, self.factor)


@dataclass(frozen=True, slots=True)
class StepOutput:
    """The model's output after each token of a `StepInput`.

    Attributes:
        logits: ``[tokens, vocab]``.
        hidden: ``[tokens, hidden_size]``, after the final norm.
        spec_hidden: ``[spec, hidden_size]``, that of each [SPEC]; None without any.
    """

    logits: Tensor
    hidden: Tensor
    spec_hidden: Tensor | None = None


def rows_of(
    inputs: Sequence[StepInput], starts: Sequence[int], *, only_last: bool
) -> tuple[list[list[int]], list[list[int]]]:
    """Per sequence, whose rows begin at ``starts``: the rows that need logits, and the rows of its [SPEC]."""
    tokens, specs = [], []
    for one, start in zip(inputs, starts, strict=True):
        end = start + len(one.token_ids)
        tokens.append(list(range(end - 1 if only_last else start, end)))
        specs.append(list(range(end, end + one.spec)))
    return tokens, specs


def tree_shape(parents: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Depths and visibility of a tree given by ``parents`` of nodes 1, 2, ... (node 0 is the root).

    Returns:
        ``depths [nodes]`` int64 and ``visible [nodes, nodes]`` bool: row sees itself and its ancestors.
    """
    count = len(parents) + 1
    visible = torch.eye(count, dtype=torch.bool)
    depths = [0] * count
    for node, parent in enumerate(parents, start=1):
        assert 0 <= parent < node, "a node's parent must come before it"
        visible[node] |= visible[parent]
        depths[node] = depths[parent] + 1
    return torch.tensor(depths), visible
