"""A GGUF file's tensors by their Hugging Face names: in their blocks as they lie in the file, or as plain values."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from justright.checkpoint.format import TensorInfo, damaged
from justright.checkpoint.gguf_family import GgufFamily, family_of, hub_name
from justright.checkpoint.gguf_file import BLOCK_TYPES, FLOATS, GgufFile, GgufTensor

if TYPE_CHECKING:
    import torch

    from justright.kernels.quantised import Blocks

_DTYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}


@dataclass(frozen=True, slots=True)
class _Part:
    """A tensor in the file, or one of the matrices that it stacks."""

    entry: GgufTensor
    start: int
    shape: tuple[int, ...]
    heads: int | None
    """Where llama.cpp reordered its rows: the number of attention heads."""
    minus_one: bool

    @property
    def nbytes(self) -> int:
        block = BLOCK_TYPES[self.entry.type]
        return math.prod(self.shape) // block.values * block.bytes


class GgufTensors:
    """The tensors of one file.

    Attributes:
        file: The file.
        family: Its family.
        infos: Hugging Face name -> header entry. Its dtype is that of `tensor`; its bytes are those in the file.

    Raises:
        UnsupportedModelError: See `family_of`.
        CheckpointError: The family does not have a tensor of the file.
    """

    def __init__(self, file: GgufFile) -> None:
        self.file = file
        self.family = family_of(file)
        self._parts: dict[str, _Part] = {}
        for entry in file.tensors.values():
            self._parts |= self._named(entry, self.family)
        self.infos = {
            name: TensorInfo(
                name, self._dtype(part), part.shape, file.path, part.start, part.start + part.nbytes
            )
            for name, part in self._parts.items()
        }

    def _named(self, entry: GgufTensor, family: GgufFamily) -> dict[str, _Part]:
        name = hub_name(self.file, family, entry.name)
        if name is None:
            return {}
        if "{e}" in name:
            count, *matrix = entry.shape
            size = entry.nbytes // count
            return {
                name.format(e=e): _Part(entry, entry.start + e * size, tuple(matrix), None, False)
                for e in range(count)
            }
        heads = None
        if family.permuted and (".q_proj." in name or ".k_proj." in name):
            arch = str(self.file.text("general.architecture"))
            heads = self.file.number(f"{arch}.attention.head_count")
            if ".k_proj." in name:
                heads = self.file.number(f"{arch}.attention.head_count_kv", heads)
            if entry.shape[0] % (2 * heads):
                raise damaged(self.file.path, f"{entry.name} has {entry.shape[0]} rows for {heads} heads")
        shape = (1, *entry.shape) if name.endswith("shared_expert_gate.weight") else entry.shape
        return {name: _Part(entry, entry.start, shape, heads, family.plus_one and "norm.weight" in name)}

    @staticmethod
    def _dtype(part: _Part) -> str:
        return "F32" if part.minus_one else _DTYPES[FLOATS.get(part.entry.type, "float32")]

    @property
    def has_blocks(self) -> bool:
        """Whether some tensors are stored in quantised blocks."""
        return any(part.entry.type not in FLOATS for part in self._parts.values())

    def stored_as(self, name: str) -> str:
        """The name of the type in the file, such as ``Q4_K``."""
        return BLOCK_TYPES[self._parts[name].entry.type].name

    def blocks(self, name: str) -> Blocks | None:
        """A matrix in its blocks; None if the file holds plain values.

        Its data is the mapped file, without a copy, unless the rows have another order there.
        """
        part = self._parts[name]
        if part.entry.type in FLOATS or len(part.shape) != 2:
            return None
        from justright.kernels.quantised import Blocks

        data = self._raw(part).view(part.shape[0], -1)
        return Blocks(_in_order(data, part.heads), part.shape[1], part.entry.type)

    def tensor(self, name: str) -> torch.Tensor:
        """The values, in memory of their own: float32 where the file holds blocks, else the file's dtype."""
        import torch

        from justright.kernels.gguf_blocks import dequantise_rows

        part = self._parts[name]
        raw, kind = self._raw(part), part.entry.type
        if kind in FLOATS:
            values = raw.clone().view(getattr(torch, FLOATS[kind])).view(part.shape)
        else:
            columns = part.shape[-1]
            values = dequantise_rows(raw.view(part.nbytes // _row_bytes(part), -1), columns, kind).view(
                part.shape
            )
        values = _in_order(values, part.heads)
        return values.float() - 1 if part.minus_one else values

    def ends(self, name: str, nbytes: int) -> tuple[bytes, bytes]:
        """The first and the last ``nbytes`` of a tensor's values (or all, if it has fewer); reads no more than that."""
        import torch

        from justright.kernels.gguf_blocks import dequantise_rows

        part, blocks = self._parts[name], self.blocks(name)
        few = -(-nbytes // (4 * part.shape[-1]))  # rows of float32
        if blocks is None or few >= part.shape[0]:
            first = last = self.tensor(name)
        else:
            rows = blocks.data[:few], blocks.data[-few:]
            first, last = (dequantise_rows(data, blocks.columns, blocks.type) for data in rows)
        raw = [values.contiguous().view(-1).view(torch.uint8).numpy().tobytes() for values in (first, last)]
        return raw[0][:nbytes], raw[1][-nbytes:]

    def _raw(self, part: _Part) -> torch.Tensor:
        return self._mapped[part.start : part.start + part.nbytes]

    @cached_property
    def _mapped(self) -> torch.Tensor:
        import torch

        return torch.frombuffer(self.file.data, dtype=torch.uint8)


def open_gguf(path: Path) -> GgufTensors:
    """The tensors of a file; raises what `GgufFile.open` and `GgufTensors` raise."""
    return GgufTensors(GgufFile.open(path))


def _row_bytes(part: _Part) -> int:
    block = BLOCK_TYPES[part.entry.type]
    return part.shape[-1] // block.values * block.bytes


def _in_order(rows: torch.Tensor, heads: int | None) -> torch.Tensor:
    """Rows in transformers' order: of each head first all first members of rotary pairs, then all second ones."""
    if heads is None:
        return rows
    pairs = rows.reshape(heads, len(rows) // heads // 2, 2, *rows.shape[1:])
    return pairs.transpose(1, 2).reshape(rows.shape)
