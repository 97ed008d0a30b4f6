"""A reasoning model and its base model, validated as a pair before any decomposition."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

from torch import Tensor

from justright.adapter.pair_settings import function_differences
from justright.checkpoint.finite import check_finite
from justright.checkpoint.reader import Checkpoint
from justright.checkpoint.tokenizer import load_tokenizer
from justright.errors import UsageError
from justright.files import by_number
from justright.model.decoder_layer import LayerFormat
from justright.model.matrices import Matrix, expand, matrices

_BLOCK = 1 << 20
_COMPUTED = ".rotary_emb.inv_freq"
"""Name suffix of a buffer in old checkpoints; transformers computes it and never loads it."""
FAR = 0.9
"""Largest relative distance between the matrices of a pair (unrelated models have about 1.4)."""


class Pair:
    """Two checkpoints of one shape: ``slow`` is the reasoning model, ``fast`` is the model it was trained from.

    The embeddings and the head of the slow model stay in use. Therefore only one of the heads may be tied, and either
    model may have extra token rows; the comparison covers the rows that both have.

    Args:
        slow: Directory of the reasoning model.
        fast: Directory of the model that it was trained from.

    Raises:
        UsageError: The families, shapes, vocabularies or function-changing settings differ, or the first layers are
            too far apart for a pair.
        JustrightError: A checkpoint cannot be read, or is quantised.
    """

    def __init__(self, slow: Path, fast: Path) -> None:
        self.paths = (slow, fast)
        self.slow, self.fast = (LayerFormat(Checkpoint.open(path)) for path in self.paths)
        self._check_shapes()
        self._check_function()
        self._check_tokenizers()
        distance = self.distance(0)
        if distance > FAR:
            raise UsageError(
                f"{slow} and {fast} are not a pair: they differ by {distance:.2f} of their weights' norm in the first "
                "layer (unrelated models: about 1.4). Give the model that the slow model was trained from"
            )

    @property
    def layers(self) -> int:
        """Number of decoder layers."""
        return self.slow.spec.num_layers

    def notes(self) -> list[str]:
        """Warnings before extraction, such as changed embeddings or chat templates that do not switch."""
        found = []
        disk = self.slow.architecture.disk
        moved = max(_distance(*self.tensors(name)) for name in (disk.embedding, disk.head))
        self.release()
        if moved > 0:
            found.append(
                f"the embeddings or the head differ by {moved:.0%} of their norm, and fast mode keeps the slow ones. "
                "The switch cannot fully restore the fast model, least of all if the head is tied to the embeddings"
            )
        slow, fast = (load_tokenizer(path).chat_template for path in self.paths)
        if fast is None:
            found.append("the fast model has no chat template: fast mode uses the slow model's")
        elif slow == fast:
            found.append("both models have the same chat template: fast mode changes only the weights")
        return found

    def matrices(self, index: int) -> Iterator[tuple[Matrix, Tensor, Tensor]]:
        """Yield each covered matrix of layer ``index`` with both models' ``[..., out, in]`` tensors as stored."""
        slow, fast = self.slow.read(index), self.fast.read(index)
        for matrix in expand(matrices(self.slow.spec, index), slow):
            yield matrix, matrix.rows(slow[matrix.name]), matrix.rows(fast[matrix.name])

    def distance(self, index: int) -> float:
        """Return ``||slow - fast|| / ||fast||`` over the covered matrices of layer ``index``."""
        above = below = 0.0
        for _, slow, fast in self.matrices(index):
            above += float((slow.float() - fast.float()).square().sum())
            below += float(fast.float().square().sum())
        return (above / below) ** 0.5 if below else 0.0

    def release(self) -> None:
        """Unmap both checkpoints' files, because pages already read keep counting as memory."""
        self.slow.checkpoint.close()
        self.fast.checkpoint.close()

    def tensors(self, name: str) -> tuple[Tensor, Tensor]:
        """Return both models' tensor of a `residuals` name, slow first; embeddings and head have common rows only."""
        if name in self._vocabulary:
            slow, fast = (one.checkpoint.tensor(_stored(one, name)) for one in (self.slow, self.fast))
            rows = min(len(slow), len(fast))
            return slow[:rows], fast[:rows]
        if not name.startswith("layers."):
            return self.slow.checkpoint.tensor(name), self.fast.checkpoint.tensor(name)
        _, index, leaf = name.split(".", 2)
        return self.slow.read(int(index))[leaf], self.fast.read(int(index))[leaf]

    def residuals(self) -> dict[str, float]:
        """List the tensors outside the adapter (norms, biases, routers, embeddings, head), the most distant first."""
        found: dict[str, float] = {}
        for index in range(self.layers):
            slow, fast = self.slow.read(index), self.fast.read(index)
            covered = {matrix.name for matrix in expand(matrices(self.slow.spec, index), slow)}
            for name in [n for n in slow if n not in covered and not n.endswith(_COMPUTED)]:
                found[f"layers.{index}.{name}"] = _distance(slow[name], fast[name])
            self.release()
        names = [name for name in self.slow.other_names() if not name.endswith(_COMPUTED)]
        for name in dict.fromkeys((*names, *self._vocabulary)):
            found[name] = _distance(*self.tensors(name))
        self.release()
        return dict(sorted(found.items(), key=lambda one: -one[1]))

    def check_finite(self) -> None:
        """Read every tensor of both models once and validate it.

        Raises:
            CheckpointError: A weight is NaN or infinite.
        """
        for layers in (self.slow, self.fast):
            for name in layers.checkpoint:
                tensor = layers.checkpoint.tensor(
                    name, copy=True
                )  # a mapped tensor would keep counting as memory
                check_finite({name: tensor}, layers.checkpoint.path)

    @property
    def _vocabulary(self) -> tuple[str, str]:
        """Names of the embedding and the head on disk."""
        disk = self.slow.architecture.disk
        return disk.embedding, disk.head

    def _check_shapes(self) -> None:
        slow, fast = self.slow, self.fast
        if slow.architecture.family != fast.architecture.family:
            raise UsageError(
                f"{self.paths[0]} is {slow.architecture.family} and {self.paths[1]} is {fast.architecture.family}: "
                "give two models of one architecture"
            )
        for path, layers in zip(self.paths, (slow, fast), strict=True):
            if layers.spec.is_uneven:
                raise UsageError(
                    f"the layers of {path} have different numbers of experts, which a switch does not support: give a "
                    "model with equal layers"
                )
        ours, theirs = (
            {
                name: one.checkpoint.shape(name)[1:]
                if name in self._vocabulary
                else one.checkpoint.shape(name)
                for name in one.checkpoint
                if not name.endswith(_COMPUTED) and name != one.architecture.disk.head
            }
            for one in (slow, fast)
        )
        only = sorted(set(ours) ^ set(theirs), key=by_number)
        if only:
            where = self.paths[0] if only[0] in ours else self.paths[1]
            raise UsageError(
                f"{len(only)} tensors are in one of the two models only, such as {only[0]} in {where}: give two models "
                "with the same tensors"
            )
        wrong = next((n for n in ours if ours[n] != theirs[n]), None)
        if wrong:
            raise UsageError(
                f"{wrong} has shape {list(ours[wrong])} in {self.paths[0]} and {list(theirs[wrong])} in "
                f"{self.paths[1]}: give two models with the same shapes"
            )

    def _check_function(self) -> None:
        """Validate that all settings that affect the function agree, since an adapter changes only weights."""
        differ = function_differences(self.slow.checkpoint, self.fast.checkpoint)
        if differ:
            shown = "; ".join(
                f"{key}: {ours} and {theirs}" for key, (ours, theirs) in list(differ.items())[:4]
            )
            shown += f"; {len(differ) - 4} more" if len(differ) > 4 else ""
            raise UsageError(
                f"{self.paths[0]} and {self.paths[1]} differ in settings that a switch cannot change ({shown}). Give "
                "the model that the slow model was trained from; if the difference has no effect, write the same value "
                "in both config.json"
            )

    def _check_tokenizers(self) -> None:
        """Validate that each token means the same text in both models; the templates may differ."""
        slow, fast = (load_tokenizer(path).get_vocab() for path in self.paths)
        embedding = self.slow.architecture.disk.embedding
        rows, theirs = (one.checkpoint.shape(embedding)[0] for one in (self.slow, self.fast))
        beyond = next((token for token, number in fast.items() if rows <= number < theirs), None)
        if beyond is not None:
            raise UsageError(
                f"the vocabularies differ: {beyond!r} is token {fast[beyond]} in {self.paths[1]}, but {self.paths[0]} "
                f"has embeddings for {rows} tokens. Give two models with the same vocabulary"
            )
        moved = [token for token, number in slow.items() if fast.get(token, number) != number]
        if moved:
            raise UsageError(
                f"the vocabularies differ: {moved[0]!r} is token {slow[moved[0]]} in {self.paths[0]} and "
                f"{fast[moved[0]]} in {self.paths[1]} ({len(moved)} differ). Give two models with the same vocabulary"
            )


def _stored(layers: LayerFormat, name: str) -> str:
    """Return the stored tensor of the embedding or the head; a tied head uses the embedding, even if it is stored."""
    disk = layers.architecture.disk
    if name == disk.head and (name not in layers.checkpoint or layers.spec.tied):
        return disk.embedding
    return name


def _distance(slow: Tensor, fast: Tensor) -> float:
    """Relative distance, in blocks: a whole embedding in float64 may exceed everything else in memory."""
    above = below = 0.0
    flat = slow.reshape(-1), fast.reshape(-1)
    for begin in range(0, len(flat[0]), _BLOCK):
        ours, theirs = (tensor[begin : begin + _BLOCK].double() for tensor in flat)
        below += float(theirs.square().sum())
        above += float((ours - theirs).square().sum())
    return math.sqrt(above / below) if below else math.sqrt(above)
