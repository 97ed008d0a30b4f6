"""Cluster experts by router rows and coactivation (STUN)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from justright.prune.criteria.base import EXPERTS, Clustering, ExpertLayer

if TYPE_CHECKING:
    from torch import Tensor


@EXPERTS.register
class Stun(Clustering):
    """Experts are similar if their router rows are close and they receive the same tokens.

    Source: arXiv:2409.06211, Eq. 4.
    """

    name = "stun"
    help = "cluster by router rows and coactivation"
    needs = ("coactivation",)

    def similarity(self, layer: ExpertLayer) -> Tensor:
        """``[num_experts, num_experts]`` float64, by the settings' weights of the two terms."""
        from justright.prune.similarity import behavioural_similarity

        mix = layer.settings.router_weight, layer.settings.coactivation_weight
        return behavioural_similarity(layer.router, layer.sums("coactivation"), *mix)
