"""Analyse a switch: spectra, ranks by energy with size and cost, and the noise floor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from justright.adapter.adapter import read_report
from justright.adapter.ranks import RankRule, choose_ranks, factor_bytes
from justright.adapter.spectra import Spectrum
from justright.errors import UsageError
from justright.files import by_number, save_tensors

SPECTRUM = "spectrum.safetensors"
TAUS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0)


@dataclass(frozen=True, slots=True)
class SizeAtTau:
    """A switch by the energy rule at one share of the energy.

    Attributes:
        tau: Fraction of the energy, for every matrix.
        known: Whether all required directions are known; if not, the figures below are estimates from the remaining
            energy.
        median_rank: Median over the matrices.
        largest_rank: Maximum over the matrices.
        bytes: Bytes of the factors in bfloat16.
        size: The same as a fraction of the changed matrices.
        flops: Extra multiplications and additions per token, as a fraction of those of the same matrices.
    """

    tau: float
    known: bool
    median_rank: int
    largest_rank: int
    bytes: int
    size: float
    flops: float


@dataclass(frozen=True, slots=True)
class Inspected:
    """The analysis of a switch.

    Attributes:
        spectra: Matrix -> spectrum.
        taus: The switch at each of `TAUS`.
        signal: Matrix -> number of singular values above the noise floor; None if the spectrum is incomplete.
        report: ``switch.json``.
    """

    spectra: Mapping[str, Spectrum]
    taus: list[SizeAtTau]
    signal: Mapping[str, int | None]
    report: Mapping[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        kinds = {
            kind: {
                "matrices": len(names),
                "median_signal": _median([self.signal[n] for n in names]),
                "full_rank": min(self.spectra[names[0]].shape),
            }
            for kind, names in by_kind(self.spectra).items()
        }
        return {"taus": [asdict(one) for one in self.taus], "kinds": kinds, "report": dict(self.report)}


def save_spectrum(spectra: Mapping[str, Spectrum], folder: Path) -> None:
    """Write the singular values beside an adapter, for `inspect`."""
    tensors = {}
    for name, one in spectra.items():
        tensors[f"{name}.s"] = one.values.contiguous()
        tensors[f"{name}.shape"] = torch.tensor(one.shape)
        tensors[f"{name}.energy"] = torch.tensor(one.energy, dtype=torch.float64)
    save_tensors(tensors, folder / SPECTRUM)


def inspect_switch(folder: Path) -> Inspected:
    """Read a switch's folder.

    Raises:
        UsageError: The folder has no spectrum.
    """
    file = folder / SPECTRUM
    if not file.is_file():
        raise UsageError(f"{folder} has no {SPECTRUM}: give an adapter from `justright switch extract`")
    tensors = load_file(file)
    names = [key.removesuffix(".s") for key in sorted(tensors, key=by_number) if key.endswith(".s")]
    spectra = {}
    for name in names:
        rows, columns = tensors[f"{name}.shape"].tolist()
        spectra[name] = Spectrum(tensors[f"{name}.s"], (rows, columns), float(tensors[f"{name}.energy"]))
    signal = {name: signal_rank(one) for name, one in spectra.items()}
    return Inspected(spectra, [_at(spectra, tau) for tau in TAUS], signal, read_report(folder))


def by_kind(spectra: Mapping[str, Spectrum]) -> dict[str, list[str]]:
    """Group matrices of the same name over layers and experts: ``self_attn.q_proj`` -> their full names."""
    found: dict[str, list[str]] = {}
    for name in spectra:
        kind = name.split(".", 2)[2].partition("#")[0].removesuffix(".weight")
        found.setdefault(kind, []).append(name)
    return found


def signal_rank(spectrum: Spectrum) -> int | None:
    """Number of singular values above the noise floor; None if not all values are known.

    The noise model is a random matrix with independent entries and the same median singular value as the spectrum;
    its largest singular value is ``sigma (sqrt(out) + sqrt(in))``.

    Source: arXiv:1305.5870 (the position of the median in the Marchenko-Pastur law).
    """
    if not spectrum.whole:
        return None
    edge = noise_edge(spectrum.values, spectrum.shape)
    return int((spectrum.values > edge).sum())


def noise_edge(values: Tensor, shape: tuple[int, int]) -> float:
    """Largest singular value of noise with the median of ``values``; see `signal_rank`."""
    small, large = sorted(shape)
    beta = small / large
    sigma = float(values.double().median()) / (large * _median_of_law(beta)) ** 0.5
    return float(sigma * (small**0.5 + large**0.5))


def _median_of_law(beta: float) -> float:
    """Median of the Marchenko-Pastur law of ratio ``beta``, by numerical integration of its density."""
    low, high = (1 - beta**0.5) ** 2, (1 + beta**0.5) ** 2
    # Squares of cosines put many points at the ends, where the density falls to zero (or rises, for beta = 1).
    angle = np.linspace(0, np.pi, 4001)
    x = low + (high - low) * (1 - np.cos(angle)) / 2
    middle = (x[1:] + x[:-1]) / 2
    density = np.sqrt(np.maximum((high - middle) * (middle - low), 0)) / (2 * np.pi * beta * middle)
    mass = np.cumsum(density * np.diff(x))
    return float(middle[np.searchsorted(mass, mass[-1] / 2)])


def _at(spectra: Mapping[str, Spectrum], tau: float) -> SizeAtTau:
    ranks = choose_ranks({name: one.filled() for name, one in spectra.items()}, RankRule("energy", tau))
    shapes = {name: one.shape for name, one in spectra.items()}
    numbers = sum(rows * columns for rows, columns in shapes.values())
    ordered = sorted(ranks.values())
    extra = sum(rank * sum(shapes[name]) for name, rank in ranks.items())
    size = factor_bytes(ranks, shapes, 2)
    known = all(rank <= len(spectra[name].values) for name, rank in ranks.items())
    return SizeAtTau(
        tau, known, ordered[len(ordered) // 2], ordered[-1], size, size / (2 * numbers), extra / numbers
    )


def _median(values: list[int | None]) -> int | None:
    known = sorted(value for value in values if value is not None)
    return known[len(known) // 2] if known else None


def draw(found: Inspected, file: Path) -> None:
    """Draw spectra by kind with the noise floor, and ranks by energy fraction. Requires matplotlib."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    for number, (kind, names) in enumerate(by_kind(found.spectra).items()):
        color = f"C{number % 10}"
        spectra = [found.spectra[name] for name in names]
        length = min(len(one.values) for one in spectra)
        if length == 0:
            continue
        median = torch.stack([one.values[:length] for one in spectra]).median(0).values
        left.plot(range(1, length + 1), median, color=color, label=kind, linewidth=1.4)
        if all(one.whole for one in spectra):
            left.axhline(noise_edge(median, spectra[0].shape), color=color, linewidth=0.7, linestyle=":")
        ranks = [choose_ranks({"": median}, RankRule("energy", tau))[""] for tau in TAUS]
        right.plot(TAUS, [rank / length for rank in ranks], color=color, marker="o", markersize=3, label=kind)
    left.set_yscale("log")
    left.set_title("Singular values of slow - fast (median over layers); dotted: noise floor")
    left.set_xlabel("direction")
    left.set_ylabel("singular value")
    left.legend(fontsize=7)
    right.set_title("Rank needed for a share of the energy")
    right.set_xlabel("share of the energy, tau")
    right.set_ylabel("share of the full rank")
    figure.savefig(file, dpi=110)
