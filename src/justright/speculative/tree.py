"""Draft trees: grown level by level from a model's predictions, kept by probability.

Source: EAGLE-2, arXiv:2406.16858, section 4 (expand the most probable nodes, keep the most probable overall).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from justright.speculative.base import EMPTY_DRAFT, Draft

Expand = Callable[[Tensor | None, Tensor | None], tuple[Tensor, Tensor]]
"""``(rows, tokens)``: from the states of the last call at ``rows``, continue with ``tokens`` (``[frontier]``
both; None: the root); returns log-probabilities and token ids, ``[frontier, k]`` each, most probable first."""


@dataclass(frozen=True, slots=True)
class TreeShape:
    """The limits of a tree.

    Attributes:
        nodes: maximum number of nodes kept.
        depth: levels.
        top_k: nodes expanded per level, and children of each; 1: a chain.
        min_prob: less probable paths are not followed.
    """

    nodes: int
    depth: int
    top_k: int
    min_prob: float = 0.0


def grow(expand: Expand, shape: TreeShape) -> Draft:
    """The most probable tree: a node's probability is its path's, and no node is kept without its parent.

    Args:
        expand: the model.
        shape: limits of size, depth and width.
    """
    if shape.nodes < 1 or shape.depth < 1:
        return EMPTY_DRAFT
    floor = math.log(max(shape.min_prob, 1e-30))
    logs, ids = expand(None, None)
    scores, tokens = logs[0], ids[0]
    found = [(scores, tokens, torch.full_like(tokens, -1))]
    offset = 0
    for _ in range(1, shape.depth):
        frontier = scores.argsort(descending=True, stable=True)[: shape.top_k]
        frontier = frontier[scores[frontier] >= floor]
        if not len(frontier) or _settled(found, scores[frontier], shape.nodes):
            break
        logs, ids = expand(frontier // logs.shape[1], tokens[frontier])
        owners = (frontier + offset).repeat_interleave(logs.shape[1])
        offset += len(scores)
        scores = (scores[frontier][:, None] + logs.clamp(max=0)).flatten()
        tokens = ids.flatten()
        found.append((scores, tokens, owners))
    return _best(found, shape.nodes, floor)


def _settled(found: Sequence[tuple[Tensor, Tensor, Tensor]], frontier: Tensor, nodes: int) -> bool:
    """Whether no node below the frontier can still be among the best ``nodes``."""
    scores = torch.cat([level[0] for level in found])
    return len(scores) >= nodes and float(frontier[0]) <= float(scores.topk(nodes).values[-1])


def _best(found: Sequence[tuple[Tensor, Tensor, Tensor]], nodes: int, floor: float) -> Draft:
    scores, tokens, owners = (torch.cat(parts) for parts in zip(*found, strict=True))
    order = scores.argsort(descending=True, stable=True)[:nodes].tolist()
    values, ids, parents = scores.tolist(), tokens.tolist(), owners.tolist()
    place: dict[int, int] = {-1: -1}
    kept: list[int] = []
    for index in order:
        # A kept node's parent is already kept: it is at least as probable and comes earlier.
        if values[index] < floor and kept:
            break
        place[index] = len(kept)
        kept.append(index)
    probs = torch.tensor([values[i] for i in kept]).exp().clamp(max=1.0).tolist()
    return Draft([ids[i] for i in kept], [place[parents[i]] for i in kept], probs)
