"""The digest of a model's weights does not depend on their files' layout."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from justright.checkpoint import fingerprint as identity
from justright.checkpoint.fingerprint import weights_identity
from tiny import save_tiny


def test_copies_and_shards_are_one_model_and_others_are_not(tmp_path: Path) -> None:
    path = save_tiny("llama", tmp_path / "model")
    found = weights_identity(path)
    assert len(found) == 16
    shutil.copytree(path, tmp_path / "copy")
    assert weights_identity(tmp_path / "copy") == found
    AutoModelForCausalLM.from_pretrained(path).save_pretrained(tmp_path / "shards", max_shard_size="100KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    assert weights_identity(tmp_path / "shards") == found
    assert weights_identity(save_tiny("llama", tmp_path / "other", seed=1)) != found
    tensors = load_file(tmp_path / "copy" / "model.safetensors")
    tensors["model.norm.weight"][0] += 1
    save_file(tensors, tmp_path / "copy" / "model.safetensors", {"format": "pt"})
    assert weights_identity(tmp_path / "copy") != found


def test_the_same_files_are_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save_tiny("llama", tmp_path / "model")
    found = weights_identity(path)
    monkeypatch.setattr(identity, "_digest", lambda _: "read again")
    assert weights_identity(path) == found
    (path / "model.safetensors").touch()
    assert weights_identity(path) == "read again"
