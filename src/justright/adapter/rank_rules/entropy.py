"""Keep the effective rank."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from justright.adapter.rank_rules.base import RULES, Rule

if TYPE_CHECKING:
    from torch import Tensor

    from justright.adapter.ranks import RankRule


@RULES.register
class Entropy(Rule):
    """``ceil(exp(-sum q_i ln q_i))``, ``q_i = s_i / sum s``: the effective rank."""

    name = "entropy"
    help = "the effective rank exp(-sum q ln q), q = s / sum s"
    takes = frozenset()

    def rank(self, values: Tensor, settings: RankRule) -> int:
        """The effective rank, rounded up."""
        positive = values.double()[values > 0]
        if len(positive) == 0:
            return 0
        q = positive / positive.sum()
        return math.ceil(float((-(q * q.log()).sum()).exp()) - 1e-9)
