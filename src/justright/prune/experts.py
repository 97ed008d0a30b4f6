"""Select the experts to keep: a representative of each cluster (STUN), or the highest-ranked experts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from justright.calibration.statistics import LayerStatistics
from justright.prune.clusters import Clusters

RECONSTRUCT_BELOW = 3
"""With fewer clusters per layer, a representative becomes the average of its cluster (the authors' kappa)."""


@dataclass(frozen=True, slots=True)
class KeptExperts:
    """The kept experts of one layer.

    Attributes:
        kept: Indices of the kept experts, ascending.
        clusters: Cluster of each expert in ``kept``, itself included; only itself if experts are ranked instead of
            clustered.
        averaged: Whether each kept expert, and its router row, becomes the average of its cluster.
    """

    kept: tuple[int, ...]
    clusters: tuple[tuple[int, ...], ...]
    averaged: bool = False


def representatives(clusters: Clusters, expert: Callable[[int], Tensor]) -> KeptExperts:
    """Keep the expert nearest to the mean of each cluster.

    Args:
        clusters: Result of `justright.prune.clusters.cluster`.
        expert: Returns all weights of an expert, ``[parameters]``; called one expert at a time to save memory.

    Source: arXiv:2409.06211, section 4.2; section 4.3 for averaging with fewer than three clusters.
    """
    pairs = []
    for members in clusters.members:
        mean = expert(members[0]).double()
        for member in members[1:]:
            mean += expert(member)
        mean /= len(members)
        distances = [float((expert(member).double() - mean).norm()) for member in members]
        pairs.append((members[distances.index(min(distances))], members))
    pairs.sort()
    averaged = len(pairs) < RECONSTRUCT_BELOW
    return KeptExperts(tuple(kept for kept, _ in pairs), tuple(members for _, members in pairs), averaged)


def highest(scores: Tensor, count: int, groups: int = 1) -> KeptExperts:
    """The ``count`` experts of the highest score, the same number in each routing group; ties go to the lower index.

    Args:
        scores: ``[num_experts]``.
        count: Number of experts to keep.
        groups: Number of routing groups.
    """
    size = len(scores) // groups
    kept: list[int] = []
    for group in range(groups):
        order = scores[group * size : (group + 1) * size].double().sort(descending=True, stable=True).indices
        kept += [group * size + int(i) for i in order[: count // groups]]
    kept.sort()
    return KeptExperts(tuple(kept), tuple((e,) for e in kept))


def unrouted(statistics: Sequence[LayerStatistics]) -> int:
    """Number of experts, over all layers, that received no calibration token."""
    return sum(int((s.counts == 0).sum()) for s in statistics if s.counts is not None)
