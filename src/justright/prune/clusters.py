"""Cluster similar experts: agglomerative clustering, complete linkage, fixed number of clusters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import squareform
from torch import Tensor

from justright.errors import UsageError


@dataclass(frozen=True, slots=True)
class Clusters:
    """Clusters of similar experts.

    Attributes:
        members: Experts of each cluster, ascending; clusters in the order of their first expert.
        merges: SciPy's linkage matrix ``[num_experts - 1, 4]`` for a dendrogram, one per routing group; heights are
            ``-similarity`` and may be negative.
    """

    members: tuple[tuple[int, ...], ...]
    merges: tuple[NDArray[np.float64], ...]


def cluster(similarity: Tensor, count: int, groups: int = 1) -> Clusters:
    """Group ``num_experts`` experts into ``count`` clusters by similarity.

    Args:
        similarity: ``[num_experts, num_experts]``; larger means more similar. The diagonal is ignored.
        count: Number of clusters.
        groups: Number of routing groups (consecutive experts). No cluster spans two groups, and each group gets the
            same number of clusters.

    Raises:
        UsageError: The count is not between 1 and the number of experts, or does not divide into the groups.

    Source: arXiv:2409.06211, section 4.1; the distance is ``-similarity``.
    Differs: exact complete linkage (the authors' loop is greedy, and its number of clusters does not fall with the
        threshold); a fixed number instead of a threshold, since stock models hold the same number in every layer.
    """
    experts = len(similarity)
    if not 1 <= count <= experts or count % groups or experts % groups:
        raise UsageError(
            f"{count} clusters for {experts} experts in {groups} routing groups; allowed: 1 to {experts}"
            + (f", in multiples of {groups}" if groups > 1 else "")
        )
    size, each = experts // groups, count // groups
    members: list[tuple[int, ...]] = []
    merges = []
    for group in range(groups):
        span = slice(group * size, (group + 1) * size)
        tree = merge_tree(similarity[span, span])
        merges.append(tree)
        labels = fcluster_exactly(tree, each)
        found = [
            tuple(int(e) + span.start for e in np.flatnonzero(labels == one)) for one in np.unique(labels)
        ]
        members += sorted(found)
    return Clusters(tuple(members), tuple(merges))


def merge_tree(similarity: Tensor) -> NDArray[np.float64]:
    """SciPy's complete linkage of a similarity matrix; ``[experts - 1, 4]``."""
    if len(similarity) < 2:
        return np.zeros((0, 4))
    distance = -similarity.double()
    distance = (distance + distance.T) / 2
    least = distance[~torch.eye(len(distance), dtype=torch.bool)].min()
    distance = (distance - least).clamp(min=0)  # SciPy requires nonnegative distances
    distance.fill_diagonal_(0)
    found: NDArray[np.float64] = linkage(squareform(distance.numpy(), checks=False), method="complete")
    found[:, 2] += float(least)
    return found


def counts_at_one_threshold(
    similarity: Mapping[int, Tensor], total: int, least: int, groups: int = 1
) -> dict[int, int]:
    """Number of clusters per layer if all layers are cut at the same height.

    Args:
        similarity: Layer -> ``[num_experts, num_experts]``.
        total: Number of clusters over all layers.
        least: Minimum number of clusters per layer.
        groups: Number of routing groups; all groups of a layer lose one cluster at a time.

    Returns:
        Layer -> clusters; they sum to ``total``.

    Raises:
        UsageError: The total is too small, too large, or not a multiple of the groups.

    Source: arXiv:2409.06211, the authors' mode (one threshold for all layers).
    Differs: the threshold is exact, the height of the last merge that reaches the total; a layer at ``least``
        loses no further cluster.
    """
    steps: list[tuple[float, int]] = []
    experts = 0
    for layer, found in sorted(similarity.items()):
        size = len(found) // groups
        experts += len(found)
        spans = [slice(g * size, (g + 1) * size) for g in range(groups)]
        heights = np.stack([merge_tree(found[span, span])[:, 2] for span in spans]).max(axis=0)
        steps += [(float(h), layer) for h in heights[: (len(found) - least) // groups]]
    fewest = experts - len(steps) * groups
    if not fewest <= total <= experts or (experts - total) % groups:
        raise UsageError(
            f"{total} experts kept over all layers; allowed: {fewest} to {experts}"
            + (f", in steps of {groups}" if groups > 1 else "")
        )
    counts = {layer: len(found) for layer, found in similarity.items()}
    for _, layer in sorted(steps)[: (experts - total) // groups]:
        counts[layer] -= groups
    return counts


def fcluster_exactly(tree: NDArray[np.float64], count: int) -> NDArray[np.int64]:
    """Cluster labels after all but the last ``count - 1`` merges: exactly ``count`` clusters, despite equal heights."""
    experts = len(tree) + 1
    heights = tree.copy()
    heights[:, 2] = np.arange(1, experts)  # rank of the merge, to separate equal heights
    if experts == 1:
        return np.ones(1, dtype=np.int64)
    found: NDArray[np.int64] = fcluster(heights, experts - count, criterion="distance").astype(np.int64)
    return found
