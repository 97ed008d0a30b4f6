"""The attention baseline drafts the predictions of its training forward, however its context arrived."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from draft_helpers import saved_attention_drafter
from engine_helpers import prompt_of
from justright.errors import UsageError
from justright.speculative.attention_drafter import (
    AttentionDrafter,
    Context,
    draft_seconds,
)
from justright.speculative.attention_network import AttentionModel
from justright.speculative.store import verifier_matrices
from justright.speculative.trained import TrainedOptions
from justright.speculative.tree import TreeShape
from justright.speculative.tuning import DEPTH, NODES, TreeTable
from tiny import tiny_model

ROWS = 40


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> AttentionModel:
    folder = saved_attention_drafter(tiny_model("llama"), tmp_path_factory.mktemp("drafter") / "attention")
    return AttentionModel.load(folder, *verifier_matrices(tiny_model("llama"), None)).eval()


@settings(max_examples=25)
@given(pieces=st.lists(st.integers(1, 9), min_size=1, max_size=6), packed=st.booleans())
def test_context_in_any_pieces_is_the_training_forward(
    pieces: list[int], packed: bool, network: AttentionModel
) -> None:
    """Oracle: `forward`, which training uses, over the whole sequence at once and without any cache."""
    rows = sum(pieces)
    tokens = prompt_of(rows + 1)
    hidden = torch.randn(rows, network.config.hidden_size, generator=torch.Generator().manual_seed(rows))
    with torch.inference_mode():
        expected = network(hidden[None], torch.tensor([tokens[1:]]))[0, -1]
        model = network
        if packed:
            model = AttentionModel(network.config, network.embedding, network.embedding, network.vocab)
            model.load_state_dict(network.state_dict())
            model.pack()
        context, done = Context(tokens[:1]), 0
        for piece in pieces:
            context.tokens += tokens[done + 1 : done + piece + 1]
            context.waiting.append(hidden[done : done + piece])
            assert context.catch_up(model)
            done += piece
    assert context.length == rows
    assert context.last is not None
    tolerance = 1e-5 if model is network or model.qkv._product.dtype == torch.float32 else 0.1
    torch.testing.assert_close(context.last[0], expected, atol=tolerance, rtol=tolerance)


def test_the_prompt_is_read_when_its_first_output_token_is_known(network: AttentionModel) -> None:
    """Reading is part of the prefill: the first proposal has nothing left to read."""
    drafter = AttentionDrafter(TrainedOptions(min_prob=0.0))
    drafter._model = network
    prompt = prompt_of(ROWS)
    drafter.start("a", prompt)
    drafter.read("a", torch.randn(ROWS, network.config.hidden_size))
    drafter.observe("a", [9])
    context = drafter._contexts["a"]
    assert context.length == ROWS
    assert not context.waiting
    assert len(drafter.propose("a", 8)) == 8


def test_its_trees_fit_the_machine(network: AttentionModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """If only first guesses are ever right, the tree has one node; if all are right, it has many."""
    monkeypatch.setattr(
        "justright.speculative.attention_drafter.draft_seconds", lambda model: lambda w, d: 0.0
    )
    one = torch.ones(DEPTH, NODES).numpy() * 0.5
    every = torch.minimum(
        torch.arange(1, DEPTH + 1)[:, None].expand(DEPTH, NODES),
        torch.arange(1, NODES + 1)[None].expand(DEPTH, NODES),
    ).numpy()
    found = {}
    for name, table in (("one", one), ("every", every)):
        drafter = AttentionDrafter()
        drafter._model, drafter._trees = network, TreeTable({1: table, 4: table})
        drafter.tune(lambda rows: 1 + 0.01 * rows, 32)
        found[name] = drafter.shape
    assert (found["one"].nodes, found["one"].depth) == (1, 1)
    assert (found["every"].nodes, found["every"].depth) == (DEPTH, DEPTH)


def test_given_options_override_the_table(network: AttentionModel) -> None:
    drafter = AttentionDrafter(TrainedOptions(nodes=5, depth=3, top_k=2, min_prob=0.5))
    assert drafter.shape == TreeShape(5, 3, 2, 0.5)
    for bad in ({"nodes": 0}, {"depth": 65}, {"top_k": True}):
        with pytest.raises(UsageError, match="a whole number"):
            TrainedOptions(**bad)


def test_drafting_is_timed_for_every_shape(network: AttentionModel) -> None:
    seconds = draft_seconds(network)
    assert 0 < seconds(1, 1) <= seconds(1, 2)
    assert seconds(10, 4) >= seconds(1, 4)
