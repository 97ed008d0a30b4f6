"""Prompts for the verifier: short windows of any texts, plain or in its chat template.

A source of conversations gives these as prompts, each up to its last user turn, if they are short enough.
"""

from __future__ import annotations

import hashlib
import json
import random
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from justright.calibration.texts import parse, read_texts
from justright.engine.chat_modes import chat_tokens
from justright.errors import UsageError
from justright.records import bare_text

ASKS = (
    "{text}",
    "Go on with this text: {text}",
    "Summarise this in one paragraph: {text}",
    "Quote this and say what it is about: {text}",
    "Write this again, word for word: {text}",
    "What is this? {text}",
)
"""User requests about a text; each prompt draws one at random."""

Frame = tuple[list[int], list[int]]
"""Tokens before and after a user's text."""

_PLACE = "\u2603"
_HELD_OUT = 0.1
_SLACK = 8
_MOST_CHARACTERS = 8_000_000


class Prompts:
    """Any number of prompts of at most ``length`` tokens, from random places of texts, by seed and number.

    The last tenth of every source is held out for evaluation: no training prompt overlaps it.

    Args:
        tokenizer: the verifier's.
        names: sources and shares, as `justright.calibration.texts.parse` takes them.
        length: tokens of a prompt.
        chat: share of the prompts that are a user turn in the chat template; 0 without a template.
        seed: of places and requests.
        template: further arguments of the chat template.

    Raises:
        SourceError: a source cannot be found.
        UsageError: a source has too little text, or the template is longer than a prompt.
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
        self.sources = [_read(tokenizer, s.name, length, template or {}, chat=self.chat > 0) for s in sources]
        self._frames = _frames(tokenizer, length, template or {}) if self.chat else []
        self._start = list(tokenizer("", verbose=False)["input_ids"])
        """Special tokens at the start of a text; empty for models that use none."""

    @property
    def fingerprint(self) -> str:
        """Hash of the sources and settings; texts of the same names may have been edited."""
        parts = [(source.border, source.turns) for source in self.sources]
        settings = [self.length, self.chat, self.seed, self.shares, self._frames, self._start, parts]
        digest = hashlib.sha256(json.dumps(settings).encode())
        for source in self.sources:
            digest.update(array("q", source.stream).tobytes())
        return digest.hexdigest()[:16]

    def prompt(self, number: int, *, held_out: bool = False) -> list[int]:
        """Token ids of prompt ``number``: ``length`` tokens of text, or a conversation of at most ``length``."""
        rng = random.Random(f"{self.seed} {held_out} {number}")
        [source] = rng.choices(self.sources, self.shares)
        chat = rng.random() < self.chat
        turns = source.turns[held_out]
        if chat and turns:
            return list(rng.choice(turns))
        before, after = rng.choice(self._frames) if chat else (self._start, [])
        size = self.length - len(before) - len(after)
        low, high = (source.border, len(source.stream)) if held_out else (0, source.border)
        start = rng.randrange(low, max(high - size, low) + 1)
        return [*before, *source.stream[start : start + size], *after]


@dataclass(frozen=True, slots=True)
class _Source:
    """One source's tokens.

    Attributes:
        stream: all tokens.
        border: start of the held-out part of the stream.
        turns: conversations up to their last user turn, as prompts: (training, held-out).
    """

    stream: list[int]
    border: int
    turns: tuple[list[list[int]], list[list[int]]]


def _read(tokenizer: Any, name: str, length: int, template: dict[str, Any], *, chat: bool) -> _Source:
    """Read a source, and split its conversations and texts into training and held-out parts."""
    texts: list[str] = []
    talks: list[list[dict[str, Any]]] = []
    for found in read_texts(name):
        if isinstance(found, str):
            texts.append(found)
        else:
            talks.append(found)
        if name.startswith("hub:") and sum(map(len, texts)) >= _MOST_CHARACTERS:
            break
    cut = int(len(talks) * (1 - _HELD_OUT))
    parts = [talks[:cut], talks[cut:]]
    bare = [[bare_text(talk) for talk in part] for part in parts]
    ids = [_tokens(tokenizer, part) for part in bare]
    plain = _tokens(tokenizer, texts)
    border = int(len(plain) * (1 - _HELD_OUT))
    stream = [*ids[0], *plain[:border], *plain[border:], *ids[1]]
    if len(stream) * _HELD_OUT < length:
        raise UsageError(
            f"the texts {Path(name).name or name} have {len(stream):,} tokens; prompts of {length} tokens need "
            f"at least {int(length / _HELD_OUT):,}: give more text"
        )
    turns = [_turns(tokenizer, part, length, template) if chat else [] for part in parts]
    return _Source(stream, len(ids[0]) + border, (turns[0], turns[1]))


def _tokens(tokenizer: Any, texts: list[str]) -> list[int]:
    ids: list[int] = []
    for text in texts:
        ids += tokenizer(text + "\n\n", add_special_tokens=False, verbose=False)["input_ids"]
    return ids


def _turns(
    tokenizer: Any, talks: list[list[dict[str, Any]]], length: int, template: dict[str, Any]
) -> list[list[int]]:
    """Conversations up to their last user turn, as tokens, without those that do not fit."""
    found = []
    for talk in talks:
        last = max((i for i, turn in enumerate(talk) if turn["role"] == "user"), default=-1)
        ids = chat_tokens(tokenizer, talk[: last + 1], **template) if last >= 0 else []
        if 0 < len(ids) <= length:
            found.append(ids)
    return found


def _frames(tokenizer: Any, length: int, template: dict[str, Any]) -> list[Frame]:
    """For each request, the tokens before and after a user's text.

    Raises:
        UsageError: the template leaves no capacity for text.
    """
    frames = []
    for ask in ASKS:
        mark = ask.format(text=_PLACE)
        ids = chat_tokens(tokenizer, [{"role": "user", "content": mark}], **template)
        text = tokenizer.decode(ids)
        before, _, after = text.partition(_PLACE)
        pair = tuple(tokenizer(part, add_special_tokens=False)["input_ids"] for part in (before, after))
        frames.append((list(pair[0]), list(pair[1])))
    fitting = [f for f in frames if len(f[0]) + len(f[1]) + _SLACK <= length]
    if not fitting:
        least = min(len(f[0]) + len(f[1]) for f in frames) + _SLACK
        raise UsageError(
            f"the chat template needs {least - _SLACK} tokens, but prompts have {length}; give --prompt-tokens "
            f"{least} or more, or --chat 0"
        )
    return fitting
