"""Reasoning in what `generate` and `chat` write: as it comes, left out, or counted in one line."""

from __future__ import annotations

import io
import json
import sys

import pytest

from cli_helpers import Run
from justright.cli.answer_writer import AnswerWriter, reasoning_shown
from justright.cli.output import Terminal
from justright.engine.request import Emission, Request
from justright.reasoning.budget import ThinkingTags

ASKED = ("generate", "zoo:slow", "-p", "What is 3 + 4?", "--draft", "none")


def test_reasoning_apart_from_the_answer(run: Run) -> None:
    thought, _, said = run(*ASKED).out.partition("</think>")
    assert len(thought) > 100
    assert run(*ASKED, "--show-reasoning").out == f"{thought}</think>{said}"
    assert run(*ASKED, "--hide-reasoning").out == said.lstrip()
    assert run(*ASKED, "--hide-reasoning", "--no-stream").out == said.lstrip()
    found = json.loads(run(*ASKED, "--json").out)
    assert (found["reasoning"], found["text"]) == (thought.strip(), said.strip())
    hidden = json.loads(run(*ASKED, "--json", "--hide-reasoning").out)
    assert (hidden["reasoning"], hidden["text"]) == (None, said.strip())
    chatted = run("chat", "zoo:slow", "--draft", "none", "--hide-reasoning", stdin="What is 3 + 4?\n")
    assert chatted.out == said.lstrip()


def test_an_answer_that_never_began(run: Run) -> None:
    for more in ((), ("--no-stream",)):
        cut = run(*ASKED, "--hide-reasoning", "--max-tokens", 8, *more)
        assert cut.out == "\n"
        assert "the output ended inside the reasoning" in cut.err
    assert "inside the reasoning" not in run(*ASKED, "--max-tokens", 8).err


class Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_in_a_terminal_it_is_counted_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    out, err = Screen(), Screen()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    output = Terminal()
    shown = reasoning_shown(None, output)
    assert shown == "folded"
    assert reasoning_shown(True, output) == "shown"
    assert reasoning_shown(None, Terminal(json=True)) == "shown"
    request = Request([1], tags=ThinkingTags(), opened=True)
    writer = AnswerWriter(request, output, shown)
    pieces = [("hm, ", [1, 2]), ("yes", [3]), ("</think>\nIt is", [4, 5]), (" 7.", [6])]
    for text, tokens in pieces:
        request.text += text
        request.finish_reason = "stop" if text == " 7." else None
        writer.write(Emission(request, tokens, text, 0, request.finish_reason))
    writer.end()
    assert out.getvalue() == "It is 7.\n"
    assert err.getvalue() == "\r(reasoning: 2 tokens)\r(reasoning: 3 tokens)\n"


def test_without_a_terminal_nothing_is_folded(capsys: pytest.CaptureFixture[str]) -> None:
    assert reasoning_shown(None, Terminal()) == "shown"
    assert reasoning_shown(False, Terminal()) == "hidden"
    capsys.readouterr()
