"""`LLM`: from a checkpoint to text; bad input fails before expensive work."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig

from engine_helpers import prompt_of, reference
from justright.engine import checks as api
from justright.engine.llm import LLM
from justright.engine.model_runner import Verifier
from justright.engine.options import EngineOptions
from justright.engine.sampler import SamplingParams
from justright.engine.step_cost import StepCost
from justright.errors import CheckpointError, ResourceError, SourceError, UnsupportedModelError, UsageError
from tiny import VOCAB_SIZE, save_tiny, tiny_model, tiny_tokenizer

PROMPT = prompt_of(15)


@pytest.fixture(autouse=True)
def cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("JUSTRIGHT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny("llama", tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture(scope="module")
def engine(checkpoint: Path) -> LLM:
    return LLM(str(checkpoint))


def test_a_checkpoint_generates_what_the_model_does(engine: LLM) -> None:
    expected = reference(tiny_model("llama"), PROMPT, 20)
    request = engine.generate_request(PROMPT, max_tokens=20, ignore_eos=True)
    assert request.token_ids == expected
    assert request.finish_reason == "length"
    shown = tiny_tokenizer().decode(expected, skip_special_tokens=True)
    assert request.text == shown.rstrip("\ufffd")


@pytest.mark.parametrize("changes", [{"cpu_kernels": "plain"}, {"cache": "static"}, {"dtype": "fp32"}])
def test_options_that_change_no_token(changes: dict[str, Any], checkpoint: Path, engine: LLM) -> None:
    other = LLM(str(checkpoint), EngineOptions(**changes))
    [wanted, got] = (e.generate_request(PROMPT, max_tokens=20).token_ids for e in (engine, other))
    assert got == wanted


def test_half_precision_loads(checkpoint: Path) -> None:
    engine = LLM(str(checkpoint), dtype="bf16")
    assert len(engine.generate_request(PROMPT, max_tokens=5, ignore_eos=True).token_ids) == 5
    with pytest.raises(UsageError, match="packed CPU kernels"):
        LLM(str(checkpoint), dtype="bf16", cpu_kernels="packed")


def test_prompts_as_text_and_as_chats(engine: LLM) -> None:
    tokenizer = tiny_tokenizer()
    assert engine.encode("the quick fox") == tokenizer("the quick fox")["input_ids"]
    ids = engine.chat_prompt([{"role": "user", "content": "Hi"}])
    assert tokenizer.decode(ids) == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert engine.request("the quick fox").prompt_ids == engine.encode("the quick fox")


def test_end_tokens_come_from_the_generation_config(checkpoint: Path, tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    assert api.end_tokens(checkpoint, tokenizer) == {2}
    file = tmp_path / "generation_config.json"
    file.write_text(json.dumps({"eos_token_id": [2, 4]}))
    assert api.end_tokens(tmp_path, tokenizer) == {2, 4}
    file.unlink()
    assert api.end_tokens(tmp_path, tokenizer) == {tokenizer.eos_token_id}


def test_an_end_token_ends_the_answer(engine: LLM) -> None:
    tokens = engine.generate_request(PROMPT, max_tokens=20, ignore_eos=True).token_ids
    stopping = LLM.from_parts(engine.verifier, engine.tokenizer, stop_token_ids=frozenset([tokens[6]]))
    request = stopping.generate_request(PROMPT, max_tokens=20)
    assert request.token_ids == tokens[: tokens.index(tokens[6]) + 1]
    assert request.finish_reason == "stop"


def test_one_stop_string_is_not_its_letters(engine: LLM) -> None:
    assert engine.request(PROMPT, stop="END").stop == ("END",)
    assert engine.request(PROMPT, stop=["a", "b"]).stop == ("a", "b")


def test_a_batch_is_what_each_gives_alone(checkpoint: Path, engine: LLM) -> None:
    batched = LLM(str(checkpoint), slots=2)
    prompts = [prompt_of(n, n) for n in (5, 20, 11)]
    requests = [batched.request(p, max_tokens=12, ignore_eos=True) for p in prompts]
    assert batched.generate_requests(requests) is requests
    for prompt, request in zip(prompts, requests, strict=True):
        assert request.token_ids == engine.generate_request(prompt, max_tokens=12, ignore_eos=True).token_ids


def test_streamed_pieces_are_the_answer(engine: LLM) -> None:
    request = engine.request(PROMPT, SamplingParams(temperature=1, seed=3), max_tokens=20, ignore_eos=True)
    emissions = list(engine.stream_requests([request]))
    assert [t for e in emissions for t in e.token_ids] == request.token_ids
    assert "".join(e.text for e in emissions) == request.text
    assert json.loads(json.dumps(request.stats.to_dict()))["output_tokens"] == 20


def test_the_context_bounds_the_answer(engine: LLM) -> None:
    context = engine.verifier.max_tokens
    assert engine.request(prompt_of(context - 5), max_tokens=100).max_tokens == 5
    request = engine.generate_request(prompt_of(context - 5), max_tokens=100, ignore_eos=True)
    assert len(request.token_ids) == 5
    with pytest.raises(ResourceError, match=f"{context} tokens; the context holds {context}"):
        engine.request(prompt_of(context))


def test_drafts_change_no_token_and_costs_are_measured_once(
    checkpoint: Path, engine: LLM, cache_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompt = prompt_of(12) * 4
    drafted = LLM(str(checkpoint), draft="suffix", draft_options={"tree": True})
    [file] = (cache_folder / "costs").iterdir()
    assert StepCost.read(file) is not None
    assert drafted.cost is not None
    wanted = engine.generate_request(prompt, max_tokens=40, ignore_eos=True).token_ids
    assert drafted.generate_request(prompt, max_tokens=40, ignore_eos=True).token_ids == wanted

    def no_more(*_: object, **__: object) -> StepCost:
        raise AssertionError("measured again")

    with monkeypatch.context() as patched:
        patched.setattr(StepCost, "measure", no_more)
        again = LLM(str(checkpoint), draft="suffix")
        assert again.cost is not None
        assert again.cost.near_s == StepCost.read(file).near_s  # type: ignore[union-attr]
        assert LLM(str(checkpoint), draft="suffix", adaptive=False).cost is None
        assert LLM(str(checkpoint)).cost is None, "without drafts no cost is measured"
    file.write_text("{")
    assert LLM(str(checkpoint), draft="suffix").cost is not None
    assert StepCost.read(file) is not None, "a damaged file is replaced by a new measurement"


def test_another_drafter_on_the_same_model(engine: LLM) -> None:
    prompt = prompt_of(12) * 4
    suffix = engine.with_draft("suffix", adaptive=False, tree=True)
    assert suffix.verifier is engine.verifier
    assert suffix.cost is None
    wanted = engine.generate_request(prompt, max_tokens=40, ignore_eos=True)
    got = suffix.generate_request(prompt, max_tokens=40, ignore_eos=True)
    assert got.token_ids == wanted.token_ids
    assert got.stats.drafted > 0 == wanted.stats.drafted
    assert engine.with_draft("suffix").cost is not None
    assert engine.with_draft("none").drafter is None
    with pytest.raises(UsageError, match="unknown drafter"):
        engine.with_draft("oracle")
    with pytest.raises(UsageError, match="nodes is 64; allowed: at most max_draft"):
        engine.with_draft("recycling", nodes=64)


@pytest.mark.parametrize("context", [2, 3, 7, 40])
def test_the_smallest_contexts_work(context: int, checkpoint: Path) -> None:
    engine = LLM(str(checkpoint), draft="suffix", max_context=context)
    request = engine.generate_request(prompt_of(1), max_tokens=99, ignore_eos=True)
    assert len(request.token_ids) == context - 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dtype": "int8"}, "dtype is 'int8'; allowed: float32"),
        ({"cache": "huge"}, "cache is 'huge'; allowed: grow, static"),
        ({"cpu_kernels": "fast"}, "cpu_kernels is 'fast'; allowed: packed, plain"),
        ({"slots": 0}, "slots is 0; allowed: 1 or more"),
        ({"max_draft": 0}, "max_draft is 0"),
        ({"prefill_chunk": -1}, "prefill_chunk is -1"),
        ({"max_context": 1}, "max_context is 1; allowed: 2 or more"),
        ({"draft_options": {"nodes": 33}}, "nodes is 33; allowed: at most max_draft"),
    ],
)
def test_options_that_make_no_sense(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        EngineOptions(**changes)


def test_refusals_come_before_the_weights(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unread(*_: object, **__: object) -> None:
        raise AssertionError("weights were read")

    monkeypatch.setattr(Verifier, "load", unread)
    with pytest.raises(UsageError, match="cannot be used"):
        LLM(str(checkpoint), device="warp")
    with pytest.raises(UsageError, match="unknown drafter"):
        LLM(str(checkpoint), draft="oracle")
    with pytest.raises(UsageError, match="not both"):
        LLM(str(checkpoint), EngineOptions(), slots=2)
    with pytest.raises(SourceError):
        LLM(str(tmp_path / "nothing here"))
    damaged = save_tiny("llama", tmp_path / "damaged")
    file = damaged / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(CheckpointError):
        LLM(str(damaged))
    unknown = save_tiny("llama", tmp_path / "unknown")
    (unknown / "config.json").write_text(AutoConfig.for_model("gpt2").to_json_string())
    with pytest.raises(UnsupportedModelError):
        LLM(str(unknown))
    silent = save_tiny("llama", tmp_path / "silent")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (silent / name).unlink()
    with pytest.raises(CheckpointError, match="tokenizer"):
        LLM(str(silent))


@pytest.mark.parametrize(
    ("prompt", "options", "message"),
    [
        ([], {}, "prompt is empty"),
        ("", {}, "prompt is empty"),
        ([5, VOCAB_SIZE], {}, "outside the vocabulary"),
        ([-1], {}, "outside the vocabulary"),
        ([5], {"max_tokens": 0}, "max_tokens is 0; allowed: 1 or more"),
    ],
)
def test_requests_that_make_no_sense(prompt: Any, options: dict[str, Any], message: str, engine: LLM) -> None:
    with pytest.raises(UsageError, match=message):
        engine.request(prompt, **options)


def test_without_a_tokenizer_there_are_token_ids_only(engine: LLM) -> None:
    bare = LLM.from_parts(engine.verifier)
    request = bare.generate_request(PROMPT, max_tokens=4)
    assert (len(request.token_ids), request.text) == (4, "")
    for call in (
        lambda: bare.request("text"),
        lambda: bare.request(PROMPT, stop=["x"]),
        lambda: bare.chat_prompt([]),
    ):
        with pytest.raises(UsageError, match="no tokenizer"):
            call()


@pytest.mark.parametrize("messages", ["hi", ["hi"], [["role", "user"]]])
def test_what_is_no_conversation_is_refused(engine: LLM, messages: Any) -> None:
    with pytest.raises(UsageError, match="a conversation is a list"):
        engine.chat_prompt(messages)


def test_a_model_without_a_chat_template(engine: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine.tokenizer, "chat_template", None)
    with pytest.raises(UsageError, match="no chat template"):
        engine.chat_prompt([{"role": "user", "content": "Hi"}])
