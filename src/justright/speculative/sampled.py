"""Sampled drafts: trees of a fixed shape, drawn from the drafter's own distribution.

Verification of drawn tokens preserves the model's distribution only if the choice of nodes to verify does not depend
on what was drawn (see `justright.engine.sampler`): so the shape is fixed before the first draw. The last verified
token has ``width`` children, drawn without replacement; each continues as a chain.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from justright.speculative.base import EMPTY_DRAFT, Draft
from justright.speculative.tree import TreeShape

Distribution = Callable[[Tensor | None, Tensor | None, float], Tensor]
"""``(rows, tokens, temperature)``: as `tree.Expand`, but all probabilities, ``[frontier, vocab]``."""


def sample_tree(
    distribution: Distribution, shape: TreeShape, temperature: float, generator: torch.Generator
) -> Draft:
    """Draw a tree; its ``proposal`` holds the distributions from which the nodes were drawn.

    Args:
        distribution: the model.
        shape: ``top_k`` is the width; ``nodes`` and ``depth`` bound the chains' length.
        temperature: of the model's distribution.
        generator: for drawing.
    """
    width = min(shape.top_k, shape.nodes)
    depth = min(shape.depth, shape.nodes // width) if width else 0
    if depth < 1:
        return EMPTY_DRAFT

    def draw(probs: Tensor, count: int) -> list[int]:
        count = min(count, int((probs > 0).sum()))
        return torch.multinomial(probs, count, replacement=False, generator=generator).tolist()

    root = distribution(None, None, temperature)[0]
    tokens = draw(root, width)
    parents, probs = [-1] * len(tokens), [float(root[t]) for t in tokens]
    level = list(range(len(tokens)))
    rows = torch.zeros(len(level), dtype=torch.long)
    proposal = torch.zeros(1 + len(level) * depth, len(root))
    proposal[0] = root
    for _ in range(1, depth):
        found = distribution(rows, torch.tensor([tokens[node] for node in level]), temperature)
        rows = torch.arange(len(level))
        following = []
        for node, row in zip(level, found, strict=True):
            proposal[node + 1] = row
            [token] = draw(row, 1)
            following.append(len(tokens))
            tokens.append(token)
            parents.append(node)
            probs.append(probs[node] * float(row[token]))
        level = following
    return Draft(tokens, parents, probs, proposal[: len(tokens) + 1])
