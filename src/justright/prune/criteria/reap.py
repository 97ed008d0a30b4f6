"""Rank experts by their gated outputs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from justright.prune.criteria.base import EXPERTS, ExpertLayer, Ranking

if TYPE_CHECKING:
    from torch import Tensor


@EXPERTS.register
class Reap(Ranking):
    """Mean over an expert's tokens of gate weight times output norm.

    Source: arXiv:2510.13999, Eq. 9 (router-weighted expert activation pruning).
    """

    name = "reap"
    help = "rank by gate weight times output norm"
    needs = ("gated_norms", "counts")

    def scores(self, layer: ExpertLayer) -> Tensor:
        """``[num_experts]`` float64; 0 for an expert without tokens."""
        return layer.mean("gated_norms")
