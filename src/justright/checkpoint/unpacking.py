"""Convert a sparse container to an ordinary checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from justright.checkpoint.reader import Checkpoint
from justright.checkpoint.writer import CheckpointWriter
from justright.errors import CheckpointError, UsageError
from justright.provenance import collect


def unpack_checkpoint(source: Path, out: Path, tick: Callable[[int, int], None] = lambda *_: None) -> Path:
    """Write the container or GGUF file ``source`` as a plain checkpoint ``out``; after an interruption, it resumes.

    Args:
        source: Directory of the container, or of the GGUF file.
        out: Directory to create.
        tick: Progress callback; receives the finished and the total tensors.

    Raises:
        UsageError: ``source`` is an ordinary checkpoint, or ``out`` exists.
        CheckpointError: The container or file is damaged.
    """
    with Checkpoint.open(source) as checkpoint:
        if not checkpoint.packed and checkpoint.gguf is None:
            raise UsageError(
                f"{source} is already an ordinary checkpoint: give a sparse container or a GGUF file"
            )
        expected = sum(checkpoint.plain_bytes(name) for name in checkpoint)
        fingerprint = {"unpack": str(source.resolve()), "bytes": checkpoint.nbytes}
        with CheckpointWriter(out, fingerprint=fingerprint, source=source, expected_bytes=expected) as writer:
            for number, name in enumerate(checkpoint):
                tick(number, len(checkpoint))
                tensor = checkpoint.tensor(name)
                if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
                    raise CheckpointError(
                        f"{source} is damaged: {name} holds NaN or infinite values. Fetch or copy the container again"
                    )
                writer.add(name, tensor)
            extra = ("plan.json", "prune.json", "report.html")
            files = {n: (source / n).read_bytes() for n in extra if (source / n).is_file()}
            tick(len(checkpoint), len(checkpoint))
            return writer.finish(
                checkpoint.config, files=files, provenance=collect(inputs={"packed": source})
            )
