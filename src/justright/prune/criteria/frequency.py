"""Rank experts by how many tokens they get."""

from __future__ import annotations

from typing import TYPE_CHECKING

from justright.prune.criteria.base import EXPERTS, ExpertLayer, Ranking

if TYPE_CHECKING:
    from torch import Tensor


@EXPERTS.register
class Frequency(Ranking):
    """Tokens that the router sends to an expert."""

    name = "frequency"
    help = "rank by the number of tokens"
    needs = ("counts",)

    def scores(self, layer: ExpertLayer) -> Tensor:
        """``[num_experts]`` float64."""
        return layer.sums("counts").double()
