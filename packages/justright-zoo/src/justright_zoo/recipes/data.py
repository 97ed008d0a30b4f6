"""Batches that depend only on the seed and the step, so that a resumed training equals an uninterrupted one.

Texts: windows of one long token sequence per domain. Problems: questions and answers in sequence; each row begins with
a question, like a request, and only answers have labels.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from justright_zoo.recipes.problems import KINDS, Kind, Problem, draw
from justright_zoo.recipes.texts import DOMAINS, SPLITS, Split, blocks
from justright_zoo.recipes.tokenizer import END, train_tokenizer

IGNORED = -100
"""Label of a token without loss."""

Answer = Callable[[Problem, random.Random], str]


@dataclass(frozen=True, slots=True)
class Batch:
    """``input_ids`` and ``labels``, both ``[rows, length]`` int64."""

    input_ids: Tensor
    labels: Tensor


@dataclass(frozen=True, slots=True)
class Corpus:
    """The tokenizer, and the tokens of each domain's training text."""

    tokenizer: PreTrainedTokenizerFast
    tokens: dict[str, NDArray[np.uint16]]


def prepare(folder: Path) -> Corpus:
    """Download and split the texts, train the tokenizer and encode; later calls read the results from ``folder``."""
    tokenizer_folder = folder / "tokenizer"
    for domain in DOMAINS:
        file = folder / "texts" / f"{domain.name}.json"
        if not file.exists():
            found = blocks(domain, folder / "archives")
            _write(file, json.dumps(found, ensure_ascii=False))
    if not (tokenizer_folder / "tokenizer.json").exists():
        learned = (block for domain in DOMAINS for block in read_blocks(folder, domain.name, "train"))
        train_tokenizer([*learned, *_problem_texts()]).save_pretrained(tokenizer_folder)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(tokenizer_folder)
    tokens = {}
    for domain in DOMAINS:
        file = folder / "tokens" / f"{domain.name}.npy"
        if not file.exists():
            texts = read_blocks(folder, domain.name, "train")
            encoded = tokenizer([text + END for text in texts], add_special_tokens=False)["input_ids"]
            file.parent.mkdir(parents=True, exist_ok=True)
            partial = file.with_name("partial.npy")
            np.save(partial, np.concatenate([np.array(ids, dtype=np.uint16) for ids in encoded]))
            partial.replace(file)
        tokens[domain.name] = np.load(file, allow_pickle=False)
    return Corpus(tokenizer, tokens)


def read_blocks(folder: Path, domain: str, split: Split) -> list[str]:
    """The domain's blocks of one split."""
    assert split in SPLITS
    found: dict[str, list[str]] = json.loads(
        (folder / "texts" / f"{domain}.json").read_text(encoding="utf-8")
    )
    return found[split]


def _problem_texts() -> list[str]:
    """Problems for the tokenizer's training, so that their words become tokens."""
    from justright_zoo.recipes.problems import overthought, worked

    rng = random.Random(0)
    problems = [
        draw(kind, 1 + i % 8, rng, held_out=False) for i in range(2000) for kind in ("chain", "story")
    ]
    return [f"{p.question}\n{worked(p)}\n{overthought(p, rng)}" for p in problems]


def _write(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(file.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(file)


def text_row(corpus: Corpus, domain: str, length: int, rng: random.Random) -> tuple[list[int], list[int]]:
    """A window of one domain; all tokens have labels."""
    tokens = corpus.tokens[domain]
    start = rng.randrange(len(tokens) - length)
    row = tokens[start : start + length].tolist()
    return row, row


def problem_row(
    tokenizer: PreTrainedTokenizerFast,
    kinds: Sequence[tuple[Kind, int]],
    answer: Answer,
    length: int,
    rng: random.Random,
    *,
    whole: bool = False,
) -> tuple[list[int], list[int]]:
    """Problems of random ``kinds`` (kind, level) until the row is full.

    Questions are in the tokenizer's chat template. A problem that does not fit is truncated; with ``whole`` it is
    omitted, for long reasoning whose end would rarely occur otherwise.
    """
    row: list[int] = []
    labels: list[int] = []
    while len(row) < length:
        kind, level = rng.choice(kinds)
        problem = draw(kind, level, rng, held_out=False)
        question, solution = tokenizer(
            [question_text(tokenizer, problem.question), f"{answer(problem, rng)}{tokenizer.eos_token}"],
            add_special_tokens=False,
        )["input_ids"]
        if whole and len(row) + len(question) + len(solution) > length:
            rest = length - len(row)
            return row + [tokenizer.pad_token_id] * rest, labels + [IGNORED] * rest
        row += question + solution
        labels += [IGNORED] * len(question) + solution
    return row[:length], labels[:length]


def fact_row(
    tokenizer: PreTrainedTokenizerFast, length: int, rng: random.Random
) -> tuple[list[int], list[int]]:
    """Single operations, ``23 + 45 = 68.``, that are not held out; the results have labels."""
    row: list[int] = []
    labels: list[int] = []
    while len(row) < length:
        [step] = draw(rng.choice(KINDS), 1, rng, held_out=False).steps
        question, result = tokenizer(
            [f"{step.before} {step.operation} {step.operand} =", f" {step.after}.\n"],
            add_special_tokens=False,
        )["input_ids"]
        row += question + result
        labels += [IGNORED] * len(question) + result
    return row[:length], labels[:length]


def step_row(
    tokenizer: PreTrainedTokenizerFast, kinds: Sequence[tuple[Kind, int]], length: int, rng: random.Random
) -> tuple[list[int], list[int]]:
    """Problems and their steps as plain text, without a conversation; the steps have labels.

    They teach the model to process a question operation by operation before it learns to reason.
    """
    row: list[int] = []
    labels: list[int] = []
    while len(row) < length:
        kind, level = rng.choice(kinds)
        problem = draw(kind, level, rng, held_out=False)
        steps = "".join(f"{step}.\n" for step in problem.steps)
        question, solution = tokenizer(
            [f"{problem.question}\nStart with {problem.steps[0].before}.\n", f"{steps}\n"],
            add_special_tokens=False,
        )["input_ids"]
        row += question + solution
        labels += [IGNORED] * len(question) + solution
    return row[:length], labels[:length]


def question_text(tokenizer: PreTrainedTokenizerFast, question: str) -> str:
    """A user turn and the assistant's header; a ``<think>`` that the template opens belongs to the answer."""
    messages = [{"role": "user", "content": question}]
    text = str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
    return text.removesuffix("<think>\n")


def to_batch(rows: Sequence[tuple[list[int], list[int]]]) -> Batch:
    """Rows of equal length as tensors."""
    return Batch(torch.tensor([row for row, _ in rows]), torch.tensor([labels for _, labels in rows]))
