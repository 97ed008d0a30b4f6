"""The same equality on a CUDA device, for each cache kind; skipped without one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from draft_helpers import saved_attention_drafter, saved_drafter
from engine_helpers import ScriptedDrafter, prompt_of, reference
from justright.engine.attention import ATTENTION_NAME
from justright.engine.decode_loop import DecodeLoop
from justright.engine.model_runner import Verifier
from justright.engine.request import Request
from justright.engine.sampler import SamplingParams
from justright.speculative.registry import create_drafter
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


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("lstm", {}),
        ("lstm", {"temperature": 1.0, "top_k": 2}),
        ("hybrid", {}),
        ("recycling", {}),
        ("attention", {}),
    ],
)
def test_drafters_run_on_the_gpu(name: str, options: dict[str, object], tmp_path: Path) -> None:
    """Greedy output equals plain decoding's; sampled guesses are also accepted and rejected on the device."""
    model = tiny_model("llama").to("cuda")
    model.set_attn_implementation(ATTENTION_NAME)
    if name != "recycling":
        make = saved_attention_drafter if name == "attention" else saved_drafter
        options = options | {"path": str(make(tiny_model("llama"), tmp_path / "d")), "min_prob": 0.0}
    prompt = prompt_of(12) * 3
    plain = Request(prompt, max_tokens=32)
    for _ in DecodeLoop(Verifier(model)).run([plain]):
        pass
    verifier = Verifier(model)
    drafter = create_drafter(name, **options)
    if drafter is not None:
        drafter.bind(verifier.model, None)
    params = SamplingParams(temperature=1.0, seed=0) if "temperature" in options else SamplingParams()
    drafted = Request(prompt, params, max_tokens=32)
    for _ in DecodeLoop(verifier, drafter=drafter, max_draft=10).run([drafted]):
        pass
    assert drafted.stats.drafted > 0
    if params.greedy:
        assert drafted.token_ids == plain.token_ids or plain.stats.near_ties > 0


def test_cpu_and_gpu_agree() -> None:
    prompt = prompt_of(20)
    expected = reference(tiny_model("llama"), prompt, 24)
    model = tiny_model("llama").to("cuda")
    model.set_attn_implementation(ATTENTION_NAME)
    request = Request(prompt, max_tokens=24)
    for _ in DecodeLoop(Verifier(model)).run([request]):
        pass
    assert request.token_ids == expected or request.stats.near_ties > 0
