"""What `generate` and `chat` share: cancellation by Ctrl-C, and statistics on requests."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import FrameType
from typing import TYPE_CHECKING, Any

from justright.reasoning.routing import BY_OUTPUT

if TYPE_CHECKING:
    from justright.engine.request import Emission, Request
    from justright.engine.stats import RequestStats


@dataclass(slots=True)
class Interrupt:
    """Whether Ctrl-C was pressed."""

    seen: bool = False


@contextlib.contextmanager
def cancel_on_interrupt(requests: Sequence[Request]) -> Iterator[Interrupt]:
    """On the first Ctrl-C, cancel the requests at their next step, so that the output so far is complete.

    A second Ctrl-C raises KeyboardInterrupt as usual. For use on the main thread.
    """
    interrupt = Interrupt()

    def on_interrupt(_signal: int, _frame: FrameType | None) -> None:
        if interrupt.seen:
            raise KeyboardInterrupt
        interrupt.seen = True
        for request in requests:
            request.cancel()

    before = signal.signal(signal.SIGINT, on_interrupt)
    try:
        yield interrupt
    finally:
        signal.signal(signal.SIGINT, before)


def until(interrupt: Interrupt, emissions: Iterator[Emission]) -> Iterator[Emission]:
    """Yield the output chunks; after an interrupt, up to the first final one, as waiting requests never start."""
    for emission in emissions:
        yield emission
        if interrupt.seen and emission.finish_reason is not None:
            break


def stats_line(request: Request, *, drafts: bool = False) -> str:
    """Describe a finished request in one line: speed of both phases, the effect of speculation if on, near ties."""
    stats = request.stats
    parts = [
        f"prompt {stats.prompt_tokens} tokens, {stats.prefill_tokens_per_s:.0f}/s",
        f"answer {stats.output_tokens} tokens, {stats.decode_tokens_per_s:.1f}/s",
    ]
    if stats.drafted:
        drafted = f"{stats.accepted} of {stats.drafted} drafted tokens accepted"
        parts.append(f"{stats.acceptance_length:.2f} tokens per step ({drafted})")
    elif _decoded_plainly(stats, drafts=drafts):
        parts.append("plain decoding: drafts would have saved no time")
    if stats.reasoning_tokens or stats.fast_tokens:
        parts[1] += f" ({stats.reasoning_tokens} reasoning, {stats.answer_tokens} content)"
    if stats.discarded_tokens:
        parts.append(f"{stats.discarded_tokens} discarded")
    if stats.decision is not None:
        parts.append(f"{stats.decision.mode}: {stats.decision.reason}")
    if stats.near_ties:
        parts.append(f"{stats.near_ties} near tie{'s' if stats.near_ties > 1 else ''}")
    parts.append(f"ended by {request.finish_reason or 'cancelled'}")
    return " | ".join(parts)


def thought_note(request: Request) -> str | None:
    """A warning if a request reasoned that its effort had put into fast mode; None otherwise."""
    decision = request.stats.decision
    if decision is None or decision.by != BY_OUTPUT:
        return None
    return (
        f"warning: the model reasoned for {request.stats.reasoning_tokens} tokens: without a switch only its chat "
        "template asks for fast mode, and this model ignores it. Give --switch ADAPTER"
    )


def reasoning_and_content(request: Request) -> tuple[str, str]:
    """Split a finished request's text; reasoning that only a closing tag marks counts as such.

    Returns:
        Reasoning and content, without the tags.
    """
    from justright.reasoning.parser import ThoughtText

    text, tags = request.text, request.tags
    stray = thought_note(request) is not None and tags is not None and tags.open not in text
    split = ThoughtText(tags, thinking=request.opened or stray)
    parts = [*split.push(text), *split.finish()]
    reasoning, content = ("".join(one.text for one in parts if one.thought == kind) for kind in (True, False))
    return reasoning, content


def totals_line(stats: Sequence[RequestStats]) -> str:
    """Describe several requests in one line: reasoning and answer tokens, modes, and tokens saved."""
    from justright.engine.stats import totals

    all_of = totals(stats)
    parts = [
        f"{all_of['requests']} answers, {all_of['output_tokens']} tokens ({all_of['reasoning_tokens']} reasoning, "
        f"{all_of['answer_tokens']} content, {all_of['fast_share']:.0%} in fast mode)",
        ", ".join(f"{count} {name}" for name, count in all_of["decisions"].items()),
    ]
    if all_of["discarded_tokens"]:
        parts.append(f"{all_of['discarded_tokens']} discarded")
    if all_of["tokens_saved"] is not None:
        parts.append(f"{all_of['tokens_saved']:.0f} saved compared with always reasoning")
    return " | ".join(parts)


def as_object(request: Request, *, drafts: bool = False, hidden: bool = False) -> dict[str, Any]:
    """Describe a finished request for JSON; ``decoded_plainly`` if a drafter (``drafts``) never paid off.

    ``reasoning`` and ``text`` are without the tags; ``reasoning`` is None if there is none, or if it is ``hidden``.
    """
    reasoning, content = reasoning_and_content(request)
    return {
        "reasoning": None if hidden else reasoning or None,
        "text": content,
        "token_ids": request.token_ids,
        "finish_reason": request.finish_reason or "cancelled",
        "stopped_by": request.stopped_by,
        "decoded_plainly": _decoded_plainly(request.stats, drafts=drafts),
        "stats": request.stats.to_dict(),
    }


def _decoded_plainly(stats: RequestStats, *, drafts: bool) -> bool:
    """Whether there was a drafter, and steps, but no draft was worth verifying."""
    return drafts and bool(stats.verifications) and not stats.drafted
