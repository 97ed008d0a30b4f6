"""The reasoning options, validated before any weight is read."""

from __future__ import annotations

from typing import TYPE_CHECKING

from justright.errors import UsageError

if TYPE_CHECKING:
    from justright.engine.chat_modes import Reasoning
    from justright.engine.defaults import Defaults


def thinking_of(
    effort: str | None = None,
    budget: int | None = None,
    factor: float | None = None,
    closing: str | None = None,
    scorer: str = "probe",
    threshold: float | None = None,
) -> Reasoning:
    """Return the reasoning settings that the user gave.

    Raises:
        UsageError: an effort or scorer is unknown, or options contradict each other.
    """
    from justright.engine.chat_modes import Reasoning

    return Reasoning(
        effort,
        budget,
        factor,
        None if closing is None else closing.replace("\\n", "\n"),
        scorer,
        threshold,
    )


def settled_thinking(said: Reasoning, defaults: Defaults, untemplated: str | None = None) -> Reasoning:
    """Return the user's settings, or the bundle's if the user gave none.

    Args:
        said: from `thinking_of`.
        defaults: the bundle's defaults.
        untemplated: set where prompts are not conversations, so that no setting applies: what to do about it.

    Raises:
        UsageError: ``untemplated`` is set and the user gave settings.
    """
    if said == thinking_of():
        return said if untemplated else defaults.thinking
    if untemplated:
        raise UsageError(f"the options of thinking need the model's chat template: {untemplated}")
    return said
