"""Attention masks against their definition, fast attention against plain, and constant shapes of static steps."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from engine_helpers import prompt_of, verifier_of
from justright.architectures.schema import Window
from justright.engine import attention as attention_module
from justright.engine.attention import StepPlan, attend, attend_reference
from justright.engine.kv_cache import KVCache
from justright.engine.model_runner import Verifier
from justright.engine.step import StepInput, tree_shape
from justright.engine.visibility import SequenceInput, visible
from tiny import ALL


@st.composite
def trees(draw: st.DrawFn, most: int = 10) -> list[int]:
    """Parents of nodes 1, 2, ...; node 0 is the root."""
    return [draw(st.integers(0, node)) for node in range(draw(st.integers(0, most - 1)))]


def ancestors(parents: list[int], node: int) -> list[int]:
    """The node and its ancestors."""
    line = [node]
    while line[-1] > 0:
        line.append(parents[line[-1] - 1])
    return line


@given(trees())
def test_tree_shape_by_walking_up(parents: list[int]) -> None:
    depths, seen = tree_shape(parents)
    for node in range(len(parents) + 1):
        line = ancestors(parents, node)
        assert int(depths[node]) == len(line) - 1
        assert set(seen[node].nonzero().flatten().tolist()) == set(line)


def in_window(window: Window | None, query: int, key: int) -> bool:
    if window is None:
        return True
    return (
        query - window.size < key if window.kind == "sliding" else key // window.size == query // window.size
    )


windows = st.none() | st.builds(Window, st.sampled_from(["sliding", "chunked"]), st.integers(1, 12))


@given(trees(), st.integers(0, 30), windows, st.booleans())
def test_visible_by_definition(parents: list[int], past: int, window: Window | None, chain: bool) -> None:
    count = len(parents) + 1
    if chain:
        parents = list(range(count - 1))
    depths, tree = tree_shape(parents)
    first, mask = visible(SequenceInput(0, 0, depths + past, None if chain else tree), past, window)
    assert 0 <= first <= past
    for node in range(count):
        position = past + int(depths[node])
        wanted = [in_window(window, position, key) for key in range(past)]
        wanted += [
            other in ancestors(parents, node) and in_window(window, position, past + int(depths[other]))
            for other in range(count)
        ]
        got = [False] * first + ([True] * (past + count - first) if mask is None else mask[node].tolist())
        assert got == wanted


def test_visible_skips_what_no_token_of_the_step_sees() -> None:
    first, mask = visible(SequenceInput(0, 0, torch.tensor([100])), 100, Window("sliding", 8))
    assert (first, mask) == (93, None), "a long past outside a short window costs nothing"
    first, mask = visible(SequenceInput(0, 0, torch.tensor([100])), 100, Window("chunked", 32))
    assert (first, mask) == (96, None)


SHAPES = [(4, 4), (4, 2), (8, 1)]
# Scores of about 1 and values of about 1, summed over some 60 keys in float32: a few dozen roundings of
# 2**-24 each; a wrong mask, head or scale is off by 0.1 and more.
TOLERANCE = 2e-6


@pytest.mark.parametrize("value_dim", [16, 12])
@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("tokens", [1, 7, 64, 65, 100])
@pytest.mark.parametrize(("heads", "kv_heads"), SHAPES)
def test_attend_equals_the_reference(
    heads: int, kv_heads: int, tokens: int, masked: bool, value_dim: int
) -> None:
    generator = torch.Generator().manual_seed(tokens)
    query = torch.randn(heads, tokens, 16, generator=generator)
    keys = torch.randn(kv_heads, tokens + 20, 16, generator=generator)
    values = torch.randn(kv_heads, tokens + 20, value_dim, generator=generator)
    mask = torch.rand(tokens, tokens + 20, generator=generator) < 0.5 if masked else None
    if mask is not None:
        mask[:, 0] = True
    got = attend(query, keys, values, mask, 0.3)
    wanted = attend_reference(query, keys, values, mask, 0.3)
    assert got.shape == (heads, tokens, value_dim)
    torch.testing.assert_close(got, wanted, rtol=0, atol=TOLERANCE)
    wrong = attend_reference(query.flip(0), keys, values, mask, 0.3)
    assert float((wrong - wanted).abs().max()) > 0.1, "the tolerance tells heads apart"


@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("sinks", [False, True])
def test_the_reference_by_definition(softcap: float | None, sinks: bool) -> None:
    """The papers' formula in float64, one query head at a time."""
    generator = torch.Generator().manual_seed(0)
    query, keys, values = (torch.randn(n, m, 8, generator=generator) for n, m in ((4, 3), (2, 9), (2, 9)))
    mask = torch.rand(3, 9, generator=generator) < 0.6
    mask[:, 0] = True
    sink = torch.randn(4, generator=generator) if sinks else None
    got = attend_reference(query, keys, values, mask, None, softcap, sink)
    for head in range(4):
        for token in range(3):
            scores = keys[head // 2].double() @ query[head, token].double() / 8**0.5
            if softcap:
                scores = softcap * torch.tanh(scores / softcap)
            weights = torch.exp(scores) * mask[token]
            total = weights.sum() + (torch.exp(sink[head].double()) if sink is not None else 0.0)
            wanted = (weights / total) @ values[head // 2].double()
            torch.testing.assert_close(got[head, token].double(), wanted, rtol=0, atol=TOLERANCE)


def steps_of(verifier: Verifier, seed: int) -> list[Tensor]:
    """Logits of a chain step and a tree step for two sequences of different lengths."""
    for slot, length in enumerate((21, 6)):
        list(verifier.prefill(slot, prompt_of(length, seed=slot)))
    found = []
    for parents in ([0, 1, 2], [0, 0, 1, 1, 2]):
        tokens = prompt_of(len(parents) + 1, seed=seed)
        outputs = verifier.step([StepInput(0, tokens, parents), StepInput(1, tokens[:3], parents[:2])])
        found += [output.logits for output in outputs]
        verifier.keep(0, [0, 2])
        verifier.keep(1, [0])
    return found


@pytest.mark.parametrize("family", ALL)
def test_static_steps_equal_ragged_ones(family: str) -> None:
    ragged = steps_of(verifier_of(family, slots=2), 3)
    static = steps_of(verifier_of(family, slots=2, cache="static", max_tokens=128), 3)
    for one, other in zip(ragged, static, strict=True):
        # Logits of about 10 after 4 layers: 1e-4 is some hundred roundings; other tokens differ by 1 and more.
        torch.testing.assert_close(other, one, rtol=0, atol=1e-4)


@pytest.mark.parametrize("family", ["llama", "gemma2", "gemma3_text", "gpt_oss", "llama4_text"])
def test_static_steps_have_the_same_shapes_whatever_the_lengths(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Shape and storage address of every tensor in the product."""
    seen: list[tuple[object, ...]] = []

    def recording(name: str, original: object):
        def call(*args: object, **options: object) -> object:
            tensors = [a for a in (*args, *options.values()) if isinstance(a, Tensor)]
            seen[-1] += (name, *(tuple(t.shape) for t in tensors))
            return original(*args, **options)  # type: ignore[operator]

        return call

    for owner, name in (
        (attention_module.F, "scaled_dot_product_attention"),
        (attention_module, "attend_reference"),
    ):
        monkeypatch.setattr(owner, name, recording(name, getattr(owner, name)))
    verifier = verifier_of(family, slots=2, cache="static", max_tokens=100)
    for length in (1, 9, 60):
        seen.append(())
        for slot in range(2):
            verifier.clear(slot)
            list(verifier.prefill(slot, prompt_of(length + slot)))
        seen[-1] = ()
        verifier.step([StepInput(slot, prompt_of(5 + slot)) for slot in range(2)])
    assert len(seen[0]) > 0
    assert seen[0] == seen[1] == seen[2]


@pytest.mark.parametrize("cache", ["grow", "static"])
def test_tokens_of_other_sequences_are_not_seen(cache: str) -> None:
    """A sequence gives the same result, up to the last bits, beside another sequence."""
    alone = verifier_of("llama", slots=2, cache=cache, max_tokens=100)
    list(alone.prefill(0, prompt_of(20)))
    [wanted] = alone.step([StepInput(0, prompt_of(4, 1))])
    for seed in range(2):
        both = verifier_of("llama", slots=2, cache=cache, max_tokens=100)
        list(both.prefill(0, prompt_of(20)))
        list(both.prefill(1, prompt_of(11, seed + 5)))
        got, _ = both.step([StepInput(0, prompt_of(4, 1)), StepInput(1, prompt_of(6, seed))])
        torch.testing.assert_close(got.logits, wanted.logits, rtol=0, atol=1e-4)


def _by_hand(
    query: Tensor, keys: Tensor, values: Tensor, seen: list[int], softcap: float | None, sink: float | None
) -> Tensor:
    """Attention of one query ``[head_dim]`` over its visible keys and values, by the formula in float64."""
    scores = (keys[seen].double() * query.double()).sum(-1) / query.shape[-1] ** 0.5
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    shares = scores.exp() / (scores.exp().sum() + (0.0 if sink is None else math.exp(sink)))
    return (shares[:, None] * values[seen].double()).sum(0)


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize(("softcap", "sink"), [(None, None), (2.0, None), (None, 0.5)])
@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize(
    ("past", "nodes", "window"),
    [
        (9, 6, None),
        (9, 6, Window("sliding", 4)),
        (9, 6, Window("chunked", 4)),
        (3, 70, None),
        (1030, 6, None),
    ],
)
def test_no_number_of_a_hidden_row_reaches_another(
    past: int,
    nodes: int,
    window: Window | None,
    static: bool,
    softcap: float | None,
    sink: float | None,
    number: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Leaves 2, 4 and 5 of a tree have non-finite keys or values; all other paths equal hand-computed results."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)  # 3 key heads: long keys are cut into parts
    parents, odd = [0, 0, 1, 1, 3, *([1] * (nodes - 6))], {2: "key", 4: "value", 5: "both"}
    generator = torch.Generator().manual_seed(past + nodes)
    length = past + nodes
    query = torch.randn(6, nodes, 8, generator=generator)
    keys, values = torch.randn(2, 3, length, 8, generator=generator)
    depths, tree = tree_shape(parents)
    cache = KVCache(1, 1, length, static=static)
    cache.reserve(0, length)
    cache.write(0, 0, keys[:, :past], values[:, :past])
    cache.keep(0, range(past))
    new = keys[:, past:].clone(), values[:, past:].clone()
    for node, which in odd.items():
        for x in [new[0]] * (which != "value") + [new[1]] * (which != "key"):
            x[:, node, node % 8] = number
    plan = StepPlan(cache, [SequenceInput(0, 0, depths + past, tree)], [window], depths + past, static=static)
    out, _ = attention_module.attention(
        SimpleNamespace(layer_idx=0),  # type: ignore[arg-type]
        query[None],
        *(x[None] for x in new),
        None,
        justright_plan=plan,
        softcap=softcap,
        s_aux=None if sink is None else torch.full((6,), sink),
    )
    for node in set(range(min(nodes, 8))) - set(odd):
        position = past + int(depths[node])
        seen = [j for j in range(past) if in_window(window, position, j)]
        path = ancestors(parents, node)
        seen += [past + j for j in path if in_window(window, position, past + int(depths[j]))]
        for head in (0, 5):
            here = _by_hand(query[head, node], keys[head // 2], values[head // 2], seen, softcap, sink)
            torch.testing.assert_close(out[0, node, head].double(), here, rtol=1e-4, atol=1e-5)
