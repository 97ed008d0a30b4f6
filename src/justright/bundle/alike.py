"""Prune the two models of a pair alike: the same experts, and zeros in the same places.

A switch is the difference of two models. If each were pruned by its own scores, they would differ in every weight that
only one of them lost, and no low-rank matrix describes such a difference.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from justright.checkpoint.reader import Checkpoint
from justright.checkpoint.writer import CheckpointWriter
from justright.model.decoder_layer import LayerFormat
from justright.progress import ProgressCallback
from justright.prune.pipeline import Pruning
from justright.prune.plan import FILE_NAME as PLAN
from justright.prune.plan import Plan
from justright.prune.preflight import is_matrix
from justright.prune.settings import Settings


def prune_alike(model: Path, like: Path, out: Path, settings: Settings, tick: ProgressCallback) -> None:
    """Remove from ``model`` what was removed from its twin; the same call resumes an interrupted run.

    Args:
        model: a checkpoint directory.
        like: the pruned twin.
        out: the directory to create.
        settings: of the twin's pruning.
        tick: called with progress.

    Raises:
        JustrightError: see `Pruning` and `CheckpointWriter`.
    """
    plan = replace(Plan.read(like / PLAN), sparsity={})
    source = model
    if plan.experts:
        alone = Settings(weights="none", parts=settings.parts)
        source = out if settings.weights == "none" else out.with_name("experts")
        if not source.exists():
            Pruning(model, alone, plan=plan).run(source, tick)
    if source != out:
        same_zeros(source, like, out, settings.parts, tick)


def same_zeros(model: Path, like: Path, out: Path, parts: tuple[str, ...], tick: ProgressCallback) -> None:
    """Write ``model`` with the zeros of the prunable matrices of ``like``, a checkpoint of the same shape."""
    with Checkpoint.open(model) as ours, Checkpoint.open(like) as theirs:
        layers = LayerFormat(theirs)
        masked = {
            name
            for index in range(layers.spec.num_layers)
            for name in layers.disk_names(index)
            if layers.spec.part(name) in parts and is_matrix(layers, name)
        }
        fingerprint: dict[str, Any] = {"zeros_of": str(like), "parts": list(parts)}
        with CheckpointWriter(
            out, fingerprint=fingerprint, source=model, expected_bytes=ours.nbytes
        ) as writer:
            for done, name in enumerate(ours, 1):
                tensor = ours.tensor(name)
                writer.add(name, tensor * (theirs.tensor(name) != 0) if name in masked else tensor)
                tick("zeros", done, len(ours))
            writer.finish(ours.config)
