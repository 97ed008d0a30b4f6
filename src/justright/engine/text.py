"""Tokens to text as they come, and stop strings that may begin in one token and end in another."""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers.decoders import DecodeStream
from transformers import PreTrainedTokenizerFast


class TextStream:
    """The text of one output, piece by piece; ends it at a stop string.

    A piece is held back while it could still be the beginning of a stop string, so that nothing behind or of a
    stop string is ever shown.

    Args:
        tokenizer: a fast tokenizer.
        stop: stop strings; the text ends before the first that appears.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, stop: Sequence[str] = ()) -> None:
        self._backend = tokenizer.backend_tokenizer
        self._stream = DecodeStream(skip_special_tokens=True)
        self._stop = [s for s in stop if s]
        self._held = ""
        self.text = ""
        self.stopped_by: str | None = None

    def push(self, token_id: int) -> str:
        """Add a token; returns the text that is now certain (maybe none)."""
        if self.stopped_by is not None:
            return ""
        self._held += self._stream.step(self._backend, token_id) or ""
        found = [(at, s) for s in self._stop if (at := self._held.find(s)) >= 0]
        if found:
            at, self.stopped_by = min(found)
            return self._release(at, drop_rest=True)
        return self._release(len(self._held) - self._pending())

    def finish(self) -> str:
        """No more tokens come; returns what was held back."""
        return self._release(len(self._held))

    def _pending(self) -> int:
        """Length of the longest end of the held text that begins a stop string."""
        longest = min(len(self._held), max((len(s) - 1 for s in self._stop), default=0))
        for length in range(longest, 0, -1):
            if any(s.startswith(self._held[-length:]) for s in self._stop):
                return length
        return 0

    def _release(self, count: int, *, drop_rest: bool = False) -> str:
        piece, self._held = self._held[:count], "" if drop_rest else self._held[count:]
        self.text += piece
        return piece
