"""Attention over split keys equals attention over all keys at once."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from engine_helpers import prompt_of, verifier_of
from justright.engine import attention as attention_module
from justright.engine.attention import attend_few, attend_reference
from justright.engine.step import StepInput, tree_shape
from justright.engine.visibility import stack_mask
from justright.kernels import split_attention as split_keys


@given(
    kv_heads=st.integers(1, 3),
    groups=st.integers(1, 3),
    past=st.integers(60, 90),
    above=st.lists(st.integers(0, 9), max_size=5),
    parts=st.integers(2, 6),
    seed=st.integers(0, 9),
)
def test_parts_equal_the_whole(
    kv_heads: int, groups: int, past: int, above: list[int], parts: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    parents = [node % (index + 1) for index, node in enumerate(above)]
    tokens = len(parents) + 1
    length = past + tokens
    query = torch.randn(kv_heads * groups, tokens, 16, generator=generator)
    room = torch.full(
        (2, kv_heads, length + 3, 16), float("nan")
    )  # values after the keys must have no effect
    room[:, :, :length] = torch.randn(2, kv_heads, length, 16, generator=generator)
    keys, values = room[0, :, :length], room[1, :, :length]
    mask = torch.ones(tokens, length, dtype=torch.bool)
    mask[:, past:] = tree_shape(parents)[1]
    bias = None if bool(mask.all()) else stack_mask(mask, groups, torch.float32)
    split = split_keys.split_bias(bias, groups * tokens, length, parts, torch.float32)
    assert split is None or split.shape == (parts, 1, groups * tokens, length // parts + length % parts)
    got = attend_few(query, keys, values, split, parts, None)
    torch.testing.assert_close(got, attend_reference(query, keys, values, mask), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("threads", "kv_heads", "length", "parts"),
    [(2, 3, 4096, 2), (2, 4, 4096, 1), (16, 3, 8192, 16), (16, 3, 1024, 2), (16, 8, 8192, 2), (2, 3, 700, 1)],
)
def test_parts_give_every_thread_work(
    threads: int, kv_heads: int, length: int, parts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    assert split_keys.count_parts(kv_heads, length, torch.device("cpu")) == parts
    if length >= 512 * threads:
        assert kv_heads * parts % threads == 0
        assert parts == threads // math.gcd(threads, kv_heads)


@pytest.mark.parametrize("family", ["llama", "gemma3", "deepseek_v3"])
def test_a_model_with_split_keys_gives_the_same_output(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    prompt = prompt_of(40)
    step = StepInput(0, prompt[:4], [0, 0, 1])

    def logits() -> torch.Tensor:
        verifier = verifier_of(family)
        list(verifier.prefill(0, prompt))
        return verifier.step([step])[0].logits

    whole = logits()
    used: list[int] = []

    def counted(*args: object) -> torch.Tensor:
        used.append(1)
        return split_keys.attend_split(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(
        attention_module, "count_parts", lambda _, length, __: 3 if length > len(prompt) else 1
    )
    monkeypatch.setattr(attention_module, "attend_split", counted)
    torch.testing.assert_close(logits(), whole, rtol=1e-4, atol=1e-5)
    assert bool(used) == (family != "deepseek_v3"), (
        "its values are shorter than its keys, which the kernel refuses"
    )
