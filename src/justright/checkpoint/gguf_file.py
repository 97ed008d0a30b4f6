"""The GGUF format: the header of a file, validated against the file's size. No tensor's bytes are read.

A file is a header (key-values, then one entry for each tensor) and the tensors' data. Nothing in it is trusted: every
count, length and offset is checked before it is used, so that a damaged file gives an error and takes no more memory
than its own size.

Source: github.com/ggml-org/ggml, docs/gguf.md.
"""

from __future__ import annotations

import functools
import math
import mmap
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

from justright.checkpoint.format import damaged
from justright.errors import CheckpointError, UnsupportedModelError

VERSIONS = (2, 3)
MAX_DIMENSIONS = 4
_ALIGNMENT = 32
_STRING, _ARRAY = 8, 9
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}


@dataclass(frozen=True, slots=True)
class BlockType:
    """How a tensor's values are stored: ``bytes`` hold ``values`` consecutive values of a row."""

    name: str
    values: int
    bytes: int


BLOCK_TYPES = {
    0: BlockType("F32", 1, 4),
    1: BlockType("F16", 1, 2),
    30: BlockType("BF16", 1, 2),
    2: BlockType("Q4_0", 32, 18),
    3: BlockType("Q4_1", 32, 20),
    6: BlockType("Q5_0", 32, 22),
    7: BlockType("Q5_1", 32, 24),
    8: BlockType("Q8_0", 32, 34),
    12: BlockType("Q4_K", 256, 144),
    13: BlockType("Q5_K", 256, 176),
    14: BlockType("Q6_K", 256, 210),
}
"""Those that justright reads, by their number in the format."""
FLOATS = {0: "float32", 1: "float16", 30: "bfloat16"}
"""Types that are plain values, and torch's name for them."""
_OTHER_TYPES = {
    9: "Q8_1",
    10: "Q2_K",
    11: "Q3_K",
    15: "Q8_K",
    16: "IQ2_XXS",
    17: "IQ2_XS",
    18: "IQ3_XXS",
    19: "IQ1_S",
    20: "IQ4_NL",
    21: "IQ3_S",
    22: "IQ2_S",
    23: "IQ4_XS",
    24: "I8",
    25: "I16",
    26: "I32",
    27: "I64",
    28: "F64",
    29: "IQ1_M",
    34: "TQ1_0",
    35: "TQ2_0",
    39: "MXFP4",
}


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """A tensor's entry.

    Attributes:
        name: In the file.
        shape: Outermost dimension first, as in torch (the file lists them the other way round).
        type: Key of `BLOCK_TYPES`.
        start: Offset of its first byte in the file.
        nbytes: Its bytes in the file.
    """

    name: str
    shape: tuple[int, ...]
    type: int
    start: int
    nbytes: int


class Strings(Sequence[str]):
    """An array of strings in a file's header, decoded when it is read. A vocabulary may have 260,000."""

    def __init__(self, data: mmap.mmap, start: int, count: int, file: Path) -> None:
        self._data, self._start, self._count, self._file = data, start, count, file

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[str]:
        position = self._start
        for _ in range(self._count):
            (length,) = _LENGTH.unpack_from(self._data, position)
            position += 8 + length
            yield _decoded(self._data[position - length : position], self._file)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        return list(self)[index]


@dataclass(frozen=True, slots=True)
class GgufFile:
    """A GGUF file whose header is read and checked.

    Attributes:
        path: The file.
        values: Its key-values; arrays of numbers are tuples, arrays of strings `Strings`.
        tensors: By name, in the order of their data.
        data: The whole file, mapped privately: a write changes this process's copy of a page, never the file.
    """

    path: Path
    values: dict[str, Any]
    tensors: dict[str, GgufTensor]
    data: mmap.mmap

    @classmethod
    def open(cls, path: Path) -> GgufFile:
        """Map a file, and read its header; the result is kept while the file does not change.

        Raises:
            CheckpointError: It is missing, truncated, damaged, or of another version or byte order.
            UnsupportedModelError: A tensor has a type that justright does not read, or the file is one of several.
        """
        try:
            stat = path.stat()
        except OSError as error:
            raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from error
        return _opened(path, stat.st_size, stat.st_mtime_ns)

    def number(self, key: str, default: int | None = None, *, most: int = 2**31 - 1) -> int:
        """A whole number of at least 1 among the key-values.

        Raises:
            CheckpointError: It is missing (and has no default), or no such number.
        """
        value = self.values.get(key, default)
        if type(value) is not int or not 1 <= value <= most:
            raise damaged(self.path, f"{key} is {_shown(value)}; allowed: 1 to {most}")
        return value

    def real(self, key: str, default: float | None = None) -> float:
        """A finite number above 0 among the key-values.

        Raises:
            CheckpointError: As `number`.
        """
        value = self.values.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
            raise damaged(self.path, f"{key} is {_shown(value)}; allowed: a number above 0")
        return float(value)

    def text(self, key: str, default: str | None = None) -> str | None:
        """A string among the key-values.

        Raises:
            CheckpointError: It is no string.
        """
        value = self.values.get(key, default)
        if value is not None and not isinstance(value, str):
            raise damaged(self.path, f"{key} is {_shown(value)}; allowed: a text")
        return value


_LENGTH = struct.Struct("<Q")


@functools.lru_cache(maxsize=8)
def _opened(path: Path, size: int, changed_ns: int) -> GgufFile:
    try:
        with path.open("rb") as stream:
            start = stream.read(24)
            if start[:4] != b"GGUF":
                raise CheckpointError(
                    f"{path} is no GGUF file: it begins with {start[:4]!r}, not with b'GGUF'. Fetch the file again"
                )
            if len(start) < 24:
                raise _truncated(path)
            data = mmap.mmap(stream.fileno(), size, access=mmap.ACCESS_COPY)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from error
    except ValueError as error:  # shorter than it was a moment ago
        raise _truncated(path) from error
    version, tensors, pairs = struct.unpack("<IQQ", start[4:])
    if version & 0xFFFF == 0 and version:
        raise CheckpointError(
            f"{path} is big-endian; allowed: little-endian. Give a file made for this machine"
        )
    if version not in VERSIONS:
        raise CheckpointError(f"{path} is GGUF version {version}; allowed: 2 and 3. Give a newer file")
    return _HeaderReader(path, data, size).read(tensors, pairs)


class _HeaderReader:
    """Reads a header from front to back; every step checks that the file is long enough."""

    def __init__(self, path: Path, data: mmap.mmap, size: int) -> None:
        self.path, self.data, self.size = path, data, size
        self.at = 24

    def read(self, tensors: int, pairs: int) -> GgufFile:
        values: dict[str, Any] = {}
        for _ in range(pairs):
            key = self.string()
            if key in values:
                raise damaged(self.path, f"the key {key[:80]!r} appears twice")
            values[key] = self.value(*self.numbers("I"))
        if (parts := values.get("split.count", 1)) != 1:
            raise UnsupportedModelError(
                f"{self.path} is one part of a model in {_shown(parts)} files; allowed: a single file. Join the parts "
                "with llama.cpp's `llama-gguf-split --merge`"
            )
        alignment = values.get("general.alignment", _ALIGNMENT)
        if type(alignment) is not int or alignment < 8 or alignment & (alignment - 1):
            raise damaged(
                self.path, f"general.alignment is {_shown(alignment)}; allowed: a power of two from 8 on"
            )
        entries = [self.entry() for _ in range(self.fitting(tensors, least=24))]
        begin = -(-self.at // alignment) * alignment
        return GgufFile(self.path, values, self.placed(entries, begin, alignment), self.data)

    def fitting(self, count: int, least: int) -> int:
        """``count``, if that many things of at least ``least`` bytes fit in the rest of the file."""
        if count * least > self.size - self.at:
            raise _truncated(self.path)
        return count

    def skip(self, length: int) -> int:
        """Go ``length`` bytes ahead; return where they begin."""
        begin = self.at
        if length > self.size - begin:
            raise _truncated(self.path)
        self.at = begin + length
        return begin

    def numbers(self, kinds: str) -> tuple[Any, ...]:
        """Numbers of `struct`'s kinds."""
        form = "<" + kinds
        return struct.unpack_from(form, self.data, self.skip(struct.calcsize(form)))

    def string(self) -> str:
        (length,) = self.numbers("Q")
        begin = self.skip(length)
        return _decoded(self.data[begin : self.at], self.path)

    def value(self, kind: int) -> Any:
        if kind in _SCALARS:
            return self.numbers(_SCALARS[kind])[0]
        if kind == _STRING:
            return self.string()
        if kind == _ARRAY:
            return self.array(*self.numbers("IQ"))
        raise damaged(self.path, f"it has a value of the unknown kind {kind}")

    def array(self, kind: int, count: int) -> Any:
        if kind in _SCALARS:
            width = struct.calcsize("<" + _SCALARS[kind])
            return self.numbers(f"{self.fitting(count, width)}{_SCALARS[kind]}")
        if kind != _STRING:
            raise damaged(self.path, f"it has an array of the kind {kind}; allowed: numbers and strings")
        begin, data, size = self.at, self.data, self.size
        at, unpack = begin, _LENGTH.unpack_from
        for _ in range(self.fitting(count, 8)):  # 10**5 strings: no call per string but this one
            if at + 8 > size:
                raise _truncated(self.path)
            at += 8 + unpack(data, at)[0]
        if at > size:
            raise _truncated(self.path)
        self.at = at
        return Strings(data, begin, count, self.path)

    def entry(self) -> tuple[str, tuple[int, ...], int, int]:
        """A tensor's name, shape, type and offset in the data."""
        name, (dimensions,) = self.string(), self.numbers("I")
        if not 1 <= dimensions <= MAX_DIMENSIONS:
            raise damaged(
                self.path, f"{name[:80]} has {dimensions} dimensions; allowed: 1 to {MAX_DIMENSIONS}"
            )
        *shape, kind, offset = self.numbers(f"{dimensions}QIQ")
        return name, tuple(reversed(shape)), kind, offset

    def placed(
        self, entries: list[tuple[str, tuple[int, ...], int, int]], begin: int, alignment: int
    ) -> dict[str, GgufTensor]:
        """The tensors by name: of whole blocks, one after the other, inside the file."""
        found: dict[str, GgufTensor] = {}
        end = 0
        for name, shape, kind, offset in sorted(entries, key=lambda entry: entry[3]):
            if name in found:
                raise damaged(self.path, f"the tensor {name[:80]!r} appears twice")
            block = self.block(name, kind)
            if shape[-1] % block.values or 0 in shape:
                raise damaged(self.path, f"{name[:80]} of {block.name} has the shape {list(shape)}")
            nbytes = math.prod(shape) // block.values * block.bytes
            if offset != -(-end // alignment) * alignment:
                raise damaged(
                    self.path,
                    f"{name[:80]} begins at byte {offset} of the data, where the tensor before it ends at {end}",
                )
            end = offset + nbytes
            if begin + end > self.size:
                raise _truncated(self.path)
            found[name] = GgufTensor(name, shape, kind, begin + offset, nbytes)
        return found

    def block(self, name: str, kind: int) -> BlockType:
        if kind in BLOCK_TYPES:
            return BLOCK_TYPES[kind]
        allowed = ", ".join(known.name for known in BLOCK_TYPES.values())
        if kind in _OTHER_TYPES:
            raise UnsupportedModelError(
                f"{name[:80]} in {self.path} is stored as {_OTHER_TYPES[kind]}; allowed: {allowed}. Give another "
                "file of the model, such as Q4_K_M"
            )
        raise damaged(self.path, f"{name[:80]} has the unknown type {kind}; allowed: {allowed}")


def _decoded(raw: bytes, path: Path) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise damaged(path, f"a text in its header is not UTF-8 ({raw[:40]!r})") from error


def _shown(value: Any) -> str:
    text = repr(list(value[:4]) if isinstance(value, Strings) else value)
    return text if len(text) <= 80 else text[:80] + "..."


def _truncated(path: Path) -> CheckpointError:
    return CheckpointError(
        f"{path} is truncated or damaged: its header describes more than its {path.stat().st_size} bytes. Fetch or "
        "copy the file again"
    )
