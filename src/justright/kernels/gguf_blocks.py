"""The values of GGUF's quantised blocks, in torch: the readable reference, and what runs without a C++ compiler.

A row is a sequence of blocks. In all formats a block's values are ``scale * q`` or ``scale * q + shift``, where the
numbers q have 4 to 8 bits. The K formats have 256 values to a block, in groups of 16 or 32 with a scale each, which is
itself a small number times the block's float16 scale.

Source: ggml-quants.c of github.com/ggml-org/ggml (``dequantize_row_*``).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

_SLAB = 1 << 22  # values at once: the intermediate integers take several times the memory of the result


def dequantise_rows(data: Tensor, columns: int, type: int) -> Tensor:
    """The values of a matrix in blocks.

    Args:
        data: ``[out, bytes of a row]`` uint8.
        columns: Values of a row.
        type: The type's number in GGUF: 2, 3, 6, 7, 8, 12, 13 or 14.

    Returns:
        ``[out, columns]`` float32.
    """
    values, size = _SIZES[type], _BYTES[type]
    out = torch.empty(len(data), columns)
    rows = max(1, _SLAB // columns)
    for slab, part in zip(torch.split(data, rows), torch.split(out, rows), strict=True):
        blocks = slab.reshape(-1, size)
        part.copy_(_FORMATS[type](blocks).reshape(-1, columns))
    assert columns % values == 0
    return out


def scales_are_finite(data: Tensor, type: int) -> bool:
    """Whether all values of blocks are finite numbers: their float16 scales and shifts are.

    Args:
        data: ``[out, bytes of a row]`` uint8.
        type: The type's number in GGUF.
    """
    blocks = data.reshape(-1, _BYTES[type])
    return all(bool(_half(blocks, at).isfinite().all()) for at in _SCALES.get(type, (0,)))


def _half(blocks: Tensor, at: int) -> Tensor:
    """The float16 at byte ``at`` of each block, ``[blocks, 1]`` float32."""
    return blocks[:, at : at + 2].contiguous().view(torch.float16).float()


def _nibbles(bytes_: Tensor) -> Tensor:
    """The lower four bits of all bytes, then the upper four."""
    return torch.cat([bytes_ & 15, bytes_ >> 4], dim=-1)


def _bits(bytes_: Tensor) -> Tensor:
    """The bits of four bytes, lowest first: ``[blocks, 4]`` to ``[blocks, 32]``."""
    return (bytes_.unsqueeze(-1) >> torch.arange(8, dtype=torch.uint8) & 1).flatten(1)


def _q4_0(blocks: Tensor) -> Tensor:
    return _half(blocks, 0) * (_nibbles(blocks[:, 2:]).float() - 8)


def _q4_1(blocks: Tensor) -> Tensor:
    return _half(blocks, 0) * _nibbles(blocks[:, 4:]).float() + _half(blocks, 2)


def _q5_0(blocks: Tensor) -> Tensor:
    q = _nibbles(blocks[:, 6:]) | _bits(blocks[:, 2:6]) << 4
    return _half(blocks, 0) * (q.float() - 16)


def _q5_1(blocks: Tensor) -> Tensor:
    q = _nibbles(blocks[:, 8:]) | _bits(blocks[:, 4:8]) << 4
    return _half(blocks, 0) * q.float() + _half(blocks, 2)


def _q8_0(blocks: Tensor) -> Tensor:
    return _half(blocks, 0) * blocks[:, 2:].contiguous().view(torch.int8).float()


def _scales_and_minima(packed: Tensor) -> tuple[Tensor, Tensor]:
    """The eight 6-bit scales and minima in the 12 bytes of Q4_K and Q5_K, ``[blocks, 8, 1]`` float32 each."""
    low, middle, high = torch.split(packed, 4, dim=1)
    scales = torch.cat([low & 63, high & 15 | low >> 6 << 4], dim=1)
    minima = torch.cat([middle & 63, high >> 4 | middle >> 6 << 4], dim=1)
    return scales.float().unsqueeze(-1), minima.float().unsqueeze(-1)


def _k_values(blocks: Tensor, q: Tensor) -> Tensor:
    """Q4_K's and Q5_K's values of ``q [blocks, 8, 32]``."""
    scales, minima = _scales_and_minima(blocks[:, 4:16])
    scale, least = _half(blocks, 0).unsqueeze(-1) * scales, _half(blocks, 2).unsqueeze(-1) * minima
    return scale * q.float() - least


def _q4_k(blocks: Tensor) -> Tensor:
    return _k_values(blocks, _nibbles(blocks[:, 16:].reshape(-1, 4, 32)).view(-1, 8, 32))


def _q5_k(blocks: Tensor) -> Tensor:
    low = _nibbles(blocks[:, 48:].reshape(-1, 4, 32)).view(-1, 8, 32)
    high = blocks[:, 16:48].unsqueeze(1) >> torch.arange(8, dtype=torch.uint8).view(8, 1) & 1
    return _k_values(blocks, low | high << 4)


def _q6_k(blocks: Tensor) -> Tensor:
    low = _nibbles(blocks[:, :128].reshape(-1, 2, 64))  # [blocks, 2, 128]
    pairs = blocks[:, 128:192].reshape(-1, 2, 1, 32) >> torch.tensor([0, 2, 4, 6], dtype=torch.uint8).view(
        4, 1
    )
    q = (low | (pairs & 3).flatten(2) << 4).float() - 32
    scales = blocks[:, 192:208].contiguous().view(torch.int8).float() * _half(blocks, 208)
    values: Tensor = scales.unsqueeze(-1) * q.reshape(-1, 16, 16)
    return values


_FORMATS: dict[int, Callable[[Tensor], Tensor]] = {
    2: _q4_0,
    3: _q4_1,
    6: _q5_0,
    7: _q5_1,
    8: _q8_0,
    12: _q4_k,
    13: _q5_k,
    14: _q6_k,
}
_BYTES = {2: 18, 3: 20, 6: 22, 7: 24, 8: 34, 12: 144, 13: 176, 14: 210}
_SCALES = {3: (0, 2), 7: (0, 2), 12: (0, 2), 13: (0, 2), 14: (208,)}  # bytes of float16 numbers; others: 0
_SIZES = {type: 256 if type > 8 else 32 for type in _BYTES}
