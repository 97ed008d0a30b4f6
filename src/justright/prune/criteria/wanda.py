"""Score weights by their magnitude and the norm of their inputs (Wanda)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from justright.prune.criteria.base import WEIGHTS, WeightCriterion

if TYPE_CHECKING:
    from torch import Tensor


@WEIGHTS.register
class Wanda(WeightCriterion):
    """``|W_ij| * ||X_j||``.

    Source: arXiv:2306.11695, Eq. 1.
    """

    name = "wanda"
    help = "size of the weight times norm of its input"
    needs_inputs = True

    def scores(self, weight: Tensor, input_norms: Tensor | None) -> Tensor:
        """``[rows, in]`` float32."""
        assert input_norms is not None
        return weight.float().abs() * input_norms.float()
