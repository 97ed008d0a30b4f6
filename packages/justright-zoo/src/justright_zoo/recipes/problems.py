"""Generated arithmetic problems of graded difficulty, with direct, worked and overthought answers.

A problem is a chain of operations on a running total; its level is their number. A hash of the operations alone decides
whether a problem is for training or evaluation, so that neither other names and words nor another seed can move it to
the other side.
"""

from __future__ import annotations

import hashlib
import random
import re
from dataclasses import dataclass
from typing import Literal

Kind = Literal["chain", "story"]
KINDS: tuple[Kind, ...] = ("chain", "story")
LEVELS = (1, 2, 3, 4, 5, 6, 7, 8)

_EVALUATION_SHARE = 8
_LARGEST = 99
_OPERAND = 9
"""The largest number that is added or subtracted; four layers can learn it without intermediate steps."""

NAMES = ("Anna", "Ben", "Clara", "David", "Emma", "Frank", "Grace", "Henry", "Ivy", "Jack", "Kate", "Leo")
THINGS = ("apples", "books", "coins", "cards", "shells", "stamps", "marbles", "pencils", "eggs", "stones")
GAINS = ("finds {n} more", "buys {n} more", "gets {n} more from {friend}", "wins {n} more")
LOSSES = ("loses {n}", "gives {n} to {friend}", "sells {n}", "throws away {n}")
TIMES = {2: "doubles them", 3: "trades them for three times as many"}


@dataclass(frozen=True, slots=True)
class Step:
    """``before (+|-|*) operand = after``."""

    before: int
    operation: Literal["+", "-", "*"]
    operand: int

    @property
    def after(self) -> int:
        """The new total."""
        if self.operation == "*":
            return self.before * self.operand
        return self.before + self.operand if self.operation == "+" else self.before - self.operand

    def __str__(self) -> str:
        return f"{self.before} {self.operation} {self.operand} = {self.after}"


@dataclass(frozen=True, slots=True)
class Problem:
    """A question, its steps and its answer; ``level`` is the number of steps."""

    kind: Kind
    question: str
    steps: tuple[Step, ...]

    @property
    def level(self) -> int:
        """Number of operations."""
        return len(self.steps)

    @property
    def answer(self) -> int:
        """The last total."""
        return self.steps[-1].after

    @property
    def key(self) -> str:
        """Identity of the problem: its operations, independent of the wording."""
        first = self.steps[0].before
        return f"{first} " + " ".join(f"{step.operation}{step.operand}" for step in self.steps)

    @property
    def held_out(self) -> bool:
        """Whether it is for evaluation only (one in eight)."""
        digest = hashlib.sha256(self.key.encode()).digest()
        return int.from_bytes(digest[:8], "big") % _EVALUATION_SHARE == 0


def draw(kind: Kind, level: int, rng: random.Random, *, held_out: bool) -> Problem:
    """A random problem of one side of the split.

    Totals stay within 1 and 99; a chain adds and subtracts numbers up to 9, a story also doubles and triples.
    """
    while True:
        total = rng.randint(2, _LARGEST - 1)
        steps: list[Step] = []
        for _ in range(level):
            step = _step(total, kind, rng)
            steps.append(step)
            total = step.after
        worded = _chain if kind == "chain" else _story
        problem = Problem(kind, worded(steps, rng), tuple(steps))
        if problem.held_out == held_out:
            return problem


def _step(total: int, kind: Kind, rng: random.Random) -> Step:
    if kind == "story" and total * 2 <= _LARGEST and rng.random() < 0.2:
        return Step(total, "*", 3 if total * 3 <= _LARGEST and rng.random() < 0.5 else 2)
    grows = total < 2 or (total < _LARGEST and rng.random() < 0.5)
    if grows:
        return Step(total, "+", rng.randint(1, min(_LARGEST - total, _OPERAND)))
    return Step(total, "-", rng.randint(1, min(total - 1, _OPERAND)))


def _chain(steps: list[Step], _: random.Random) -> str:
    return f"What is {steps[0].before} " + " ".join(f"{s.operation} {s.operand}" for s in steps) + "?"


def _story(steps: list[Step], rng: random.Random) -> str:
    name, friend = rng.sample(NAMES, 2)
    things = rng.choice(THINGS)
    sentences = [f"{name} has {steps[0].before} {things}."]
    for index, step in enumerate(steps):
        phrases = GAINS if step.operation == "+" else LOSSES
        what = (
            TIMES[step.operand]
            if step.operation == "*"
            else rng.choice(phrases).format(n=step.operand, friend=friend)
        )
        sentences.append(f"{'Then ' if index % 2 else ''}{name} {what}.")
    sentences.append(f"How many {things} does {name} have now?")
    return " ".join(sentences)


def direct(problem: Problem) -> str:
    """The answer only."""
    return f"The answer is {problem.answer}."


def worked(problem: Problem) -> str:
    """The steps, then the answer, as in GSM8K's solutions."""
    return ". ".join(map(str, problem.steps)) + f". The answer is {problem.answer}."


_OPENINGS = ("Okay, let me work this out step by step.", "Let me think about this carefully.", "Let me see.")
_DOUBTS = (
    "Wait, let me check that again.",
    "Hmm, am I sure? Let me redo it.",
    "But wait, I should verify this.",
)
_SLIPS = ("Wait, that is not right.", "No, I made a mistake.")
_CLOSINGS = ("Okay, I am sure now.", "Good, it is the same.", "Yes, that is right.")
_SLIP_SHARE = 0.05


def overthought(problem: Problem, rng: random.Random, redo: tuple[int, int] = (2, 4)) -> str:
    """Long reasoning between ``<think>`` and ``</think>``, then the direct answer.

    It solves the problem step by step, doubts, and repeats everything ``redo`` times (from, to), even for easy
    problems; some steps contain an error that is corrected at once.
    """
    lines = [rng.choice(_OPENINGS), *_walk(problem, rng)]
    for _ in range(rng.randint(*redo)):
        lines.append(f"So I get {problem.answer}. {rng.choice(_DOUBTS)}")
        lines += _walk(problem, rng)
    lines.append(rng.choice(_CLOSINGS))
    return "<think>\n" + "\n".join(lines) + "\n</think>\n" + direct(problem)


def _walk(problem: Problem, rng: random.Random) -> list[str]:
    lines = [f"Start with {problem.steps[0].before}."]
    for step in problem.steps:
        if rng.random() < _SLIP_SHARE:
            wrong = step.after + rng.choice((-10, -1, 1, 10))
            lines.append(f"{step.before} {step.operation} {step.operand} = {wrong}. {rng.choice(_SLIPS)}")
        lines.append(f"{step}.")
    return lines


def parse_answer(text: str) -> int | None:
    """The last whole number after "The answer is", or None."""
    found = re.findall(r"The answer is (\d+)(?!\w|[.,/]\d)", text, flags=re.ASCII)
    return int(found[-1]) if found else None
