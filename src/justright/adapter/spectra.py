"""Singular value decompositions of a pair's weight differences, stored by layer for use with any rank rule.

A spectra folder has one file per layer. For every matrix NAME (``NAME#3`` for an expert of a stack) it holds
``NAME.s`` (the singular values), ``NAME.u`` ``[out, kept]`` and ``NAME.vt`` ``[kept, in]``, all float32, and
``NAME.energy``, ``sum s^2`` in float64. An interrupted run resumes with the layers that have no file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from safetensors import safe_open
from torch import Tensor

from justright.adapter.pair import Pair
from justright.errors import CheckpointError, UsageError
from justright.files import by_number, save_tensors
from justright.model.matrices import Matrix
from justright.progress import ProgressCallback

CPU = torch.device("cpu")


Method = Literal["exact", "randomized"]
METHODS: tuple[Method, ...] = ("exact", "randomized")

TOLERANCE = 1e-3
"""Maximum energy that randomized directions lose against the best ones, as a fraction of the total energy."""
_OVERSAMPLE = 16
_MAX_ITERATIONS = 12


@dataclass(frozen=True, slots=True)
class Spectrum:
    """Singular values of the difference of one matrix.

    Attributes:
        values: Descending float32; only the largest ones if not ``whole``.
        shape: ``(out, in)``.
        energy: ``sum s^2`` of all singular values; exact in either case.
    """

    values: Tensor
    shape: tuple[int, int]
    energy: float

    @property
    def whole(self) -> bool:
        """Whether ``values`` holds all singular values."""
        return len(self.values) == min(self.shape)

    def filled(self) -> Tensor:
        """All values; unknown ones share the remaining energy equally.

        A rank by energy (power 2) within the known values is then exact; for a larger rank, requesting the
        directions fails.
        """
        unknown = min(self.shape) - len(self.values)
        if unknown == 0:
            return self.values
        left = max(0.0, self.energy - float(self.values.double().square().sum()))
        each = min((left / unknown) ** 0.5, float(self.values[-1]))
        return torch.cat([self.values, torch.full((unknown,), each)])


def decompose(delta: Tensor, kept: int, method: Method = "exact") -> tuple[Tensor, Tensor, Tensor]:
    """``(u [out, kept], s, vt [kept, in])`` of ``delta`` ``[out, in]``, float32.

    ``s`` has all ``min(out, in)`` singular values if exact, and the largest ``kept`` if randomized.

    Source: arXiv:2510.06750 (``Delta = U S V^T``).
    """
    delta = delta.float()
    if method == "randomized" and kept + _OVERSAMPLE < min(delta.shape):
        return _randomized(delta, kept)
    if delta.shape[0] < delta.shape[1]:  # LAPACK is a fifth faster on tall matrices
        v, s, ut = torch.linalg.svd(delta.T.contiguous(), full_matrices=False)
        u, vt = ut.T, v.T
    else:
        u, s, vt = torch.linalg.svd(delta, full_matrices=False)
    return u[:, :kept].contiguous(), s, vt[:kept].contiguous()


def _randomized(delta: Tensor, kept: int) -> tuple[Tensor, Tensor, Tensor]:
    """Run subspace iteration until a further round adds less than a tenth of `TOLERANCE` of the energy.

    The error is exact, not estimated: ``||delta - u s vt||_F^2 = ||delta||_F^2 - sum s^2``, because the columns of
    ``q`` are orthonormal.

    Source: arXiv:0909.4061, algorithms 4.4 and 5.1.
    Differs: the number of rounds is adaptive.
    """
    generator = torch.Generator(delta.device).manual_seed(0)
    total = float(delta.square().sum(dtype=torch.float64))
    width = kept + _OVERSAMPLE
    start = torch.randn(delta.shape[1], width, generator=generator, device=delta.device)
    q = torch.linalg.qr(delta @ start).Q
    rows, before = q.T @ delta, 0.0
    for _ in range(_MAX_ITERATIONS):
        values = torch.linalg.eigvalsh((rows @ rows.T).double()).flip(0)
        held = float(values[:kept].sum())
        if held - before <= TOLERANCE / 10 * total:
            break
        before = held
        q = torch.linalg.qr(delta @ torch.linalg.qr(rows.T).Q).Q
        rows = q.T @ delta
    u, s, vt = torch.linalg.svd(rows, full_matrices=False)
    return (q @ u[:, :kept]).contiguous(), s[:kept].contiguous(), vt[:kept].contiguous()


class SpectraFolder:
    """Reads a folder written by `make_spectra`.

    Args:
        folder: Folder of the layers' files.
        layers: Number of layers.
    """

    def __init__(self, folder: Path, layers: int) -> None:
        self.folder, self.layers = folder, layers

    def spectra(self) -> dict[str, Spectrum]:
        """``layers.INDEX.NAME`` -> spectrum, for every covered matrix."""
        found = {}
        for index in range(self.layers):
            with safe_open(self.file(index), framework="pt") as file:
                # safetensors sorts names as text, which puts expert 10 before expert 2.
                for key in sorted(file.keys(), key=by_number):
                    if key.endswith(".s"):
                        name = key.removesuffix(".s")
                        rows = file.get_slice(f"{name}.u").get_shape()[0]
                        columns = file.get_slice(f"{name}.vt").get_shape()[1]
                        energy = float(file.get_tensor(f"{name}.energy"))
                        found[f"layers.{index}.{name}"] = Spectrum(
                            file.get_tensor(key), (rows, columns), energy
                        )
        return found

    def factors(self, index: int, name: str, rank: int) -> tuple[Tensor, Tensor, Tensor]:
        """``(u [out, rank], s [rank], vt [rank, in])`` of one matrix.

        Raises:
            UsageError: The folder keeps fewer directions.
        """
        with safe_open(self.file(index), framework="pt") as file:
            u, s, vt = (file.get_tensor(f"{name}.{part}") for part in ("u", "s", "vt"))
        if rank > u.shape[1]:
            raise UsageError(
                f"{name} of layer {index} needs rank {rank}, but the spectra keep {u.shape[1]} directions: decompose "
                "again with a larger --max-rank, or lower --value"
            )
        return u[:, :rank], s[:rank], vt[:rank]

    def file(self, index: int) -> Path:
        """The file of one layer."""
        return self.folder / f"layer-{index:05d}.safetensors"


def make_spectra(
    pair: Pair, folder: Path, kept: int, tick: ProgressCallback = lambda *_: None, *, method: Method = "exact",
    workers: int = 1, device: torch.device = CPU,
) -> SpectraFolder:  # fmt: skip
    """Decompose every covered matrix; skip layers that have a file.

    Args:
        pair: A validated pair.
        folder: Output folder.
        kept: Maximum number of directions to keep per matrix.
        tick: Progress callback; receives the stage, the finished layers and the total layers.
        method: One of `METHODS`.
        workers: Layers in parallel, each in a thread with its share of torch's threads.
        device: Device of the decomposition.

    Raises:
        UsageError: The models are identical.
        CheckpointError: A difference, or its spectrum, is not finite.
    """
    folder.mkdir(parents=True, exist_ok=True)
    found = SpectraFolder(folder, pair.layers)
    missing = [index for index in range(pair.layers) if not found.file(index).exists()]
    done = pair.layers - len(missing)
    tick("decomposing", done, pair.layers)
    for _ in _in_turn(
        lambda i: _decompose_layer(pair, found.file(i), i, kept, method, device), missing, workers
    ):
        done += 1
        tick("decomposing", done, pair.layers)
    if all(one.energy == 0 for one in found.spectra().values()):
        raise UsageError(
            f"{pair.paths[0]} and {pair.paths[1]} have the same matrices, so there is nothing to extract: give two "
            "different models"
        )
    return found


def _in_turn(work: Callable[[int], None], items: Sequence[int], workers: int) -> Iterator[None]:
    """Run ``work`` on all items, in parallel if there are several workers; yield each finished item."""
    if workers == 1:  # on the main thread: LAPACK takes nearly twice as long on another one (measured)
        for item in items:
            work(item)
            yield
        return
    threads = max(1, torch.get_num_threads() // workers)
    pool = ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(threads,))
    try:
        for future in as_completed([pool.submit(work, item) for item in items]):
            yield future.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _decompose_layer(
    pair: Pair, file: Path, index: int, kept: int, method: Method, device: torch.device
) -> None:
    tensors: dict[str, Tensor] = {}
    for name, _, delta in deltas(pair, index):
        delta = delta.to(device)
        _refuse_overflow(delta, "difference", name, index)
        u, s, vt = decompose(delta, kept, method)
        _refuse_overflow(s, "spectrum", name, index)
        tensors |= {f"{name}.u": u.cpu(), f"{name}.s": s.cpu(), f"{name}.vt": vt.cpu()}
        tensors[f"{name}.energy"] = delta.square().sum(dtype=torch.float64).cpu()
    save_tensors(tensors, file)
    pair.release()


def _refuse_overflow(tensor: Tensor, what: str, name: str, index: int) -> None:
    """Raise `CheckpointError` for values that overflow float32."""
    if not bool(tensor.isfinite().all()):
        raise CheckpointError(
            f"the {what} of {name} in layer {index} is not finite in float32, because a model's weights are NaN, "
            "infinite or far too large: fetch both models again"
        )


def deltas(pair: Pair, index: int) -> Iterator[tuple[str, Matrix, Tensor]]:
    """Yield ``(name, matrix, slow - fast [out, in] float32)`` of layer ``index``, one stacked expert at a time."""
    for matrix, slow, fast in pair.matrices(index):
        if not matrix.stacked:
            yield matrix.name, matrix, slow.float() - fast.float()
            continue
        for expert in range(len(slow)):
            yield f"{matrix.name}#{expert}", matrix, slow[expert].float() - fast[expert].float()
