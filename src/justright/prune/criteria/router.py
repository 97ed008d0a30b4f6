"""Cluster experts by router rows alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from justright.prune.criteria.base import EXPERTS, Clustering, ExpertLayer

if TYPE_CHECKING:
    from torch import Tensor


@EXPERTS.register
class RouterCriterion(Clustering):
    """Experts are similar if their router rows are close.

    Source: arXiv:2409.06211, Eq. 4, the first term.
    """

    name = "router"
    help = "cluster by router rows (no calibration)"

    def similarity(self, layer: ExpertLayer) -> Tensor:
        """``[num_experts, num_experts]`` float64."""
        from justright.prune.similarity import behavioural_similarity

        return behavioural_similarity(layer.router, None)
