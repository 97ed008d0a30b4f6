"""Writing checkpoints: invalid input, full disks, and interruption at every possible point."""

import contextlib
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import torch

from checkpoint_helpers import CONFIG, content, some_tensors, write
from justright.checkpoint import shard_writer as shardfile
from justright.checkpoint import writer as writing
from justright.checkpoint.reader import Checkpoint
from justright.checkpoint.writer import CheckpointWriter
from justright.errors import ResourceError, UsageError
from justright.provenance import collect


@pytest.fixture
def sharded(tmp_path):
    return write(tmp_path / "sharded", some_tensors(), max_shard_bytes=300)


# --- files beside the weights


def test_companions_are_copied_and_nothing_else(tmp_path):
    source = tmp_path / "source"
    (source / "additional_chat_templates").mkdir(parents=True)
    wanted = [
        *("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", "special_tokens_map.json"),
        *("chat_template.jinja", "additional_chat_templates/tool.jinja", "generation_config.json", "LICENSE"),
        *("README.md", "spiece.model", "tokenizer.model", "GEMMA_TERMS.html"),
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
    with pytest.raises(UsageError, match="exists already; give another output, or delete it"):
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
        with pytest.raises(UsageError, match="w cannot be added: the name is already used"):
            writer.add("w", torch.ones(1))
        writer.finish(CONFIG)
        with pytest.raises(UsageError, match="is already finished"):
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
    with pytest.raises(UsageError, match="max_shard_bytes 0"):
        CheckpointWriter(tmp_path / "out", max_shard_bytes=0)


def test_an_output_below_a_file(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises((UsageError, FileExistsError)):
        CheckpointWriter(tmp_path / "file" / "out")


# --- disk space


def test_too_little_disk_space_is_reported_before_writing(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 1000))

    with pytest.raises(
        ResourceError, match=r"disk of .* has 1,000 bytes free, but 21,777,216 are needed"
    ) as caught:
        CheckpointWriter(tmp_path / "out", expected_bytes=5_000_000)
    assert caught.value.exit_code == 5


@pytest.mark.parametrize("when", ["tensor", "header"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO])
def test_a_full_disk_keeps_what_is_complete(tmp_path, monkeypatch, when, number):
    expected = content(write(tmp_path / "expected", some_tensors(), max_shard_bytes=300))
    full = OSError(number, os.strerror(number))
    method = {"tensor": "append", "header": "complete"}[when]
    original = getattr(shardfile.ShardFile, method)

    def fails_in_the_third_shard(self, *arguments):
        if self.path.name == "shard-00003.safetensors":
            raise full
        return original(self, *arguments)

    monkeypatch.setattr(shardfile.ShardFile, method, fails_in_the_third_shard)
    with pytest.raises(
        ResourceError, match=r"could not be written: .*repeat the command; what is complete is kept"
    ):
        write(tmp_path / "out", some_tensors(), max_shard_bytes=300)
    assert not (tmp_path / "out").exists()
    monkeypatch.undo()

    with CheckpointWriter(tmp_path / "out", max_shard_bytes=300) as writer:
        assert writer.done() == {f"layers.{n}.weight" for n in range(5)}
    assert content(write(tmp_path / "out", some_tensors(), max_shard_bytes=300)) == expected


# --- interruption


class Killed(BaseException):
    """Stands for a kill; no code catches it."""


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
            self.moment()  # nothing between two of these has an effect on disk
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
            break  # the run completed: every moment has been tried
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

    # Companion files are copied before the shards get their final names; the folder is synced after.
    for step in ("copy_companions", "sync_folder"):
        with CheckpointWriter(tmp_path / "out", **options) as writer:
            for name, tensor in some_tensors().items():
                writer.add(name, tensor)
            writer._complete_shard()
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(writing, step, killed)
                with pytest.raises(Killed):
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
        UsageError, match=r"other settings \(sparsity: 0\.5 there, 0\.4 now\).*or delete .*out\.partial"
    ):
        CheckpointWriter(interrupted, max_shard_bytes=300, fingerprint={"sparsity": 0.4})
    with pytest.raises(UsageError, match=r"max_shard_bytes: 300 there, 400 now"):
        CheckpointWriter(interrupted, max_shard_bytes=400, fingerprint={"sparsity": 0.5})
    assert content(interrupted.with_name("out.partial")) == before


def test_a_finished_runs_leftovers_protect_nothing(tmp_path):
    """Killed after the rename, before OUT.partial is gone: another job may use the name again."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shutil, "rmtree", lambda *a, **k: None)
        out = write(tmp_path / "out", some_tensors(1), fingerprint={"job": 1})
    assert out.with_name("out.partial").exists()
    shutil.rmtree(out)

    write(out, some_tensors(2), fingerprint={"job": 2})
    assert len(Checkpoint.open(out)) == 2
    assert not out.with_name("out.partial").exists()


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
    from justright.checkpoint.writer import CheckpointWriter
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
