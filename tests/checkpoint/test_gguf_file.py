"""GGUF headers: read as the gguf package reads them, and refused when they lie."""

from __future__ import annotations

import random
import resource
import struct
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Type

from gguf_helpers import write_gguf
from justright.checkpoint.gguf_file import BLOCK_TYPES, GgufFile, Strings
from justright.checkpoint.gguf_folder import write_companions
from justright.errors import CheckpointError, JustrightError, UnsupportedModelError

Mutation = Callable[[bytearray], object]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gguf(tmp_path_factory.mktemp("gguf") / "whole.gguf")


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A file of 1 KB with each kind of value."""
    path = tmp_path_factory.mktemp("gguf") / "small.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_uint32("llama.block_count", 1)
    writer.add_float32("llama.attention.layer_norm_rms_epsilon", 1e-5)
    writer.add_bool("tokenizer.ggml.add_bos_token", True)
    writer.add_uint64("big", 2**40)
    writer.add_array("tokenizer.ggml.tokens", ["a", "b", "caf\u00e9"])
    writer.add_array("tokenizer.ggml.scores", [0.0, -1.0, -2.0])
    writer.add_array("numbers", [1, 2, 3])
    writer.add_tensor("token_embd.weight", np.ones((3, 32), np.float32))
    raw = gguf.quants.quantize(np.ones((2, 32), np.float32), Type.Q8_0)
    writer.add_tensor("blk.0.attn_q.weight", raw, raw_dtype=Type.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path.read_bytes()


def changed(tmp_path: Path, content: bytes, *mutations: Mutation) -> Path:
    raw = bytearray(content)
    for mutate in mutations:
        mutate(raw)
    path = tmp_path / "changed.gguf"
    path.write_bytes(raw)
    return path


def put(form: str, at: int, value: int) -> Mutation:
    return lambda raw: struct.pack_into(form, raw, at, value)


def at(raw: bytes, text: bytes) -> int:
    """The offset after a text."""
    return raw.index(text) + len(text)


def test_everything_is_as_the_gguf_package_reads_it(whole: Path) -> None:
    ours, theirs = GgufFile.open(whole), gguf.GGUFReader(whole)
    assert ours.tensors.keys() == {tensor.name for tensor in theirs.tensors}
    for tensor in theirs.tensors:
        found = ours.tensors[tensor.name]
        assert (found.shape, found.type) == (tuple(tensor.shape[::-1].tolist()), int(tensor.tensor_type))
        assert (found.start, found.nbytes) == (tensor.data_offset, tensor.n_bytes)
    keys = {key for key in theirs.fields if not key.startswith("GGUF.")}
    assert ours.values.keys() == keys
    for key in keys:
        found, expected = ours.values[key], theirs.fields[key].contents()
        assert (list(found) if isinstance(found, tuple | Strings) else found) == expected, key


def test_sizes_of_blocks_are_the_gguf_package_s() -> None:
    for kind, block in BLOCK_TYPES.items():
        assert gguf.GGML_QUANT_SIZES[Type(kind)] == (block.values, block.bytes)
        assert Type(kind).name == block.name


def test_a_large_vocabulary_is_read_when_asked(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.add_array("tokenizer.ggml.tokens", [f"token {number}" for number in range(150_000)])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    tokens = GgufFile.open(tmp_path / "m.gguf").values["tokenizer.ggml.tokens"]
    assert isinstance(tokens, Strings)
    assert (len(tokens), tokens[149_999], tokens[1:3]) == (150_000, "token 149999", ["token 1", "token 2"])


def test_each_shorter_file_is_refused(small: bytes, tmp_path: Path) -> None:
    for size in (*range(0, 200, 7), *range(200, len(small) - 32, 61)):
        with pytest.raises(CheckpointError, match=r"truncated or damaged|no GGUF file"):
            GgufFile.open(changed(tmp_path, small[:size]))


@pytest.mark.parametrize("field", ["tensors", "pairs", "text", "array", "numbers"])
@pytest.mark.parametrize("count", [1_000, 2**31, 2**62, 2**64 - 1])
def test_counts_beyond_the_file(field: str, count: int, small: bytes, tmp_path: Path) -> None:
    place = {
        "tensors": 8,
        "pairs": 16,
        "text": at(small, b"general.architecture") + 4,
        "array": at(small, b"tokenizer.ggml.tokens") + 8,
        "numbers": at(small, b"numbers") + 8,
    }[field]
    with pytest.raises(CheckpointError):
        GgufFile.open(changed(tmp_path, small, put("<Q", place, count)))


@pytest.mark.parametrize(
    ("offset", "form", "value", "message"),
    [
        (0, "<I", 5, "has 5 dimensions; allowed: 1 to 4"),
        (0, "<I", 0, "has 0 dimensions"),
        (4, "<Q", 0, "has the shape"),
        (12, "<Q", 2, "begins at byte 384 of the data, where the tensor before it ends at 256"),
        (12, "<Q", 4, "truncated or damaged"),
        (12, "<Q", 2**62, "truncated or damaged"),
        (20, "<I", 99, "has the unknown type 99; allowed: F32"),
        (24, "<Q", 7, "begins at byte 7 of the data"),
        (24, "<Q", 2**63, "begins at byte 384 of the data, where the tensor before it ends at"),
    ],
)
def test_a_tensor_s_entry(
    offset: int, form: str, value: int, message: str, small: bytes, tmp_path: Path
) -> None:
    place = at(small, b"token_embd.weight")
    with pytest.raises(CheckpointError, match=message):
        GgufFile.open(changed(tmp_path, small, put(form, place + offset, value)))


def test_a_known_type_that_is_not_supported(small: bytes, tmp_path: Path) -> None:
    place = at(small, b"token_embd.weight") + 20
    with pytest.raises(UnsupportedModelError, match=r"stored as IQ4_XS; allowed: .*Q4_K_M"):
        GgufFile.open(changed(tmp_path, small, put("<I", place, 23)))


def test_rows_of_no_whole_blocks(small: bytes, tmp_path: Path) -> None:
    place = at(small, b"blk.0.attn_q.weight") + 4
    with pytest.raises(CheckpointError, match=r"attn_q\.weight of Q8_0 has the shape \[2, 31\]"):
        GgufFile.open(changed(tmp_path, small, put("<Q", place, 31)))


def test_two_tensors_at_one_place(small: bytes, tmp_path: Path) -> None:
    place = at(small, b"blk.0.attn_q.weight") + 24
    with pytest.raises(
        CheckpointError, match="begins at byte 0 of the data, where the tensor before it ends at"
    ):
        GgufFile.open(changed(tmp_path, small, put("<Q", place, 0)))


@pytest.mark.parametrize(
    ("version", "message"),
    [(1, "version 1; allowed: 2 and 3"), (4, "version 4"), (0x0300_0000, "is big-endian; allowed")],
)
def test_versions(version: int, message: str, small: bytes, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=message):
        GgufFile.open(changed(tmp_path, small, put("<I", 4, version)))


def test_one_of_several_files(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", more=lambda writer: writer.add_uint16("split.count", 3))
    with pytest.raises(
        UnsupportedModelError, match=r"one part of a model in 3 files.*llama-gguf-split --merge"
    ):
        GgufFile.open(path)


def test_arrays_of_arrays_are_refused(small: bytes, tmp_path: Path) -> None:
    """Deep nesting would exhaust the stack."""
    with pytest.raises(CheckpointError, match="array of the kind 9"):
        GgufFile.open(changed(tmp_path, small, put("<I", at(small, b"numbers") + 4, 9)))


def test_a_key_twice(small: bytes, tmp_path: Path) -> None:
    twice = small.replace(b"numbers", b"bigbigs").replace(b"bigbigs", b"numbers")
    path = tmp_path / "m.gguf"
    pair = struct.pack("<Q", 3) + b"big" + struct.pack("<IQ", 10, 2**40)
    path.write_bytes(twice.replace(pair, pair + pair).replace(struct.pack("<Q", 8), struct.pack("<Q", 9), 1))
    with pytest.raises(CheckpointError, match="the key 'big' appears twice"):
        GgufFile.open(path)


def test_no_text_at_all(small: bytes, tmp_path: Path) -> None:
    path = changed(tmp_path, small, lambda raw: raw.__setitem__(slice(28, 32), b"\xff\xfe\xfd\xfc"))
    with pytest.raises(CheckpointError, match=r"is not UTF-8|truncated"):
        GgufFile.open(path)


def test_ten_thousand_mutated_headers(small: bytes, whole: Path, tmp_path: Path) -> None:
    """Each opens or is refused: no other error, no hang, and no memory beyond the file's size.

    Of the second file, which is a whole model, everything is read that a checkpoint's folder needs.
    """
    draw = random.Random(0)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    opened = 0
    for number in range(10_000):
        model = number % 100 == 0
        source = whole.read_bytes() if model else small
        raw = bytearray(source)
        end = source.index(b"output_norm") if model else len(source) - 480
        for _ in range(draw.choice((1, 1, 2, 8))):
            place = draw.randrange(4, end)
            if draw.random() < 0.5:
                raw[place] = draw.choice((0, 1, 8, 9, 127, 128, 255, draw.randrange(256)))
            else:
                width = draw.choice((4, 8))
                value = draw.choice((0, 1, 2**31, 2**32 - 1, len(raw), draw.getrandbits(32)))
                raw[place : place + width] = value.to_bytes(8, "little")[:width]
        if draw.random() < 0.1:
            del raw[draw.randrange(4, len(raw)) :]
        path = tmp_path / f"{number % 7}.gguf"  # new names: one file's header is kept by its time of change
        path.unlink(missing_ok=True)
        path.write_bytes(raw)
        try:
            file = GgufFile.open(path)
            assert all(tensor.start + tensor.nbytes <= len(raw) for tensor in file.tensors.values())
            for value in file.values.values():
                if isinstance(value, Strings):
                    list(value)
            if model:
                write_companions(file, tmp_path)
            opened += 1
        except JustrightError:
            pass
    assert 100 < opened < 9_000
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 200_000  # KiB; one array of a lying count alone would be gigabytes
