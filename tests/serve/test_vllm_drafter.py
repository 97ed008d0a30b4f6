"""The vLLM plugin without vLLM: the states that it passes, and its chains, which equal our drafters'."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

import justright_vllm
from draft_helpers import network_for
from justright.checkpoint.fingerprint import weights_identity
from justright.errors import UsageError
from justright.speculative.base import EMPTY_DRAFT
from justright.speculative.hybrid import HybridDrafter
from justright_vllm import drafter as plugin

LENGTH = 4


class Model(nn.Module):
    """Names and padded matrices of a model with LoRA in vLLM."""

    def __init__(self, embedding: Tensor, head: Tensor) -> None:
        super().__init__()
        padding = embedding.new_zeros(64, embedding.shape[1])
        self.matrices = nn.ParameterDict()
        self._named = {
            "model.embed_tokens.base_layer.weight": nn.Parameter(torch.cat([embedding, padding])),
            "lm_head.base_layer.weight": nn.Parameter(torch.cat([head, padding])),
        }

    def named_parameters(self, *_: Any, **__: Any) -> Any:  # type: ignore[override]
        return iter(self._named.items())


@pytest.fixture
def parts(tiny_path: Path, tmp_path: Path) -> tuple[Path, Path, Any]:
    """A model, an untrained drafter for it, and the model's matrices under vLLM's names."""
    model = AutoModelForCausalLM.from_pretrained(tiny_path)
    network_for(model).save(tmp_path, {"verifier": weights_identity(tiny_path)}, dtype=torch.float32)
    head = model.get_output_embeddings().weight.detach()
    return tiny_path, tmp_path, Model(model.get_input_embeddings().weight.detach(), head)


def config(**parallel: int) -> Any:
    sizes = {"tensor_parallel_size": 1, "pipeline_parallel_size": 1} | parallel
    return SimpleNamespace(
        parallel_config=SimpleNamespace(**sizes),
        speculative_config=SimpleNamespace(num_speculative_tokens=LENGTH),
        model_config=SimpleNamespace(max_model_len=64, get_vocab_size=lambda: 320),
    )


def made(
    parts: tuple[Path, Path, Any], monkeypatch: pytest.MonkeyPatch, draft: str = "hybrid"
) -> plugin.ChainDrafter:
    monkeypatch.setattr(plugin, "problem", lambda: None)
    asked = {"draft": draft, "options": {"path": str(parts[1])}, "model": str(parts[0])}
    monkeypatch.setenv(plugin.VARIABLE, json.dumps(asked))
    found = plugin.ChainDrafter(config())
    found.load_model(parts[2])
    return found


def batch(*names: str) -> Any:
    return SimpleNamespace(req_ids=[*names], req_id_to_index={name: at for at, name in enumerate(names)})


def tokens_of(*rows: list[int]) -> tuple[Any, Any]:
    """``lengths, tokens`` in vLLM's form."""
    tokens = np.zeros((len(rows), 64), dtype=np.int32)
    for at, row in enumerate(rows):
        tokens[at, : len(row)] = row
    return np.array([len(row) for row in rows]), tokens


def test_each_request_gets_the_state_that_predicted_its_last_token(
    parts: tuple[Path, Path, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = made(parts, monkeypatch)
    states = torch.arange(8.0)[:, None].expand(8, 64)
    # drafts of 3, 0 and 2 tokens: of the first 1 was accepted, the second only reads its prompt, of the third all were
    found.take_states(batch("a", "b", "c"), [[5, 6], [], [7, 8, 9]], states, [3, 0, 2])
    assert [None if one is None else int(one[0]) for one in found._states] == [1, None, 7]
    found.take_states(batch("a", "b"), [[5], [6]], states[:2], None)
    assert [int(one[0]) for one in found._states if one is not None] == [0, 1]


@pytest.mark.parametrize("draft", ["lstm", "hybrid"])
def test_its_chains_are_the_drafters_own(
    parts: tuple[Path, Path, Any], monkeypatch: pytest.MonkeyPatch, draft: str
) -> None:
    found, alone = made(parts, monkeypatch, draft), made(parts, monkeypatch, draft).drafter
    generator = torch.Generator().manual_seed(0)
    prompt = [5, 6, 7, 5, 6, 7, 5]
    row, before = list(prompt), EMPTY_DRAFT
    alone.start("a", prompt)
    for new in ([6], [7, 5], [6], [9], [5, 6, 7]):
        states = torch.randn(max(len(before) + 1, len(new)), 64, generator=generator)
        row += new
        found.take_states(batch("a"), [new], states, [len(states) - 1])
        chain = found.propose([new], *tokens_of(row))[0]
        if len(before) and isinstance(alone, HybridDrafter):
            alone.verified("a", before, len(new) - 1)
        alone.observe("a", new, states[len(new) - 1])
        before = alone.propose("a", LENGTH)
        assert chain == list(before.token_ids)
        assert list(before.parents) == list(range(-1, len(before) - 1))  # a chain


def test_requests_leave_and_come_back(parts: tuple[Path, Path, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    found = made(parts, monkeypatch)
    state = torch.ones(1, 64)
    found.take_states(batch("a"), [[3]], state, None)
    found.propose([[3]], *tokens_of([1, 2, 3]))
    found.take_states(batch("b"), [[3]], state, None)
    assert not found._drafts
    found.propose([[3]], *tokens_of([1, 2, 3]))
    found.take_states(batch("b", "a"), [[4], [5]], torch.ones(2, 64), [0, 0])
    assert len(found.propose([[4], [5]], *tokens_of([1, 2, 3, 4], [1, 2, 3, 4, 5]))) == 2
    assert found._drafts.keys() == {"a", "b"}


def test_no_draft_reaches_beyond_the_context(
    parts: tuple[Path, Path, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = made(parts, monkeypatch)
    for length, most in ((61, 2), (62, 1), (63, 0), (64, 0)):
        row = [1, 2] * 32
        found.take_states(batch(str(length)), [[row[length - 1]]], torch.ones(1, 64), None)
        assert len(found.propose([[row[length - 1]]], *tokens_of(row[:length]))[0]) <= most


def test_unsupported_settings_are_errors(
    parts: tuple[Path, Path, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(plugin.VARIABLE, raising=False)
    with pytest.raises(UsageError, match="cannot run in this vLLM: vLLM did not load the plugin"):
        plugin.ChainDrafter(config())
    monkeypatch.setattr(plugin, "problem", lambda: None)
    with pytest.raises(UsageError, match="does not support tensor"):
        plugin.ChainDrafter(config(tensor_parallel_size=2))
    with pytest.raises(UsageError, match="sets no drafter"):
        plugin.ChainDrafter(config())
    for draft, options, told in (
        ("suffix", {}, "allowed: lstm, hybrid"),
        ("lstm", {"spec": True}, "omit spec"),
        ("hybrid", {"size": 3}, "options of hybrid drafts are not valid"),
    ):
        with pytest.raises(UsageError, match=told):
            plugin.chain_drafter(draft, options, LENGTH)


def test_another_vllm_version_is_not_patched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(justright_vllm, "_problem", None)
    monkeypatch.setattr(justright_vllm, "_version", lambda name: "0.33.0" if name == "vllm" else None)
    justright_vllm.register()
    assert "vLLM 0.33.0 is installed" in str(justright_vllm.problem())


def test_only_our_drafter_is_notified() -> None:
    seen: list[Any] = []

    def propose(self: Any, *rest: Any, **named: Any) -> Any:
        return rest, named

    class Ours:
        wants_states = True

        def take_states(self, *told: Any) -> None:
            seen.append(told)

    wrapped = justright_vllm.with_states(propose)
    rest = ("sampling", "hidden", "states", None, SimpleNamespace(num_draft_tokens=[2]), "meta")
    for drafter in (object(), Ours()):
        runner = SimpleNamespace(drafter=drafter, input_batch="batch")
        assert wrapped(runner, "scheduled", "sampled", *rest, slot_mappings=1) == (
            ("scheduled", "sampled", *rest), {"slot_mappings": 1}
        )  # fmt: skip
    assert seen == [("batch", "sampled", "states", [2])]
