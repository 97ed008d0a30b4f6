"""Reading and writing checkpoints: round trips, damage, and work interrupted at every possible point."""

import contextlib
import errno
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from justright.errors import CheckpointError, ResourceError, UnsupportedModelError, UsageError
from justright.models import shardfile, writing
from justright.models.checkpoint import Checkpoint, CheckpointWriter, read_header
from justright.models.reading import DTYPES
from justright.provenance import collect

CONFIG = {"model_type": "tiny", "hidden_size": 4}


def some_tensors(count=7):
    return {f"layers.{n}.weight": torch.full((n + 1, 8), float(n)) for n in range(count)}


def write(out, tensors, **options):
    with CheckpointWriter(out, **options) as writer:
        for name, tensor in tensors.items():
            writer.add(name, tensor)
        return writer.finish(CONFIG)


def content(folder):
    return {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}


def bits(tensor):
    return tensor.contiguous().reshape(-1).view(torch.uint8).tolist()


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


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    model=st.dictionaries(NAMES, tensors(), min_size=1, max_size=6),
    shard_bytes=st.sampled_from([1, 64, 10**9]),
)
def test_any_names_shapes_and_dtypes_come_back(tmp_path, model, shard_bytes):
    out = tmp_path / "out"
    shutil.rmtree(out, ignore_errors=True)
    write(out, model, max_shard_bytes=shard_bytes)

    with Checkpoint.open(out) as checkpoint:
        assert checkpoint.names() == tuple(model)
        assert checkpoint.nbytes == sum(tensor.nbytes for tensor in model.values())
        assert checkpoint.metadata == {"format": "pt"}
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
        assert checkpoint.names() == tuple(some_tensors(5))


def test_tensors_that_are_views_are_written_as_seen(tmp_path):
    base = torch.arange(12.0).reshape(3, 4)
    out = write(tmp_path / "out", {"t": base.T, "row": base[1], "grad": base.clone().requires_grad_()})

    with Checkpoint.open(out) as checkpoint:
        assert torch.equal(checkpoint.tensor("t"), base.T)
        assert torch.equal(checkpoint.tensor("row"), base[1])


def test_a_copy_is_the_caller_s_own_and_tensors_outlive_the_checkpoint(sharded):
    with Checkpoint.open(sharded) as checkpoint:
        name = checkpoint.names()[3]
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
        assert list(checkpoint) == list(checkpoint.names())
        assert checkpoint.config == CONFIG


def test_headers_are_read_without_torch(sharded):
    code = (
        "import sys; from justright.models.checkpoint import Checkpoint; "
        f"c = Checkpoint.open({str(sharded)!r}); c.shape(c.names()[0]); "
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
        with pytest.raises(UnsupportedModelError, match="w has dtype F4"):
            checkpoint.tensor("w")


# --- damage


def raw_file(header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


ENTRY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
DAMAGE = {
    "empty": (b"", "bytes are too few for its header"),
    "short": (b"\x10\0\0\0\0\0\0\0{}", "10 bytes are too few for its header"),
    "huge": (b"\xff" * 64, "too few for its header, or it is no safetensors file"),
    "lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "Git LFS pointer.*git lfs pull"),
    "no json": (raw_file(b"{{{{"), "header is corrupt"),
    "no object": (raw_file(b"[1]"), "header is corrupt"),
    "not utf-8": (raw_file(b'{"\xff":1}'), "header is corrupt"),
    "duplicate": (raw_file(b'{"a":1,"a":2}'), "corrupt.*'a' appears twice"),
    "no dtype": (raw_file({"a": {"shape": [2]}}), "corrupt.*dtype"),
    "odd dtype": (raw_file({"a": {**ENTRY, "dtype": "F33"}}, b"x" * 8), "unknown dtype 'F33'"),
    "odd shape": (raw_file({"a": {**ENTRY, "shape": [-2]}}, b"x" * 8), r"shape \[-2\]"),
    "wrong size": (raw_file({"a": {**ENTRY, "shape": [3]}}, b"x" * 8), r"F32 \[3\] cannot fill 8 bytes"),
    "truncated": (raw_file({"a": ENTRY}, b"x" * 7), "truncated: its header promises 8 bytes.*7 are there"),
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


@settings(deadline=None, max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
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

    with pytest.raises(
        CheckpointError, match=r"places 1 tensors.*ghost\.weight in model-00002.*two versions"
    ):
        Checkpoint.open(sharded)


def test_a_tensor_in_two_shards(sharded):
    save_file({"layers.0.weight": torch.ones(1, 8)}, sharded / "model-00004-of-00004.safetensors")
    index = sharded / "model.safetensors.index.json"
    data = json.loads(index.read_text())
    del data["weight_map"]["layers.6.weight"]
    data["weight_map"]["layers.0.weight"] = "model-00004-of-00004.safetensors"
    index.write_text(json.dumps(data))

    with pytest.raises(CheckpointError, match=r"layers\.0\.weight is in both model-00001.*and model-00004"):
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
        CheckpointError, match=r"only pickled weights \(pytorch_model\.bin\).*convert them once"
    ):
        Checkpoint.open(tmp_path)


def test_no_directory(tmp_path):
    with pytest.raises(CheckpointError, match="nowhere does not exist"):
        Checkpoint.open(tmp_path / "nowhere")


# --- what is written beside the weights


def test_companions_are_copied_and_nothing_else(tmp_path):
    source = tmp_path / "source"
    (source / "additional_chat_templates").mkdir(parents=True)
    wanted = [
        *("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", "special_tokens_map.json"),
        *("chat_template.jinja", "additional_chat_templates/tool.jinja", "generation_config.json", "LICENSE"),
        *("README.md", "spiece.model", "tokenizer.model"),
    ]
    unwanted = ["config.json", "model.safetensors", "pytorch_model.bin", "modeling_x.py", "provenance.json"]
    for name in wanted + unwanted:
        (source / name).write_text(f"the source's {name}")
    with CheckpointWriter(tmp_path / "out", source=source) as writer:
        writer.add("w", torch.ones(1))
        out = writer.finish(
            CONFIG, provenance=collect(seed=3), files={"README.md": "new", "extra.bin": b"\0"}
        )

    assert set(content(out)) == {*wanted, "config.json", "model.safetensors", "provenance.json", "extra.bin"}
    assert (out / "merges.txt").read_text() == "the source's merges.txt"
    assert (out / "README.md").read_text() == "new"
    assert json.loads((out / "config.json").read_text()) == CONFIG
    assert json.loads((out / "provenance.json").read_text())["seed"] == 3
    assert not (tmp_path / "out.partial").exists()


# --- refusals


def test_an_existing_output_is_refused(sharded):
    before = content(sharded)
    with pytest.raises(UsageError, match="exists already: choose another output, or remove it"):
        CheckpointWriter(sharded)
    assert content(sharded) == before
    assert not sharded.with_name("sharded.partial").exists()


def test_a_name_taken_meanwhile_is_not_overwritten(tmp_path):
    out = tmp_path / "out"
    with CheckpointWriter(out) as writer:
        writer.add("w", torch.ones(1))
        out.mkdir()
        with pytest.raises(UsageError, match="exists already"):
            writer.finish(CONFIG)
    out.rmdir()

    assert write(out, {"w": torch.ones(1)}).exists()


def test_two_writers_of_one_output(tmp_path):
    with (
        CheckpointWriter(tmp_path / "out"),
        pytest.raises(UsageError, match="another process is writing"),
    ):
        CheckpointWriter(tmp_path / "out")
    CheckpointWriter(tmp_path / "out").close()


def test_a_name_is_added_once(tmp_path):
    with CheckpointWriter(tmp_path / "out") as writer:
        writer.add("w", torch.ones(1))
        with pytest.raises(UsageError, match="w cannot be added: the name is taken"):
            writer.add("w", torch.ones(1))
        writer.finish(CONFIG)
        with pytest.raises(UsageError, match="is finished"):
            writer.add("x", torch.ones(1))


@pytest.mark.parametrize("tensor", [torch.ones(2, device="meta"), torch.ones(2, 2).to_sparse()])
def test_tensors_that_cannot_be_held(tmp_path, tensor):
    with (
        CheckpointWriter(tmp_path / "out") as writer,
        pytest.raises(UsageError, match=r"w \(.*cannot be written"),
    ):
        writer.add("w", tensor)


def test_an_empty_checkpoint_and_a_bad_size(tmp_path):
    with pytest.raises(UsageError, match="no tensor was added"), CheckpointWriter(tmp_path / "out") as writer:
        writer.finish(CONFIG)
    with pytest.raises(UsageError, match="max_shard_bytes is 0"):
        CheckpointWriter(tmp_path / "out", max_shard_bytes=0)


def test_an_output_below_a_file(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises((UsageError, FileExistsError)):
        CheckpointWriter(tmp_path / "file" / "out")


# --- room


def test_too_little_room_is_said_before_writing(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 1000))

    with pytest.raises(
        ResourceError, match=r"disk of .*: 21,777,216 bytes are needed, 1,000 are free"
    ) as caught:
        CheckpointWriter(tmp_path / "out", expected_bytes=5_000_000)
    assert caught.value.exit_code == 5


@pytest.mark.parametrize("when", ["tensor", "header"])
def test_a_full_disk_keeps_what_is_complete(tmp_path, monkeypatch, when):
    expected = content(write(tmp_path / "expected", some_tensors(), max_shard_bytes=300))
    full = OSError(errno.ENOSPC, "No space left on device")
    method = {"tensor": "append", "header": "complete"}[when]
    original = getattr(shardfile.ShardFile, method)

    def fails_in_the_third_shard(self, *arguments):
        if self.path.name == "shard-00003.safetensors":
            raise full
        return original(self, *arguments)

    monkeypatch.setattr(shardfile.ShardFile, method, fails_in_the_third_shard)
    with pytest.raises(ResourceError, match=r"is full: what is complete there is kept.*repeat the command"):
        write(tmp_path / "out", some_tensors(), max_shard_bytes=300)
    assert not (tmp_path / "out").exists()
    monkeypatch.undo()

    with CheckpointWriter(tmp_path / "out", max_shard_bytes=300) as writer:
        assert writer.done() == {f"layers.{n}.weight" for n in range(5)}
    assert content(write(tmp_path / "out", some_tensors(), max_shard_bytes=300)) == expected


# --- interruption


class Killed(BaseException):
    """Stands for a kill: nothing catches it."""


class Killer:
    """Counts the moments at which a process could be killed, and raises at one of them."""

    def __init__(self, monkeypatch, at):
        self.count, self.at = 0, at
        for owner, name in [
            (os, "fsync"),
            (os, "rename"),
            (os, "replace"),
            (shardfile.ShardFile, "append"),
            (shardfile.ShardFile, "complete"),
            (writing, "write_durably"),
            (writing, "copy_companions"),
            (shutil, "rmtree"),
        ]:
            monkeypatch.setattr(owner, name, self.around(getattr(owner, name)))

    def around(self, original):
        def wrapped(*arguments, **options):
            self.moment()  # all that lies between two of these has no effect on disk
            return original(*arguments, **options)

        return wrapped

    def moment(self):
        self.count += 1
        if self.count == self.at:
            raise Killed


@pytest.fixture
def source(tmp_path):
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "tokenizer.json").write_text("{}")
    return tmp_path / "source"


@pytest.mark.parametrize("shard_bytes", [100, 10**6])
def test_stopped_anywhere_and_repeated_the_bytes_are_the_same(tmp_path, source, shard_bytes):
    options = {"source": source, "max_shard_bytes": shard_bytes, "fingerprint": {"job": 1}}
    expected = content(write(tmp_path / "expected", some_tensors(4), **options))
    out, at, resumed = tmp_path / "out", 0, set()
    while True:
        at += 1
        with pytest.MonkeyPatch.context() as patch:
            killer = Killer(patch, at)
            with contextlib.suppress(Killed):
                write(out, some_tensors(4), **options)
        if killer.count < at:
            break  # it ran through: every moment has been tried
        if not out.exists():
            with CheckpointWriter(out, **options) as writer:
                resumed.add(len(writer.done()))
                for name, tensor in some_tensors(4).items():
                    if name not in writer.done():
                        writer.add(name, tensor)
                writer.finish(CONFIG)
        assert content(out) == expected, f"stopped at moment {at}"
        shutil.rmtree(out)
        shutil.rmtree(out.with_name("out.partial"), ignore_errors=True)
    assert at > 20
    assert resumed == ({0, 2, 3, 4} if shard_bytes == 100 else {0, 4})


def test_stopped_while_finishing_no_tensor_is_written_again(tmp_path, source):
    options = {"source": source, "max_shard_bytes": 300, "fingerprint": {"job": 1}}

    def killed(*folders):
        raise Killed

    # The companions are copied before the shards get their final names, the folder is synced after.
    for step in ("copy_companions", "sync_folder"):
        with CheckpointWriter(tmp_path / "out", **options) as writer:
            for name, tensor in some_tensors().items():
                writer.add(name, tensor)
            writer._complete_shard()
            with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
                patch.setattr(writing, step, killed)
                writer.finish(CONFIG)
        with CheckpointWriter(tmp_path / "out", **options) as writer:
            assert writer.done() == some_tensors().keys()


def write_and_interrupt(out, stop):
    with CheckpointWriter(out, max_shard_bytes=300) as writer:
        for name, tensor in list(some_tensors().items())[:stop]:
            writer.add(name, tensor)
        raise KeyboardInterrupt


def test_interrupted_twice(tmp_path):
    expected = content(write(tmp_path / "expected", some_tensors(), max_shard_bytes=300))
    for stop in (4, 6):
        with pytest.raises(KeyboardInterrupt):
            write_and_interrupt(tmp_path / "out", stop)
        assert not (tmp_path / "out").exists()

    assert content(write(tmp_path / "out", some_tensors(), max_shard_bytes=300)) == expected


@pytest.fixture
def interrupted(tmp_path):
    with CheckpointWriter(tmp_path / "out", max_shard_bytes=300, fingerprint={"sparsity": 0.5}) as writer:
        for name, tensor in list(some_tensors().items())[:6]:
            writer.add(name, tensor)
    return tmp_path / "out"


def test_another_job_does_not_take_up_the_work(interrupted):
    before = content(interrupted.with_name("out.partial"))
    with pytest.raises(
        UsageError, match=r"another job \(sparsity: 0\.5 there, 0\.4 here\).*or delete .*out\.partial"
    ):
        CheckpointWriter(interrupted, max_shard_bytes=300, fingerprint={"sparsity": 0.4})
    with pytest.raises(UsageError, match=r"max_shard_bytes: 300 there, 400 here"):
        CheckpointWriter(interrupted, max_shard_bytes=400, fingerprint={"sparsity": 0.5})
    assert content(interrupted.with_name("out.partial")) == before


def test_what_finished_work_left_behind_protects_nothing(tmp_path):
    """Killed after the rename, before OUT.partial is gone: another job may use the name again."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shutil, "rmtree", lambda *a, **k: None)
        out = write(tmp_path / "out", some_tensors(1), fingerprint={"job": 1})
    assert out.with_name("out.partial").exists()
    shutil.rmtree(out)

    write(out, some_tensors(2), fingerprint={"job": 2})
    assert len(Checkpoint.open(out)) == 2
    assert not out.with_name("out.partial").exists()


def test_another_job_may_discard_the_work(interrupted):
    with CheckpointWriter(interrupted, fingerprint={"sparsity": 0.4}, resume=False) as writer:
        assert writer.done() == frozenset()
        writer.add("only", torch.ones(1))
        writer.finish(CONFIG)

    assert Checkpoint.open(interrupted).names() == ("only",)
    assert set(content(interrupted)) == {"config.json", "model.safetensors"}


@pytest.mark.parametrize("damage", ["truncated", "gone", "torn journal", "journal gone"])
def test_damaged_interrupted_work_is_written_again(tmp_path, interrupted, damage):
    options = {"max_shard_bytes": 300, "fingerprint": {"sparsity": 0.5}}
    partial = interrupted.with_name("out.partial")
    shard = partial / "checkpoint" / "shard-00002.safetensors"
    journal = partial / "journal.jsonl"
    if damage == "truncated":
        os.truncate(shard, 100)
    elif damage == "gone":
        shard.unlink()
    elif damage == "torn journal":
        journal.write_text(journal.read_text()[:-9])
    else:
        journal.unlink()
    with CheckpointWriter(interrupted, **options) as writer:
        assert len(writer.done()) == (0 if damage == "journal gone" else 3)

    expected = content(write(tmp_path / "expected", some_tensors(), **options))
    assert content(write(interrupted, some_tensors(), **options)) == expected


SCRIPT = textwrap.dedent(
    """
    import sys, time, torch
    from justright.models.checkpoint import CheckpointWriter
    out, pause = sys.argv[1], float(sys.argv[2])
    with CheckpointWriter(out, max_shard_bytes=300, fingerprint={"job": 1}) as writer:
        print(len(writer.done()), flush=True)
        for n in range(7):
            writer.add(f"layers.{n}.weight", torch.full((n + 1, 8), float(n)))
            print("added", n, flush=True)
            time.sleep(pause if n == 5 else 0)
        writer.finish({"model_type": "tiny", "hidden_size": 4})
    """
)


def test_a_killed_process_leaves_nothing_final_and_can_be_repeated(tmp_path):
    out = tmp_path / "out"
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(out), "60"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    with process:
        for line in process.stdout:
            if line == "added 5\n":
                break
        time.sleep(0.05)
        process.kill()
    assert process.returncode == -signal.SIGKILL
    assert not out.exists()

    again = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(out), "0"], capture_output=True, text=True, check=True
    )
    assert again.stdout.startswith("5\n")  # two shards were complete, the third was not
    expected = write(tmp_path / "expected", some_tensors(), max_shard_bytes=300, fingerprint={"job": 1})
    assert content(out) == content(expected)
    assert not Path(f"{out}.partial").exists()
