"""Prompts have the requested length, are complete, and are the same every time."""

from __future__ import annotations

import base64
import hashlib

import pytest

from justright.bench.tasks import COPY_HEAVY, KINDS, build
from justright.data import read_text
from justright.errors import UsageError
from tiny import tiny_tokenizer


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("context", [5000, 6001])
def test_the_length_is_exact_to_a_few_tokens_and_never_more(kind: str, context: int) -> None:
    task = build(kind, tiny_tokenizer(), context)
    assert context - 4 <= len(task.prompt_ids) <= context
    assert task.name == f"{kind}@{context}"
    assert task == build(kind, tiny_tokenizer(), context)


@pytest.mark.parametrize("kind", KINDS)
def test_the_assistant_begins_with_the_steering(kind: str) -> None:
    task = build(kind, tiny_tokenizer(), 5000)
    text = tiny_tokenizer().decode(list(task.prompt_ids))
    assert text.endswith(task.steering)
    assert bool(task.steering) == (kind in COPY_HEAVY) == task.copy_heavy
    if kind != "continue":
        assert text.endswith(f"<|im_start|>assistant\n{task.steering}")


def test_the_steering_of_copying_tasks_is_text_of_the_prompt() -> None:
    task = build("quote-and-answer", tiny_tokenizer(), 5000)
    assert task.steering in tiny_tokenizer().decode(list(task.prompt_ids)).removesuffix(task.steering)


def test_without_a_chat_template_turns_are_plain_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiny_tokenizer(), "chat_template", None)
    text = tiny_tokenizer().decode(list(build("summarise", tiny_tokenizer(), 2000).prompt_ids))
    assert text.startswith("### User:\n")
    assert text.endswith("### Assistant:\n")


def test_impossible_prompts_are_refused() -> None:
    with pytest.raises(UsageError, match="allowed: summarise"):
        build("sing", tiny_tokenizer(), 1000)
    with pytest.raises(UsageError, match="it needs more"):
        build("multi-turn", tiny_tokenizer(), 50)
    with pytest.raises(UsageError, match="it needs more"):
        build("quote-and-answer", tiny_tokenizer(), 1000)  # the passage comes later
    with pytest.raises(UsageError, match="its text ends at"):
        build("continue", tiny_tokenizer(), 200_000)


def test_the_texts_are_long_enough_and_plain() -> None:
    for name in ("emma.txt", "northanger_abbey.txt", "six.py.txt"):
        text = read_text(name)
        assert text.isascii()
        assert len(text) > 25_000
    assert "public domain" in read_text("README.md")


def test_the_program_is_six_1_17_0_as_published() -> None:
    """Its digest is in the RECORD of six's wheel on PyPI; prompts depend on every byte."""
    digest = base64.urlsafe_b64encode(hashlib.sha256(read_text("six.py.txt").encode()).digest()).rstrip(b"=")
    assert digest == b"xRyR9wPT1LNpbJI8tf7CE-BeddkhU5O--sfy-mo5BN8"
