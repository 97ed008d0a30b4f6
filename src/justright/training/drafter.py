"""Train a drafter with one call."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from justright.checkpoint.sources import resolve
from justright.training.pipeline import Job, Trained, TrainingJob


def train_drafter(model: str | Path, out: str | Path, texts: Sequence[str], **options: Any) -> Trained:
    """Train a drafter for a model on its own continuations of texts.

    Args:
        model: see `justright.checkpoint.sources.resolve`.
        out: the directory to create; the same call resumes an interrupted run.
        texts: sources of prompts, see `justright.calibration.texts`.
        options: further fields of `Job`: ``shape``, ``data``, ``training``, ``switch``, ``data_folder``, ``device``.

    Raises:
        JustrightError: see `TrainingJob`.
    """
    return TrainingJob(Job(resolve(str(model)).path, Path(out), tuple(texts), **options)).run()
