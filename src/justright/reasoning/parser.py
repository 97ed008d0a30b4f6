"""Separates reasoning from content in streamed output."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from justright.reasoning.budget import ThinkingTags


@dataclass(frozen=True, slots=True)
class Segment:
    """A verbatim stretch of output.

    Attributes:
        text: never empty.
        kind: "mark" is a tag, with the white space before an opening one and after a closing one.
    """

    text: str
    kind: Literal["reasoning", "content", "mark"]


class ReasoningSplitter:
    """Splits one streamed output into reasoning and content; the concatenated segments are the output.

    Reasoning comes at the beginning of the output, after nothing but white space and other reasoning. Once
    content has begun, everything is content, tags included. Within reasoning only the closing tag counts, and
    an opening tag at its very beginning, where a model repeats the one that its template wrote.

    Text is held back while it could still become a tag.

    Args:
        tags: of the model; None: everything is content.
        opened: whether the chat template has opened the reasoning in the prompt.
        may_open: whether the model may open reasoning by itself; constrained output may not.

    Attributes:
        inside: whether the next text is reasoning, unless an opening tag follows.
    """

    def __init__(self, tags: ThinkingTags | None, *, opened: bool = False, may_open: bool = True) -> None:
        self._tags, self._may_open = tags, may_open
        self.inside = opened and tags is not None
        self._at_edge = tags is not None and (opened or may_open)
        self._behind_mark = False
        self._held = ""

    def push(self, text: str) -> list[Segment]:
        """Add text; returns the segments that are now final (possibly none)."""
        self._held += text
        found: list[Segment] = []
        while self._held and self._step(found):
            pass
        return found

    def finish(self) -> list[Segment]:
        """End the output; returns the text that was held back."""
        found: list[Segment] = []
        if self._behind_mark and not self.inside:
            self._take(found, len(self._held) - len(self._held.lstrip()), "mark")
        self._take(found, len(self._held), "reasoning" if self.inside else "content")
        return found

    def _step(self, found: list[Segment]) -> bool:
        """Take one segment from the held text; False if nothing more is final."""
        tags, held = self._tags, self._held
        if tags is not None and self._at_edge:
            rest = held.lstrip()
            if rest.startswith(tags.open):
                self._take(found, len(held) - len(rest) + len(tags.open), "mark")
                self.inside = True
                return True
            if tags.open.startswith(rest):
                return False
            self._at_edge = False
        if tags is None or not self.inside:
            if self._behind_mark:
                self._take(found, len(held) - len(held.lstrip()), "mark")
                self._behind_mark = not self._held
            self._take(found, len(self._held), "content")
            return False
        at = held.find(tags.close)
        if at < 0:
            self._take(found, len(held) - _begun(held, tags.close), "reasoning")
            return False
        self._take(found, at, "reasoning")
        self._take(found, len(tags.close), "mark")
        self.inside, self._at_edge, self._behind_mark = False, self._may_open, True
        return True

    def _take(self, found: list[Segment], count: int, kind: Literal["reasoning", "content", "mark"]) -> None:
        piece, self._held = self._held[:count], self._held[count:]
        if piece:
            found.append(Segment(piece, kind))


@dataclass(frozen=True, slots=True)
class ParsedText:
    """A piece of output.

    Attributes:
        text: without tags.
        thought: whether it is reasoning.
    """

    text: str
    thought: bool


class Trimmer:
    """Drops the white space around reasoning, and before the content that follows it.

    Args:
        thinking: whether the prompt has opened the reasoning.
    """

    def __init__(self, *, thinking: bool) -> None:
        self._thinking = self._beside = thinking
        self._space = ""

    def push(self, text: str, *, thought: bool) -> list[ParsedText]:
        """Add text; returns the kept part (possibly none): white space in reasoning waits for the next text."""
        if thought != self._thinking:
            self._thinking = thought
            self.mark()
        text, self._space = self._space + text, ""
        if self._beside:
            text = text.lstrip()
        if thought:
            kept = text.rstrip()
            text, self._space = kept, text[len(kept) :]
        self._beside = self._beside and not text
        return [ParsedText(text, thought)] if text else []

    def mark(self) -> None:
        """Record a tag at this position."""
        self._beside, self._space = True, ""


class ThoughtText:
    """Splits one streamed output into parts, which contain neither the tags nor the white space next to them.

    `ReasoningSplitter` defines where reasoning may be. So all text after the first closing tag is content,
    even if the model goes on reasoning and closes it again (after its budget ended it): the second tag is
    text.

    Args:
        tags: of the model; None: everything is content.
        thinking: whether the chat template has opened the reasoning in the prompt.
        may_open: whether the model may open reasoning by itself.
    """

    def __init__(self, tags: ThinkingTags | None, *, thinking: bool = False, may_open: bool = True) -> None:
        self._splitter = ReasoningSplitter(tags, opened=thinking, may_open=may_open)
        self._trimmer = Trimmer(thinking=self._splitter.inside)

    def push(self, text: str) -> list[ParsedText]:
        """Add text; returns the parts that are now final (possibly none)."""
        return self._trimmed(self._splitter.push(text))

    def finish(self) -> list[ParsedText]:
        """End the output; returns the text that was held back."""
        return self._trimmed(self._splitter.finish())

    def _trimmed(self, segments: Iterable[Segment]) -> list[ParsedText]:
        parts: list[ParsedText] = []
        for segment in segments:
            if segment.kind == "mark":
                self._trimmer.mark()
            else:
                parts += self._trimmer.push(segment.text, thought=segment.kind == "reasoning")
        return parts


def answer_of(text: str, tags: ThinkingTags | None, *, thinking: bool = False) -> str:
    """The content of a whole output."""
    split = ThoughtText(tags, thinking=thinking)
    return "".join(part.text for part in [*split.push(text), *split.finish()] if not part.thought)


def _begun(text: str, tag: str) -> int:
    """Length of a text's longest suffix that begins a tag."""
    return next((n for n in range(min(len(tag) - 1, len(text)), 0, -1) if tag.startswith(text[-n:])), 0)
