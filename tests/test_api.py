"""The public API: its names, and that they work as a user of transformers or vLLM expects."""

from __future__ import annotations

import gc
import subprocess
import sys
import warnings
import weakref
from dataclasses import FrozenInstanceError
from pathlib import Path

import pytest
import torch

import justright
from bundle_helpers import thinking_pair
from engine_helpers import prompt_of, reference
from justright import (
    LLM,
    JustrightError,
    Output,
    Reasoning,
    ResourceError,
    SamplingParams,
    SourceError,
    UsageError,
    extract_adapter,
    prune,
    train_drafter,
)
from justright.prune.settings import Settings
from tiny import save_pair, save_tiny, tiny_model, tiny_tokenizer

TEXTS = ["the quick brown fox", "lazy", "and the lazy dog and the"]
TALK = [{"role": "user", "content": "Hi"}]
NAMES = {
    *("LLM", "SamplingParams", "Reasoning", "Output"),
    *("prune", "extract_adapter", "train_drafter", "evaluate"),
    *("JustrightError", "UsageError", "SourceError", "CheckpointError", "UnsupportedModelError"),
    *("ResourceError", "ConstraintError", "MissingExtraError"),
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny("llama", tmp_path_factory.mktemp("api") / "llama")


@pytest.fixture(scope="module")
def llm(checkpoint: Path) -> LLM:
    return LLM(str(checkpoint), slots=2)


def expected(prompt: list[int], tokens: int) -> list[int]:
    """The output of transformers, up to its end token (2)."""
    found = reference(tiny_model("llama"), prompt, tokens)
    return found[: found.index(2) + 1] if 2 in found else found


def test_the_public_names_are_these() -> None:
    assert set(justright.__all__) == NAMES
    assert set(dir(justright)) >= NAMES
    for name in NAMES:
        assert callable(getattr(justright, name)), name
    with pytest.raises(AttributeError, match="no attribute 'Engine'"):
        _ = justright.Engine


@pytest.mark.parametrize(
    "line", ["import justright", "from justright import JustrightError, prune, evaluate"]
)
def test_importing_them_imports_no_torch(line: str) -> None:
    code = f"{line}\nimport sys; print(sorted({{'torch', 'transformers', 'numpy'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("first", ["import justright.prune, justright.evaluate", "pass"])
def test_a_room_is_called_whichever_import_comes_first(first: str) -> None:
    code = (
        f"{first}\nfrom justright import evaluate, prune\nimport justright.prune\n"
        "assert callable(evaluate) and callable(prune) and justright.prune is prune"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(UsageError, match="prune has no option 'colour'; allowed: "):
        prune("nowhere", "out", colour=1)
    with pytest.raises(UsageError, match="got both settings and sparsity"):
        prune("nowhere", "out", Settings(weights="magnitude"), sparsity=0.5)


def test_prompts_give_what_transformers_does_in_their_order(llm: LLM) -> None:
    outputs = llm.generate(TEXTS, SamplingParams(max_tokens=12))
    assert [output.prompt for output in outputs] == TEXTS
    for text, output in zip(TEXTS, outputs, strict=True):
        ids = tiny_tokenizer()(text)["input_ids"]
        assert output.prompt_token_ids == tuple(ids)
        assert output.token_ids == tuple(expected(ids, 12))
        shown = tiny_tokenizer().decode(output.token_ids, skip_special_tokens=True)
        assert output.text == shown.rstrip("\ufffd")
        assert output.finish_reason == ("stop" if 2 in output.token_ids else "length")
        assert output.reasoning is None
        assert output.logprobs is None
        assert output.stats.output_tokens == len(output.token_ids)


def test_one_prompt_gives_a_list_of_one(llm: LLM) -> None:
    [whole] = llm.generate(TEXTS, SamplingParams(max_tokens=8))[:1]
    assert llm.generate(TEXTS[0], SamplingParams(max_tokens=8)) == [whole]
    ids = tiny_tokenizer()(TEXTS[0])["input_ids"]
    assert llm.generate(ids, SamplingParams(max_tokens=8)) == [whole]
    assert llm.generate([]) == []


def test_each_prompt_can_have_its_own_parameters(llm: LLM) -> None:
    lengths = [3, 1, 5]
    outputs = llm.generate([prompt_of(9)] * 3, [SamplingParams(max_tokens=n) for n in lengths])
    assert [len(output.token_ids) for output in outputs] == lengths
    with pytest.raises(UsageError, match="there are 2 prompts and 1 SamplingParams"):
        llm.generate(["a", "b"], [SamplingParams()])


def test_a_stop_string_ends_the_text_before_it(llm: LLM) -> None:
    prompt = prompt_of(15)
    [whole] = llm.generate(prompt, SamplingParams(max_tokens=20))
    stop = whole.text[4:6]
    for given in (stop, [stop]):
        [output] = llm.generate(prompt, SamplingParams(max_tokens=20, stop=given))
        assert output.text == whole.text[: whole.text.index(stop)]
        assert output.finish_reason == "stop"


def test_logprobs_are_those_of_the_model(llm: LLM) -> None:
    prompt = prompt_of(11)
    [output] = llm.generate(prompt, SamplingParams(max_tokens=4, logprobs=2))
    assert output.logprobs is not None
    ids = [*prompt, *output.token_ids]
    with torch.no_grad():
        rows = tiny_model("llama")(torch.tensor([ids])).logits[0].log_softmax(-1)[len(prompt) - 1 :]
    for row, token, one in zip(rows, output.token_ids, output.logprobs, strict=False):
        assert one.token_id == token
        assert one.logprob == pytest.approx(float(row[token]), abs=1e-4)
        assert [t for t, _ in one.top] == row.topk(2).indices.tolist()


def test_outputs_do_not_change(llm: LLM) -> None:
    [output] = llm.generate("the", SamplingParams(max_tokens=2))
    assert isinstance(output, Output)
    with pytest.raises(FrozenInstanceError):
        output.text = ""  # type: ignore[misc]
    assert hash(output) == hash(llm.generate("the", SamplingParams(max_tokens=2))[0])
    with pytest.raises(FrozenInstanceError):
        SamplingParams().stop = ("a",)  # type: ignore[misc]
    with pytest.raises(FrozenInstanceError):
        Reasoning().effort = "low"  # type: ignore[misc]


def test_a_conversation_is_answered_by_the_chat_template(llm: LLM) -> None:
    ids = tiny_tokenizer().apply_chat_template(TALK, add_generation_prompt=True)["input_ids"]
    [output] = llm.chat(TALK, SamplingParams(max_tokens=9))
    assert output.prompt_token_ids == tuple(ids)
    assert output.token_ids == tuple(expected(ids, 9))
    other = [{"role": "user", "content": "Ho"}]
    several = llm.chat([other, TALK], SamplingParams(max_tokens=9))
    assert several[1] == output
    assert [one.prompt for one in several] == [
        f"<|im_start|>user\n{word}<|im_end|>\n<|im_start|>assistant\n" for word in ("Ho", "Hi")
    ]


def test_reasoning_is_apart_from_the_text(tmp_path: Path) -> None:
    template = "{{ messages[0]['content'] }}"
    slow, switch = thinking_pair(tmp_path, template + "<think>{# </think> #}", template + ">")
    with LLM(str(slow), switch=str(switch)) as llm:
        [output] = llm.chat(TALK, SamplingParams(max_tokens=16), reasoning=Reasoning(budget=5))
        assert output.prompt == "Hi<think>"
        assert output.reasoning
        assert "think>" not in output.reasoning + output.text
        assert output.stats.reasoning_tokens >= 5
        chunks = list(llm.stream(TALK, SamplingParams(max_tokens=16), reasoning=Reasoning(budget=5)))
        assert "".join(chunk.reasoning for chunk in chunks) == output.reasoning
        assert "".join(chunk.text for chunk in chunks) == output.text
        [fast] = llm.chat(TALK, SamplingParams(max_tokens=4), reasoning=Reasoning(effort="none"))
        assert (fast.prompt, fast.reasoning) == ("Hi>", None)
    with pytest.raises(UsageError, match="effort"):
        Reasoning(effort="much")


def test_chunks_join_to_the_output(llm: LLM) -> None:
    params = SamplingParams(temperature=1.0, seed=3, max_tokens=20, logprobs=0)
    [output] = llm.generate(TEXTS[0], params)
    chunks = list(llm.stream(TEXTS[0], params))
    assert len(chunks) > 1
    assert "".join(chunk.text for chunk in chunks) == output.text
    assert tuple(t for chunk in chunks for t in chunk.token_ids) == output.token_ids
    assert tuple(one for chunk in chunks for one in chunk.logprobs or ()) == output.logprobs
    assert [chunk.finish_reason for chunk in chunks][-2:] == [None, output.finish_reason]


def test_a_stream_fails_at_the_call(llm: LLM) -> None:
    with pytest.raises(UsageError, match="the prompt is empty"):
        llm.stream("")
    with pytest.raises(UsageError, match="reasoning needs a conversation"):
        llm.stream("the", reasoning=Reasoning(effort="low"))


def test_an_output_that_the_context_cuts_is_reported_once(checkpoint: Path) -> None:
    with LLM(str(checkpoint), max_context=12) as llm:
        with pytest.warns(
            RuntimeWarning, match="max_tokens is 100, and after a prompt of 8 tokens"
        ) as caught:
            [output] = llm.generate(prompt_of(8), SamplingParams(max_tokens=100))
        assert caught[0].filename == __file__
        assert (len(output.token_ids), output.finish_reason) == (4, "length")
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            llm.generate(prompt_of(8), SamplingParams(max_tokens=100))
        with pytest.raises(ResourceError, match="the prompt has 12 tokens; the context holds 12"):
            llm.generate(prompt_of(12))
    with LLM(str(checkpoint), max_context=12) as llm, warnings.catch_warnings():
        warnings.simplefilter("error")
        [output] = llm.generate(prompt_of(8), SamplingParams(max_tokens=None))
        assert len(output.token_ids) == 4


def test_a_closed_model_is_freed_and_using_it_is_an_error(checkpoint: Path) -> None:
    with LLM(str(checkpoint), draft="suffix", adaptive=False) as llm:
        model = weakref.ref(llm.verifier.model)
        llm.generate("the", SamplingParams(max_tokens=2))
        assert model() is not None
    gc.collect()
    assert model() is None
    for call in (
        lambda: llm.generate("the"),
        lambda: llm.chat(TALK),
        lambda: llm.stream("the"),
        llm.__enter__,
    ):
        with pytest.raises(UsageError, match="this LLM is closed"):
            call()
    llm.close()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"max_tokens": 0}, "max_tokens is 0; allowed: 1 or more, or None"),
        ({"stop": [""]}, "stop is"),
        ({"logprobs": 21}, "logprobs is 21; allowed: 0 to 20, or None"),
        ({"temperature": -1.0}, "temperature is -1.0"),
    ],
)
def test_values_that_are_not_allowed(values: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        SamplingParams(**values)  # type: ignore[arg-type]
    assert isinstance(caught.value, JustrightError)


def test_what_is_left_open_follows_the_models_file_where_one_samples(tmp_path: Path) -> None:
    path = save_tiny("llama", tmp_path / "model")
    file = path / "generation_config.json"
    file.write_text('{"eos_token_id": 2, "top_k": 1, "temperature": 0.5}')
    prompt = prompt_of(9)
    with LLM(str(path)) as llm:
        [greedy] = llm.generate(prompt, SamplingParams(max_tokens=8))
        [file_s] = llm.generate(prompt, SamplingParams(max_tokens=8, temperature=5.0, seed=1))
        assert file_s.token_ids == greedy.token_ids, "the file's top_k 1"
        [own] = llm.generate(prompt, SamplingParams(max_tokens=8, temperature=5.0, top_k=0, seed=1))
        assert own.token_ids != greedy.token_ids, "a top_k of 0 that the user gives counts"
    assert SamplingParams(top_k=0).given["top_k"] == 0
    assert "top_k" not in SamplingParams().given
    assert SamplingParams() == SamplingParams(top_k=0)


def test_offline_functions_take_names_and_options(tmp_path: Path) -> None:
    slow, fast = save_pair(tmp_path)
    found = extract_adapter(str(slow), fast, str(tmp_path / "adapter"))
    assert (tmp_path / "adapter/adapter_model.safetensors").is_file()
    assert found.path == tmp_path / "adapter"
    done = prune(str(slow), str(tmp_path / "pruned"), sparsity=0.5, weights="magnitude", expert_sparsity=0.0)
    assert done.to_dict()
    with LLM(str(tmp_path / "pruned"), cpu_kernels="plain") as llm:
        down = llm.verifier.model.state_dict()["model.layers.0.mlp.down_proj.weight"]
        assert float((down == 0).float().mean()) == pytest.approx(0.5, abs=0.02)
    with pytest.raises(SourceError):
        train_drafter(str(tmp_path / "nowhere"), tmp_path / "drafter", ["text.txt"])
