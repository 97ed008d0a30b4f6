"""Reading checkpoints: round trips, and errors that name damage on opening."""

import contextlib
import json
import os
import shutil
import struct
import subprocess
import sys

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from checkpoint_helpers import CONFIG, bits, content, some_tensors, write
from justright.checkpoint import shard_writer as shardfile
from justright.checkpoint.format import DTYPES, read_header
from justright.checkpoint.reader import Checkpoint
from justright.checkpoint.writer import CheckpointWriter
from justright.errors import CheckpointError, UnsupportedModelError


@pytest.fixture
def sharded(tmp_path):
    return write(tmp_path / "sharded", some_tensors(), max_shard_bytes=300)


# --- round trips

TORCH_DTYPES = sorted({getattr(torch, entry[0]) for entry in DTYPES.values() if entry[0]}, key=str)


@st.composite
def tensors(draw):
    dtype = draw(st.sampled_from(TORCH_DTYPES))
    shape = draw(st.lists(st.integers(0, 4), max_size=3))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 1000)))
    size = dtype.itemsize * torch.Size(shape).numel()
    raw = torch.randint(0, 2 if dtype == torch.bool else 256, (size,), generator=generator, dtype=torch.uint8)
    return raw.view(dtype).reshape(shape)


NAMES = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20).filter(
    lambda name: name != "__metadata__"
)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(
    model=st.dictionaries(NAMES, tensors(), min_size=1, max_size=6),
    shard_bytes=st.sampled_from([1, 64, 10**9]),
)
def test_any_names_shapes_and_dtypes_come_back(tmp_path, model, shard_bytes):
    out = tmp_path / "out"
    shutil.rmtree(out, ignore_errors=True)
    write(out, model, max_shard_bytes=shard_bytes)

    with Checkpoint.open(out) as checkpoint:
        assert tuple(checkpoint) == tuple(model)
        assert checkpoint.nbytes == sum(tensor.nbytes for tensor in model.values())
        with safe_open(checkpoint.files()[0], "pt") as file:
            assert file.metadata() == {"format": "pt"}, "transformers requires it"
        assert checkpoint.config == CONFIG
        for name, tensor in model.items():
            read = checkpoint.tensor(name)
            assert (read.dtype, read.shape) == (tensor.dtype, tensor.shape)
            assert checkpoint.shape(name) == tuple(tensor.shape)
            assert DTYPES[checkpoint.dtype(name)][0] == str(tensor.dtype).removeprefix("torch.")
            assert bits(read) == bits(tensor)
            assert checkpoint.info(name).start % tensor.element_size() == 0


def test_safetensors_itself_reads_what_is_written(tmp_path, sharded):
    one = write(tmp_path / "one", some_tensors())

    read = load_file(one / "model.safetensors")
    assert read.keys() == some_tensors().keys()
    assert all(torch.equal(read[name], tensor) for name, tensor in some_tensors().items())
    weight_map = json.loads((sharded / "model.safetensors.index.json").read_text())["weight_map"]
    for name, shard in weight_map.items():
        assert torch.equal(load_file(sharded / shard)[name], some_tensors()[name])


def test_transformers_loads_what_is_written(tmp_path):
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=32,
        hidden_size=8,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(config)
    with CheckpointWriter(tmp_path / "out", max_shard_bytes=600) as writer:
        for name, tensor in model.state_dict().items():
            writer.add(name, tensor)
        out = writer.finish(config.to_dict())
    again = LlamaForCausalLM.from_pretrained(out)

    tokens = torch.arange(8)[None]
    assert torch.equal(model(tokens).logits, again(tokens).logits)


def test_shards_have_the_usual_names_and_sizes(sharded):
    index = json.loads((sharded / "model.safetensors.index.json").read_text())
    shards = sorted(set(index["weight_map"].values()))

    assert shards == [f"model-{n:05d}-of-{len(shards):05d}.safetensors" for n in range(1, len(shards) + 1)]
    assert len(shards) == 4  # 32 + 64 + 96 bytes, 128 + 160, 192, 224
    assert index["metadata"]["total_size"] == Checkpoint.open(sharded).nbytes
    assert [f.name for f in Checkpoint.open(sharded).files()] == shards


def test_a_header_without_room_begins_a_shard(tmp_path, monkeypatch):
    monkeypatch.setattr(shardfile, "MIN_HEADER_ROOM", 400)
    monkeypatch.setattr(shardfile, "MAX_HEADER_ROOM", 400)
    out = write(tmp_path / "out", some_tensors(5))

    with Checkpoint.open(out) as checkpoint:
        assert len(checkpoint.files()) == 3
        assert tuple(checkpoint) == tuple(some_tensors(5))


def test_tensors_that_are_views_are_written_as_seen(tmp_path):
    base = torch.arange(12.0).reshape(3, 4)
    out = write(tmp_path / "out", {"t": base.T, "row": base[1], "grad": base.clone().requires_grad_()})

    with Checkpoint.open(out) as checkpoint:
        assert torch.equal(checkpoint.tensor("t"), base.T)
        assert torch.equal(checkpoint.tensor("row"), base[1])


def test_a_copy_is_the_caller_s_own_and_tensors_outlive_the_checkpoint(sharded):
    with Checkpoint.open(sharded) as checkpoint:
        name = tuple(checkpoint)[3]
        before = content(sharded)
        checkpoint.tensor(name, copy=True).zero_()
        kept = checkpoint.tensor(name)
        assert torch.equal(kept, some_tensors()[name])
    checkpoint.close()
    assert torch.equal(kept, some_tensors()[name])
    kept.zero_()
    assert content(sharded) == before


def test_a_single_file_opens(sharded):
    with Checkpoint.open(sharded / "model-00001-of-00004.safetensors") as checkpoint:
        assert len(checkpoint) == 3
        assert "layers.0.weight" in checkpoint
        assert checkpoint.config == CONFIG


def test_headers_are_read_without_torch(sharded):
    code = (
        "import sys; from justright.checkpoint.reader import Checkpoint; "
        f"c = Checkpoint.open({str(sharded)!r}); c.shape(next(iter(c))); "
        "print(c.nbytes, 'torch' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert result.stdout.split() == [str(sum(t.nbytes for t in some_tensors().values())), "False"]


def test_an_unknown_tensor_names_similar_ones(sharded):
    with pytest.raises(
        CheckpointError, match=r"no tensor 'layers\.9\.weight' among its 7; similar: \['layers"
    ):
        Checkpoint.open(sharded).tensor("layers.9.weight")


def test_a_dtype_without_torch_counterpart_is_listed_not_loaded(tmp_path):
    file = tmp_path / "model.safetensors"
    file.write_bytes(raw_file({"w": {"dtype": "F4", "shape": [4], "data_offsets": [0, 2]}}, b"12"))

    with Checkpoint.open(tmp_path) as checkpoint:
        assert (checkpoint.dtype("w"), checkpoint.nbytes) == ("F4", 2)
        with pytest.raises(UnsupportedModelError, match=r"w in .* has dtype F4"):
            checkpoint.tensor("w")


# --- damage


def raw_file(header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


ENTRY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
DAMAGE = {
    "empty": (b"", "its 0 bytes do not begin with a safetensors header"),
    "short": (b"\x10\0\0\0\0\0\0\0{}", "its 10 bytes do not begin with a safetensors header"),
    "huge": (b"\xff" * 64, "its 64 bytes do not begin with a safetensors header"),
    "lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "Git LFS pointer.*git lfs pull"),
    "no json": (raw_file(b"{{{{"), "header is corrupt"),
    "no object": (raw_file(b"[1]"), "header is corrupt"),
    "not utf-8": (raw_file(b'{"\xff":1}'), "header is corrupt"),
    "duplicate": (raw_file(b'{"a":1,"a":2}'), "corrupt.*'a' appears twice"),
    "no dtype": (raw_file({"a": {"shape": [2]}}), "corrupt.*dtype"),
    "odd dtype": (raw_file({"a": {**ENTRY, "dtype": "F33"}}, b"x" * 8), "unknown dtype 'F33'"),
    "odd shape": (raw_file({"a": {**ENTRY, "shape": [-2]}}, b"x" * 8), r"shape \[-2\]"),
    "wrong size": (raw_file({"a": {**ENTRY, "shape": [3]}}, b"x" * 8), r"F32 \[3\] cannot fill 8 bytes"),
    "truncated": (raw_file({"a": ENTRY}, b"x" * 7), "truncated: its header lists 8 bytes.*the file holds 7"),
    "spare": (raw_file({"a": ENTRY}, b"x" * 9), "1 bytes follow its last tensor"),
    "hole": (raw_file({"a": {**ENTRY, "data_offsets": [4, 12]}}, b"x" * 12), "begins at byte 4"),
    "overlap": (raw_file({"a": ENTRY, "b": ENTRY}, b"x" * 8), "b begins at byte 0.*ends at 8"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_found_before_any_tensor_is_read(tmp_path, kind):
    raw, message = DAMAGE[kind]
    (tmp_path / "model.safetensors").write_bytes(raw)

    with pytest.raises(CheckpointError, match=message) as caught:
        Checkpoint.open(tmp_path)
    assert "model.safetensors" in str(caught.value)


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(raw=st.one_of(st.binary(max_size=80), st.binary(max_size=60).map(raw_file)))
def test_random_bytes_never_end_in_another_error(tmp_path, raw):
    file = tmp_path / "model.safetensors"
    file.write_bytes(raw)

    with contextlib.suppress(CheckpointError):
        read_header(file)


def test_a_missing_shard_is_named(sharded):
    (sharded / "model-00002-of-00004.safetensors").unlink()

    with pytest.raises(CheckpointError, match=r"lacks 1 of its 4 shards: model-00002.*Fetch them again"):
        Checkpoint.open(sharded)


def test_a_truncated_shard_is_named(sharded):
    file = sharded / "model-00003-of-00004.safetensors"
    os.truncate(file, file.stat().st_size - 1)

    with pytest.raises(CheckpointError, match=r"model-00003-of-00004\.safetensors is truncated"):
        Checkpoint.open(sharded)


def test_an_index_at_odds_with_its_shards(sharded):
    index = sharded / "model.safetensors.index.json"
    data = json.loads(index.read_text())
    data["weight_map"]["ghost.weight"] = "model-00002-of-00004.safetensors"
    index.write_text(json.dumps(data))

    with pytest.raises(CheckpointError, match=r"lists 1 tensors.*ghost\.weight in model-00002.*two versions"):
        Checkpoint.open(sharded)


def test_a_tensor_in_two_shards(sharded):
    save_file({"layers.0.weight": torch.ones(1, 8)}, sharded / "model-00004-of-00004.safetensors")
    index = sharded / "model.safetensors.index.json"
    data = json.loads(index.read_text())
    del data["weight_map"]["layers.6.weight"]
    data["weight_map"]["layers.0.weight"] = "model-00004-of-00004.safetensors"
    index.write_text(json.dumps(data))

    with pytest.raises(
        CheckpointError,
        match=r"model-00001.*and model-00004.* different values of the tensor .*layers\.0\.weight",
    ):
        Checkpoint.open(sharded)


@pytest.mark.parametrize("index", ["{", "[]", "{}", '{"weight_map": {"a": "../../etc/passwd"}}'])
def test_a_bad_index(tmp_path, index):
    (tmp_path / "model.safetensors.index.json").write_text(index)

    with pytest.raises(
        CheckpointError, match=r"index\.json (is not readable|holds a|has no|names the shard)"
    ):
        Checkpoint.open(tmp_path)


@pytest.mark.parametrize(
    ("config", "message"), [(None, "has no config.json"), ("{", "not readable JSON"), ("[]", "a JSON list")]
)
def test_a_bad_config(sharded, config, message):
    (sharded / "config.json").unlink()
    if config is not None:
        (sharded / "config.json").write_text(config)

    with pytest.raises(CheckpointError, match=message):
        _ = Checkpoint.open(sharded).config


def test_pickles_only(tmp_path):
    (tmp_path / "pytorch_model.bin").write_bytes(b"")

    with pytest.raises(
        CheckpointError, match=r"only pickled weights \(pytorch_model\.bin\).*convert them with transformers"
    ):
        Checkpoint.open(tmp_path)


def test_no_directory(tmp_path):
    with pytest.raises(CheckpointError, match="nowhere does not exist"):
        Checkpoint.open(tmp_path / "nowhere")
