"""The reasoning options, validated before any weight is read."""

from __future__ import annotations

from typing import TYPE_CHECKING

from justright.errors import UsageError

if TYPE_CHECKING:
    from justright.cli.prepare import Prepared
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
        raise UsageError(f"the reasoning options need the model's chat template: {untemplated}")
    return said


def check_thinking(ready: Prepared, thinking: Reasoning) -> None:
    """Check that the model and its switch support the settings; reads the adapter, but no weights of the model.

    Raises:
        JustrightError: there is no fast mode or no reasoning, or the adapter is invalid or belongs to another model.
    """
    from justright.engine.chat_modes import RequestBuilder
    from justright.engine.checks import switch_of

    adapter = switch_of(ready.options, ready.source.path)
    RequestBuilder(ready.tokenizer, adapter).check(thinking, ready.hidden_size)
