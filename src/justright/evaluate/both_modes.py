"""Answer problems in both modes, chunk by chunk, so that an interrupted run can resume.

The answers are kept with the calibration (``calibration/JOB`` in the adapter's folder): another floor or another judge
needs no new ones, and another job's answers stay.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from justright.adapter.adapter import EXACT, WEIGHTS
from justright.checkpoint.fingerprint import weights_identity
from justright.engine.chat_modes import Reasoning
from justright.engine.llm import LLM
from justright.engine.request import Request
from justright.engine.sampler import SamplingParams
from justright.errors import CheckpointError, SourceError, UsageError
from justright.evaluate import judge as judging
from justright.evaluate.judge import Judge
from justright.files import local_path, save_tensors, write_whole
from justright.progress import ProgressCallback
from justright.provenance import file_sha256
from justright.readable import differences
from justright.reasoning.budget import ThinkingTags
from justright.reasoning.routing import RoutingDecision, Turn
from justright.reasoning.scorers import Probe
from justright.reasoning.thresholds import Outcomes, check_asked, fit_probe
from justright.records import read_rows

CARRIED = "justright.questions"
"""Entry-point group for problems: functions that return ``{name: [{"question": ..., "answer": ...}, ...]}``."""

_CHUNK = 32
_KEPT = "calibration"
_JOB = "job.json"


@dataclass(frozen=True, slots=True)
class Question:
    """A problem and its answer."""

    question: str
    answer: str


@dataclass(slots=True)
class FastObserver:
    """A route that chooses fast mode and records what a decision would be based on."""

    hidden: Tensor | None = None
    confidence: float = 0.0
    holds_output: bool = True

    def after_prefill(self, hidden: Tensor) -> tuple[RoutingDecision, Turn | None]:
        """Choose fast mode."""
        self.hidden = hidden.float().cpu().clone()
        return RoutingDecision("fast", "calibration", None, None, "measured"), None

    def after_answer(self, finish_reason: str, confidence: float) -> tuple[RoutingDecision, Turn | None]:
        """Stay in fast mode; a truncated answer has confidence 0."""
        self.confidence = 0.0 if finish_reason == "length" else confidence
        return RoutingDecision("fast", "calibration", confidence, None, "measured"), None


def read_questions(names: Sequence[str]) -> list[Question]:
    """Read problems from JSON lines ``{"question", "answer"}``, or from a package (``zoo``, ``zoo:chain-3``).

    Raises:
        SourceError: no file and no problems of that name.
        CheckpointError: a line is not a problem.
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
            known = ", ".join(sets) or ", ".join(points) or "(no package has any)"
            raise SourceError(f"no problems {name!r}: give a file of JSON lines, or one of {known}")
        rows = sets[one] if one else [row for rows in sets.values() for row in rows]
        found += [Question(row["question"], row["answer"]) for row in rows]
    return found


def is_right(
    text: str, answer: str, tags: ThinkingTags | None = None, judge: Judge = judging.is_right
) -> bool:
    """Whether the text after the reasoning is right, by `justright.evaluate.judge` or another judge."""
    return judge(_content(text, tags), answer)


def _content(text: str, tags: ThinkingTags | None) -> str:
    if tags is not None and tags.close in text:
        return text.rpartition(tags.close)[2]
    return text


def collect(
    engine: LLM,
    questions: Sequence[Question],
    work: Path,
    *,
    max_tokens: int = 1024,
    judge: Judge = judging.is_right,
    tick: ProgressCallback = lambda *_: None,
) -> Outcomes:
    """Answer every problem in both modes, greedily, and judge the answers.

    Args:
        engine: with a switch.
        questions: at least one.
        work: folder of finished chunks; an interrupted run resumes after the last.
        max_tokens: of an answer, with its reasoning.
        judge: decides whether an answer, without its reasoning, is right.
        tick: called with progress in problems.

    Raises:
        CheckpointError: a chunk in ``work`` is damaged.
    """
    work.mkdir(parents=True, exist_ok=True)
    chunks = []
    for begin in range(0, len(questions), _CHUNK):
        file = work / f"chunk-{begin:06d}.safetensors"
        chunk = questions[begin : begin + _CHUNK]
        tick("answering", begin, len(questions))
        if not file.exists():
            tensors, texts = _answer(engine, chunk, max_tokens)
            save_tensors(tensors, file, {mode: json.dumps(answers) for mode, answers in texts.items()})
        chunks.append(_judged(file, chunk, judge))
    tick("answering", len(questions), len(questions))
    joined = {name: torch.cat([one[name] for one in chunks]) for name in chunks[0]}
    return Outcomes(**joined)


def calibrate(
    engine: LLM,
    questions: Sequence[Question],
    adapter: Path,
    *,
    floor: float,
    max_tokens: int = 1024,
    judge: Judge = judging.is_right,
    identity: dict[str, Any] | None = None,
    tick: ProgressCallback = lambda *_: None,
) -> Probe:
    """Fit the probe of ``auto`` and the threshold of ``escalate``, and write them into the adapter's folder.

    Args:
        engine: with the switch ``adapter``.
        questions: some hundred problems with answers, like those of later use.
        adapter: the switch's folder.
        floor: lowest accuracy allowed.
        max_tokens: of an answer, with its reasoning.
        judge: decides whether an answer, without its reasoning, is right.
        identity: further facts that identify the run, for resuming.
        tick: called with progress in problems.

    Raises:
        UsageError: too few problems, an engine without a switch, a floor that cannot be reached, or a folder with
            another job's answers.
    """
    if engine.modes is None or engine.modes.adapter is None:
        raise UsageError("calibration compares two modes, but the engine has no switch; load it with one")
    check_asked(len(questions), floor)
    job = _job(engine, questions, adapter, {"max_tokens": max_tokens, **(identity or {})})
    work, kept = _work_folder(adapter, job), _kept_folder(adapter, job)
    outcomes = collect(engine, questions, work, max_tokens=max_tokens, judge=judge, tick=tick)
    try:
        probe = fit_probe(outcomes, floor, {"max_tokens": max_tokens})
    except UsageError as error:
        raise UsageError(f"{error} (the answers are kept in {work} for the next run)") from error
    if work != kept:
        kept.parent.mkdir(exist_ok=True)
        shutil.rmtree(kept, ignore_errors=True)  # holds no complete answers, or they would have been reused
        shutil.move(work, kept)
    probe.save(adapter)
    return probe


def _job(engine: LLM, questions: Sequence[Question], adapter: Path, more: dict[str, Any]) -> dict[str, Any]:
    """What the models' answers depend on; the right answers are not part of it."""
    files = [adapter / name for name in (WEIGHTS, EXACT) if (adapter / name).is_file()]
    return {
        "questions": [one.question for one in questions],
        "model": None if engine.path is None else weights_identity(engine.path),
        "switch": [file_sha256(file) for file in files],
        **more,
    }


def _kept_folder(adapter: Path, job: dict[str, Any]) -> Path:
    """The folder of a job's complete answers."""
    digest = hashlib.sha256(json.dumps(job, sort_keys=True).encode()).hexdigest()
    return adapter / _KEPT / digest[:12]


def _work_folder(adapter: Path, job: dict[str, Any]) -> Path:
    """The folder of a job's answers: with the calibration if they are complete, otherwise beside the adapter.

    Raises:
        UsageError: the folder holds other work.
    """
    kept, work = _kept_folder(adapter, job), adapter.with_name(f"{adapter.name}.{_KEPT}")
    if _held_job(kept) == job:
        return kept
    if work.exists() and (not work.is_dir() or any(work.iterdir())):
        held = _held_job(work)
        if held is None:
            raise UsageError(f"{work} exists and is not an interrupted calibration; move or delete it")
        if differing := differences(held, job):
            raise UsageError(
                f"{work} holds an interrupted calibration with other settings ({', '.join(differing)} differ); finish "
                "it with its own command, or delete the folder"
            )
    work.mkdir(exist_ok=True)
    write_whole(work / _JOB, json.dumps(job))
    return work


def _held_job(folder: Path) -> dict[str, Any] | None:
    try:
        found = json.loads((folder / _JOB).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _answer(
    engine: LLM, questions: Sequence[Question], max_tokens: int
) -> tuple[dict[str, Tensor], dict[str, list[str]]]:
    """Answer one chunk in both modes, in one batch; returns measurements, and the answers of each mode."""
    assert engine.modes is not None
    observers = [FastObserver() for _ in questions]
    fast, slow = ([_request(engine, q, effort, max_tokens) for q in questions] for effort in ("none", None))
    for request, observer in zip(fast, observers, strict=True):
        request.route = observer
    engine.generate_requests([*slow, *fast])
    states = [observer.hidden for observer in observers]
    tags = engine.modes.tags
    tensors = {
        "hidden": torch.stack([state for state in states if state is not None]),
        "confidence": torch.tensor([observer.confidence for observer in observers]),
        "fast_tokens": torch.tensor([len(r.token_ids) for r in fast]),
        "slow_tokens": torch.tensor([len(r.token_ids) for r in slow]),
    }
    answers = {"fast": [_content(r.text, tags) for r in fast], "slow": [_content(r.text, tags) for r in slow]}
    return tensors, answers


def _judged(file: Path, questions: Sequence[Question], judge: Judge) -> dict[str, Tensor]:
    """A chunk's measurements, and which of its answers are right."""
    try:
        with safe_open(file, "pt") as chunk:
            found = {name: chunk.get_tensor(name) for name in chunk.keys()}  # noqa: SIM118  # no mapping
            texts = {mode: json.loads(chunk.metadata()[mode]) for mode in ("fast", "slow")}
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{file} is damaged; delete it to answer its problems again") from error
    for mode, answers in texts.items():
        rights = [judge(text, one.answer) for text, one in zip(answers, questions, strict=True)]
        found[f"{mode}_right"] = torch.tensor(rights, dtype=torch.bool)
    return found


def _request(engine: LLM, question: Question, effort: str | None, max_tokens: int) -> Request:
    messages = [{"role": "user", "content": question.question}]
    greedy = SamplingParams()  # overrides a bundle's defaults
    return engine.conversation(messages, greedy, thinking=Reasoning(effort), max_tokens=max_tokens)


def _read(path: Path) -> list[Question]:
    found = []
    for where, row in read_rows(path):
        question, answer = (row.get("question"), row.get("answer")) if isinstance(row, dict) else (None, None)
        number = isinstance(answer, int | float) and not isinstance(answer, bool)
        if not isinstance(question, str) or not (isinstance(answer, str) or number):
            raise CheckpointError(
                f'{where} is not a problem; expected {{"question": "...", "answer": "..."}}, or a number as answer'
            )
        found.append(Question(question, str(answer)))
    return found
