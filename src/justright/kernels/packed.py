"""CPU kernels: weights packed once for the skinny products of decoding, and fused projections of one input.

A decode step multiplies every weight matrix with one to a few dozen rows. There the plain product reads the weights
at a third of the memory's speed; oneDNN's packed layout reads them at about twice that, and one wide product
beats three narrow ones. `pack` replaces a model's linear modules by packed ones in place; the plain modules are the
reference (``tests/kernels/test_packed.py``). Sums run in another order, so results differ in the last bits.
"""

from __future__ import annotations

import ctypes
import mmap
import sys
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from justright.architectures.spec import ModelSpec
from justright.kernels.build import missing
from justright.kernels.fused import FAMILIES, fuse
from justright.kernels.quantised import (
    Blocks,
    QuantisedLinear,
    Weights,
    available,
    dequantise,
    fits,
    quantise,
)

_PACK_ROWS = 8
_MADV_DONTNEED = 4


def supported(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether packed kernels exist for this device and dtype (oneDNN, float32 on a CPU)."""
    return device.type == "cpu" and dtype == torch.float32 and torch._C._has_mkldnn


def padded_rows(rows: int) -> int:
    """The number of rows that a product of ``rows`` is padded to: one of few sizes.

    oneDNN compiles a kernel for every number of rows, and torch keeps up to 1,024 of them, some hundred KiB each: a
    server with prompts of all lengths would grow by hundreds of MiB.
    """
    step = 1 if rows <= 32 else 8 if rows <= 128 else 16 if rows <= 256 else 32
    return -(-rows // step) * step


class PackedLinear(nn.Module):
    """``x @ weight.T + bias`` on a weight in oneDNN's packed layout; the original weight is not kept.

    Args:
        weight: ``[out, in]`` float32 on the CPU.
        bias: ``[out]`` or None.
    """

    packed: Tensor
    bias: Tensor | None

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous(), _PACK_ROWS)
        self.packed = packed  # a plain attribute: an opaque layout that nn.Module must not move or save
        self.bias = None if bias is None else bias.detach()
        _release(weight)

    def forward(self, x: Tensor) -> Tensor:
        """``x [..., in]`` to ``[..., out]``."""
        flat = x.reshape(-1, self.in_features)
        rows = len(flat)
        if (more := padded_rows(rows) - rows) > 0:
            flat = F.pad(flat, (0, 0, 0, more))
        out: Tensor = torch.ops.mkldnn._linear_pointwise(flat, self.packed, self.bias, "none", [], "")
        return out[:rows].view(*x.shape[:-1], self.out_features)

    def extra_repr(self) -> str:
        """As `nn.Linear`'s."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"
        )


class FusedProjections:
    """Several projections of one input as one product; `members` replace the projections.

    The first member called with an input computes all outputs; the others take theirs, and the last one drops
    them. Members must be called with the identical tensor object, which the architecture table guarantees.
    """

    def __init__(self, linears: Sequence[nn.Linear], weights: Weights | None = None) -> None:
        if len({linear.in_features for linear in linears}) != 1:
            raise ValueError("fused projections share one input, so their input sizes must be equal")
        weight = torch.cat([linear.weight.detach() for linear in linears])
        bias = None
        if any(linear.bias is not None for linear in linears):
            bias = torch.cat([_bias_or_zero(linear) for linear in linears])
        self.linear = _fast(weight, bias, weights)
        for linear in linears:
            _release(linear.weight)
        self.sizes = [linear.out_features for linear in linears]
        self.members = [FusedMember(self, index) for index in range(len(linears))]
        self._input: Tensor | None = None
        self._outputs: list[Tensor | None] = []

    def output(self, x: Tensor, index: int) -> Tensor:
        """Projection ``index`` of ``x [..., in]``: ``[..., sizes[index]]``."""
        if self._input is not x or self._outputs[index] is None:
            self._input = x
            self._outputs = list(self.linear(x).split(self.sizes, dim=-1))
        out = self._outputs[index]
        assert out is not None
        self._outputs[index] = None
        if all(other is None for other in self._outputs):
            self._input = None
        return out


class FusedMember(nn.Module):
    """Replaces one of the fused projections in a model."""

    def __init__(self, group: FusedProjections, index: int) -> None:
        super().__init__()
        self.group = group
        self.index = index
        self.in_features = group.linear.in_features
        self.out_features = group.sizes[index]

    def forward(self, x: Tensor) -> Tensor:
        """``x [..., in]`` to ``[..., out]``."""
        return self.group.output(x, self.index)


def pack(model: PreTrainedModel, weights: Weights | None = None) -> bool:
    """Replace the decoder's linear modules by packed and fused ones, in place, releasing each original.

    Covers the linear modules of the decoder layers and the head; stacked routed experts and the router keep
    their plain products. A head tied to the embedding is packed too: the embedding itself stays mapped from the
    checkpoint file, of which only the rows in use take memory.

    Args:
        model: float32, on the CPU; modules that are in quantised blocks already stay.
        weights: "int8" or "int4" quantises these matrices; those whose rows are no whole groups stay float32.

    Returns:
        Whether the decoder layers run as fused calls, see `justright.kernels.fused`.
    """
    spec = ModelSpec.of(model.config)
    in_blocks = any(type(module) is QuantisedLinear for module in model.modules())
    in_blocks = in_blocks or (weights is not None and available())
    fused = in_blocks and spec.architecture.family in FAMILIES
    for names in () if fused else spec.fused_groups:
        linears = [module for name in names if (module := _plain_linear(model, name)) is not None]
        if len(linears) == len(names):
            for name, member in zip(names, FusedProjections(linears, weights).members, strict=True):
                _replace(model, name, member)
    for linear in spec.linears:
        module = _plain_linear(model, linear.name)
        if module is not None:
            _replace(model, linear.name, _fast(module.weight, module.bias, weights))
    head = model.get_output_embeddings()
    if type(head) is nn.Linear:
        model.set_output_embeddings(_fast(head.weight, head.bias, weights))
    return fused and fuse(model, spec)


def _fast(weight: Tensor, bias: Tensor | None, weights: Weights | None) -> PackedLinear | QuantisedLinear:
    """Make the fast module of a matrix, and release the matrix."""
    if weights is None or not fits(weight):
        return PackedLinear(weight, bias)
    if missing() is not None:
        values = dequantise(quantise(weight.detach(), weights), weights)
        module: PackedLinear | QuantisedLinear = PackedLinear(values, bias)
    else:
        module = QuantisedLinear(Blocks.of(weight.detach(), weights), bias)
    _release(weight)
    return module


def _plain_linear(model: nn.Module, name: str) -> nn.Linear | None:
    module = model.get_submodule(name)
    return module if type(module) is nn.Linear else None


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    """Put ``module`` at path ``name``."""
    parent, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(parent), leaf, module)


def _release(weight: Tensor) -> None:
    """Free the memory of a weight that is mapped from its checkpoint file.

    One mapping covers the whole file, so dropping a tensor alone frees nothing. Frees only whole pages inside the
    weight, and only of file mappings, whose contents are read again from the file if they are accessed.
    """
    if not sys.platform.startswith("linux"):
        return
    begin, size = weight.data_ptr(), weight.nbytes
    first = -(-begin // mmap.PAGESIZE) * mmap.PAGESIZE
    length = (begin + size) // mmap.PAGESIZE * mmap.PAGESIZE - first
    if length > 0 and _file_backed(first, length):
        ctypes.CDLL(None, use_errno=True).madvise(
            ctypes.c_void_p(first), ctypes.c_size_t(length), _MADV_DONTNEED
        )


def _file_backed(begin: int, length: int) -> bool:
    """Whether ``[begin, begin + length)`` lies in one mapping of a file, of any name (the hub's are hashes)."""
    with open("/proc/self/maps") as maps:
        for line in maps:
            low, high = (int(part, 16) for part in line.split(maxsplit=1)[0].split("-"))
            if low <= begin and begin + length <= high:
                inode, *path = line.split(maxsplit=5)[4:]
                return inode != "0" and not path[0].rstrip().endswith(" (deleted)")
    return False


def _bias_or_zero(linear: nn.Linear) -> Tensor:
    if linear.bias is None:
        return torch.zeros(linear.out_features, dtype=linear.weight.dtype)
    return linear.bias.detach()
