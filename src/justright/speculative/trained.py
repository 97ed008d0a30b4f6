"""The common part of the trained drafters: a directory with ``model.safetensors`` and ``config.json``."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Self

from justright.checkpoint.fingerprint import weights_identity
from justright.errors import SourceError, UsageError
from justright.files import write_durably
from justright.speculative.base import Drafter, check_number
from justright.speculative.store import CONFIG, WEIGHTS, find_drafter, read_for
from justright.speculative.tree import TreeShape

_SHAPE = {"nodes": 1024, "depth": 64, "top_k": 64}
"""The options of a tree's shape, and their maxima."""


@dataclass(frozen=True, slots=True)
class TrainedOptions:
    """The options of every trained drafter, validated once.

    Attributes:
        path: a drafter's directory or hub id; None: the one for this model in an installed package.
        nodes: the maximum number of nodes of a tree, without [SPEC]; None: the best on this machine.
        depth: levels of a tree, or tokens of a chain; None: the best on this machine.
        top_k: nodes expanded per level, and children of each; 1: a chain; None: the best on this machine.
        min_prob: do not follow paths with a lower probability.
    """

    path: str | None = None
    nodes: int | None = None
    depth: int | None = None
    top_k: int | None = None
    min_prob: float = 0.02

    def __post_init__(self) -> None:
        if self.path is not None and not isinstance(self.path, str):
            raise UsageError(f"trained drafts: path is {self.path!r}; allowed: a directory or a hub id")
        for name, high in _SHAPE.items():
            if getattr(self, name) is not None:
                check_number(self, "trained drafts", name, 1, high, whole=True)
        check_number(self, "trained drafts", "min_prob", 0, 1)

    @property
    def shape(self) -> dict[str, int | None]:
        """The options of a tree's shape; None where the best is to be found."""
        return {name: getattr(self, name) for name in _SHAPE}


class TrainedDrafter(Drafter):
    """A drafter with weights trained for one verifier.

    Args:
        options: an `options_type`; None: the defaults.
    """

    kind: ClassVar[str]
    """The ``kind`` in ``config.json``: ``lstm`` or ``attention``."""
    options_type: ClassVar[type[TrainedOptions]]
    untuned: ClassVar[TreeShape]
    """The shape of its trees where its config has no table of trees."""

    def __init__(self, options: Any = None) -> None:
        self.options: Any = options or self.options_type()
        self.shape = self._settled(self.untuned)
        """The shape of its trees: from the options, else from `tune`, else `untuned`."""
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

    def _settled(self, shape: TreeShape) -> TreeShape:
        """``shape`` with the values that the options give."""
        given = {name: value for name, value in self.options.shape.items() if value is not None}
        return replace(shape, **given, min_prob=self.options.min_prob)

    def check(self, path: Path) -> None:
        """As `Drafter.check`; raises what `find` raises."""
        self.find(path)
