"""A short digest that identifies a checkpoint's weights without reading all of them."""

from __future__ import annotations

import hashlib
from pathlib import Path

from justright.checkpoint.reader import Checkpoint

_SAMPLE = 256
_known: dict[tuple[tuple[Path, int, int], ...], str] = {}


def weights_identity(path: Path | Checkpoint) -> str:
    """Sixteen hexadecimal digits: names, shapes, dtypes, and the first and last 256 bytes of every tensor's values.

    Two trainings of one model differ in every matrix, so a part of each is enough. A copy, another sharding, a
    sparse container's unpacked form, and a GGUF file's values as float32 have the digest of the original.

    The result is cached per process by path, size and modification time, since bundle, switch and drafter all use it.

    Raises:
        CheckpointError: The checkpoint cannot be read.
    """
    with Checkpoint.open(path) as checkpoint:
        stats = [(file.resolve(), file.stat()) for file in checkpoint.files()]
        key = tuple((file, stat.st_size, stat.st_mtime_ns) for file, stat in stats)
        if key not in _known:
            _known[key] = _digest(checkpoint)
        return _known[key]


def _digest(checkpoint: Checkpoint) -> str:
    digest = hashlib.sha256()
    for name in sorted(checkpoint):
        info = checkpoint.info(name)
        digest.update(f"{name} {info.dtype} {list(info.shape)}\n".encode())
        for part in checkpoint.ends(name, _SAMPLE):
            digest.update(part)
    return digest.hexdigest()[:16]
