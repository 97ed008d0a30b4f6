"""The bitmask container: stores a tensor with many zeros as one bit per weight and its nonzero weights.

A tensor NAME becomes three: ``NAME.values`` (its nonzero weights, in the tensor's dtype and row-major order),
``NAME.bitmask`` (uint8; one bit per weight, the first in the lowest bit) and ``NAME.shape`` (the bytes of little-endian
int64). Tensors that would become larger stay dense. The files have distinct names, so other loaders find no weights
instead of weights that they misread. Packing and unpacking keep every bit.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from justright.errors import CheckpointError

if TYPE_CHECKING:
    import torch

    from justright.checkpoint.format import TensorInfo

SINGLE = "model.sparse.safetensors"
INDEX = "model.sparse.safetensors.index.json"
VALUES, BITMASK, SHAPE = ".values", ".bitmask", ".shape"
_ALIGN = 8


def pack(name: str, tensor: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return the tensors to store: three parts, or the tensor itself if they would be larger."""
    import numpy as np
    import torch

    # Bits, not values: -0.0 is kept.
    bits = tensor.detach().cpu().contiguous().flatten().view(_integer(tensor))
    kept = bits != 0
    count = int(kept.count_nonzero())
    size = tensor.element_size()
    shape = np.array(tensor.shape, dtype="<i8").view(np.uint8)
    mask_bytes = -(-tensor.numel() // 8)
    padding = -(count * size + mask_bytes) % _ALIGN  # aligns the next tensor for any dtype
    if count * size + mask_bytes + padding + len(shape) >= tensor.nbytes:
        return {name: tensor}
    mask = np.packbits(kept.numpy(), bitorder="little")
    return {
        name + VALUES: torch.from_numpy(bits.numpy()[kept.numpy()]).view(tensor.dtype),
        name + BITMASK: torch.from_numpy(np.concatenate([mask, np.zeros(padding, dtype=np.uint8)])),
        name + SHAPE: torch.from_numpy(shape),
    }


def unpack(
    values: torch.Tensor, bitmask: torch.Tensor, shape: tuple[int, ...], name: str = "a packed tensor"
) -> torch.Tensor:
    """The inverse of `pack`; ``name`` is for the message.

    Raises:
        CheckpointError: Values and bitmask do not match.
    """
    import numpy as np
    import torch

    count = math.prod(shape)
    kept = torch.from_numpy(np.unpackbits(bitmask.numpy(), count=count, bitorder="little")).view(torch.bool)
    if int(kept.count_nonzero()) != values.numel():
        raise CheckpointError(
            f"{name} is damaged: it has {values.numel()} values for {int(kept.count_nonzero())} set bits. Fetch or "
            "copy the file again"
        )
    out = torch.zeros(count, dtype=_integer(values))
    out.masked_scatter_(kept, values.view(_integer(values)))
    return out.view(values.dtype).reshape(shape)


def tensor_infos(infos: Mapping[str, TensorInfo]) -> tuple[dict[str, TensorInfo], frozenset[str]]:
    """Return the logical tensors of a container, and the names of the packed ones.

    The size of a packed tensor is the size of its parts.

    Raises:
        CheckpointError: A part is missing or damaged.
    """
    found: dict[str, TensorInfo] = {}
    packed = set()
    for name, info in infos.items():
        base, dot, kind = name.rpartition(".")
        if base + BITMASK not in infos or dot + kind not in (VALUES, BITMASK, SHAPE):
            found[name] = info
        elif dot + kind == VALUES:
            parts = [infos.get(base + part) for part in (VALUES, BITMASK, SHAPE)]
            if None in parts:
                raise CheckpointError(f"{info.file} lacks a part of {base}: fetch the file again")
            stored = sum(part.nbytes for part in parts if part is not None)
            shape = _read_shape(infos[base + SHAPE])
            found[base] = replace(info, name=base, shape=shape, start=0, end=stored)
            packed.add(base)
    return found, frozenset(packed)


def _integer(tensor: torch.Tensor) -> torch.dtype:
    """The integer type of the tensor's width."""
    import torch

    return {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()]


def _read_shape(info: TensorInfo) -> tuple[int, ...]:
    import struct

    with info.file.open("rb") as stream:
        header = struct.unpack("<Q", stream.read(8))[0]
        stream.seek(8 + header + info.start)
        raw = stream.read(info.nbytes)
    if len(raw) != info.nbytes or len(raw) % 8:
        raise CheckpointError(
            f"{info.file} is damaged: {info.name} is not a shape. Fetch or copy the file again"
        )
    return struct.unpack(f"<{len(raw) // 8}q", raw)
