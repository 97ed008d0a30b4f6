"""Rank experts by the norm of their outputs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from justright.prune.criteria.base import EXPERTS, ExpertLayer, Ranking

if TYPE_CHECKING:
    from torch import Tensor


@EXPERTS.register
class OutputNorm(Ranking):
    """Mean output norm over an expert's tokens."""

    name = "output_norm"
    help = "rank by output norm"
    needs = ("output_norms", "counts")

    def scores(self, layer: ExpertLayer) -> Tensor:
        """``[num_experts]`` float64; 0 for an expert without tokens."""
        return layer.mean("output_norms")
