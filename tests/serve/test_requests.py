"""Several choices of one prompt: one rendering, encoding and grammar, and independent outputs."""

from __future__ import annotations

import asyncio
import copy
import json
from pathlib import Path
from typing import Any

import pytest

from justright.engine.chat_modes import RequestBuilder
from justright.engine.generation import GenerationDefaults
from justright.engine.llm import LLM
from justright.engine.request import Request
from justright.engine.sampler import SamplingParams
from justright.serve.protocol import ChatRequest, CommonFields, CompletionRequest
from justright.serve.requests import RequestReader
from justright.serve.schema_trial import SchemaTrial
from justright.serve.server_settings import ServeSettings
from serve_helpers import MODEL, Running
from tiny import save_tiny

SCHEMA = {
    "type": "json_schema",
    "json_schema": {
        "name": "a",
        "schema": {
            "type": "object",
            "properties": {"a": {"type": "boolean"}},
            "required": ["a"],
            "additionalProperties": False,
        },
    },
}


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch, plain: Running) -> list[str]:
    """Count the expensive operations."""
    found: list[str] = []

    def count(owner: Any, name: str) -> None:
        before = getattr(owner, name)

        def counting(*arguments: Any, **options: Any) -> Any:
            found.append(name)
            return before(*arguments, **options)

        monkeypatch.setattr(owner, name, counting)

    for owner, name in ((plain.engine, "conversation"), (plain.engine, "request"), (SchemaTrial, "run")):
        count(owner, name)
    return found


def constrain(asking: RequestReader, requests: list[Request], asked: CommonFields) -> None:
    try:
        asyncio.run(asking.constrain(requests, asked))
    finally:
        asking.grammars.close()


def test_a_chat_is_written_once(plain: Running, counted: list[str]) -> None:
    asked = ChatRequest.model_validate(
        {"model": MODEL, "messages": [{"role": "user", "content": "a"}], "n": 5, "response_format": SCHEMA}
    )
    asking = RequestReader(plain.engine, plain.service.settings)
    [requests] = asking.chat(asked)
    constrain(asking, requests, asked)
    assert sorted(counted) == ["conversation", "request", "run"]
    for name in ("id", "constraint", "stats", "token_ids", "logprobs"):
        assert len({id(getattr(one, name)) for one in requests}) == 5, f"each has its own {name}"


def test_each_prompt_is_encoded_once(plain: Running, counted: list[str]) -> None:
    asked = CompletionRequest.model_validate(
        {"model": MODEL, "prompt": ["a", "b"], "n": 3, "seed": 4, "response_format": SCHEMA}
    )
    asking = RequestReader(plain.engine, plain.service.settings)
    requests = [one for choices in asking.completion(asked) for one in choices]
    constrain(asking, requests, asked)
    assert sorted(counted) == ["request", "request", "run"]
    assert [one.params.seed for one in requests] == [4, 5, 6, 4, 5, 6]


def test_choices_are_what_each_would_be_alone(plain: Running) -> None:
    body = {
        "model": MODEL,
        "prompt": "hello",
        "max_tokens": 12,
        "logprobs": 1,
        "response_format": SCHEMA,
        "temperature": 1.5,
    }

    def texts(**fields: Any) -> list[str]:
        answer = plain.client.post("/v1/completions", json=body | fields).json()
        return [choice["text"] for choice in answer["choices"]]

    together = texts(n=4, seed=7)
    assert together == [text for seed in range(7, 11) for text in texts(seed=seed)]
    assert {json.loads(text)["a"] for text in together} <= {True, False}


@pytest.mark.parametrize("reads", [True, False])
def test_names_are_given_to_the_template_as_transformers_does(
    plain: Running, monkeypatch: pytest.MonkeyPatch, reads: bool
) -> None:
    shown = "{{ m['name'] | default('') }}: " if reads else ""
    template = "{% for m in messages %}" + shown + "{{ m['content'] }}|{% endfor %}"
    tokenizer = plain.engine.tokenizer
    assert tokenizer is not None
    monkeypatch.setattr(tokenizer, "chat_template", template)
    messages = [
        {"role": "system", "content": "Be kind.", "name": "boss"},
        {"role": "user", "content": "hello", "name": "Bob"},
        {"role": "assistant", "content": "hi", "name": "Al"},
        {"role": "user", "content": "and?"},
    ]
    noted = [message | {"provider_specific_fields": {"a": 1}} for message in messages]
    asked = ChatRequest.model_validate({"model": MODEL, "messages": noted})
    [[request]] = RequestReader(plain.engine, plain.service.settings).chat(asked)
    expected = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    assert ("Bob" in expected) == reads
    assert tokenizer.decode(request.prompt_ids) == expected


def test_the_models_file_sets_what_the_request_does_not(tmp_path: Path) -> None:
    """A request's field overrides the server's default, which overrides the file's, which overrides OpenAI's."""
    model = save_tiny("llama", tmp_path / MODEL)
    (model / "generation_config.json").write_text(
        '{"temperature": 0.7, "top_p": 0.8, "top_k": 20, "eos_token_id": 2}'
    )
    engine = LLM(str(model))
    messages = [{"role": "user", "content": "the fox"}]

    def used(settings: ServeSettings, **fields: Any) -> SamplingParams:
        asking = RequestReader(engine, settings)
        chat = ChatRequest.model_validate({"model": MODEL, "messages": messages} | fields)
        text = CompletionRequest.model_validate({"model": MODEL, "prompt": "the fox"} | fields)
        [[one]], [[other]] = asking.chat(chat), asking.completion(text)
        assert one.params == other.params
        return one.params

    said, served = ServeSettings(MODEL), ServeSettings(MODEL, sampling={"top_p": 0.5})
    assert used(said) == SamplingParams(0.7, 20, 0.8)
    assert used(served) == SamplingParams(0.7, 20, 0.5)
    assert used(served, temperature=1.5, top_k=0) == SamplingParams(1.5, 0, 0.5)
    assert used(said, temperature=0) == SamplingParams(), "greedy stays greedy"
    assert used(said, top_p=1.0, seed=2) == SamplingParams(0.7, 20, 1.0, seed=2)
    engine.generation = GenerationDefaults()
    assert used(said) == SamplingParams(1.0)


@pytest.mark.parametrize(
    ("template", "known"),
    [
        ("{{ messages }}<think>", "always"),
        ("{{ messages }}<think></think>", "unknown"),
        ("{{ messages | replace('</think>', '') }}", "unknown"),
        ("{{ messages }}{% if enable_thinking is false %}<think></think>{% endif %}", "switchable"),
        ("{{ reasoning_effort }}{{ messages }}", "unknown"),
        ("{{ messages }}{% if enable_thinking is false %}.{% endif %}", "switchable"),
        ("{{ messages }}", "never"),
        ("{{ raise_exception('no <think></think>') }}", "unknown"),
        (None, "never"),
    ],
)
def test_what_is_known_about_reasoning(
    plain: Running, monkeypatch: pytest.MonkeyPatch, template: str | None, known: str
) -> None:
    tokenizer = copy.deepcopy(plain.engine.tokenizer)
    assert tokenizer is not None
    tokenizer.chat_template = template
    monkeypatch.setattr(plain.engine, "tokenizer", tokenizer)
    monkeypatch.setattr(plain.engine, "modes", RequestBuilder(tokenizer, None))
    asking = RequestReader(plain.engine, plain.service.settings)
    assert asking.reasoning == known
    for effort in asking.efforts if "raise" not in str(template) else ():  # what is listed is accepted
        chat = {"model": MODEL, "messages": [{"role": "user", "content": "a"}], "reasoning_effort": effort}
        [[request]] = asking.chat(ChatRequest.model_validate(chat))
        assert request.prompt_ids
    asking.grammars.close()
