"""Write one safetensors file as a stream: tensors in order, then the header into reserved space.

It uses the memory of one tensor, whatever the shard's size. The format allows spaces after the header's
JSON, but no gap between tensors: a tensor that would be unaligned, or whose entry does not fit the header,
starts a new shard.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from justright.checkpoint.format import DTYPES, TORCH_TO_NAME
from justright.errors import UsageError

if TYPE_CHECKING:
    import torch

MIN_HEADER_ROOM = 64 * 1024
MAX_HEADER_ROOM = 1024 * 1024


def header_room(shard_bytes: int) -> int:
    """Return the number of bytes to reserve for the header of a shard of about ``shard_bytes``."""
    return min(max(shard_bytes // 512, MIN_HEADER_ROOM), MAX_HEADER_ROOM) // 8 * 8


class ShardFile:
    """A safetensors file being written; it is unreadable until :meth:`complete`.

    Life cycle: :meth:`append` while :meth:`fits` is true, then :meth:`complete`; or :meth:`abandon`.
    """

    def __init__(self, path: Path, *, room: int, metadata: Mapping[str, str]) -> None:
        self.path = path
        self.names: list[str] = []
        self.data_bytes = 0
        self._room = room
        self._entries: dict[str, Any] = {"__metadata__": dict(metadata)}
        self._header_bytes = len(self._header()) + 2
        self._stream = path.open("wb")
        self._stream.seek(8 + room)

    def fits(self, name: str, tensor: torch.Tensor, *, max_bytes: int) -> bool:
        """Return whether ``tensor`` may follow: within ``max_bytes``, aligned, and its entry has room."""
        if self._header_bytes + _entry_bytes(name, tensor) > self._room:
            return False
        return not self.names or (
            self.data_bytes + tensor.nbytes <= max_bytes and self.data_bytes % tensor.element_size() == 0
        )

    def append(self, name: str, tensor: torch.Tensor) -> None:
        """Write one tensor's bytes at the end.

        Raises:
            OSError: As the file system says.
        """
        start, self.data_bytes = self.data_bytes, self.data_bytes + tensor.nbytes
        self._header_bytes += _entry_bytes(name, tensor)
        self._entries[name] = {
            "dtype": dtype_name(name, tensor),
            "shape": list(tensor.shape),
            "data_offsets": [start, self.data_bytes],
        }
        self._stream.write(_raw_bytes(tensor))
        self.names.append(name)

    def complete(self) -> int:
        """Write the header, make the file durable and close it; return its size in bytes.

        Raises:
            OSError: As the file system says.
        """
        self._stream.seek(0)
        self._stream.write(struct.pack("<Q", self._room) + self._header().ljust(self._room))
        self._stream.flush()
        os.fsync(self._stream.fileno())
        self._stream.close()
        return 8 + self._room + self.data_bytes

    def abandon(self) -> None:
        """Close the incomplete file; ignore a full disk, which was reported before."""
        try:
            self._stream.close()
        except OSError:
            self._stream.raw.close()

    def _header(self) -> bytes:
        return json.dumps(self._entries, separators=(",", ":")).encode()


def dtype_name(name: str, tensor: torch.Tensor) -> str:
    """Return the safetensors name of a tensor's dtype.

    Raises:
        UsageError: safetensors cannot hold the tensor: its dtype, a sparse layout, or no data at all.
    """
    import torch

    known = TORCH_TO_NAME.get(str(tensor.dtype))
    allowed = ", ".join(torch_name for torch_name, _ in DTYPES.values() if torch_name)
    if known is None or tensor.layout != torch.strided or tensor.is_meta:
        raise UsageError(
            f"{name} ({tensor.dtype}, {tensor.layout}, on {tensor.device}) cannot be written; allowed: dense tensors "
            f"with data, in one of {allowed}"
        )
    return known


def _entry_bytes(name: str, tensor: torch.Tensor) -> int:
    """Return an upper bound of a tensor's header entry: two offsets of at most 20 digits each."""
    return len(json.dumps(name)) + len(json.dumps(list(tensor.shape))) + 100


def _raw_bytes(tensor: torch.Tensor) -> Any:
    import torch

    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy()
