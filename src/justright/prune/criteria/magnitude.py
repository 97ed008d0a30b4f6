"""Score weights by magnitude."""

from __future__ import annotations

from typing import TYPE_CHECKING

from justright.prune.criteria.base import WEIGHTS, WeightCriterion

if TYPE_CHECKING:
    from torch import Tensor


@WEIGHTS.register
class Magnitude(WeightCriterion):
    """``|W_ij|``."""

    name = "magnitude"
    help = "size of the weight (no calibration)"

    def scores(self, weight: Tensor, input_norms: Tensor | None) -> Tensor:
        """``[rows, in]`` float32."""
        return weight.float().abs()
