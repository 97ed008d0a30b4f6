"""Batches that depend on the seed and the step alone, so that a training cut anywhere goes on as if it had not been.

Text: windows out of one long row of tokens a domain. Problems: questions and answers packed one behind the other,
each row beginning with a question as a user's request does; only answers are learned.
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
"""Label of a token that is not learned."""

Answer = Callable[[Problem, random.Random], str]


@dataclass(frozen=True, slots=True)
class Batch:
    """``input_ids`` and ``labels``, both ``[rows, length]`` int64."""

    input_ids: Tensor
    labels: Tensor


@dataclass(frozen=True, slots=True)
class Corpus:
    """The prepared data: the tokenizer, and the tokens of each domain's training text."""

    tokenizer: PreTrainedTokenizerFast
    tokens: dict[str, NDArray[np.uint16]]


def prepare(folder: Path) -> Corpus:
    """Download, cut, train the tokenizer and encode, once; afterwards read it back from ``folder``."""
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
    """What the tokenizer sees of the problems, so that their words are tokens."""
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
    """A window of one domain, all of it learned."""
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

    A question is put as the tokenizer's chat template puts it, before any answer has begun. What does not fit is cut
    off; with ``whole`` it is left out, for long thoughts whose end would hardly ever be seen otherwise.
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
    """Single operations, ``23 + 45 = 68.``, none of them a problem that is held out; results are learned."""
    row: list[int] = []
    labels: list[int] = []
    while len(row) < length:
        [step] = draw(rng.choice(KINDS), 1, rng, held_out=False).steps
        asked, result = tokenizer(
            [f"{step.before} {step.operation} {step.operand} =", f" {step.after}.\n"],
            add_special_tokens=False,
        )["input_ids"]
        row += asked + result
        labels += [IGNORED] * len(asked) + result
    return row[:length], labels[:length]


def step_row(
    tokenizer: PreTrainedTokenizerFast, kinds: Sequence[tuple[Kind, int]], length: int, rng: random.Random
) -> tuple[list[int], list[int]]:
    """Problems and their steps as plain text, outside of any conversation; the steps are learned.

    What a model must know before it can think aloud: to go through a question, operation by operation.
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
    """A user's turn and the beginning of the answer; a ``<think>`` that the template opens belongs to the answer."""
    messages = [{"role": "user", "content": question}]
    text = str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
    return text.removesuffix("<think>\n")


def to_batch(rows: Sequence[tuple[list[int], list[int]]]) -> Batch:
    """Rows of equal length as tensors."""
    return Batch(torch.tensor([row for row, _ in rows]), torch.tensor([labels for _, labels in rows]))
