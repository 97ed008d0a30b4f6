"""The reasoning options, validated before any weight is read."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from justright.cli.options import named
from justright.errors import UsageError

if TYPE_CHECKING:
    from justright.engine.chat_modes import Reasoning
    from justright.engine.defaults import Defaults

_OPTIONS = ("effort", "thinking_budget", "factor", "closing", "scorer", "threshold")


def thinking_of(ctx: typer.Context) -> Reasoning:
    """Return the reasoning settings that the user gave.

    Raises:
        UsageError: an effort or scorer is unknown, or options contradict each other.
    """
    from justright.engine.chat_modes import Reasoning

    given = named(ctx, _OPTIONS)
    if given.get("closing") is not None:
        given["closing"] = given["closing"].replace("\\n", "\n")
    return Reasoning(budget=given.pop("thinking_budget"), **given)


def settled_thinking(given: Reasoning, defaults: Defaults, untemplated: str | None = None) -> Reasoning:
    """Return the user's settings, or the bundle's if the user gave none.

    Args:
        given: from `thinking_of`.
        defaults: the bundle's defaults.
        untemplated: set where prompts are not conversations, so that no setting applies: what to do about it.

    Raises:
        UsageError: ``untemplated`` is set and the user gave settings.
    """
    from justright.engine.chat_modes import Reasoning

    if given == Reasoning():
        return given if untemplated else defaults.thinking
    if untemplated:
        raise UsageError(f"the reasoning options need the model's chat template: {untemplated}")
    return given
