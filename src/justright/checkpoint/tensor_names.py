"""Map the tensor names that transformers can load to one canonical name per tensor.

The names on disk depend on the class and the release that saved them. Users of `Checkpoint` see only the names of the
architecture table's ``disk`` column; this module maps all others to them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from justright.architectures.schema import Architecture
from justright.architectures.spec import architecture_of
from justright.errors import CheckpointError, UnsupportedModelError

_OUTER = ("layers.", "embed_tokens.", "norm.")


def canonical_names(stored: Iterable[str], config: Mapping[str, Any], where: object) -> dict[str, str]:
    """``{the table's name: the name in the file}`` of every tensor.

    - Names of the model in memory, where they differ from those on disk (gemma3: ``model.language_model.layers``).
    - Names of the base class, which has no head (``layers.0``, where the causal model says ``model.layers.0``).
    - A head alone where the embedding is tied to it: it is the embedding.

    Args:
        stored: Names in the files.
        config: Content of ``config.json``; names of an unknown family are unchanged.
        where: Path for messages.

    Raises:
        CheckpointError: Two tensors would get the same name.
    """
    try:
        row = architecture_of(config)
    except UnsupportedModelError:
        return {name: name for name in stored}
    found: dict[str, str] = {}
    for name in stored:
        known = _canonical(name, row)
        if known in found:
            raise CheckpointError(
                f"{where} holds both {name} and {found[known]}, two names of one tensor: two versions are mixed. Fetch "
                "the checkpoint again into an empty directory"
            )
        found[known] = name
    inner = config.get("text_config")
    tied = [c.get("tie_word_embeddings") for c in (config, inner) if isinstance(c, Mapping)]
    if row.disk.embedding not in found and row.disk.head in found and any(tied):
        found[row.disk.embedding] = found.pop(row.disk.head)
    return found


def _canonical(name: str, row: Architecture) -> str:
    disk, memory = row.disk, row.memory
    if name.startswith(disk.stem + ".") or name == disk.head:
        return name
    if name == memory.head:
        return disk.head
    base = memory.stem.removeprefix("model").removeprefix(".")
    for stem in (memory.stem + ".", base + "." if base else ""):
        rest = name.removeprefix(stem)
        if name.startswith(stem) and rest.startswith(_OUTER):
            return f"{disk.stem}.{rest}"
    return name
