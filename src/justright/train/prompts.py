"""What the verifier is asked to go on from: short windows of any texts, as they are or in its chat template.

Where a source holds conversations, its prompts are these, up to an assistant's turn, if they are short enough.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from justright.calibration.texts import parse, read_texts
from justright.engine.modes import chat_tokens
from justright.errors import UsageError

ASKS = (
    "{text}",
    "Go on with this text: {text}",
    "Summarise this in one paragraph: {text}",
    "Quote this and say what it is about: {text}",
    "Write this again, word for word: {text}",
    "What is this? {text}",
)
"""What a user asks about a text; each prompt takes one at random."""

Frame = tuple[list[int], list[int]]
"""Tokens before and behind a user's text."""

_PLACE = "\u2603"
_HELD_OUT = 0.1
_SLACK = 8


class Prompts:
    """Prompts of at most ``length`` tokens from texts, at random places; as many as wanted, by seed and number.

    The last tenth of every source is held out for evaluation: no training prompt overlaps it.

    Args:
        tokenizer: the verifier's.
        names: sources and shares, as `justright.calibration.texts.parse` takes them.
        length: tokens of a prompt.
        chat: share of the prompts that are a user's turn in the chat template; 0 without a template.
        seed: of places and asks.
        template: further arguments of the chat template.

    Raises:
        SourceError: a source that cannot be found.
        UsageError: a source with less text than two prompts need, or a template longer than a prompt.
    """

    def __init__(
        self,
        tokenizer: Any,
        names: Sequence[str],
        *,
        length: int = 64,
        chat: float = 0.5,
        seed: int = 0,
        template: dict[str, Any] | None = None,
    ) -> None:
        self.length = length
        self.chat = chat if tokenizer.chat_template is not None else 0.0
        self.seed = seed
        sources = parse(names)
        self.shares = [source.share for source in sources]
        self.streams = [_tokens(tokenizer, source.name, length) for source in sources]
        self._frames: list[Frame] = []
        self._turns: list[list[list[int]]] = [[] for _ in sources]
        if self.chat:
            self._frames = _frames(tokenizer, length, template or {})
            self._turns = [_turns(tokenizer, s.name, length, template or {}) for s in sources]

    def prompt(self, number: int, *, held_out: bool = False) -> list[int]:
        """Token ids of prompt ``number``: ``length`` of them, or a conversation of at most as many."""
        rng = random.Random(f"{self.seed} {held_out} {number}")
        [(stream, turns)] = rng.choices(list(zip(self.streams, self._turns, strict=True)), self.shares)
        chat = rng.random() < self.chat
        if chat and turns:
            border = int(len(turns) * (1 - _HELD_OUT))
            return list(rng.choice(turns[border:] if held_out else turns[:border]))
        before, behind = rng.choice(self._frames) if chat else ([], [])
        size = self.length - len(before) - len(behind)
        border = int(len(stream) * (1 - _HELD_OUT))
        low, high = (border, len(stream)) if held_out else (0, border)
        start = rng.randrange(low, max(high - size, low) + 1)
        return [*before, *stream[start : start + size], *behind]


def _tokens(tokenizer: Any, name: str, length: int) -> list[int]:
    """All tokens of a source, conversations as the template has them."""
    ids: list[int] = []
    for found in read_texts(name):
        text = found if isinstance(found, str) else "\n".join(turn["content"] for turn in found)
        ids += tokenizer(text + "\n\n", add_special_tokens=False, verbose=False)["input_ids"]
        if name.startswith("hub:") and len(ids) >= 2_000_000:
            break
    if len(ids) * _HELD_OUT < length:
        raise UsageError(
            f"the texts {Path(name).name or name} have {len(ids):,} tokens; a drafter needs at least "
            f"{int(length / _HELD_OUT):,} to draw prompts of {length} from: give more text"
        )
    return ids


def _turns(tokenizer: Any, name: str, length: int, template: dict[str, Any]) -> list[list[int]]:
    """Conversations of a source up to their last user's turn, those that fit; none if they are too few to divide."""
    found = []
    for text in read_texts(name):
        if isinstance(text, str):
            break
        last = max((i for i, turn in enumerate(text) if turn["role"] == "user"), default=-1)
        ids = chat_tokens(tokenizer, text[: last + 1], **template) if last >= 0 else []
        if 0 < len(ids) <= length:
            found.append(ids)
    return found if len(found) * _HELD_OUT >= 1 else []


def _frames(tokenizer: Any, length: int, template: dict[str, Any]) -> list[Frame]:
    """Per ask: the tokens before and behind a user's text.

    Raises:
        UsageError: the template leaves no room for text.
    """
    frames = []
    for ask in ASKS:
        mark = ask.format(text=_PLACE)
        ids = chat_tokens(tokenizer, [{"role": "user", "content": mark}], **template)
        text = tokenizer.decode(ids)
        before, _, behind = text.partition(_PLACE)
        pair = tuple(tokenizer(part, add_special_tokens=False)["input_ids"] for part in (before, behind))
        frames.append((list(pair[0]), list(pair[1])))
    fitting = [f for f in frames if len(f[0]) + len(f[1]) + _SLACK <= length]
    if not fitting:
        least = min(len(f[0]) + len(f[1]) for f in frames) + _SLACK
        raise UsageError(
            f"the chat template takes {least - _SLACK} tokens, and prompts have {length}: give --prompt-tokens "
            f"{least} or more, or --chat 0"
        )
    return fitting
