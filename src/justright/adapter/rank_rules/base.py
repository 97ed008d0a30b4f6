"""The base class of rank rules, and the registry that holds them; imports no torch, as ``--help`` reads it."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from justright.errors import UsageError
from justright.registry import Registry

if TYPE_CHECKING:
    from torch import Tensor

    from justright.adapter.ranks import RankRule


class Rule:
    """Chooses the number of singular directions that a switch keeps of a matrix.

    Attributes:
        name: Registered name.
        help: What it keeps, for the command's help text.
        takes: Which of ``value``, ``power`` and ``scope`` it uses. A rule with a scope is applied to the singular
            values of all matrices of a layer, or of the model, at once.
    """

    name: ClassVar[str]
    help: ClassVar[str]
    takes: ClassVar[frozenset[str]] = frozenset({"value"})

    def check(self, settings: RankRule) -> None:
        """Validate the rule's value.

        Raises:
            UsageError: The value is not allowed.
        """

    def needs_all(self, settings: RankRule) -> bool:
        """Whether it needs all singular values; a randomized decomposition yields only the largest."""
        return True

    def rank(self, values: Tensor, settings: RankRule) -> int:
        """Number of kept singular values, given descending ``[n]`` float32; 0 if all are zero.

        The caller limits it to the number of values above zero.
        """
        raise NotImplementedError


def check_share(rule: str, value: float) -> None:
    """Validate that a share is in (0, 1].

    Raises:
        UsageError: It is outside.
    """
    if not 0 < value <= 1:
        raise UsageError(f"{rule} {value}; allowed: above 0 to 1, the share to keep")


RULES: Registry[Rule] = Registry("rank rule", "justright.adapter.rank_rules", "justright.rank_rules")
