"""The prompts of both benchmarks are the same bytes in every version, so that figures of two versions compare."""

from __future__ import annotations

import hashlib
import json
import random
from dataclasses import asdict
from typing import Any

import pytest

from justright.bench import longset, tasks


class Characters:
    """A tokenizer with one token per character; with a template, turns stand between tags."""

    def __init__(self, chat_template: str | None) -> None:
        self.chat_template = chat_template

    def __call__(
        self, text: str, add_special_tokens: bool = True, verbose: bool = True
    ) -> dict[str, list[int]]:
        return {"input_ids": [1] * add_special_tokens + [ord(one) + 10 for one in text]}

    def decode(self, token_ids: list[int]) -> str:
        return "".join(chr(token - 10) for token in token_ids)

    def apply_chat_template(self, conversation: Any, *, tokenize: bool, add_generation_prompt: bool) -> str:
        turns = (f"<{turn['role']}>{turn['content']}</>" for turn in conversation)
        return "".join(turns) + "<assistant>"


TOKENIZERS = (Characters(None), Characters("x"))


def test_tasks_are_the_same_in_every_version() -> None:
    digest = hashlib.sha256()
    for tokenizer in TOKENIZERS:
        for kind in tasks.KINDS:
            for length in (6000, 9000):
                task = tasks.build(kind, tokenizer, length)
                fields = [task.kind, task.context, task.copy_heavy, task.steering, task.prompt_ids]
                digest.update(json.dumps(fields).encode())
    assert digest.hexdigest() == "e213e8bc2b9f02624bf08c840430d37f8c52a8654fc0a73a0f594cf7c30d145d"


@pytest.fixture(scope="module")
def prompts() -> list[longset.Prompt]:
    chance = random.Random(0)
    words = [
        "alpha_beta",
        "the",
        "garden",
        "was_quiet_now",
        "river",
        "stone",
        "light",
        "and",
        "of",
        "evening",
        "paper_name",
    ]

    def sentence() -> str:
        return " ".join(chance.choice(words) for _ in range(14)).capitalize() + "."

    text = "\n\n".join(" ".join(sentence() for _ in range(9)) for _ in range(80))
    sources = [longset.SourceText("a", text, "mine"), longset.SourceText("b", text[::2], "mine", True)]
    return longset.build(sources, lambda said: len(said) // 4, buckets=(512, 2048), per_cell=2, seed=3)


def test_long_prompts_are_the_same_in_every_version(prompts: list[longset.Prompt]) -> None:
    digest = hashlib.sha256(json.dumps([asdict(prompt) for prompt in prompts]).encode()).hexdigest()
    assert digest == "8cab4cb2cc8e9e2e2079dd47c58be2b1202c476a53a1606f1c6805c71b8beaea"


def test_long_prompts_are_encoded_the_same_in_every_version(prompts: list[longset.Prompt]) -> None:
    digest = hashlib.sha256()
    for prompt in prompts:
        frame = tasks.Frame([dict(turn) for turn in prompt.messages], prompt.steering)
        for tokenizer in TOKENIZERS:
            digest.update(json.dumps(tasks.encode(frame, tokenizer, special=True)).encode())
    assert digest.hexdigest() == "fa3b6cf00d6ec4326d802ccf8a10ac2dbe1ea2deb32956388118a58d6e66f547"
