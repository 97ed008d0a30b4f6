"""Run problems with known answers in both modes, chunk by chunk, so that a cut run goes on where it stood.

The answers are kept with the calibration (``calibration/`` in the adapter's folder): another floor or another judge
needs no new ones.
"""

from __future__ import annotations

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
from justright.reasoning.budget import ThinkingTags
from justright.reasoning.routing import RoutingDecision, Turn
from justright.reasoning.scorers import Probe
from justright.reasoning.thresholds import Outcomes, check_asked, fit_probe
from justright.records import read_rows

CARRIED = "justright.questions"
"""Entry-point group: a package's problems, a function to ``{name: [{"question": ..., "answer": ...}, ...]}``."""

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
    """A route that takes the fast mode and remembers what a decision could have been based on."""

    hidden: Tensor | None = None
    confidence: float = 0.0
    holds_output: bool = True

    def after_prefill(self, hidden: Tensor) -> tuple[RoutingDecision, Turn | None]:
        """Fast."""
        self.hidden = hidden.float().cpu().clone()
        return RoutingDecision("fast", "calibration", None, None, "measured"), None

    def after_answer(self, finish_reason: str, confidence: float) -> tuple[RoutingDecision, Turn | None]:
        """Fast it stays; a cut answer has no confidence."""
        self.confidence = 0.0 if finish_reason == "length" else confidence
        return RoutingDecision("fast", "calibration", confidence, None, "measured"), None


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


def is_right(
    text: str, answer: str, tags: ThinkingTags | None = None, judge: Judge = judging.is_right
) -> bool:
    """Whether what is said after the reasoning is right, as `justright.evaluate.judge` or another judge finds it."""
    return judge(_said(text, tags), answer)


def _said(text: str, tags: ThinkingTags | None) -> str:
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
        work: folder for finished chunks; an interrupted run goes on behind the last.
        max_tokens: of an answer, thought included.
        judge: says whether an answer, without its reasoning, is right.
        tick: told stage, problems done, problems in all.

    Raises:
        CheckpointError: a chunk in ``work`` is damaged.
    """
    work.mkdir(parents=True, exist_ok=True)
    chunks = []
    for begin in range(0, len(questions), _CHUNK):
        file = work / f"chunk-{begin:06d}.safetensors"
        asked = questions[begin : begin + _CHUNK]
        tick("answering", begin, len(questions))
        if not file.exists():
            tensors, texts = _answer(engine, asked, max_tokens)
            save_tensors(tensors, file, {mode: json.dumps(said) for mode, said in texts.items()})
        chunks.append(_judged(file, asked, judge))
    tick("answering", len(questions), len(questions))
    joined = {name: torch.cat([chunk[name] for chunk in chunks]) for name in chunks[0]}
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
        questions: problems like those that will be asked, with answers; some hundreds.
        adapter: the switch's folder.
        floor: accuracy to hold.
        max_tokens: of an answer, thought included.
        judge: says whether an answer, without its reasoning, is right.
        identity: what else tells this run from another, for resuming.
        tick: told of progress.

    Raises:
        UsageError: too few problems, an engine without a switch, a floor out of reach, or another job's interrupted
            answers in the way.
    """
    if engine.modes is None or engine.modes.adapter is None:
        raise UsageError("calibration compares two modes: load the engine with a switch")
    check_asked(len(questions), floor)
    kept = adapter / _KEPT
    work = _work_folder(
        adapter, _job(engine, questions, adapter, {"max_tokens": max_tokens, **(identity or {})})
    )
    outcomes = collect(engine, questions, work, max_tokens=max_tokens, judge=judge, tick=tick)
    try:
        probe = fit_probe(outcomes, floor, {"max_tokens": max_tokens})
    except UsageError as error:
        raise UsageError(
            f"{error} (the answers are kept in {work}: the next try needs no new ones)"
        ) from error
    if work != kept:
        shutil.rmtree(kept, ignore_errors=True)
        shutil.move(work, kept)
    probe.save(adapter)
    return probe


def _job(engine: LLM, questions: Sequence[Question], adapter: Path, more: dict[str, Any]) -> dict[str, Any]:
    """What the answers depend on; which answer is right does not count."""
    files = [adapter / name for name in (WEIGHTS, EXACT) if (adapter / name).is_file()]
    return {
        "questions": [one.question for one in questions],
        "model": None if engine.path is None else weights_identity(engine.path),
        "switch": [file_sha256(file) for file in files],
        **more,
    }


def _work_folder(adapter: Path, job: dict[str, Any]) -> Path:
    """Where the answers of a job are: with the calibration, if they are complete; else beside the adapter.

    Raises:
        UsageError: other work lies there.
    """
    kept, work = adapter / _KEPT, adapter.with_name(f"{adapter.name}.{_KEPT}")
    if _held_job(kept) == job:
        return kept
    if work.exists() and (not work.is_dir() or any(work.iterdir())):
        held = _held_job(work)
        if held is None:
            raise UsageError(f"{work} holds no interrupted calibration: move it away, or remove it")
        if differing := [key for key in {**held, **job} if held.get(key) != job.get(key)]:
            raise UsageError(
                f"{work} holds interrupted work of another job ({', '.join(differing)} differ): repeat that job's "
                f"command to finish it, or delete {work}"
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
    """Both modes on one chunk, in one batch: measurements, and what each said."""
    assert engine.modes is not None
    watches = [FastObserver() for _ in questions]
    fast, slow = ([_request(engine, q, effort, max_tokens) for q in questions] for effort in ("none", None))
    for request, watch in zip(fast, watches, strict=True):
        request.route = watch
    engine.generate_requests([*slow, *fast])
    states = [watch.hidden for watch in watches]
    tags = engine.modes.tags
    tensors = {
        "hidden": torch.stack([state for state in states if state is not None]),
        "confidence": torch.tensor([watch.confidence for watch in watches]),
        "fast_tokens": torch.tensor([len(r.token_ids) for r in fast]),
        "slow_tokens": torch.tensor([len(r.token_ids) for r in slow]),
    }
    return tensors, {"fast": [_said(r.text, tags) for r in fast], "slow": [_said(r.text, tags) for r in slow]}


def _judged(file: Path, questions: Sequence[Question], judge: Judge) -> dict[str, Tensor]:
    """A chunk's measurements, and which of its answers are right."""
    try:
        with safe_open(file, "pt") as chunk:
            found = {name: chunk.get_tensor(name) for name in chunk.keys()}  # noqa: SIM118  # no mapping
            texts = {mode: json.loads(chunk.metadata()[mode]) for mode in ("fast", "slow")}
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{file} is damaged: delete it, and its problems are answered again") from error
    for mode, said in texts.items():
        rights = [judge(text, one.answer) for text, one in zip(said, questions, strict=True)]
        found[f"{mode}_right"] = torch.tensor(rights, dtype=torch.bool)
    return found


def _request(engine: LLM, question: Question, effort: str | None, max_tokens: int) -> Request:
    messages = [{"role": "user", "content": question.question}]
    greedy = SamplingParams()  # whatever a bundle says
    return engine.conversation(messages, greedy, thinking=Reasoning(effort), max_tokens=max_tokens)


def _read(path: Path) -> list[Question]:
    found = []
    for where, row in read_rows(path):
        question, answer = (row.get("question"), row.get("answer")) if isinstance(row, dict) else (None, None)
        number = isinstance(answer, int | float) and not isinstance(answer, bool)
        if not isinstance(question, str) or not (isinstance(answer, str) or number):
            raise CheckpointError(
                f'{where} is no problem: {{"question": "...", "answer": "..."}} is expected, or a number as answer'
            )
        found.append(Question(question, str(answer)))
    return found
