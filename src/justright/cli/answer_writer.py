"""How `generate` and `chat` write an answer: with its reasoning, without it, or with a line in its place."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Literal

from justright.cli.output import Terminal
from justright.cli.running import reasoning_and_content

if TYPE_CHECKING:
    from justright.engine.request import Emission, Request

ReasoningShown = Literal["shown", "hidden", "folded"]


def reasoning_shown(show: bool | None, output: Terminal) -> ReasoningShown:
    """Return what ``--show-reasoning`` (True), ``--hide-reasoning`` (False) or neither means here."""
    if show is None:
        return "folded" if sys.stdout.isatty() and not output.json else "shown"
    return "shown" if show else "hidden"


class AnswerWriter:
    """Writes one answer to stdout while it is generated.

    Args:
        request: the request.
        output: the run's output.
        shown: what happens to reasoning; "folded" counts its tokens on stderr.
    """

    def __init__(self, request: Request, output: Terminal, shown: ReasoningShown) -> None:
        from justright.engine.output import OutputBuilder

        self._request, self._output, self._shown = request, output, shown
        self._builder = OutputBuilder(request)
        self._folded = 0
        self._end = ""

    def write(self, emission: Emission) -> None:
        """Write the text that an output chunk adds."""
        if self._shown == "shown":
            self._text(emission.text)
            return
        chunk = self._builder.push(emission)
        if chunk.reasoning and not chunk.text and self._shown == "folded" and self._output.progress:
            self._folded += len(chunk.token_ids)
            print(f"\r(reasoning: {self._folded} tokens)", end="", file=sys.stderr, flush=True)
        self._text(chunk.text)

    def end(self) -> None:
        """End the line, and say so if the answer ended before its content began."""
        self._unfold()
        if not self._end.endswith("\n"):
            self._output.text("")
        if self._shown != "shown":
            note_unfinished(self._request, self._output)

    def _text(self, text: str) -> None:
        if text:
            self._unfold()
            self._output.text(text, end="")
            self._end = text

    def _unfold(self) -> None:
        if self._folded:
            print(file=sys.stderr, flush=True)
            self._folded = 0


def note_unfinished(request: Request, output: Terminal) -> None:
    """Write a note if a finished request has reasoning and no content, as its answer would be empty."""
    reasoning, content = reasoning_and_content(request)
    if reasoning and not content.strip():
        output.note(
            "note: the output ended inside the reasoning: raise --max-tokens, or give --thinking-budget"
        )
