"""The LSTM's equations, its file format, and its errors."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from draft_helpers import network_for, saved_drafter
from justright.errors import CheckpointError, UsageError
from justright.speculative.lstm_network import LstmConfig, LstmModel
from justright.speculative.store import read_config
from tiny import VOCAB_SIZE, tiny_model


def test_the_equations_of_the_paper() -> None:
    """arXiv:2510.07535: explicit gates, cell and state, with its own embedding and head."""
    network = network_for(tiny_model("llama"), embedding="own", head="own", draft_vocab=0)
    config, d = network.config, network.config.width
    hidden = torch.randn(1, config.hidden_size)
    tokens = torch.tensor([[5, 17, 9]])
    h = hidden / hidden.pow(2).mean().add(1e-6).sqrt() / math.sqrt(2)
    z = torch.zeros(1, d)
    share = 2 ** (-1 / (2 * config.steps))
    a = math.sqrt((1 - share**2) * d / 2) / share
    for step, logits in enumerate(network.unroll(hidden, tokens)):
        project = network.first if step == 0 else network.later
        embedded = network.embedding.weight[tokens[:, step]]
        f, i, o, c = (project(h) + a * embedded.repeat(1, 4)).chunk(4, dim=-1)
        c = torch.nn.functional.gelu(network.norm_cell(c)) * torch.sigmoid(i)
        z = z * torch.sigmoid(f) + c
        h = torch.nn.functional.gelu(network.norm_state(z)) * torch.sigmoid(o)
        torch.testing.assert_close(logits, h @ network.head.weight.T)


def test_state_and_embedding_have_the_shares_of_the_initialisation() -> None:
    """The scale a gives the embedding the share ``1 - a0^2`` of the gates' variance, shared embedding or own."""
    for part in ("own", "shared"):
        network = network_for(tiny_model("llama"), width=256, steps=4, embedding=part, draft_vocab=0)
        state = network.first(network.start(torch.randn(512, network.config.hidden_size))).var()
        embedded = network.embed(torch.arange(VOCAB_SIZE)).var()
        share = 2 ** (-1 / 4)
        assert float(embedded / (embedded + state)) == pytest.approx(1 - share, abs=0.05)


@pytest.mark.parametrize("cell", ["lstm", "rnn"])
@pytest.mark.parametrize("part", ["own", "shared"])
def test_saved_then_loaded_equals_in_memory(cell: str, part: str, tmp_path: Path) -> None:
    model = tiny_model("qwen3")
    network = network_for(model, cell=cell, embedding=part, head=part)
    network.save(tmp_path / "d", dtype=torch.float32)
    matrices = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    again = LstmModel.load(tmp_path / "d", *matrices)
    hidden, tokens = torch.randn(4, network.config.hidden_size), torch.randint(VOCAB_SIZE, (4, 3))
    for one, other in zip(network.unroll(hidden, tokens), again.unroll(hidden, tokens), strict=True):
        assert torch.equal(one, other)
    assert torch.equal(network.spec, again.spec)
    names = set(load_file(tmp_path / "d" / "model.safetensors"))
    assert not any("shared" in name for name in names), (
        "the verifier's matrices are not the drafter's to keep"
    )


def test_a_drafter_of_another_shape_is_refused(tmp_path: Path) -> None:
    folder = saved_drafter(tiny_model("llama"), tmp_path / "d")
    other = torch.zeros(VOCAB_SIZE, 999)
    with pytest.raises(UsageError, match="use the model that the drafter was trained for"):
        LstmModel.load(folder, other, other)


def test_damaged_drafters_are_refused(tmp_path: Path) -> None:
    model = tiny_model("llama")
    matrices = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    with pytest.raises(CheckpointError, match=r"has no config\.json"):
        read_config(tmp_path, "lstm", LstmConfig)
    folder = saved_drafter(model, tmp_path / "d")
    about = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(about | {"width": 32}))
    with pytest.raises(CheckpointError, match="does not match its"):
        LstmModel.load(folder, *matrices)
    (folder / "config.json").write_text(json.dumps(about | {"draft_vocab": 7}))
    with pytest.raises(CheckpointError, match="draft vocabulary"):
        LstmModel.load(folder, *matrices)
    (folder / "config.json").write_text(json.dumps(about | {"format": "other"}))
    with pytest.raises(CheckpointError, match="allowed for a drafter"):
        LstmModel.load(folder, *matrices)
    (folder / "config.json").write_text("[]")
    with pytest.raises(CheckpointError, match="not a drafter's config"):
        read_config(folder, "lstm", LstmConfig)
    (folder / "config.json").write_text(json.dumps(about))
    (folder / "model.safetensors").write_bytes(b"no tensors")
    with pytest.raises(CheckpointError, match="cannot be read"):
        LstmModel.load(folder, *matrices)


@pytest.mark.parametrize(
    "wrong",
    [
        {"width": 0},
        {"steps": 0},
        {"cell": "gru"},
        {"embedding": "none"},
        {"head": "mine"},
        {"draft_vocab": -1},
    ],
)
def test_impossible_shapes_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(UsageError, match=r"drafter: .*allowed"):
        LstmConfig(**{"verifier": "", "hidden_size": 8, "vocab_size": 50, "width": 8, **wrong})
