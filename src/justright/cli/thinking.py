"""The options of thinking, checked before a weight is read."""

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
    """What the user asked for.

    Raises:
        UsageError: an effort or scorer that is none, or options that contradict each other.
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
    """As the user said; where that is nothing, as the bundle does.

    Args:
        said: by `thinking_of`.
        defaults: the bundle's.
        untemplated: where prompts are no conversations, and so nothing can be said: what to do about that.

    Raises:
        UsageError: something was said all the same.
    """
    if said == thinking_of():
        return said if untemplated else defaults.thinking
    if untemplated:
        raise UsageError(f"the options of thinking need the model's chat template: {untemplated}")
    return said


def check_thinking(ready: Prepared, thinking: Reasoning) -> None:
    """Refuse what this model and its switch cannot do; reads the adapter, and none of the model's weights.

    Raises:
        JustrightError: no fast mode, no thoughts, an adapter that is none or another model's.
    """
    from justright.engine.chat_modes import RequestBuilder
    from justright.engine.checks import switch_of

    adapter = switch_of(ready.options, ready.source.path)
    RequestBuilder(ready.tokenizer, adapter).check(thinking, ready.hidden_size)
