"""Incremental detokenization, and stop strings that may span tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tokenizers.decoders import DecodeStream
from transformers import PreTrainedTokenizerFast

from justright.errors import ResourceError
from justright.reasoning.budget import ThinkingTags
from justright.reasoning.parser import ReasoningSplitter, Segment

_CHARACTERS = 8
"""Characters per token, above the average of any language: a text with fewer is tokenised at once."""
_AT_THE_CUT = 256
"""How many more tokens the beginning of a text may have alone than as part of the whole text."""


class TextStream:
    """The text of one output, piece by piece, tags included; ends at a stop string in its content.

    A piece is held back while it could still begin a stop string or a tag, so that neither the stop string
    nor any text after it is emitted. The split of the text into tokens makes no difference. A character with
    missing final bytes is left out, and so are special tokens, except those that mark reasoning.

    Args:
        tokenizer: a fast tokenizer.
        stop: stop strings; the text ends before the first that is complete (if several are complete at the same
            character, before the longest).
        tags: the model's reasoning tags; None treats everything as content.
        opened: whether the chat template has opened the reasoning in the prompt.
        may_open: whether the model may open reasoning by itself.
        stop_in_reasoning: whether stop strings apply to reasoning too.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerFast,
        stop: Sequence[str] = (),
        tags: ThinkingTags | None = None,
        *,
        opened: bool = False,
        may_open: bool = True,
        stop_in_reasoning: bool = False,
    ) -> None:
        self._backend = tokenizer.backend_tokenizer
        self._stream = DecodeStream(skip_special_tokens=True)
        self._undecoded: list[int] = []
        self._stop = [s for s in stop if s]
        self._tags = _special_tags(tokenizer, tags or ThinkingTags())
        self._splitter = ReasoningSplitter(tags, opened=opened, may_open=may_open)
        self._stop_in_reasoning = stop_in_reasoning
        self._held = ""
        self.text = ""
        self.stopped_by: str | None = None

    @property
    def in_reasoning(self) -> bool:
        """Whether the next text is reasoning, unless an opening tag follows."""
        return self._splitter.inside

    def push(self, token_id: int) -> str:
        """Add a token; returns the text that is now final (possibly empty)."""
        if self.stopped_by is not None:
            return ""
        return self._take(self._splitter.push(self._decode(token_id)))

    def finish(self) -> str:
        """End the stream; returns the text that was held back."""
        if self.stopped_by is not None:
            return ""
        certain = self._take(self._splitter.finish())
        return certain + ("" if self.stopped_by is not None else self._release(len(self._held)))

    def _take(self, segments: Sequence[Segment]) -> str:
        """The text that new segments make final; content comes after everything else."""
        certain = ""
        for segment in segments:
            self._held += segment.text
            if segment.kind != "content" and not self._stop_in_reasoning:
                certain += self._release(len(self._held))
                continue
            found = [(at + len(s), at, s) for s in self._stop if (at := self._held.find(s)) >= 0]
            if found:
                _, at, self.stopped_by = min(found)
                return certain + self._release(at, drop_rest=True)
            certain += self._release(len(self._held) - self._pending())
        return certain

    def _decode(self, token_id: int) -> str:
        """The text that ``token_id`` completes."""
        if token_id in self._tags:
            return self._tags[token_id]
        self._undecoded.append(token_id)
        try:
            piece = self._stream.step(self._backend, token_id)
        except Exception:  # tokenizers raises a bare Exception
            # Decoders with byte fallback retract a character that is already emitted when invalid bytes follow.
            # Emitted text stays; decoding continues after it.
            piece = self._backend.decode(self._undecoded)
            self._stream = DecodeStream(self._undecoded, skip_special_tokens=True)
        if piece is None:
            return ""
        self._undecoded = []
        return piece

    def _pending(self) -> int:
        """Length of the longest suffix of the held text that begins a stop string."""
        longest = min(len(self._held), max((len(s) - 1 for s in self._stop), default=0))
        for length in range(longest, 0, -1):
            if any(s.startswith(self._held[-length:]) for s in self._stop):
                return length
        return 0

    def _release(self, count: int, *, drop_rest: bool = False) -> str:
        piece, self._held = self._held[:count], "" if drop_rest else self._held[count:]
        self.text += piece
        return piece


def _special_tags(tokenizer: PreTrainedTokenizerFast, tags: ThinkingTags) -> dict[int, str]:
    """The special tokens that are tags, which the text keeps so that its reader sees where reasoning ends."""
    backend = tokenizer.backend_tokenizer
    found = {backend.token_to_id(tag): tag for tag in (tags.open, tags.close)}
    found.pop(None, None)
    return {i: tag for i, tag in found.items() if backend.decode([i], skip_special_tokens=True) != tag}


def tokens_within(
    tokenizer: PreTrainedTokenizerFast, text: str, limit: int | None = None, **options: Any
) -> list[int]:
    """Tokens of a text; rejects a text whose beginning alone has more than ``limit`` tokens.

    The cost grows with the limit, not with the text: a beginning of 8 characters per token is tokenised
    first, then one four times as long, and so on.

    Args:
        tokenizer: a fast tokenizer.
        text: of any length.
        limit: the maximum number of tokens, not exact: a text with a few more is still returned. None: no limit.
        options: of the tokenizer's call.

    Raises:
        ResourceError: the text has more tokens than the limit.
    """
    size = len(text) if limit is None else _CHARACTERS * limit
    while size < len(text):
        found = len(tokenizer(text[:size], **options)["input_ids"]) - _AT_THE_CUT
        if limit is not None and found > limit:
            raise ResourceError(
                f"the prompt has {len(text)} characters, and its first {size} are at least {found} tokens; the context "
                f"holds {limit}: shorten the prompt"
            )
        size *= 4
    return list(tokenizer(text, **options)["input_ids"])
