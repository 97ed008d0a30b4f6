"""The bitmask container restores every bit, is smaller, is rejected by other loaders, and runs in the engine."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from justright.checkpoint import sparse
from justright.checkpoint.reader import Checkpoint
from justright.checkpoint.unpacking import unpack_checkpoint
from justright.checkpoint.writer import CheckpointWriter
from justright.engine.loading import load_model
from justright.errors import CheckpointError, UsageError
from justright.model.summary import inspect
from tiny import ALL, save_tiny

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


def raw(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()


@given(
    shape=st.lists(st.integers(0, 9), min_size=0, max_size=3),
    zeros=st.floats(0, 1),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 2**20),
)
def test_every_bit_comes_back(shape: list[int], zeros: float, dtype: torch.dtype, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    tensor = torch.randn(shape, generator=generator)
    tensor = tensor.masked_fill(torch.rand(shape, generator=generator) < zeros, 0).to(dtype)
    if tensor.numel() > 2:
        tensor.view(-1)[0], tensor.view(-1)[1] = -0.0, float("nan")
    packed = sparse.pack("w", tensor)
    stored = sum(t.nbytes for t in packed.values())
    assert stored <= tensor.nbytes
    if len(packed) == 1:
        assert packed["w"] is tensor
        return
    assert stored % 8 == 0, "what comes next in the file is aligned"
    back = sparse.unpack(packed["w.values"], packed["w.bitmask"], tuple(shape))
    assert back.shape == tensor.shape
    assert raw(back) == raw(tensor)


def test_its_size_is_a_bit_a_weight_and_the_values() -> None:
    tensor = torch.ones(64, 64, dtype=torch.bfloat16)
    tensor[:, ::2] = 0
    stored = sum(t.nbytes for t in sparse.pack("w", tensor).values())
    assert stored == 64 * 64 // 8 + 64 * 32 * 2 + 16


def halve(path: Path) -> None:
    """Zero half of every matrix."""
    file = path / "model.safetensors"
    tensors = load_file(file)
    for number, tensor in enumerate(tensors.values()):
        if tensor.ndim > 1:
            tensor[torch.rand(tensor.shape, generator=torch.Generator().manual_seed(number)) < 0.6] = 0
    save_file(tensors, file, {"format": "pt"})


def packed(model: Path, out: Path, **options: int) -> Path:
    with (
        Checkpoint.open(model) as source,
        CheckpointWriter(out, source=model, store="sparse", **options) as writer,
    ):
        for name in source:
            writer.add(name, source.tensor(name))
        return writer.finish(source.config)


@pytest.mark.parametrize("family", ALL)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_engine_reads_it_as_the_plain_one(family: str, dtype: torch.dtype, tmp_path: Path) -> None:
    model = save_tiny(family, tmp_path / "model")
    halve(model)
    out = packed(model, tmp_path / "out")
    plain, mine = (load_model(p, dtype=dtype, device=torch.device("cpu")) for p in (model, out))
    expected, found = plain.state_dict(), mine.state_dict()
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        assert tensor.dtype == found[name].dtype, name
        assert torch.equal(tensor, found[name]), name
    ids = torch.arange(5, 30)[None]
    with torch.no_grad():
        assert torch.equal(plain(ids).logits, mine(ids).logits)


def test_a_container_in_shards_is_read_inspected_and_unpacked(tmp_path: Path) -> None:
    model = save_tiny("qwen3_moe", tmp_path / "model")
    halve(model)
    out = packed(model, tmp_path / "out", max_shard_bytes=100_000)
    assert (out / sparse.INDEX).exists()
    before = Checkpoint.open(model)
    after = Checkpoint.open(out)
    assert set(before) == set(after)
    assert after.nbytes < 0.65 * before.nbytes
    assert len(after.packed) > 70
    for name in before:
        assert before.shape(name) == after.shape(name)
        assert torch.equal(before.tensor(name), after.tensor(name))
        assert after.plain_bytes(name) == before.info(name).nbytes
    seen, plain = inspect(out), inspect(model)
    assert (seen.store, plain.store) == ("sparse", "dense")
    assert seen.parameters == plain.parameters
    assert seen.disk_bytes == after.nbytes
    unpack_checkpoint(out, tmp_path / "back")
    a, b = load_file(model / "model.safetensors"), load_file(tmp_path / "back" / "model.safetensors")
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)
    AutoModelForCausalLM.from_pretrained(tmp_path / "back")
    assert (tmp_path / "back" / "tokenizer.json").exists()


def test_an_interrupted_unpacking_continues(tmp_path: Path) -> None:
    model = save_tiny("olmoe", tmp_path / "model")
    halve(model)
    out = packed(model, tmp_path / "out")

    def cut(done: int, _: int) -> None:
        if done == 20:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        unpack_checkpoint(out, tmp_path / "back", cut)
    assert not (tmp_path / "back").exists()
    unpack_checkpoint(out, tmp_path / "back")
    unpack_checkpoint(out, tmp_path / "other")
    assert (tmp_path / "back" / "model.safetensors").read_bytes() == (
        tmp_path / "other" / "model.safetensors"
    ).read_bytes()


def test_others_find_no_weights_in_it(tmp_path: Path) -> None:
    out = packed(save_tiny("llama", tmp_path / "model"), tmp_path / "out")
    with pytest.raises(OSError, match=r"no file named model\.safetensors"):
        AutoModelForCausalLM.from_pretrained(out)


def test_what_is_no_container_or_damaged_is_refused(tmp_path: Path) -> None:
    model = save_tiny("llama", tmp_path / "model")
    with pytest.raises(UsageError, match="already an ordinary checkpoint"):
        unpack_checkpoint(model, tmp_path / "back")
    halve(model)
    out = packed(model, tmp_path / "out")
    tensors = load_file(out / sparse.SINGLE)
    name = "model.layers.1.mlp.up_proj.weight"
    short = tensors | {name + ".values": tensors[name + ".values"][:-4]}
    save_file(short, out / sparse.SINGLE)
    with pytest.raises(CheckpointError, match=r"values for .* set bits"):
        Checkpoint.open(out).tensor(name)
    values = tensors[name + ".values"].clone()
    values[3] = float("nan")
    save_file(tensors | {name + ".values": values}, out / sparse.SINGLE)
    with pytest.raises(CheckpointError, match=f"{name} holds NaN or infinite"):
        unpack_checkpoint(out, tmp_path / "back")
    assert not (tmp_path / "back").exists()
    del tensors[name + ".shape"]
    save_file(tensors, out / sparse.SINGLE)
    with pytest.raises(CheckpointError, match="lacks a part of"):
        Checkpoint.open(out)
    assert json.loads((out / "config.json").read_text())["model_type"] == "llama"
