"""On a CUDA device: the same equality, in each cache kind; not run where there is none."""

from __future__ import annotations

import pytest
import torch

from engine_helpers import ScriptedDrafter, prompt_of, reference
from justright.engine.attention import ATTENTION_NAME
from justright.engine.decode import DecodeLoop
from justright.engine.request import Request
from justright.engine.verifier import Verifier
from tiny import ALL, tiny_model

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


@pytest.mark.parametrize("cache", ["grow", "static"])
@pytest.mark.parametrize("family", ALL)
def test_speculation_on_the_gpu_equals_plain_decoding_there(family: str, cache: str) -> None:
    model = tiny_model(family).to("cuda")
    model.set_attn_implementation(ATTENTION_NAME)
    prompt = prompt_of(37)
    plain = Request(prompt, max_tokens=32)
    for _ in DecodeLoop(Verifier(model, cache="grow")).run([plain]):
        pass
    drafter = ScriptedDrafter({tuple(prompt): plain.token_ids})
    drafted = Request(prompt, max_tokens=32)
    for _ in DecodeLoop(Verifier(model, cache=cache), drafter=drafter, max_draft=10).run([drafted]):
        pass
    assert drafted.token_ids == plain.token_ids or plain.stats.near_ties > 0
    assert drafted.stats.accepted > 0


def test_cpu_and_gpu_agree() -> None:
    prompt = prompt_of(20)
    expected = reference(tiny_model("llama"), prompt, 24)
    model = tiny_model("llama").to("cuda")
    model.set_attn_implementation(ATTENTION_NAME)
    request = Request(prompt, max_tokens=24)
    for _ in DecodeLoop(Verifier(model)).run([request]):
        pass
    assert request.token_ids == expected or request.stats.near_ties > 0
