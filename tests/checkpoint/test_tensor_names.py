"""Every command reads the same tensors for all tensor names that transformers can load."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

from justright.checkpoint.reader import Checkpoint
from justright.errors import CheckpointError
from justright.model.decoder_layer import LayerFormat
from tiny import save_tiny


def renamed(source: Path, target: Path, change: dict[str, str]) -> Path:
    """A copy of the checkpoint with changed prefixes of tensor names; the first matching rule applies."""
    target.mkdir()
    for file in source.iterdir():
        if file.suffix != ".safetensors":
            (target / file.name).write_bytes(file.read_bytes())

    def new(name: str) -> str:
        old = next((prefix for prefix in change if name.startswith(prefix)), None)
        return name if old is None else change[old] + name.removeprefix(old)

    tensors = {new(name): tensor for name, tensor in load_file(source / "model.safetensors").items()}
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    return target


def assert_loads(path: Path, source: Path, kind: type = AutoModelForCausalLM) -> None:
    """Oracle: transformers itself loads both, and finds the same model."""
    models = []
    for folder in (source, path):
        model, notes = kind.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
        assert not notes["missing_keys"]
        models.append(model.state_dict())
    for name, tensor in models[0].items():
        assert torch.equal(tensor, models[1][name]), name


def assert_same_tensors(path: Path, source: Path) -> None:
    with Checkpoint.open(path) as found, Checkpoint.open(source) as expected:
        layers, others = LayerFormat(found), LayerFormat(expected)
        assert set(layers.other_names()) == set(others.other_names())
        for index in range(others.spec.num_layers):
            state, wanted = layers.read(index), others.read(index)
            assert state.keys() == wanted.keys()
            assert len(state) > 0
            assert all(torch.equal(state[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize("family", ["llama", "qwen3_moe", "mixtral"])
def test_names_of_the_base_class(family: str, tmp_path: Path) -> None:
    """A base model is saved without ``model.``, and without a head; here the head is tied."""
    source = save_tiny(family, tmp_path / "a", tie_word_embeddings=True)
    path = renamed(source, tmp_path / "b", {"model.": ""})
    assert_loads(path, source)
    assert_same_tensors(path, source)


def test_names_in_memory_of_a_nested_model(tmp_path: Path) -> None:
    source = save_tiny("gemma3", tmp_path / "a")
    stems = {name.split(".")[0] for name in load_file(source / "model.safetensors")}
    change = {"language_model.model.": "model.language_model.", "language_model.lm_head": "lm_head"}
    if "model" in stems:  # this release of transformers saves the other names: test the reverse direction
        change = {"model.language_model.": "language_model.model.", "lm_head": "language_model.lm_head"}
    path = renamed(source, tmp_path / "b", change)
    assert_loads(path, source, AutoModelForImageTextToText)
    assert_same_tensors(path, source)


def test_a_tied_model_whose_head_alone_is_stored(tmp_path: Path) -> None:
    source = save_tiny("llama", tmp_path / "a", tie_word_embeddings=True)
    path = renamed(source, tmp_path / "b", {"model.embed_tokens.": "lm_head."})
    assert_same_tensors(path, source)
    config = json.loads((path / "config.json").read_text()) | {"tie_word_embeddings": False}
    (path / "config.json").write_text(json.dumps(config))
    assert "model.embed_tokens.weight" not in Checkpoint.open(path), "an untied model has lost its embedding"


def test_two_names_of_one_tensor_are_refused(tmp_path: Path) -> None:
    source = save_tiny("llama", tmp_path / "a")
    tensors = load_file(source / "model.safetensors")
    tensors["norm.weight"] = tensors["model.norm.weight"].clone()
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"norm\.weight and model\.norm\.weight|two versions are mixed"):
        Checkpoint.open(source)


@pytest.mark.parametrize("equal", [True, False])
def test_a_tensor_in_two_shards(equal: bool, tmp_path: Path) -> None:
    """Some exports write tied or shared tensors twice; equal ones are one tensor."""
    source = save_tiny("llama", tmp_path / "a")
    tensors = load_file(source / "model.safetensors")
    (source / "model.safetensors").unlink()
    name = "model.norm.weight"
    again = tensors[name].clone() if equal else tensors[name] + 1
    rest = {key: tensor for key, tensor in tensors.items() if key != name}
    save_file(rest | {name: tensors[name]}, source / "model-1.safetensors", metadata={"format": "pt"})
    save_file({name: again}, source / "model-2.safetensors", metadata={"format": "pt"})
    index = {"weight_map": dict.fromkeys(rest, "model-1.safetensors") | {name: "model-2.safetensors"}}
    (source / "model.safetensors.index.json").write_text(json.dumps(index))
    if not equal:
        with pytest.raises(CheckpointError, match=r"different values of the tensor model\.norm\.weight"):
            Checkpoint.open(source)
        return
    with Checkpoint.open(source) as found:
        assert torch.equal(found.tensor(name), tensors[name])
        assert len(found) == len(tensors)
