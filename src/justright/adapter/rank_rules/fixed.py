"""Keep the same rank of every matrix."""

from __future__ import annotations

from typing import TYPE_CHECKING

from justright.adapter.rank_rules.base import RULES, Rule
from justright.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from justright.adapter.ranks import RankRule


@RULES.register
class Fixed(Rule):
    """The rank ``value``."""

    name = "fixed"
    help = "the rank --value"

    def check(self, settings: RankRule) -> None:
        """The rank is a whole number from 1."""
        if settings.value < 1 or settings.value != int(settings.value):
            raise UsageError(f"rank {settings.value}; allowed: whole numbers from 1")

    def needs_all(self, settings: RankRule) -> bool:
        """The rank does not depend on the values."""
        return False

    def rank(self, values: Tensor, settings: RankRule) -> int:
        """``value``."""
        return int(settings.value)
