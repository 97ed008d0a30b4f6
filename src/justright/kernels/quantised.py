"""Linear modules whose weights stay in quantised blocks, for a CPU.

A decode step reads every weight once, so it takes at least as long as the memory needs for their bytes. Blocks of 8 or
4 bits have a quarter or a sixth of float32's. The formats are GGUF's: 32 values share a scale (and a shift).
Activations and sums stay float32, and a row's result does not depend on the other rows of a product.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from justright.errors import SlowerWarning
from justright.kernels.build import missing
from justright.kernels.gguf_blocks import dequantise_rows

Weights = Literal["int8", "int4"]
AsFloats = Literal["float"]
GROUP = 32
_SLAB = 1 << 21  # values that are quantised or dequantised at once, to bound the memory for it
_MANY_ROWS = 48
_SHRINK = torch.linspace(0.7, 1.0, 13)  # of a group's range: candidates for the least square error


@dataclass(frozen=True, slots=True)
class Format:
    """A block format: its type number in GGUF, bits of a value, and bytes of 32 values."""

    type: int
    bits: int
    bytes: int


FORMATS: dict[Weights, Format] = {"int8": Format(8, 8, 34), "int4": Format(3, 4, 20)}
"""GGUF's Q8_0 and Q4_1."""


@dataclass(frozen=True, slots=True)
class Blocks:
    """A matrix in quantised blocks.

    Attributes:
        data: ``[out, bytes of a row]`` uint8, contiguous.
        columns: values of a row.
        type: the type number in GGUF; the C++ kernels read 2, 3, 6, 7, 8, 12, 13 and 14.
    """

    data: Tensor
    columns: int
    type: int

    @classmethod
    def of(cls, weight: Tensor, weights: Weights) -> Blocks:
        """Quantise a matrix, see `quantise`."""
        return cls(quantise(weight, weights), weight.shape[1], FORMATS[weights].type)

    def dequantise(self) -> Tensor:
        """The values, ``[out, columns]`` float32, by the C++ kernels."""
        values: Tensor = torch.ops.justright.dequantise(self.data, self.columns, self.type)
        return values


def quantise(weight: Tensor, weights: Weights) -> Tensor:
    """Round a matrix to blocks: int8 to the nearest of 255 steps, int4 with the range of least square error.

    Args:
        weight: ``[out, in]``, any float dtype; ``in`` is a multiple of 32.
        weights: "int8" or "int4".

    Returns:
        ``[out, in / 32 * bytes]`` uint8.
    """
    groups = weight.shape[1] // GROUP
    rows = max(1, _SLAB // weight.shape[1])
    block = _int8 if weights == "int8" else _int4
    blocks = torch.empty(len(weight), groups * FORMATS[weights].bytes, dtype=torch.uint8)
    for slab, out in zip(torch.split(weight, rows), torch.split(blocks, rows), strict=True):
        out.copy_(block(slab.float().reshape(len(slab), groups, GROUP)))
    return blocks


def dequantise(blocks: Tensor, weights: Weights) -> Tensor:
    """The float32 values of blocks, ``[out, in]``, in torch."""
    kind = FORMATS[weights]
    return dequantise_rows(blocks, blocks.shape[1] // kind.bytes * GROUP, kind.type)


def _int8(groups: Tensor) -> Tensor:
    scale = (groups.abs().amax(-1, keepdim=True) / 127).half()
    q = (groups / _not_zero(scale)).round().clamp(-127, 127).to(torch.int8)
    return torch.cat([scale.view(torch.uint8), q.view(torch.uint8)], dim=-1).flatten(1)


def _int4(groups: Tensor) -> Tensor:
    low, high = groups.amin(-1, keepdim=True), groups.amax(-1, keepdim=True)
    best = torch.full_like(low, torch.inf)
    scale, shift = torch.zeros_like(low).half(), low.half()
    for shrink in _SHRINK.tolist():
        middle, width = (low + high) / 2, (high - low) * shrink
        step, start = (width / 15).half(), (middle - width / 2).half()
        error = (
            (_codes(groups, step, start) * step.float() + start.float() - groups)
            .square()
            .sum(-1, keepdim=True)
        )
        better = error < best
        best = torch.where(better, error, best)
        scale, shift = torch.where(better, step, scale), torch.where(better, start, shift)
    q = _codes(groups, scale, shift).to(torch.uint8)
    packed = q[..., : GROUP // 2] | (q[..., GROUP // 2 :] << 4)
    return torch.cat([scale.view(torch.uint8), shift.view(torch.uint8), packed], dim=-1).flatten(1)


def _codes(groups: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    return ((groups - shift.float()) / _not_zero(scale)).round().clamp(0, 15)


def _not_zero(scale: Tensor) -> Tensor:
    scale = scale.float()
    return torch.where(scale == 0, torch.ones_like(scale), scale)


def fits(weight: Tensor) -> bool:
    """Whether a matrix can be quantised: its rows are whole groups, and its values fit float16 scales."""
    if weight.shape[1] % GROUP != 0:
        return False
    low, high = weight.aminmax()  # no copy of the matrix, as abs() would make
    limit = torch.finfo(torch.float16).max
    return bool(low > -limit) and bool(high < limit)


def available() -> bool:
    """Whether the C++ kernels can be used; compiles them at the first call, and warns once if that fails."""
    reason = missing()
    if reason is not None:
        warnings.warn(
            f"The weights are quantised, but run as float32, which saves neither time nor memory: {reason}. The "
            "kernels need a C++20 compiler (Debian: apt install g++) and a cache folder that can be written.",
            SlowerWarning,
            stacklevel=2,
        )
    return reason is None


class QuantisedLinear(nn.Module):
    """``x @ weight.T + bias`` on a weight in blocks.

    Args:
        blocks: of the weight ``[out, in]``.
        bias: ``[out]`` float32 or None.
    """

    bias: Tensor | None

    def __init__(self, blocks: Blocks, bias: Tensor | None) -> None:
        super().__init__()
        self.blocks = blocks
        self.out_features, self.in_features = len(blocks.data), blocks.columns
        self.bias = None if bias is None else bias.detach()

    def forward(self, x: Tensor) -> Tensor:
        """``x [..., in]`` to ``[..., out]``, float32."""
        flat = x.reshape(-1, self.in_features)
        if len(flat) < _MANY_ROWS:
            out: Tensor = torch.ops.justright.linear(flat, [self.blocks.data], [self.blocks.type], self.bias)
        else:
            out = self._many(flat)
        return out.view(*x.shape[:-1], self.out_features)

    def _many(self, x: Tensor) -> Tensor:
        """For many rows the library's product of dequantised slabs is faster, in this order of its operands."""
        out = torch.empty(len(x), self.out_features)
        slab = max(1, _SLAB // self.in_features)
        for data, part in zip(
            torch.split(self.blocks.data, slab), torch.split(out, slab, dim=1), strict=True
        ):
            part.copy_((replace(self.blocks, data=data).dequantise() @ x.T).T)
        return out if self.bias is None else out.add_(self.bias)

    def extra_repr(self) -> str:
        """As `nn.Linear`'s."""
        bits = 8 * self.blocks.data.shape[1] / self.in_features
        return f"in_features={self.in_features}, out_features={self.out_features}, bits={bits:.1f}"
