"""A reasoning model and the model that it was trained from, checked before any decomposition."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from justright.errors import UsageError
from justright.models.decoder_layers import LayerFormat
from justright.models.matrices import Matrix, expand, matrices
from justright.models.reading import Checkpoint
from justright.models.tokenizers import load_tokenizer
from justright.models.uneven import is_uneven

_BLOCK = 1 << 20
FAR = 0.9
"""Relative distance of two models' matrices above which they are no pair (independent ones have about 1.4)."""


@dataclass(frozen=True, slots=True)
class Residual:
    """A tensor that low rank does not cover, and how far it is apart: ``||slow - fast|| / ||fast||``."""

    name: str
    distance: float


class Pair:
    """Two checkpoints of one shape: ``slow`` thinks, ``fast`` is what it was trained from.

    Args:
        slow: the reasoning model's directory.
        fast: the directory of the model that it was trained from.

    Raises:
        UsageError: different families, shapes or vocabularies, or a first layer so far apart that they are no pair.
        JustrightError: a checkpoint that cannot be read, or is quantised.
    """

    def __init__(self, slow: Path, fast: Path) -> None:
        self.paths = (slow, fast)
        self.slow, self.fast = (LayerFormat(Checkpoint.open(path)) for path in self.paths)
        self.config = self.slow.config
        self._check_shapes()
        self._check_tokenizers()
        distance = self.distance(0)
        if distance > FAR:
            raise UsageError(
                f"{slow} and {fast} differ by {distance:.2f} of their weights' norm in the first layer (two unrelated "
                "models differ by about 1.4): they are no pair; give the model that the slow one was trained from"
            )

    @property
    def layers(self) -> int:
        """Decoder layers."""
        return self.slow.layers

    def notes(self) -> list[str]:
        """What whoever extracts should know beforehand: shared embeddings that moved, templates that do not switch."""
        found = []
        embedding = self.slow.architecture.disk.embedding
        moved = _distance(*self.tensors(embedding))
        self.release()
        if moved > 0:
            found.append(
                f"the embeddings differ by {moved:.0%} of their norm and stay the slow model's: where they were "
                "trained along (most of all if the head is tied to them), no adapter gives the fast model back"
            )
        slow, fast = (load_tokenizer(path).chat_template for path in self.paths)
        if fast is None:
            found.append("the fast model has no chat template: in fast mode the slow model's is used")
        elif slow == fast:
            found.append("both models have the same chat template: only weights switch")
        return found

    def matrices(self, index: int) -> Iterator[tuple[Matrix, Tensor, Tensor]]:
        """The covered matrices of layer ``index``: which, and both models' ``[..., out, in]`` as stored."""
        slow, fast = self.slow.read(index), self.fast.read(index)
        for matrix in expand(matrices(self.config, index), slow):
            yield matrix, matrix.rows(slow[matrix.name]), matrix.rows(fast[matrix.name])

    def distance(self, index: int) -> float:
        """``||slow - fast|| / ||fast||`` over the covered matrices of layer ``index``."""
        above = below = 0.0
        for _, slow, fast in self.matrices(index):
            above += float((slow.float() - fast.float()).square().sum())
            below += float(fast.float().square().sum())
        return (above / below) ** 0.5 if below else 0.0

    def release(self) -> None:
        """Unmap both checkpoints' files: what was read of them would go on counting as memory."""
        self.slow.checkpoint.close()
        self.fast.checkpoint.close()

    def tensors(self, name: str) -> tuple[Tensor, Tensor]:
        """Both models' tensor of a name as in `residuals`, slow first."""
        if not name.startswith("layers."):
            return self.slow.checkpoint.tensor(name), self.fast.checkpoint.tensor(name)
        _, index, leaf = name.split(".", 2)
        return self.slow.read(int(index))[leaf], self.fast.read(int(index))[leaf]

    def residuals(self) -> list[Residual]:
        """The tensors that stay the slow model's: norms, biases, routers, embeddings, head; the farthest first."""
        covered = set()
        found = []
        for index in range(self.layers):
            slow, fast = self.slow.read(index), self.fast.read(index)
            covered = {matrix.name for matrix in expand(matrices(self.config, index), slow)}
            found += [
                Residual(f"layers.{index}.{name}", _distance(tensor, fast[name]))
                for name, tensor in slow.items()
                if name not in covered
            ]
            self.release()
        for name in self.slow.other_names():
            ours, theirs = self.slow.checkpoint.tensor(name), self.fast.checkpoint.tensor(name)
            found.append(Residual(name, _distance(ours, theirs)))
        self.release()
        return sorted(found, key=lambda one: -one.distance)

    def _check_shapes(self) -> None:
        slow, fast = self.slow, self.fast
        if slow.architecture.family != fast.architecture.family:
            raise UsageError(
                f"{self.paths[0]} is {slow.architecture.family}, {self.paths[1]} is {fast.architecture.family}: a pair "
                "is one architecture"
            )
        for path, layers in zip(self.paths, (slow, fast), strict=True):
            if is_uneven(layers.config):
                raise UsageError(
                    f"{path} has different numbers of experts by layer, which switch does not cover"
                )
        name = slow.architecture.disk.embedding
        rows = [layers.checkpoint.shape(name)[0] for layers in (slow, fast)]
        if rows[0] != rows[1]:
            raise UsageError(
                f"the vocabularies differ: {rows[0]} tokens in {self.paths[0]}, {rows[1]} in {self.paths[1]}"
            )
        ours, theirs = ({n: c.shape(n) for n in c} for c in (slow.checkpoint, fast.checkpoint))
        only = sorted(set(ours) ^ set(theirs))
        if only:
            where = self.paths[0] if only[0] in ours else self.paths[1]
            raise UsageError(
                f"{len(only)} tensors are in one model only, {only[0]} (in {where}) first: no pair"
            )
        wrong = next((n for n in ours if ours[n] != theirs[n]), None)
        if wrong:
            raise UsageError(
                f"{wrong} has shape {list(ours[wrong])} in {self.paths[0]} and {list(theirs[wrong])} in {self.paths[1]}"
            )

    def _check_tokenizers(self) -> None:
        """The same token must be the same text in both; a template may differ, and should."""
        slow, fast = (load_tokenizer(path).get_vocab() for path in self.paths)
        moved = [token for token, number in slow.items() if fast.get(token, number) != number]
        if moved:
            raise UsageError(
                f"the vocabularies differ: {moved[0]!r} is token {slow[moved[0]]} in {self.paths[0]} and "
                f"{fast[moved[0]]} in {self.paths[1]} ({len(moved)} differ)"
            )


def _distance(slow: Tensor, fast: Tensor) -> float:
    """Relative distance, in blocks: an embedding in float32 may be larger than everything else in memory."""
    above = below = 0.0
    flat = slow.reshape(-1), fast.reshape(-1)
    for begin in range(0, len(flat[0]), _BLOCK):
        ours, theirs = (tensor[begin : begin + _BLOCK].double() for tensor in flat)
        below += float(theirs.square().sum())
        above += float((ours - theirs).square().sum())
    return math.sqrt(above / below) if below else math.sqrt(above)
