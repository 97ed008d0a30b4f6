"""The difference of a pair's matrices as singular values and directions, layer by layer, kept for any rank rule.

A folder of spectra has a file for each layer with, for every matrix NAME (an expert of a stack is ``NAME#3``),
``NAME.s`` (all singular values), ``NAME.u`` ``[out, kept]`` and ``NAME.vt`` ``[kept, in]``, all float32. An interrupted
run goes on at the first layer that has none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from justright.errors import UsageError
from justright.models.matrices import Matrix
from justright.switch.pair import Pair

Tick = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class Spectrum:
    """All singular values of one matrix' difference, descending float32, and its ``(out, in)``."""

    values: Tensor
    shape: tuple[int, int]


def decompose(delta: Tensor, kept: int) -> tuple[Tensor, Tensor, Tensor]:
    """``(u [out, kept], s [min(out, in)], vt [kept, in])`` of ``delta`` ``[out, in]``, float32; exact.

    Source: arXiv:2510.06750 (``Delta = U S V^T``).
    """
    u, s, vt = torch.linalg.svd(delta.float(), full_matrices=False)
    return u[:, :kept].contiguous(), s, vt[:kept].contiguous()


class Spectra:
    """What `make_spectra` left in a folder.

    Args:
        folder: of the layers' files.
        layers: how many.
    """

    def __init__(self, folder: Path, layers: int) -> None:
        self.folder, self.layers = folder, layers

    def spectra(self) -> dict[str, Spectrum]:
        """``layers.INDEX.NAME`` -> spectrum, of every covered matrix."""
        found = {}
        for index in range(self.layers):
            with safe_open(self.file(index), framework="pt") as file:
                for key in file.keys():  # noqa: SIM118  # safetensors' file is no mapping
                    if key.endswith(".s"):
                        name = key.removesuffix(".s")
                        rows = file.get_slice(f"{name}.u").get_shape()[0]
                        columns = file.get_slice(f"{name}.vt").get_shape()[1]
                        found[f"layers.{index}.{name}"] = Spectrum(file.get_tensor(key), (rows, columns))
        return found

    def factors(self, index: int, name: str, rank: int) -> tuple[Tensor, Tensor, Tensor]:
        """``(u [out, rank], s [rank], vt [rank, in])`` of one matrix.

        Raises:
            UsageError: fewer directions were kept.
        """
        with safe_open(self.file(index), framework="pt") as file:
            u, s, vt = (file.get_tensor(f"{name}.{part}") for part in ("u", "s", "vt"))
        if rank > u.shape[1]:
            raise UsageError(
                f"{name} of layer {index} needs rank {rank} and the spectra keep {u.shape[1]}: decompose again with a "
                "larger --max-rank, or ask for less"
            )
        return u[:, :rank], s[:rank], vt[:rank]

    def file(self, index: int) -> Path:
        """The file of one layer."""
        return self.folder / f"layer-{index:05d}.safetensors"


def make_spectra(pair: Pair, folder: Path, kept: int, tick: Tick = lambda *_: None) -> Spectra:
    """Decompose every covered matrix; layers whose file is there are left as they are.

    Args:
        pair: checked.
        folder: to fill.
        kept: directions of each matrix at most.
        tick: told stage, layers done, layers in all.

    Raises:
        UsageError: the models are identical.
    """
    folder.mkdir(parents=True, exist_ok=True)
    found = Spectra(folder, pair.layers)
    for index in range(pair.layers):
        tick("decomposing", index, pair.layers)
        if found.file(index).exists():
            continue
        tensors = {}
        for name, _, delta in deltas(pair, index):
            tensors[f"{name}.u"], tensors[f"{name}.s"], tensors[f"{name}.vt"] = decompose(delta, kept)
        partial = found.file(index).with_suffix(".partial")
        save_file(tensors, partial)
        partial.replace(found.file(index))
    tick("decomposing", pair.layers, pair.layers)
    if all(float(one.values.max()) == 0 for one in found.spectra().values()):
        raise UsageError(
            f"{pair.paths[0]} and {pair.paths[1]} have the same matrices: there is nothing to switch"
        )
    return found


def deltas(pair: Pair, index: int) -> Iterator[tuple[str, Matrix, Tensor]]:
    """``(name, matrix, slow - fast [out, in] float32)`` of layer ``index``; experts of a stack one by one."""
    for matrix, slow, fast in pair.matrices(index):
        if not matrix.stacked:
            yield matrix.name, matrix, slow.float() - fast.float()
            continue
        for expert in range(len(slow)):
            yield f"{matrix.name}#{expert}", matrix, slow[expert].float() - fast[expert].float()
