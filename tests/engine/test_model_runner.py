"""One forward for chains and trees gives the model's own logits, whatever drafts came before."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from engine_helpers import prompt_of, verifier_of
from justright.engine.attention import ATTENTION_NAME
from justright.engine.model_runner import Verifier
from justright.engine.step import StepInput
from justright.errors import ResourceError, UnsupportedModelError, UsageError
from tiny import ALL, tiny_config, tiny_model

# Logits of about 10 after 4 layers in float32, summed in another order: some hundred roundings of 1e-6.
TOLERANCE = 1e-4
SOME = ["llama", "gemma2", "gemma3_text", "gpt_oss", "deepseek_v3", "llama4_text", "phi3"]


def close(got: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(got, wanted, rtol=0, atol=TOLERANCE)


def last(verifier: Verifier, slot: int, tokens: Sequence[int]) -> Tensor:
    *pauses, output = verifier.prefill(slot, tokens)
    assert pauses == [None] * len(pauses)
    assert output is not None
    return output.logits[0]


def step(verifier: Verifier, tokens: Sequence[int], parents: Sequence[int] | None = None) -> Tensor:
    [output] = verifier.step([StepInput(0, tokens, parents)])
    return output.logits


@pytest.mark.parametrize("family", ALL)
def test_prefill_in_chunks_equals_the_model_in_one_go(family: str) -> None:
    prompt = prompt_of(50)
    model = tiny_model(family)
    with torch.inference_mode():
        wanted = model(torch.tensor([prompt]), use_cache=False).logits[0, -1]
    for chunk in (512, 50, 16, 7):
        close(last(verifier_of(family, prefill_chunk=chunk), 0, prompt), wanted)


@pytest.mark.parametrize("family", ALL)
def test_each_path_of_a_tree_has_the_logits_of_a_chain(family: str) -> None:
    prompt, tokens, parents = prompt_of(20), prompt_of(8, 1), [0, 0, 1, 1, 2, 4, 6]
    verifier = verifier_of(family)
    last(verifier, 0, prompt)
    tree = step(verifier, tokens, parents)
    verifier.keep(0, [])
    for node in range(8):
        path = [node]
        while path[0]:
            path.insert(0, parents[path[0] - 1])
        chain = step(verifier, [tokens[i] for i in path])
        verifier.keep(0, [])
        close(tree[node], chain[-1])


@pytest.mark.parametrize("cache", ["grow", "static"])
@pytest.mark.parametrize("family", SOME)
def test_what_is_not_kept_leaves_no_trace(family: str, cache: str) -> None:
    prompt, tokens = prompt_of(20), prompt_of(6, 1)
    verifier = verifier_of(family, cache=cache, max_tokens=200)
    last(verifier, 0, prompt)
    wanted = step(verifier, tokens)
    for path in ([], [], [0, 2, 3]):
        verifier.keep(0, [])
        step(verifier, prompt_of(9, 7), [0, 0, 1, 2, 2, 3, 3, 1])
        verifier.keep(0, path)
        if path:  # from here on, the kept nodes are part of the sequence
            prompt = [*prompt, *(prompt_of(9, 7)[i] for i in path)]
            verifier.clear(0)
            step_after = last(verifier, 0, [*prompt, tokens[0]])
            fresh = verifier_of(family, cache=cache, max_tokens=200)
            close(step_after, last(fresh, 0, [*prompt, tokens[0]]))
        else:
            assert torch.equal(step(verifier, tokens), wanted)


@pytest.mark.parametrize("family", ALL)
def test_kept_tree_nodes_are_as_if_they_had_been_a_chain(family: str) -> None:
    prompt, tokens = prompt_of(20), prompt_of(6, 1)
    verifier = verifier_of(family)
    last(verifier, 0, prompt)
    step(verifier, tokens, [0, 0, 2, 1, 3])  # 0 -> 2 -> 3 -> 5
    verifier.keep(0, [0, 2, 3, 5])
    got = step(verifier, [9, 10])
    with torch.inference_mode():
        row = [*prompt, *(tokens[i] for i in (0, 2, 3, 5)), 9, 10]
        wanted = tiny_model(family)(torch.tensor([row]), use_cache=False).logits[0, -2:]
    close(got, wanted)


@pytest.mark.parametrize("family", SOME)
def test_hidden_is_the_output_of_the_final_norm(family: str) -> None:
    prompt = prompt_of(12)
    model = tiny_model(family)
    with torch.inference_mode():
        wanted = model.model(torch.tensor([[*prompt, 5, 6]]), use_cache=False).last_hidden_state[0]
    verifier = verifier_of(family)
    *_, output = verifier.prefill(0, prompt)
    assert output is not None
    close(output.hidden, wanted[11:12])
    [output] = verifier.step([StepInput(0, [5, 6])])
    close(output.hidden, wanted[12:])


@pytest.mark.parametrize("cache", ["grow", "static"])
def test_longrope_is_right_up_to_its_last_token(cache: str) -> None:
    """Padding positions must not reach the length at which the rotary frequencies of all tokens change."""
    rope = {
        "rope_type": "longrope",
        "rope_theta": 10_000.0,
        "short_factor": [1.0] * 8,
        "long_factor": [4.0] * 8,
        "original_max_position_embeddings": 32,
        "factor": 16.0,
    }
    changes = {"rope_parameters": rope, "original_max_position_embeddings": 32}
    model = tiny_model("phi3", **changes)
    prompt, tokens = prompt_of(26), prompt_of(5, 1)
    with torch.inference_mode():
        wanted = model(torch.tensor([[*prompt, *tokens]]), use_cache=False).logits[0, -5:]
    model.set_attn_implementation(ATTENTION_NAME)
    verifier = Verifier(model, cache=cache)
    assert verifier.max_tokens == 32
    last(verifier, 0, prompt)
    close(step(verifier, tokens), wanted)


def test_an_empty_prompt_is_refused() -> None:
    with pytest.raises(UsageError, match="prompt is empty"):
        list(verifier_of("llama").prefill(0, []))


@pytest.mark.parametrize("cache", ["grow", "static"])
def test_the_context_is_the_limit(cache: str) -> None:
    verifier = verifier_of("llama", cache=cache, max_tokens=30, prefill_chunk=8)
    with pytest.raises(ResourceError, match="31 tokens; the context holds 30"):
        list(verifier.prefill(0, prompt_of(31)))
    assert verifier.cache.lengths == [0], "refused before anything ran"
    last(verifier, 0, prompt_of(28))
    step(verifier, [5, 6])
    verifier.keep(0, [0])
    with pytest.raises(ResourceError, match="at most 30 tokens"):
        step(verifier, [5, 6])
    step(verifier, [5])
    verifier.keep(0, [0])
    assert verifier.cache.lengths == [30]
    assert verifier_of("llama", max_tokens=10**9).max_tokens == 512, "never more than the model's own"


def test_time_step_leaves_its_slot_empty_and_the_others_alone() -> None:
    verifier = verifier_of("llama", slots=2)
    wanted = last(verifier, 0, prompt_of(20))
    assert verifier.time_step(4, 100, slot=1) > 0
    assert verifier.cache.lengths == [20, 0]
    with pytest.raises(ResourceError):
        verifier.time_step(4, 600, slot=1)
    assert verifier.cache.lengths == [20, 0]
    verifier.clear(0)
    close(last(verifier, 0, prompt_of(20)), wanted)


def test_slots_are_cleared_moved_and_resized() -> None:
    verifier = verifier_of("llama", slots=3)
    last(verifier, 2, prompt_of(20))
    verifier.swap(2, 0)
    assert verifier.cache.lengths == [20, 0, 0]
    got = step(verifier, [7])
    fresh = verifier_of("llama")
    last(fresh, 0, prompt_of(20))
    close(got, step(fresh, [7]))
    verifier.keep(0, [0])
    verifier.clear(0)
    verifier.resize(5)
    assert verifier.slots == 5
    assert verifier.cache.lengths == [0] * 5


TINY = {"vocab_size": 64, "hidden_size": 16, "num_hidden_layers": 1}
REFUSED = {
    "mamba": ("recurrent or hybrid", TINY | {"state_size": 4}),
    "gpt2": ("not in the architecture table", {"vocab_size": 64, "n_embd": 16, "n_layer": 1, "n_head": 2}),
}


@pytest.mark.parametrize("family", REFUSED)
def test_families_that_cannot_be_run_are_refused(family: str) -> None:
    message, settings = REFUSED[family]
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **settings))
    with pytest.raises(UnsupportedModelError, match=message):
        Verifier(model)


def test_an_embedding_model_is_refused() -> None:
    model = tiny_model("gemma3_text")
    model.config.use_bidirectional_attention = True
    with pytest.raises(UnsupportedModelError, match="later tokens"):
        Verifier(model)


def test_packed_kernels_only_where_there_are_some(tmp_path: object) -> None:
    with pytest.raises(UsageError, match="packed CPU kernels need float32"):
        Verifier.load(tmp_path, dtype=torch.bfloat16, cpu_kernels="packed")  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("cache", ["grow", "static"])
def test_half_precision_runs(dtype: torch.dtype, cache: str) -> None:
    model = AutoModelForCausalLM.from_config(tiny_config("llama"), dtype=dtype)
    model.set_attn_implementation(ATTENTION_NAME)
    verifier = Verifier(model, cache=cache, max_tokens=100)
    last(verifier, 0, prompt_of(20))
    logits = step(verifier, [5, 6, 7], [0, 0])
    assert logits.dtype == dtype
    assert torch.isfinite(logits).all()
