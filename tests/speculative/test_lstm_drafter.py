"""Drafting with the LSTM, alone and with suffix drafts: the fast path against the reference, and its life cycle."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from draft_helpers import network_for, saved_attention_drafter, saved_drafter
from justright.errors import SourceError, UsageError
from justright.speculative.attention_drafter import AttentionDrafter
from justright.speculative.base import Draft
from justright.speculative.hybrid import HybridDrafter, HybridOptions
from justright.speculative.lstm_drafter import FastLstm, LstmDrafter, LstmOptions
from justright.speculative.registry import create_drafter
from justright.speculative.trained import TrainedDrafter
from tiny import save_tiny, tiny_model

CPU = torch.device("cpu")


def bound(folder: Path, **options: Any) -> LstmDrafter:
    drafter = LstmDrafter(LstmOptions(path=str(folder), **options))
    drafter.bind(tiny_model("llama"), None)
    return drafter


@pytest.mark.parametrize("cell", ["lstm", "rnn"])
@pytest.mark.parametrize("part", ["own", "shared"])
def test_fused_products_equal_the_network(cell: str, part: str) -> None:
    network = network_for(tiny_model("llama"), cell=cell, embedding=part, head=part)
    fast = FastLstm(network, CPU)
    hidden = torch.randn(network.config.hidden_size)
    tokens = torch.tensor([[7, 19, 30], [7, 3, 4]])
    expected = network.unroll(hidden.expand(2, -1), tokens)
    fast.begin(hidden, 7)
    # Half precision where the processor has it: eight bits of mantissa.
    tolerance = 0.05 if fast.dtype == torch.bfloat16 else 1e-4
    found = [fast._advance(None, None).expand(2, -1)]
    found.append(fast._advance(torch.tensor([0, 0]), tokens[:, 1]))
    found.append(fast._advance(torch.tensor([0, 1]), tokens[:, 2]))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=tolerance * float(other.std()) * 3, rtol=tolerance)


def test_guesses_are_tokens_of_the_draft_vocabulary(tmp_path: Path) -> None:
    drafter = bound(saved_drafter(tiny_model("llama"), tmp_path / "d"), spec=False, min_prob=0.0)
    assert drafter.spec_embedding is None
    drafter.start("r", [1, 2, 3])
    assert len(drafter.propose("r", 8)) == 0, "no draft before the first state"
    drafter.observe("r", [5], torch.randn(tiny_model("llama").config.hidden_size))
    draft = drafter.propose("r", 8)
    known = set(network_for(tiny_model("llama")).vocab.tolist())
    assert len(draft) == 8
    assert set(draft.token_ids) <= known
    assert not draft.spec
    drafter.stop("r")


def test_the_cost_does_not_depend_on_the_context(tmp_path: Path) -> None:
    """A request's whole state is one vector and one token, however much was observed."""
    drafter = bound(saved_drafter(tiny_model("llama"), tmp_path / "d"))
    size = tiny_model("llama").config.hidden_size
    drafter.start("r", list(range(100)) * 50)
    for _ in range(50):
        drafter.observe("r", [4, 5, 6], torch.zeros(size))
    [request] = drafter._requests.values()
    assert request.hidden is not None
    assert request.hidden.shape == (size,)
    assert isinstance(request.token, int)


def test_with_spec_the_tree_is_half_as_large(tmp_path: Path) -> None:
    drafter = bound(saved_drafter(tiny_model("llama"), tmp_path / "d"), min_prob=0.0)
    assert drafter.spec_embedding is not None
    drafter.start("r", [1])
    drafter.observe("r", [5], torch.randn(tiny_model("llama").config.hidden_size))
    draft = drafter.propose("r", 12)
    assert len(draft) == 6
    assert draft.spec
    assert draft.rows() == 14
    assert draft.rows(0) == 1


def test_a_drafter_for_another_model_is_refused(tmp_path: Path) -> None:
    folder = saved_drafter(tiny_model("llama"), tmp_path / "d")
    checkpoint = save_tiny("llama", tmp_path / "model")
    drafter = LstmDrafter(LstmOptions(path=str(folder)))
    with pytest.raises(UsageError, match="trained for a model with the identity 0000"):
        drafter.bind(tiny_model("llama"), checkpoint)


def test_no_drafter_at_hand(tmp_path: Path) -> None:
    checkpoint = save_tiny("llama", tmp_path / "model")
    with pytest.raises(SourceError, match="justright draft train"):
        LstmDrafter().bind(tiny_model("llama"), checkpoint)
    with pytest.raises(UsageError, match="neither a directory nor a hub id"):
        LstmDrafter(LstmOptions(path="./nowhere")).bind(tiny_model("llama"), checkpoint)


@pytest.mark.parametrize("name", ["lstm", "hybrid"])
@pytest.mark.parametrize(
    "wrong",
    [
        {"nodes": 0},
        {"depth": 99},
        {"top_k": "3"},
        {"min_prob": 2},
        {"temperature": -1},
        {"spec": 1},
        {"other": 1},
    ],
)
def test_wrong_options_are_refused(name: str, wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        create_drafter(name, **wrong)


def test_the_hybrid_takes_the_suffix_where_it_promises_more(tmp_path: Path) -> None:
    folder = saved_drafter(tiny_model("llama"), tmp_path / "d")
    size = tiny_model("llama").config.hidden_size

    def draft(prompt: list[int], threshold: float | None) -> Draft:
        hybrid = HybridDrafter(HybridOptions(path=str(folder), threshold=threshold))
        hybrid.bind(tiny_model("llama"), None)
        hybrid.start("r", prompt)
        hybrid.observe("r", [prompt[0]], torch.randn(size))
        found = hybrid.propose("r", 12)
        hybrid.stop("r")
        return found

    repeating = [11, 12, 13, 14, 15, 16, 17, 18] * 4
    assert draft(repeating, None).source == "suffix"
    assert not draft(repeating, None).spec
    assert draft(repeating, 1000.0).source == "lstm"
    once = [11, 12, 13, 14, 15, 16, 17, 18, 11, 12]
    less = draft(once, None)
    assert less.source == "lstm"
    assert less.instead is not None
    assert (less.instead.source, less.instead.token_ids[0]) == ("suffix", 12), "for the engine to choose"
    assert draft(once, 1000.0).instead is None, "a fixed threshold decides alone"


def test_the_threshold_follows_what_was_accepted(tmp_path: Path) -> None:
    folder = saved_drafter(tiny_model("llama"), tmp_path / "d")
    hybrid = HybridDrafter(HybridOptions(path=str(folder), threshold=1000.0))
    hybrid.bind(tiny_model("llama"), None)
    hybrid.start("r", [1, 2, 3])
    state = torch.randn(tiny_model("llama").config.hidden_size)
    hybrid.observe("r", [4], state)
    before = hybrid.recent["r"]
    draft = hybrid.propose("r", 8)
    hybrid.verified("r", draft, 3)
    hybrid.observe("r", [5, 6, 7, 8], state)
    assert hybrid.recent["r"] > before
    for token in range(20):
        hybrid.verified("r", hybrid.propose("r", 8), 0)
        hybrid.observe("r", [token], state)
    assert hybrid.recent["r"] < 0.1
    # Unused drafts and other drafters' drafts do not count for the LSTM.
    hybrid.propose("r", 8)
    hybrid.observe("r", [5, 6, 7], state)
    hybrid.verified("r", replace(draft, source="suffix"), 5)
    assert hybrid.recent["r"] < 0.1
    assert hybrid.trust["r"] > 1.0, "but of suffix drafts"


@pytest.mark.parametrize("threshold", [-1.0, float("inf"), "high"])
def test_wrong_thresholds_are_refused(threshold: Any) -> None:
    with pytest.raises(UsageError, match="threshold"):
        HybridOptions(threshold=threshold)


@pytest.mark.parametrize("kind", [LstmDrafter, HybridDrafter, AttentionDrafter])
def test_a_trained_drafter_is_saved_as_it_was_read(kind: type[TrainedDrafter], tmp_path: Path) -> None:
    save = saved_attention_drafter if kind is AttentionDrafter else saved_drafter
    folder = save(tiny_model("llama"), tmp_path / "read")
    drafter = kind.from_pretrained(folder, nodes=5)
    assert drafter.options.nodes == 5
    drafter.save_pretrained(tmp_path / "saved")
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "saved" / name).read_bytes() == (folder / name).read_bytes()
    kind.from_pretrained(tmp_path / "saved").bind(tiny_model("llama"), None)
    with pytest.raises(UsageError, match="has no weights"):
        kind().save_pretrained(tmp_path / "none")
