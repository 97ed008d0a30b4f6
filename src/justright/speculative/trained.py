"""The common part of the trained drafters: a directory with ``model.safetensors`` and ``config.json``."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Self

from justright.checkpoint.fingerprint import weights_identity
from justright.errors import SourceError, UsageError
from justright.files import write_durably
from justright.speculative.base import Drafter
from justright.speculative.store import CONFIG, WEIGHTS, find_drafter, read_for


class TrainedDrafter(Drafter):
    """A drafter with weights trained for one verifier.

    Args:
        options: an `options_type`; None: the defaults.
    """

    kind: ClassVar[str]
    """The ``kind`` in ``config.json``: ``lstm`` or ``attention``."""
    options_type: ClassVar[Any]
    """The class of its options, with a field ``path``."""

    def __init__(self, options: Any = None) -> None:
        self.options = options or self.options_type()
        self.folder: Path | None = None
        """Directory of its files; None before `find`."""

    @classmethod
    def from_pretrained(cls, path: str | Path, **options: Any) -> Self:
        """The drafter in a directory or with a hub id. `bind` reads its weights.

        Args:
            path: what `save_pretrained` or ``justright draft train`` wrote, or a hub id.
            options: the drafter's further options.

        Raises:
            SourceError: there is no such drafter.
            CheckpointError: it is damaged, or of another kind.
            UsageError: an option out of range.
        """
        drafter = cls(cls.options_type(path=str(path), **options))
        drafter.find(None)
        return drafter

    def save_pretrained(self, path: str | Path) -> None:
        """Copy the drafter's weights and config into the directory ``path``.

        Raises:
            UsageError: the drafter has no weights yet.
            SourceError: its files no longer exist.
        """
        if self.folder is None:
            raise UsageError("the drafter has no weights: call from_pretrained or bind first")
        target = Path(path)
        try:
            content = {name: (self.folder / name).read_bytes() for name in (WEIGHTS, CONFIG)}
        except OSError as error:
            raise SourceError(f"the drafter in {self.folder} cannot be read: {error}") from error
        target.mkdir(parents=True, exist_ok=True)
        for name, data in content.items():
            write_durably(target / name, data)

    def find(self, model: Path | None) -> tuple[Path, dict[str, Any]]:
        """The drafter's directory and config, validated against the checkpoint ``model`` (None: not validated).

        Raises:
            SourceError: no such drafter, or none for this model.
            CheckpointError: it is damaged.
            UsageError: it was made for another model.
        """
        identity = None if model is None else weights_identity(model)
        folder = find_drafter(self.options.path, identity, self.kind, model)
        about = read_for(folder, identity, self.kind)
        self.folder = folder
        return folder, about

    def check(self, path: Path) -> None:
        """As `Drafter.check`; raises what `find` raises."""
        self.find(path)
