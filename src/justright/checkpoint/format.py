"""The safetensors format: the header of a file, validated; names of dtypes and of files."""

from __future__ import annotations

import json
import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from justright.errors import CheckpointError

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
MAX_HEADER_BYTES = 100_000_000  # the limit of the safetensors format

# safetensors' names -> (torch's names, bits). Those without a torch name can be listed, not loaded.
DTYPES: dict[str, tuple[str | None, int]] = {
    "F64": ("float64", 64),
    "F32": ("float32", 32),
    "F16": ("float16", 16),
    "BF16": ("bfloat16", 16),
    "F8_E4M3": ("float8_e4m3fn", 8),
    "F8_E5M2": ("float8_e5m2", 8),
    "F8_E4M3FNUZ": ("float8_e4m3fnuz", 8),
    "F8_E5M2FNUZ": ("float8_e5m2fnuz", 8),
    "F8_E8M0": ("float8_e8m0fnu", 8),
    "F6_E2M3": (None, 6),
    "F6_E3M2": (None, 6),
    "F4": (None, 4),
    "C64": ("complex64", 64),
    "I64": ("int64", 64),
    "I32": ("int32", 32),
    "I16": ("int16", 16),
    "I8": ("int8", 8),
    "U64": ("uint64", 64),
    "U32": ("uint32", 32),
    "U16": ("uint16", 16),
    "U8": ("uint8", 8),
    "BOOL": ("bool", 8),
}
TORCH_TO_NAME = {f"torch.{torch_name}": name for name, (torch_name, _) in DTYPES.items() if torch_name}


@dataclass(frozen=True)
class TensorInfo:
    """The header entry of one tensor; ``start`` and ``end`` are byte offsets in its file's data."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    start: int
    end: int

    @property
    def nbytes(self) -> int:
        """The tensor's size on disk."""
        return self.end - self.start


@dataclass(frozen=True)
class Header:
    """One safetensors file's header: its tensors in byte order, and the offset of the data."""

    tensors: tuple[TensorInfo, ...]
    begin: int


def read_header(file: Path) -> Header:
    """Read and check a safetensors header; no tensor's bytes are read and torch is not imported.

    Raises:
        CheckpointError: The file is missing, truncated, or its header is corrupt.
    """
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            prefix = stream.read(8)
            length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
            if prefix == b"version ":
                raise CheckpointError(
                    f"{file} is a Git LFS pointer, not the weights: run `git lfs pull` in its repository"
                )
            if not 2 <= length <= min(MAX_HEADER_BYTES, max(size - 8, 0)):
                raise damaged(file, f"its {size} bytes do not begin with a safetensors header")
            raw = stream.read(length)
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read: {error.strerror or error}") from error
    try:
        entries = json.loads(raw, object_pairs_hook=_no_duplicates)
        entries.pop("__metadata__", None)
        tensors = sorted(
            (_tensor_info(file, *item) for item in entries.items()), key=lambda t: (t.start, t.end)
        )
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise damaged(file, f"its header is corrupt ({error})") from error
    _check_extent(file, tensors, data_bytes=size - 8 - length)
    return Header(tuple(tensors), 8 + length)


def damaged(file: Path, what: str) -> CheckpointError:
    """Return the error for a file that violates the format."""
    return CheckpointError(f"{file} is damaged: {what}. Fetch or copy the file again")


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)!r} appears twice")
    return result


def _tensor_info(file: Path, name: str, entry: dict[str, Any]) -> TensorInfo:
    dtype, shape, (start, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
    if not all(type(n) is int and n >= 0 for n in (*shape, start, end)):
        raise ValueError(f"{name} has shape {list(shape)} at bytes {start} to {end}")
    if dtype not in DTYPES:
        raise ValueError(f"{name} has the unknown dtype {dtype!r}")
    bits = math.prod(shape) * DTYPES[dtype][1]
    if bits != (end - start) * 8:
        raise ValueError(f"{name} of {dtype} {list(shape)} cannot fill {end - start} bytes")
    return TensorInfo(name, dtype, shape, file, start, end)


def _check_extent(file: Path, tensors: list[TensorInfo], *, data_bytes: int) -> None:
    """Check that the tensors fill the data exactly: no gap, no overlap, no missing or extra byte."""
    end = 0
    for info in tensors:
        if info.start != end:
            raise damaged(
                file, f"{info.name} begins at byte {info.start}, the tensor before it ends at {end}"
            )
        end = info.end
    if end > data_bytes:
        raise CheckpointError(
            f"{file} is truncated: its header lists {end} bytes of tensors, but the file holds {data_bytes}. "
            "Fetch or copy the file again"
        )
    if end < data_bytes:
        raise damaged(file, f"{data_bytes - end} bytes follow its last tensor")
