"""Run problems with known answers in both modes, chunk by chunk, so that a cut run goes on where it stood."""

from __future__ import annotations

import importlib.metadata
import json
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from justright.calibration.stream import job_folder
from justright.engine.api import Engine
from justright.engine.modes import Thinking
from justright.engine.request import Request
from justright.engine.sampling import SamplingParams
from justright.errors import CheckpointError, SourceError, UsageError
from justright.models.files import local_path
from justright.switch.calibrate import Outcomes, check_asked, fit_probe
from justright.switch.routing import Decision, Turn
from justright.switch.scorers import Probe
from justright.switch.thinking import ThinkingTags

CARRIED = "justright.questions"
"""Entry-point group: a package's problems, a function to ``{name: [{"question": ..., "answer": ...}, ...]}``."""

_CHUNK = 32
_NUMBER = re.compile(r"-?\d+(?:[.,]\d+)*")

Tick = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class Question:
    """A problem and its answer."""

    question: str
    answer: str


@dataclass(slots=True)
class Watch:
    """A route that takes the fast mode and remembers what a decision could have been based on."""

    hidden: Tensor | None = None
    confidence: float = 0.0
    holds_output: bool = True

    def after_prefill(self, hidden: Tensor) -> tuple[Decision, Turn | None]:
        """Fast."""
        self.hidden = hidden.float().cpu().clone()
        return Decision("fast", "calibration", None, None, "measured"), None

    def after_answer(self, finish_reason: str, confidence: float) -> tuple[Decision, Turn | None]:
        """Fast it stays; a cut answer has no confidence."""
        self.confidence = 0.0 if finish_reason == "length" else confidence
        return Decision("fast", "calibration", confidence, None, "measured"), None


def read_questions(names: Sequence[str]) -> list[Question]:
    """Problems of JSON lines ``{"question", "answer"}``, or of a set that a package carries (``zoo``, ``zoo:chain-3``).

    Raises:
        SourceError: nothing of that name.
        CheckpointError: a line that is no problem.
    """
    found = []
    for name in names:
        path = local_path(name)
        if path.is_file():
            found += _read(path)
            continue
        carrier, _, one = name.partition(":")
        points = {point.name: point for point in importlib.metadata.entry_points(group=CARRIED)}
        sets: dict[str, list[dict[str, str]]] = points[carrier].load()() if carrier in points else {}
        if not sets or (one and one not in sets):
            known = ", ".join(sets) or ", ".join(points) or "(no package carries any)"
            raise SourceError(f"no problems {name!r}: give a file of JSON lines, or one of {known}")
        rows = sets[one] if one else [row for rows in sets.values() for row in rows]
        found += [Question(row["question"], row["answer"]) for row in rows]
    return found


def is_right(text: str, answer: str, tags: ThinkingTags | None = None) -> bool:
    """Whether what is said behind the thought ends in the answer: its last number, or else the text itself."""
    if tags is not None and tags.close in text:
        text = text.rpartition(tags.close)[2]
    if _NUMBER.fullmatch(answer.strip()):
        numbers = _NUMBER.findall(text)
        return bool(numbers) and numbers[-1].replace(",", "") == answer.strip().replace(",", "")
    return " ".join(answer.lower().split()).rstrip(".") in " ".join(text.lower().split())


def collect(
    engine: Engine,
    questions: Sequence[Question],
    work: Path,
    *,
    max_tokens: int = 1024,
    tick: Tick = lambda *_: None,
) -> Outcomes:
    """Answer every problem in both modes, greedily.

    Args:
        engine: with a switch.
        questions: at least one.
        work: folder for finished chunks; an interrupted run goes on behind the last.
        max_tokens: of an answer, thought included.
        tick: told stage, problems done, problems in all.
    """
    work.mkdir(parents=True, exist_ok=True)
    chunks = []
    for begin in range(0, len(questions), _CHUNK):
        file = work / f"chunk-{begin:06d}.safetensors"
        tick("answering", begin, len(questions))
        if not file.exists():
            partial = file.with_suffix(".partial")
            save_file(_answer(engine, questions[begin : begin + _CHUNK], max_tokens), partial)
            partial.replace(file)
        chunks.append(load_file(file))
    tick("answering", len(questions), len(questions))
    joined = {name: torch.cat([chunk[name] for chunk in chunks]) for name in chunks[0]}
    return Outcomes(**joined)


def calibrate(
    engine: Engine,
    questions: Sequence[Question],
    adapter: Path,
    *,
    floor: float,
    max_tokens: int = 1024,
    identity: dict[str, Any] | None = None,
    tick: Tick = lambda *_: None,
) -> Probe:
    """Fit the probe of ``auto`` and the threshold of ``escalate``, and write them into the adapter's folder.

    Args:
        engine: with the switch ``adapter``.
        questions: problems like those that will be asked, with answers; some hundreds.
        adapter: the switch's folder.
        floor: accuracy to hold.
        max_tokens: of an answer, thought included.
        identity: what else tells this run from another, for resuming.
        tick: told of progress.

    Raises:
        UsageError: too few problems, an engine without a switch, or a floor out of reach.
    """
    if engine.modes is None or engine.modes.adapter is None:
        raise UsageError("calibration compares two modes: load the engine with a switch")
    check_asked(len(questions), floor)
    job = {
        "questions": [[q.question, q.answer] for q in questions],
        "max_tokens": max_tokens,
        **(identity or {}),
    }
    work = job_folder(adapter.with_name(adapter.name + ".calibration"), job)
    outcomes = collect(engine, questions, work, max_tokens=max_tokens, tick=tick)
    try:
        probe = fit_probe(outcomes, floor, {"max_tokens": max_tokens})
    except UsageError as error:
        raise UsageError(
            f"{error} (the answers are kept in {work}: the next try needs no new ones)"
        ) from error
    probe.save(adapter)
    shutil.rmtree(work)
    return probe


def _answer(engine: Engine, questions: Sequence[Question], max_tokens: int) -> dict[str, Tensor]:
    """Both modes on one chunk, in one batch."""
    assert engine.modes is not None
    watches = [Watch() for _ in questions]
    fast, slow = ([_request(engine, q, effort, max_tokens) for q in questions] for effort in ("none", None))
    for request, watch in zip(fast, watches, strict=True):
        request.route = watch
    engine.generate_batch([*slow, *fast])
    states = [watch.hidden for watch in watches]
    tags = engine.modes.tags
    return {
        "hidden": torch.stack([state for state in states if state is not None]),
        "confidence": torch.tensor([watch.confidence for watch in watches]),
        "fast_right": torch.tensor(
            [is_right(r.text, q.answer, tags) for r, q in zip(fast, questions, strict=True)]
        ),
        "slow_right": torch.tensor(
            [is_right(r.text, q.answer, tags) for r, q in zip(slow, questions, strict=True)]
        ),
        "fast_tokens": torch.tensor([len(r.token_ids) for r in fast]),
        "slow_tokens": torch.tensor([len(r.token_ids) for r in slow]),
    }


def _request(engine: Engine, question: Question, effort: str | None, max_tokens: int) -> Request:
    messages = [{"role": "user", "content": question.question}]
    greedy = SamplingParams()  # whatever a bundle says
    return engine.conversation(messages, greedy, thinking=Thinking(effort), max_tokens=max_tokens)


def _read(path: Path) -> list[Question]:
    found = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            row = json.loads(line)
            found.append(Question(str(row["question"]), str(row["answer"])))
        except (ValueError, KeyError, TypeError) as error:
            raise CheckpointError(
                f'line {number} of {path} is no problem: {{"question": "...", "answer": "..."}} is expected'
            ) from error
    return found
