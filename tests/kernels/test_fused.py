"""Fused layers: the values of transformers' layers, and the same bits for a token whatever runs beside it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from engine_helpers import prompt_of
from justright.adapter.adapter import read_adapter
from justright.adapter.apply import AppliedSwitch
from justright.adapter.extract import extract
from justright.adapter.pair import Pair
from justright.adapter.ranks import RankRule
from justright.engine.model_runner import Verifier
from justright.engine.step import StepInput
from justright.kernels import build
from justright.kernels.fused import FAMILIES
from tiny import save_pair, save_tiny

pytestmark = pytest.mark.skipif(build.missing() is not None, reason=str(build.missing()))

LAYERS = 12
ROOT = 7


def verifier(family: str, slots: int = 3, **changes: Any) -> Verifier:
    with TemporaryDirectory() as folder:
        path = save_tiny(family, Path(folder) / "model", num_hidden_layers=LAYERS, **changes)
        found = Verifier.load(path, weights="int8", slots=slots, prefill_chunk=16)
    assert found.fused
    return found


@pytest.fixture(scope="module", params=sorted(FAMILIES))
def model(request: pytest.FixtureRequest) -> Verifier:
    return verifier(request.param)


def fill(model: Verifier, slot: int, prompt: Sequence[int], factor: float = 0.0) -> None:
    model.clear(slot)
    for _ in model.prefill(slot, prompt, factor):
        pass


def one_by_one(model: Verifier, slot: int, tokens: Sequence[int], factor: float = 0.0) -> Tensor:
    """Logits after each token, decoded plainly; nothing stays."""
    rows = []
    before = model.cache.lengths[slot]
    for token in tokens:
        [output] = model.step([StepInput(slot, [token], factor=factor)])
        model.keep(slot, [0])
        rows.append(output.logits[0])
    model.cache.rewind(slot, before)
    return torch.stack(rows)


@st.composite
def trees(draw: st.DrawFn) -> list[int] | None:
    """Parents of up to eleven drafted nodes, None for a chain."""
    count = draw(st.integers(0, 11))
    if draw(st.booleans()):
        return None if count == 0 else list(range(count))
    return [draw(st.integers(0, node)) for node in range(count)]


def branch(parents: Sequence[int], node: int) -> list[int]:
    path = [node]
    while path[-1] != 0:
        path.append(parents[path[-1] - 1])
    return path[::-1]


@settings(max_examples=12, deadline=None)
@given(parents=trees(), past=st.integers(1, 40), beside=st.integers(0, 5), data=st.data())
def test_a_token_has_the_same_bits_in_any_tree_and_batch(
    model: Verifier, parents: list[int] | None, past: int, beside: int, data: st.DataObject
) -> None:
    parents = parents or []
    fill(model, 1, prompt_of(past))
    fill(model, 0, prompt_of(23))
    tokens = [ROOT, *data.draw(st.lists(st.integers(5, 300), min_size=len(parents), max_size=len(parents)))]
    other = [StepInput(0, prompt_of(beside))] if beside else []
    output = model.step([*other, StepInput(1, tokens, parents)])[-1]
    for one in other:
        model.keep(one.slot, [])
    model.keep(1, [])
    for node in {0, len(parents), len(parents) // 2}:
        path = branch(parents, node)
        expected = one_by_one(model, 1, [tokens[i] for i in path])
        assert torch.equal(output.logits[path], expected)


def test_a_prompt_has_the_same_bits_with_a_spec_token(model: Verifier) -> None:
    model.spec_embedding = torch.randn(64)
    found = []
    for spec in (False, True):
        model.clear(0)
        found.append(next(output for output in model.prefill(0, prompt_of(37), spec=spec) if output))
    assert torch.equal(found[0].logits, found[1].logits)
    assert found[1].spec_hidden is not None


@torch.inference_mode()
def test_the_values_are_those_of_transformers_layers(model: Verifier) -> None:
    """After a prompt, a tree of fused calls against the same tree through transformers' layers."""
    found = []
    for fused in (True, False):
        model.fused = fused
        fill(model, 0, prompt_of(30))
        [output] = model.step([StepInput(0, [ROOT, 9, 10, 11, 12], [0, 0, 1, 1])])
        model.keep(0, [0])
        found.append(output.logits)
    model.fused = True
    torch.testing.assert_close(found[0], found[1], rtol=1e-3, atol=5e-3)
    assert not torch.equal(found[0], found[1]), "the second is another path"


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_rows_without_an_adapter_keep_their_bits_beside_rows_with_one(family: str, tmp_path: Path) -> None:
    """The adapter changes matrices, norms and biases."""
    slow, fast = save_pair(tmp_path, family)
    tensors = load_file(fast / "model.safetensors")
    tensors = {name: tensor + 0.1 if tensor.ndim == 1 else tensor for name, tensor in tensors.items()}
    save_file(tensors, fast / "model.safetensors", {"format": "pt"})
    adapter = read_adapter(extract(Pair(slow, fast), tmp_path / "adapter", RankRule("energy", 0.9)).path)
    model = Verifier.load(slow, weights="int8", slots=2)
    assert model.fused
    expected = after(model, 0, 0.0)
    model.switch = AppliedSwitch(model.model, adapter)
    fill(model, 0, prompt_of(20))
    fill(model, 1, prompt_of(20), 1.0)
    plain, switched = model.step([StepInput(0, [ROOT]), StepInput(1, [ROOT], factor=1.0)])
    model.keep(0, [])
    model.keep(1, [])
    assert torch.equal(plain.logits, expected)
    assert (switched.logits - plain.logits).abs().max() > 0.1
    torch.testing.assert_close(switched.logits, after(model, 1, 1.0), rtol=1e-5, atol=1e-5)


def after(model: Verifier, slot: int, factor: float) -> Tensor:
    fill(model, slot, prompt_of(20), factor)
    [output] = model.step([StepInput(slot, [ROOT], factor=factor)])
    model.keep(slot, [])
    return output.logits
