"""Decoding measured: contenders side by side on the same prompts, their outputs compared token for token.

Rounds are interleaved (A B C D, A B C D, ...), so that a machine that slows down slows down for all. Each run's
result is kept as it comes; a measurement that was cut short goes on where it stopped.
"""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from justright.architectures.spec import context_length, rope_switch_length
from justright.bench.agreement import Agreement, Logits, compare
from justright.bench.contenders import (
    LOOKUP,
    TRANSFORMERS,
    Contender,
    ContenderName,
    EngineContender,
    Generation,
    TransformersContender,
    check_names,
    engine_contender,
    engine_logits,
    load_transformers,
    transformers_logits,
)
from justright.bench.peak_memory import peak_bytes
from justright.bench.tasks import Task, build
from justright.checkpoint.reader import Checkpoint
from justright.checkpoint.tokenizer import load_tokenizer
from justright.engine.checks import check_model
from justright.engine.llm import LLM
from justright.engine.options import EngineOptions
from justright.errors import ResourceError, UsageError
from justright.files import write_whole
from justright.kernels.cpu import processor_name
from justright.provenance import collect

FORMAT = 1
_SAME_MACHINE = ("processor", "cores", "threads", "gpu", "versions")
WARM_UP_PROMPT, WARM_UP_TOKENS = 64, 8

Progress = Callable[[str, int, int], None]
"""``(what comes next, runs done, runs in all)``"""


@dataclass(frozen=True, slots=True)
class DecodeSetting:
    """What is measured.

    Attributes:
        contenders: names; see `justright.bench.contenders`.
        tokens: emitted by each run.
        repeats: runs per task and contender.
        engine: options of `EngineOptions` other than the drafter; dtype and device count for transformers too.
    """

    contenders: tuple[str, ...]
    tokens: int = 128
    repeats: int = 3
    engine: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_names(self.contenders)
        if self.tokens < 2 or self.repeats < 1:
            raise UsageError("at least 2 tokens and 1 repeat are needed")


@dataclass(slots=True)
class OpenContenders:
    """Loaded contenders, and what recomputes logits to judge differences by."""

    contenders: list[Contender]
    logits: Logits
    engine: LLM | None
    model: PreTrainedModel | None


def open_contenders(path: Path, setting: DecodeSetting) -> OpenContenders:
    """Load what the contenders need: our engine at most once, transformers' model at most once.

    Raises:
        JustrightError: any of its kinds.
    """
    check_model(path)
    choices = [ContenderName.parse(name) for name in setting.contenders]
    ours = [choice for choice in choices if choice.name not in (TRANSFORMERS, LOOKUP)]
    engine: LLM | None = None
    model: PreTrainedModel | None = None
    if ours:
        greedy = {"generation_config": "none", **setting.engine}
        engine = LLM(str(path), EngineOptions(**greedy, reuse_prefix=True, draft="none"))
        made = {choice.label: engine_contender(choice, engine) for choice in ours}
    if len(ours) < len(choices):
        options = engine.options if engine else EngineOptions(**setting.engine)
        model = load_transformers(path, options.torch_dtype, options.torch_device)
    contenders: list[Contender] = []
    for choice in choices:
        if choice in ours:
            contenders.append(made[choice.label])
        else:
            assert model is not None
            contenders.append(TransformersContender(choice.name, model))

    def logits(prompt: Sequence[int], output: Sequence[int]) -> torch.Tensor:
        if model is not None:
            return transformers_logits(model, prompt, output)
        assert engine is not None
        return engine_logits(engine, prompt, output)

    return OpenContenders(contenders, logits, engine, model)


@dataclass(slots=True)
class Cell:
    """What one contender did on one task.

    Attributes:
        runs: one per repeat.
        agreement: with the reference; None until judged, and where there is nothing to compare with.
        peak_bytes: memory of a process of its own; None if not asked for.
    """

    runs: list[Generation] = field(default_factory=list)
    agreement: Agreement | None = None
    peak_bytes: int | None = None

    def median(self, name: str) -> float:
        """Median over the runs of a figure of `Generation`."""
        return float(statistics.median(self._values(name)))

    def spread(self, name: str) -> tuple[float, float]:
        """Smallest and largest."""
        values = self._values(name)
        return min(values), max(values)

    def _values(self, name: str) -> list[float]:
        values = (getattr(run, name) for run in self.runs)
        return [value for value in values if value is not None] or [0.0]

    def to_dict(self) -> dict[str, Any]:
        """For JSON, with the medians for readers."""
        names = ("tokens_per_s", "prefill_s", "acceptance_length")
        medians = {name: self.median(name) for name in names} if self.runs else {}
        return {"medians": medians} | asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Cell:
        """What `to_dict` gave."""
        runs = [
            Generation(**{**run, "steps": [tuple(step) for step in run["steps"]]}) for run in data["runs"]
        ]
        agreement = None if data["agreement"] is None else Agreement(**data["agreement"])
        return cls(runs, agreement, data["peak_bytes"])


class Results:
    """All cells, kept in a JSON file as they come, if there is one.

    Args:
        setting: what identifies the measurement; a file of another one is refused.
        file: where to keep them; None: nowhere.

    Raises:
        UsageError: the file holds something else, or another measurement.
    """

    def __init__(self, setting: dict[str, Any], file: Path | None = None) -> None:
        self.setting = json.loads(json.dumps(setting))
        self.file = file
        self.cells: dict[str, dict[str, Cell]] = {}
        self.machine = describe_machine()
        """Of the process that began the measurement."""
        self.cost: dict[str, Any] | None = None
        self.contenders: dict[str, Any] = {}
        """What each label means; see `settle`."""
        if file is not None and file.exists():
            self._read(file)

    def cell(self, task: str, contender: str) -> Cell:
        """The cell, made if need be."""
        return self.cells.setdefault(task, {}).setdefault(contender, Cell())

    def settle(self, contenders: Iterable[str]) -> None:
        """Say what each label stands for.

        Raises:
            UsageError: one stood for something else in what was measured before.
        """
        for choice in map(ContenderName.parse, contenders):
            label, meaning = choice.label, choice.meaning()
            if self.contenders.setdefault(label, meaning) != meaning:
                raise UsageError(
                    f"{self.file} has figures of another {label!r} ({self.contenders[label]}, now {meaning}): give it "
                    "another label, or give another --out"
                )

    @property
    def mismatches(self) -> list[str]:
        """Descriptions of the outputs that are wrong."""
        return [
            f"{task}, {name}: {cell.agreement}"
            for task, row in self.cells.items()
            for name, cell in row.items()
            if cell.agreement is not None and cell.agreement.verdict == "mismatch"
        ]

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        cells = {
            task: {name: cell.to_dict() for name, cell in row.items()} for task, row in self.cells.items()
        }
        setting = {"format": FORMAT, "setting": self.setting, "machine": self.machine}
        return setting | {"contenders": self.contenders, "verify_cost": self.cost, "cells": cells}

    def save(self) -> None:
        """Write the file, whole or not at all."""
        if self.file is None:
            return
        self.file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(self.file, json.dumps(self.to_dict(), indent=1) + "\n")

    def _read(self, file: Path) -> None:
        try:
            data = json.loads(file.read_text(encoding="utf-8"))
            same = data["format"] == FORMAT and data["setting"] == self.setting
            cells = data["cells"] if same else {}
            self.cells = {
                task: {name: Cell.from_dict(cell) for name, cell in row.items()}
                for task, row in cells.items()
            }
            self.cost = data["verify_cost"]
            self.contenders = data.get("contenders", {})
            earlier = data["machine"]
        except (ValueError, KeyError, TypeError) as error:
            raise UsageError(f"{file} holds no measurement of justright: give another --out") from error
        if not same:
            raise UsageError(f"{file} holds another measurement (its setting differs): give another --out")
        changed = [name for name in _SAME_MACHINE if earlier.get(name) != self.machine[name]]
        if changed:
            raise UsageError(
                f"{file} was measured under other circumstances ({', '.join(changed)}): give another --out"
            )
        self.machine = earlier


def measure(
    opened: OpenContenders,
    tasks: Iterable[Task],
    setting: DecodeSetting,
    results: Results,
    progress: Progress | None = None,
    *,
    share_prefill: bool = False,
) -> None:
    """Run every contender on every task, round by round, and judge the outputs; what is there already stays.

    With ``share_prefill`` only the first of our contenders runs a prompt; the others take it from the cache.

    Args:
        opened: the contenders.
        tasks: the prompts.
        setting: how much.
        results: takes it all.
        progress: told before each run.
    """
    tasks = list(tasks)
    for contender in opened.contenders:
        contender.run(tasks[0].prompt_ids[:WARM_UP_PROMPT], WARM_UP_TOKENS)
    total = len(tasks) * setting.repeats * len(opened.contenders)
    done = 0
    warm: Task | None = None
    for task in tasks:
        for repeat in range(setting.repeats):
            for contender in opened.contenders:
                cell = results.cell(task.name, contender.name)
                if len(cell.runs) <= repeat:
                    if progress is not None:
                        progress(f"{task.name}: {contender.name}", done, total)
                    again = bool(cell.runs) or (share_prefill and task is warm and _ours(contender))
                    run = contender.run(task.prompt_ids, setting.tokens, again=again)
                    warm = task if _ours(contender) else warm
                    cell.runs.append(run)
                    cell.agreement = None
                    results.save()
                done += 1
        judge(task, opened, setting, results)
        results.save()
    if progress is not None:
        progress("done", total, total)


def _ours(contender: Contender) -> bool:
    return isinstance(contender, EngineContender)


def judge(task: Task, opened: OpenContenders, setting: DecodeSetting, results: Results) -> None:
    """Compare all runs on a task with the reference: transformers' ``generate``, else the first contender.

    A contender alone whose runs agree stays unjudged: there is nothing to compare it with.
    """
    names = [contender.name for contender in opened.contenders]
    reference = TRANSFORMERS if TRANSFORMERS in names else names[0]
    expected = results.cell(task.name, reference).runs[0].token_ids
    for name in names:
        cell = results.cell(task.name, name)
        if cell.agreement is not None:
            continue
        outputs = {tuple(run.token_ids) for run in cell.runs}
        found = [compare(task.prompt_ids, expected, output, opened.logits) for output in outputs]
        short = [Agreement("mismatch", len(output)) for output in outputs if len(output) != setting.tokens]
        order = ("mismatch", "tie", "identical")
        verdict = min([*short, *found], key=lambda one: order.index(one.verdict))
        if len(names) > 1 or verdict.verdict != "identical":
            cell.agreement = verdict


def measure_memory(
    path: Path, task: Task, setting: DecodeSetting, results: Results, progress: Progress | None
) -> None:
    """Fill in the peak memory of every contender on ``task``, each in a process of its own."""
    for index, name in enumerate(setting.contenders):
        cell = results.cell(task.name, ContenderName.parse(name).label)
        if cell.peak_bytes is None:
            if progress is not None:
                progress(f"{task.name}: memory of {name}", index, len(setting.contenders))
            cell.peak_bytes = peak_bytes(path, name, task.kind, task.context, setting.tokens, setting.engine)
            results.save()


def check_room(tasks: Iterable[Task], tokens: int, context: int) -> None:
    """Refuse tasks that do not fit.

    Raises:
        ResourceError: prompt and output together exceed the model's context.
    """
    for task in tasks:
        if len(task.prompt_ids) + tokens > context:
            raise ResourceError(
                f"{task.name} and {tokens} more tokens do not fit the model's context of {context}: "
                "choose a smaller --context"
            )


def fitting_length(path: Path, kinds: Sequence[str], wanted: int, tokens: int) -> int:
    """The length of prompts nearest to ``wanted`` at which the model's tokenizer and context have all tasks.

    Args:
        path: the model's directory.
        kinds: of `justright.bench.tasks.KINDS`.
        wanted: prompt tokens.
        tokens: output tokens that must fit too.

    Raises:
        UsageError: no length fits.
    """
    with Checkpoint.open(path) as checkpoint:
        config = checkpoint.config
    context = min(context_length(config), rope_switch_length(config) or context_length(config))
    most, tokenizer = context - tokens, load_tokenizer(path)
    length = min(wanted, most)
    while True:
        try:
            for kind in kinds:
                build(kind, tokenizer, length)
        except UsageError as error:
            if length >= most:
                raise UsageError(
                    f"{error}; the model's context of {context} leaves {most} beside {tokens} new ones: leave the "
                    "task out (--tasks), or use a model with a longer context"
                ) from error
            length = min(most, length + length // 4 + 1)
        else:
            return length


def describe_machine() -> dict[str, Any]:
    """Machine, date, versions and threads, for beside the figures."""
    record = asdict(collect())
    kept = {name: record[name] for name in ("justright", "git_revision", "versions", "platform", "created")}
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    threads = torch.get_num_threads()
    return kept | {"processor": processor_name(), "cores": os.cpu_count(), "threads": threads, "gpu": gpu}
