"""``reasoning_effort``: maps a client's value to a mode and a number of reasoning tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, get_args

from justright.errors import UsageError

Effort = Literal["none", "minimal", "low", "medium", "high", "auto", "escalate"]
EFFORTS: tuple[Effort, ...] = get_args(Effort)
AskedEffort = Literal[Effort, "xhigh"]
"""The allowed values: ``xhigh`` reasons without a limit, as no effort at all does."""
FAST_EFFORTS = frozenset({"none", "minimal"})
DECIDING = frozenset({"auto", "escalate"})
SHARES: Mapping[str, float] = {"low": 0.2, "medium": 0.5, "high": 0.8}
"""Share of the answer's tokens for reasoning; the rest is always left for the content (OpenRouter's shares)."""


def check_effort(effort: str) -> None:
    """Validate an effort.

    Raises:
        UsageError: not one of the allowed values.
    """
    if effort not in EFFORTS:
        raise UsageError(
            f"reasoning effort {effort!r}; allowed: {', '.join(EFFORTS)}. none and minimal answer in fast mode; low, "
            "medium and high use at most 20, 50 and 80% of the answer's tokens for reasoning; auto and escalate decide "
            "per request; without an effort, reasoning has no limit",
            about="effort",
        )
