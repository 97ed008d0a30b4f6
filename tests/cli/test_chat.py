"""`justright chat` with scripted input, and its conversation state."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cli_helpers import Run
from justright.cli.chat import Conversation
from justright.cli.output import Terminal
from justright.cli.prepare import prepare
from justright.engine.llm import LLM
from justright.errors import ResourceError


def test_turns_build_on_each_other(run: Run, tiny_llama: Path) -> None:
    result = run("chat", tiny_llama, "--max-tokens", 8, stdin="hello\n\nand you?\n")
    assert result.code == 0
    engine = LLM(str(tiny_llama))
    messages = [{"role": "user", "content": "hello"}]
    first = engine.generate_request(engine.chat_prompt(messages), max_tokens=8).text
    messages += [{"role": "assistant", "content": first}, {"role": "user", "content": "and you?"}]
    second = engine.generate_request(engine.chat_prompt(messages), max_tokens=8).text
    assert result.out == "".join(text if text.endswith("\n") else text + "\n" for text in (first, second))


def test_json_has_one_object_a_turn(run: Run, tiny_llama: Path) -> None:
    result = run("chat", tiny_llama, "--json", "--max-tokens", 4, stdin="one\ntwo\n/exit\nthree\n")
    turns = [json.loads(line) for line in result.out.splitlines()]
    assert [(turn["turn"], turn["prompt"]) for turn in turns] == [(1, "one"), (2, "two")]
    assert turns[1]["stats"]["prompt_tokens"] > turns[0]["stats"]["prompt_tokens"]


def test_commands(run: Run, tiny_llama: Path) -> None:
    lines = "/help\n/stats\n/system be kind\none\n/stats\n/reset\none\n/system\n"
    result = run("chat", tiny_llama, "--max-tokens", 4, "--json", stdin=lines)
    assert result.code == 0
    assert "/system TEXT" in result.err
    assert "no answer yet" in result.err
    assert "answer 4 tokens" in result.err or "ended by stop" in result.err
    first, second = (json.loads(line) for line in result.out.splitlines())
    assert first["token_ids"] == second["token_ids"]


def test_an_unknown_command_is_reported_and_the_rest_is_done(run: Run, tiny_llama: Path) -> None:
    result = run("chat", tiny_llama, "--json", "--max-tokens", 4, stdin="/jump\nhello\n")
    assert result.code == 0
    assert "unknown command /jump" in result.err
    assert "token_ids" in result.out


def test_a_long_conversation_drops_its_oldest_turns_with_a_note(run: Run, tiny_llama: Path) -> None:
    line = "the quick brown fox " * 3 + "\n"
    result = run("chat", tiny_llama, "--max-context", 128, "--max-tokens", 8, stdin=line * 5)
    assert result.code == 0
    assert "dropped" in result.err


def test_a_message_that_cannot_fit_is_an_error_and_changes_nothing(tiny_llama: Path) -> None:
    ready = prepare(str(tiny_llama), Terminal(quiet=True), {"max_context": 64})
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]
    conversation = Conversation(ready, 8, turns=list(turns))
    with pytest.raises(ResourceError, match="this message has"):
        conversation.fit("the quick brown fox " * 60)
    assert conversation.turns == turns
