"""[SPEC] runs after any node, no token attends to it, no cache keeps it, and training computes drafting's states."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from engine_helpers import prompt_of, verifier_of
from justright.engine.model_runner import Verifier
from justright.engine.step import StepInput, StepOutput
from justright.training.spec_token import ATTENTION_NAME, spec_states
from tiny import ALL, tiny_model

PROMPT = prompt_of(23)
TREE = StepInput(0, [9, 10, 11, 12, 13, 14], [0, 0, 1, 1, 3])


def embedding_of(verifier: Verifier, seed: int = 0) -> Tensor:
    weight = verifier.model.get_input_embeddings().weight
    return torch.randn(weight.shape[1], generator=torch.Generator().manual_seed(seed)) * weight.std()


def prefilled(family: str, cache: str = "grow", *, spec: bool = False) -> tuple[Verifier, StepOutput]:
    verifier = verifier_of(family, prefill_chunk=16, cache=cache)
    verifier.spec_embedding = embedding_of(verifier)
    *_, output = verifier.prefill(0, PROMPT, spec=spec)
    assert output is not None
    return verifier, output


@pytest.mark.parametrize("cache", ["grow", "static"])
@pytest.mark.parametrize("family", ALL)
def test_ordinary_tokens_are_bit_identical_with_and_without_spec(family: str, cache: str) -> None:
    """With [SPEC], with another [SPEC], and with meaningless leaves in its place (products of one shape; the head's is
    of another there, so its input is compared).

    Routed experts multiply as many rows as were routed to them, [SPEC]'s too, and a product of another shape may round
    its last bit otherwise: there the logits are equal up to that.
    """
    verifier, _ = prefilled(family, cache)
    with_spec = replace(TREE, spec=6)
    [one] = verifier.step([with_spec])
    verifier.spec_embedding = embedding_of(verifier, seed=1) * 30
    [other] = verifier.step([with_spec])
    [without] = verifier.step([with_spec.laid_out()])
    routed = any(name.endswith(".experts") for name, _ in verifier.model.named_modules())
    tolerance = 1e-5 if routed else 0.0
    for found, expected in (
        (one.logits, other.logits),
        (one.hidden, other.hidden),
        (one.hidden, without.hidden[:6]),
    ):
        torch.testing.assert_close(found, expected, atol=tolerance, rtol=0.0)
    torch.testing.assert_close(one.logits, without.logits[:6], atol=1e-5, rtol=1e-5)
    assert one.spec_hidden is not None
    assert other.spec_hidden is not None
    assert not torch.equal(one.spec_hidden, other.spec_hidden), "the embedding must matter to [SPEC] itself"


@pytest.mark.parametrize("family", ALL)
def test_spec_is_never_kept(family: str) -> None:
    """After a path is kept, later tokens are the same as without [SPEC], in prefill and in steps."""
    verifier, _ = prefilled(family, spec=True)
    plain, _ = prefilled(family)
    assert verifier.cache.lengths == plain.cache.lengths == [len(PROMPT)]
    verifier.step([replace(TREE, spec=6)])
    plain.step([replace(TREE, spec=6).laid_out()])
    for one in (verifier, plain):
        one.keep(0, [0, 2])
    [with_spec] = verifier.step([StepInput(0, [20, 21])])
    [without] = plain.step([StepInput(0, [20, 21])])
    torch.testing.assert_close(with_spec.logits, without.logits, atol=1e-5, rtol=1e-5)


@given(st.lists(st.integers(0, 100), min_size=0, max_size=7))
@settings(max_examples=25)
def test_spec_sees_its_path_and_itself(numbers: list[int]) -> None:
    """In any tree, the [SPEC] state after a node equals that after the same path as a chain."""
    parents = [number % (index + 1) for index, number in enumerate(numbers)]
    tokens = [30 + index for index in range(len(parents) + 1)]
    verifier, _ = prefilled("qwen3")
    [tree] = verifier.step([StepInput(0, tokens, parents, spec=len(tokens))])
    verifier.keep(0, [])
    for node in range(len(tokens)):
        path = [node]
        while path[0]:
            path.insert(0, parents[path[0] - 1])
        [chain] = verifier.step([StepInput(0, [tokens[i] for i in path], spec=1)])
        verifier.keep(0, [])
        assert tree.spec_hidden is not None
        assert chain.spec_hidden is not None
        torch.testing.assert_close(tree.spec_hidden[node], chain.spec_hidden[0], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("family", ALL)
def test_training_sees_the_states_that_drafting_sees(family: str) -> None:
    """`spec_states` with its two passes equals the engine's [SPEC] in prefill, after every prefix."""
    verifier, _ = prefilled(family)
    embedding = embedding_of(verifier)
    model = tiny_model(family)
    model.set_attn_implementation(ATTENTION_NAME)
    lengths = torch.tensor([[3, 9, 17, 23]])
    trained = spec_states(model, embedding, torch.tensor([PROMPT]), lengths)
    for index, length in enumerate(lengths[0].tolist()):
        verifier.clear(0)
        *_, output = verifier.prefill(0, PROMPT[:length], spec=True)
        assert output is not None
        assert output.spec_hidden is not None
        torch.testing.assert_close(trained[0, index], output.spec_hidden[0], atol=2e-5, rtol=1e-3)


def test_gradients_reach_the_embedding_alone() -> None:
    model = tiny_model("llama")
    model.requires_grad_(False)
    model.set_attn_implementation(ATTENTION_NAME)
    embedding = torch.randn(model.config.hidden_size, requires_grad=True)
    spec_states(model, embedding, torch.tensor([PROMPT]), torch.tensor([[4, 8]])).sum().backward()
    assert embedding.grad is not None
    assert float(embedding.grad.abs().sum()) > 0
    assert all(p.grad is None for p in model.parameters())


def test_no_room_for_spec_at_the_end_of_the_context() -> None:
    verifier = verifier_of("llama", max_tokens=len(PROMPT))
    verifier.spec_embedding = embedding_of(verifier)
    *_, output = verifier.prefill(0, PROMPT, spec=True)
    assert output is not None
    assert output.spec_hidden is None


@pytest.mark.parametrize("cache", ["grow", "static"])
@pytest.mark.parametrize("family", ALL)
def test_a_spec_that_is_not_finite_reaches_no_other_row(family: str, cache: str) -> None:
    """Ordinary rows equal those of a step with a finite [SPEC], in the prompt and in a tree, and in later steps."""
    found = []
    for value in (1.0, float("nan")):
        verifier = verifier_of(family, prefill_chunk=16, cache=cache)
        verifier.spec_embedding = embedding_of(verifier)
        verifier.spec_embedding[3] = value
        *_, prompt = verifier.prefill(0, PROMPT, spec=True)
        assert prompt is not None
        [tree] = verifier.step([replace(TREE, spec=6)])
        verifier.keep(0, [0, 2])
        [behind] = verifier.step([StepInput(0, [20, 21])])
        verifier.clear(0)
        *_, again = verifier.prefill(0, PROMPT[:5])
        assert again is not None
        [short] = verifier.step([StepInput(0, [20])])
        found.append([one.hidden for one in (prompt, tree, behind, again, short)])
        assert tree.spec_hidden is not None
        assert bool(tree.spec_hidden.isfinite().all()) == (value == 1.0), (
            "the vector must matter to [SPEC] itself"
        )
    routed = any(name.endswith(".experts") for name, _ in verifier.model.named_modules())
    for expected, here in zip(*found, strict=True):
        torch.testing.assert_close(here, expected, atol=1e-5 if routed else 0.0, rtol=0.0)
