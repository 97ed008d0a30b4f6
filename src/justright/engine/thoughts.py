"""A thought's text apart from the answer's, while both come."""

from __future__ import annotations

from dataclasses import dataclass

from justright.switch.thinking import ThinkingTags


@dataclass(frozen=True, slots=True)
class Part:
    """A piece of output.

    Attributes:
        text: without tags.
        thought: whether it is of a thought.
    """

    text: str
    thought: bool


class ThoughtText:
    """Splits one output as it comes: tags are in neither part, nor is white space beside them.

    What follows a closing tag is answer, also of a model that closes a thought twice (one that its budget cut, and that
    went on).

    A piece is held back while it could still be the beginning of a tag, or white space before one.

    Args:
        tags: of the model; None: everything is answer.
        thinking: whether the prompt has begun a thought.
    """

    def __init__(self, tags: ThinkingTags | None, *, thinking: bool = False) -> None:
        self._tags = tags
        self._thinking = thinking
        self._held = ""
        self._beside = thinking

    def push(self, text: str) -> list[Part]:
        """Add text; returns what is now certain (maybe nothing)."""
        if self._tags is None:
            return [Part(text, False)] if text else []
        self._held += text
        parts: list[Part] = []
        while found := self._next_tag():
            at, tag = found
            self._release(parts, at, before_tag=True)
            self._held = self._held[len(tag) :]
            self._thinking, self._beside = tag == self._tags.open, True
        self._release(parts, len(self._held) - self._pending())
        return parts

    def finish(self) -> list[Part]:
        """No more text comes; returns what was held back."""
        parts: list[Part] = []
        self._release(parts, len(self._held), before_tag=self._thinking)
        return parts

    def _next_tag(self) -> tuple[int, str] | None:
        """Where in the held text the first tag is, and which."""
        assert self._tags is not None
        found = [
            (at, tag) for tag in (self._tags.open, self._tags.close) if (at := self._held.find(tag)) >= 0
        ]
        return min(found, default=None)

    def _pending(self) -> int:
        """Length of the end of the held text that may begin a tag, or be white space in a thought before one."""
        assert self._tags is not None
        tags, held = (self._tags.open, self._tags.close), self._held
        longest = min(max(map(len, tags)) - 1, len(held))
        begun = next((n for n in range(longest, 0, -1) if any(t.startswith(held[-n:]) for t in tags)), 0)
        before = held[: len(held) - begun]
        return begun + (len(before) - len(before.rstrip()) if self._thinking else 0)

    def _release(self, parts: list[Part], count: int, *, before_tag: bool = False) -> None:
        piece, self._held = self._held[:count], self._held[count:]
        if before_tag and self._thinking:
            piece = piece.rstrip()
        if self._beside:
            piece = piece.lstrip()
        if piece:
            self._beside = False
            parts.append(Part(piece, self._thinking))


def answer_of(text: str, tags: ThinkingTags | None, *, thinking: bool = False) -> str:
    """A whole output without its thoughts."""
    split = ThoughtText(tags, thinking=thinking)
    return "".join(part.text for part in [*split.push(text), *split.finish()] if not part.thought)
