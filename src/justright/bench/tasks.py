"""The benchmarks' tasks: prompts of an exact length, built from texts in the package.

Long contexts are often used for copying, where suffix drafts are strong. A small model copies only with guidance: in
some tasks the assistant's turn already begins with a few words (the *steering*), which the model continues. Every
contender gets the same prompt, so the steering favours none.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from justright.data import read_text
from justright.errors import UsageError

_ROUNDS = 12
_PASSAGE = "Such was Catherine Morland"
_QUOTE_SENTENCES = 2
_QUOTE_START_WORDS = 8


class Tokenizer(Protocol):
    """The part of transformers' tokenizers that tasks need."""

    chat_template: Any

    def __call__(self, text: str, add_special_tokens: bool = True, verbose: bool = True) -> Any:
        """Encode; ``["input_ids"]`` are the tokens."""
        ...

    def decode(self, token_ids: list[int]) -> Any:
        """The text of tokens."""
        ...

    def apply_chat_template(self, conversation: Any, *, tokenize: bool, add_generation_prompt: bool) -> Any:
        """The text of a conversation."""
        ...


@dataclass(frozen=True, slots=True)
class Task:
    """One prompt to continue.

    Attributes:
        kind: one of `KINDS`.
        context: the requested length.
        copy_heavy: whether the right answer is mostly text of the prompt.
        steering: first words of the assistant's turn; "" for none.
        prompt_ids: the prompt.
    """

    kind: str
    context: int
    copy_heavy: bool
    steering: str
    prompt_ids: tuple[int, ...]

    @property
    def name(self) -> str:
        """Kind and length, such as ``quote-and-answer@4096``."""
        return f"{self.kind}@{self.context}"


@dataclass(frozen=True, slots=True)
class Frame:
    """Conversation and steering around a text; ``complete``: whether the text contains the requested passage."""

    messages: list[dict[str, str]]
    steering: str = ""
    complete: bool = True


@dataclass(frozen=True, slots=True)
class _Kind:
    source: str
    copy_heavy: bool
    frame: Callable[[str], Frame]


def build(kind: str, tokenizer: Tokenizer, context: int) -> Task:
    """Build a prompt of ``kind`` with ``context`` tokens, or a few less; the source text is truncated to fit.

    Args:
        kind: one of `KINDS`.
        tokenizer: the model's. Without a chat template, turns are plain text with headings.
        context: tokens of the prompt.

    Raises:
        UsageError: an unknown kind, or a length that is too small for the instructions or too large for the text.
    """
    if kind not in _KINDS:
        raise UsageError(f"no task is called {kind!r}; allowed: {', '.join(_KINDS)}")
    made = _KINDS[kind]
    source = list(tokenizer(read_text(made.source), add_special_tokens=False)["input_ids"])
    take, best = context, None
    for _ in range(_ROUNDS):
        take = min(take, len(source))
        if take < 1:
            break
        frame = made.frame(str(tokenizer.decode(source[:take])))
        ids = encode(frame, tokenizer)
        if frame.complete and len(ids) <= context and (best is None or len(ids) > len(best[0])):
            best = ids, frame.steering
        if len(ids) == context:
            break
        take += context - len(ids)
    if best is None:
        raise UsageError(
            f"the task {kind} cannot have {context} tokens: it needs more for its instructions and text"
        )
    if context - len(best[0]) > max(8, context // 50):
        raise UsageError(f"the task {kind} cannot have {context} tokens: its text ends at {len(best[0])}")
    return Task(kind, context, made.copy_heavy, best[1], tuple(best[0]))


def encode(frame: Frame, tokenizer: Tokenizer, *, special: bool = False) -> list[int]:
    """Tokens of a prompt by the model's chat template, the assistant's turn begun with its steering.

    A text to go on from, and a model without a template, take it as it is; ``special``: with the tokens that the
    tokenizer adds where there is no template.
    """
    if frame.messages[-1]["role"] == "text":
        return list(tokenizer(frame.messages[-1]["content"], verbose=False)["input_ids"])
    if tokenizer.chat_template is None:
        turns = [f"### {message['role'].title()}:\n{message['content']}" for message in frame.messages]
        text = "\n\n".join([*turns, "### Assistant:\n"])
    else:
        text = tokenizer.apply_chat_template(frame.messages, tokenize=False, add_generation_prompt=True)
    special = special and tokenizer.chat_template is None
    return list(tokenizer(text + frame.steering, add_special_tokens=special, verbose=False)["input_ids"])


def user(content: str) -> dict[str, str]:
    """A user's turn."""
    return {"role": "user", "content": content}


def _summarise(text: str) -> Frame:
    ask = f"Here is the beginning of a novel.\n\n{text}\n\nSummarise it in one paragraph: who is who, and what happens."
    return Frame([user(ask)])


def _quote(text: str) -> Frame:
    ask = (
        f"Here is the beginning of a novel.\n\n{text}\n\nQuote what it says about the heroine when she "
        "grew older, word for word. Then say in one sentence how she changed."
    )
    if _PASSAGE not in text:
        return Frame([user(ask)], complete=False)
    before, _, passage = text.partition(_PASSAGE)
    start = " ".join((_PASSAGE + passage).split()[:_QUOTE_START_WORDS])
    sentences = before.rstrip().rsplit(". ", _QUOTE_SENTENCES)[1:]
    return Frame([user(ask)], f"{'. '.join(sentences)}\n\n{start}")


def _rewrite(text: str) -> Frame:
    ask = (
        f"Here is a Python file.\n\n```python\n{text}\n```\n\n"
        "Write out the whole file again, with `_import_module` renamed to `_load_module`."
    )
    start = " ".join(text.split(" ")[:4])
    return Frame([user(ask)], f"Here is the whole file:\n\n```python\n{start}")


def _multi_turn(text: str) -> Frame:
    turns = json.loads(read_text("conversation.json"))
    messages = [{**turn, "content": turn["content"].replace("{text}", text)} for turn in turns]
    return Frame(messages, "Here is the list again:\n\n1. **Emma Woodhouse**")


def _continue(text: str) -> Frame:
    return Frame([{"role": "text", "content": text}])


_KINDS = {
    "summarise": _Kind("emma.txt", False, _summarise),
    "quote-and-answer": _Kind("northanger_abbey.txt", True, _quote),
    "rewrite-code": _Kind("six.py.txt", True, _rewrite),
    "multi-turn": _Kind("emma.txt", True, _multi_turn),
    "continue": _Kind("northanger_abbey.txt", False, _continue),
}

KINDS: tuple[str, ...] = tuple(_KINDS)
COPY_HEAVY: tuple[str, ...] = tuple(kind for kind, made in _KINDS.items() if made.copy_heavy)
