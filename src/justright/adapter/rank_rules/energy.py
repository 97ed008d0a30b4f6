"""Keep the directions that hold a share of the energy."""

from __future__ import annotations

from typing import TYPE_CHECKING

from justright.adapter.rank_rules.base import RULES, Rule, check_share

if TYPE_CHECKING:
    from torch import Tensor

    from justright.adapter.ranks import RankRule


@RULES.register
class Energy(Rule):
    """``min{k : sum_{i<=k} s_i^power >= value * sum s_i^power}``.

    Source: arXiv:2510.06750 (rank by cumulative energy).
    """

    name = "energy"
    help = "the share --value of sum s^power"
    takes = frozenset({"value", "power", "scope"})

    def check(self, settings: RankRule) -> None:
        """The share is in (0, 1]."""
        check_share(self.name, settings.value)

    def needs_all(self, settings: RankRule) -> bool:
        """The sum of squares is known without the small values, the plain sum is not."""
        return settings.power == 1

    def rank(self, values: Tensor, settings: RankRule) -> int:
        """Smallest rank that reaches the share."""
        energy = values.double() ** settings.power
        total = energy.cumsum(0)
        if len(values) == 0 or float(total[-1]) == 0:
            return 0
        if settings.value == 1:  # rounding would lose sums of tiny values
            return int((values > 0).sum())
        return int((total < settings.value * total[-1]).sum()) + 1
