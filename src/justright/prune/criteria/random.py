"""Rank experts at random: the random baseline."""

from __future__ import annotations

from typing import TYPE_CHECKING

from justright.prune.criteria.base import EXPERTS, ExpertLayer, Ranking

if TYPE_CHECKING:
    from torch import Tensor


@EXPERTS.register
class Random(Ranking):
    """Random scores, the same for the same seed and layer."""

    name = "random"
    help = "random choice (no calibration)"

    def scores(self, layer: ExpertLayer) -> Tensor:
        """``[num_experts]`` float64 in [0, 1)."""
        import torch

        generator = torch.Generator().manual_seed(layer.settings.seed * 100_003 + layer.index)
        return torch.rand(layer.num_experts, generator=generator, dtype=torch.float64)
