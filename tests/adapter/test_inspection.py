"""The noise floor: pure noise has no signal, and values above the floor are counted."""

from __future__ import annotations

import pytest
import torch

from justright.adapter.inspection import noise_edge, signal_rank
from justright.adapter.spectra import Spectrum


def spectrum(delta: torch.Tensor) -> Spectrum:
    values = torch.linalg.svdvals(delta)
    return Spectrum(values, (delta.shape[0], delta.shape[1]), float(values.double().square().sum()))


@pytest.mark.parametrize("shape", [(300, 300), (200, 600), (600, 200)])
def test_noise_is_noise_and_signal_is_counted(shape: tuple[int, int]) -> None:
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 0.3
    found = spectrum(noise)
    assert float(found.values[0]) == pytest.approx(noise_edge(found.values, shape), rel=0.05)
    assert (signal_rank(found) or 0) <= 2, "the largest of noise lie at the edge"
    generator = torch.Generator().manual_seed(1)
    u, v = (torch.linalg.qr(torch.randn(n, 7, generator=generator)).Q for n in shape)
    count = signal_rank(spectrum(noise + 40 * u @ v.T))
    assert count is not None
    assert 7 <= count <= 9


def test_what_is_not_whole_has_no_floor() -> None:
    assert signal_rank(Spectrum(torch.tensor([3.0, 2.0]), (5, 6), 14.0)) is None
