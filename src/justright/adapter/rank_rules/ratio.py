"""Keep a share of the full rank."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from justright.adapter.rank_rules.base import RULES, Rule, check_share

if TYPE_CHECKING:
    from torch import Tensor

    from justright.adapter.ranks import RankRule


@RULES.register
class Ratio(Rule):
    """The share ``value`` of the full rank, rounded up."""

    name = "ratio"
    help = "the share --value of the full rank"

    def check(self, settings: RankRule) -> None:
        """The share is in (0, 1]."""
        check_share(self.name, settings.value)

    def needs_all(self, settings: RankRule) -> bool:
        """The rank does not depend on the values."""
        return False

    def rank(self, values: Tensor, settings: RankRule) -> int:
        """``ceil(value * min(out, in))``."""
        return math.ceil(settings.value * len(values))
