"""``reasoning_effort``: what a client says, as a mode and a number of tokens to think."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, get_args

from justright.errors import UsageError

Effort = Literal["none", "minimal", "low", "medium", "high", "auto", "escalate"]
EFFORTS: tuple[Effort, ...] = get_args(Effort)
AskedEffort = Literal[Effort, "xhigh"]
"""What clients may say: ``xhigh`` is to think without a limit, as with no effort at all."""
FAST_EFFORTS = frozenset({"none", "minimal"})
DECIDING = frozenset({"auto", "escalate"})
SHARES: Mapping[str, float] = {"low": 0.2, "medium": 0.5, "high": 0.8}
"""Of the answer's tokens that may be thought, so that some are always left to answer with (OpenRouter's shares)."""


def check_effort(effort: str) -> None:
    """Refuse an effort that is none.

    Raises:
        UsageError: see above.
    """
    if effort not in EFFORTS:
        raise UsageError(
            f"reasoning effort {effort!r}; allowed: {', '.join(EFFORTS)}. none and minimal answer in fast mode; low, "
            "medium and high think for up to 20, 50 and 80% of the answer's tokens; auto and escalate decide by "
            "request. Without any it thinks without a limit",
            about="effort",
        )
