import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

from justright import __version__
from justright.errors import CheckpointError, SourceError
from justright.provenance import Provenance, collect, git_revision


def test_what_is_written_is_read_back(tmp_path):
    record = collect(seed=7, recipe={"sparsity": 0.5})
    path = record.write(tmp_path)

    assert path == tmp_path / "provenance.json"
    assert Provenance.read(tmp_path) == Provenance.read(path) == record


def test_it_records_what_ran():
    record = collect(seed=7)

    assert record.argv == sys.argv
    assert record.justright == __version__
    assert record.versions["python"].count(".") == 2
    assert {"torch", "transformers", "safetensors"} <= record.versions.keys()
    assert record.created.endswith("+00:00")
    assert record.seed == 7


def test_input_hashes_are_those_of_the_whole_files(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "elsewhere"))
    content = bytes(range(256)) * 9000
    (tmp_path / "model.safetensors").write_bytes(content)
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "README.md").write_text("not an input")

    model = collect(inputs={"model": tmp_path}).inputs["model"]

    assert model["path"] == str(tmp_path)
    assert list(model["files"]) == ["config.json", "model.safetensors"]
    assert model["files"]["model.safetensors"] == {
        "size_bytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
    }


def test_it_does_not_contain_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    inside, outside = tmp_path / "me" / "models" / "a", tmp_path / "mean"
    inside.mkdir(parents=True)
    outside.mkdir()

    inputs = collect(inputs={"inside": inside, "outside": outside}).inputs

    assert inputs["inside"]["path"] == str(Path("~/models/a"))
    assert inputs["outside"]["path"] == str(outside)


def test_unhashed_inputs_say_so(tmp_path):
    file = tmp_path / "text.txt"
    file.write_text("abc")

    files = collect(inputs={"text": file}, hash_inputs=False).inputs["text"]["files"]

    assert files == {"text.txt": {"size_bytes": 3, "sha256": None}}


def test_a_missing_input_is_an_error(tmp_path):
    with pytest.raises(SourceError, match=r"input .*nowhere does not exist"):
        collect(inputs={"model": tmp_path / "nowhere"})


def test_no_record_and_a_damaged_record_are_errors(tmp_path):
    with pytest.raises(SourceError, match=r"no provenance\.json"):
        Provenance.read(tmp_path)
    for damaged in ("{", "[1]", '{"argv": []}'):
        (tmp_path / "provenance.json").write_text(damaged)
        with pytest.raises(CheckpointError, match="not a provenance record"):
            Provenance.read(tmp_path)


def test_fields_of_a_later_version_are_kept(tmp_path):
    path = collect().write(tmp_path)
    path.write_text(json.dumps({**json.loads(path.read_text()), "gpu": "none"}))

    assert Provenance.read(path).extra == {"gpu": "none"}


def test_the_revision_is_that_of_the_checkout_and_tells_edits(tmp_path):
    package = tmp_path / "src" / "justright"
    package.mkdir(parents=True)
    (package / "code.py").write_text("1\n")
    assert git_revision(package) is None

    def git(*arguments):
        command = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b", *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    git("init", "-q")
    git("add", ".")
    git("-c", "commit.gpgsign=false", "commit", "-qm", "one")
    git("tag", "v1")
    commit = git("rev-parse", "HEAD")

    assert git_revision(package) == commit
    (package / "code.py").write_text("2\n")
    assert git_revision(package) == f"{commit}-dirty"


def test_collecting_imports_no_heavy_package():
    code = "import sys, justright.provenance as p; p.collect(); print('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert result.stdout.strip() == "False"
