"""Evaluate before and after pruning with the caller's function, and save figures to avoid repeated work."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from justright.files import write_whole
from justright.progress import ProgressCallback
from justright.prune.outcome import HTML, JSON, Pruned, read_pruned
from justright.prune.report import with_evaluation
from justright.prune.settings import Settings

Evaluate = Callable[[Path], list[dict[str, Any]]]
"""A checkpoint's figures, JSON-ready: task, metric, value, low, high (of a 95% interval, or None)."""


def evaluate_source(
    work: Path, model: Path, evaluate: Evaluate, tick: ProgressCallback
) -> list[dict[str, Any]]:
    """Evaluate the unpruned model, or reuse an interrupted run's figures from ``work``."""
    file = work / "before.json"
    if not file.exists():
        tick("evaluating the source", 0, 1)
        found = evaluate(model)
        work.mkdir(parents=True, exist_ok=True)
        write_whole(file, json.dumps(found))
        tick("evaluating the source", 1, 1)
    before: list[dict[str, Any]] = json.loads(file.read_text(encoding="utf-8"))
    return before


def lacks_evaluation(out: Path, settings: Settings, asked: Mapping[str, Any] | None) -> bool:
    """Whether ``out`` is complete with equal settings and lacks only the second half of the same evaluation."""
    try:
        found = json.loads((out / JSON).read_text(encoding="utf-8"))
        evaluation = found["evaluation"]
        same = found["settings"] == settings.to_dict() and evaluation["asked"] == dict(asked or {})
        return same and evaluation["after"] is None
    except (OSError, ValueError, KeyError, TypeError):
        return False


def evaluate_result(out: Path, evaluate: Evaluate, tick: ProgressCallback) -> Pruned:
    """Evaluate the pruned model and add the figures to its report."""
    tick("evaluating the result", 0, 1)
    after = evaluate(out)
    found = json.loads((out / JSON).read_text(encoding="utf-8"))
    found["evaluation"]["after"] = after
    page = (out / HTML).read_text(encoding="utf-8")
    write_whole(out / HTML, with_evaluation(page, found["evaluation"]))
    write_whole(out / JSON, json.dumps(found, indent=1) + "\n")
    tick("evaluating the result", 1, 1)
    return read_pruned(out)
