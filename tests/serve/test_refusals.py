"""Invalid requests get an OpenAI-style error that names the parameter, and never a 500."""

from __future__ import annotations

import gzip
import json
from typing import Any

import httpx
import openai
import pytest

from gateway_helpers import served
from justright.serve.discover import UpstreamOptions
from justright.serve.gateway import Gateway, GatewaySettings, create_gateway
from justright.serve.responses import ErrorBody
from serve_helpers import MODEL, Running

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
JSON = {"content-type": "application/json"}


def body(path: str, **fields: Any) -> dict[str, Any]:
    what: dict[str, Any] = (
        {"messages": [{"role": "user", "content": "a"}]} if path == CHAT else {"prompt": "a"}
    )
    return {"model": MODEL, "max_tokens": 2, **what, **fields}


def refused(answer: httpx.Response, status: int = 400) -> Any:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    return ErrorBody.model_validate_json(answer.content).error


BAD: list[tuple[dict[str, Any], str]] = [
    ({"model": 3}, "model"),
    ({"nonsense": 1}, "nonsense"),
    ({"temperature": "1"}, "temperature"),
    ({"temperature": -1}, "temperature"),
    ({"temperature": 2.1}, "temperature"),
    ({"top_p": 0}, "top_p"),
    ({"top_k": -1}, "top_k"),
    ({"top_k": 1.5}, "top_k"),
    ({"min_p": 2}, "min_p"),
    ({"repetition_penalty": 0}, "repetition_penalty"),
    ({"seed": 2**63}, "seed"),
    ({"n": 0}, "n"),
    ({"n": 17}, "n"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_tokens": True}, "max_tokens"),
    ({"stop": ""}, "stop"),
    ({"stop": ["a"] * 5}, "stop"),
    ({"stop": "a" * 257}, "stop"),
    ({"stream": "yes"}, "stream"),
    ({"stream": True, "stream_options": {"more": 1}}, "stream_options.more"),
    ({"presence_penalty": 0.5}, "presence_penalty"),
    ({"frequency_penalty": -0.5}, "frequency_penalty"),
    ({"logit_bias": {"5": 1}}, "logit_bias"),
    ({"response_format": {"type": "xml"}}, "response_format.type"),
    ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
    ({"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "x"}}}},
     "response_format"),
    ({"justright": {"x": 1}}, "justright.x"),
]  # fmt: skip
BAD_CHAT: list[tuple[dict[str, Any], str]] = [
    ({"messages": []}, "messages"),
    ({"messages": "hello"}, "messages"),
    ({"messages": [{"role": "king", "content": "a"}]}, "messages.0.role"),
    ({"messages": [{"role": "user"}]}, "messages.0.content"),
    ({"messages": [{"content": "a"}]}, "messages.0.role"),
    ({"messages": [{"role": "user", "content": 3}]}, "messages.0.content"),
    ({"messages": [{"role": "user", "content": None}]}, "messages.0.content"),
    ({"messages": [{"role": "user", "content": "a", "refusal": None}]}, "messages.0.refusal"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
     "messages.0.content.0.type"),
    ({"messages": [{"role": "user", "provider_specific_fields": "a", "content": "a"}]},
     "messages.0.provider_specific_fields"),
    ({"messages": [{"role": "assistant", "tool_calls": [{"id": "x"}]}]}, "messages.0.tool_calls"),
    ({"messages": [{"role": "user", "content": "a" * 4000}]}, "messages"),
    ({"max_completion_tokens": 10**6, "max_tokens": None}, "max_completion_tokens"),
    ({"top_logprobs": 3}, None),
    ({"logprobs": 3}, "logprobs"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
    ({"max_completion_tokens": 3}, "max_tokens"),
    ({"reasoning_effort": "enormous"}, "reasoning_effort"),
    ({"reasoning_effort": "low"}, "reasoning_effort"),
    ({"reasoning": {"effort": "xhigh"}}, "reasoning_effort"),
    ({"reasoning_effort": "auto"}, "reasoning_effort"),
    ({"thinking_budget": 3}, "thinking_budget"),
    ({"reasoning": {"max_tokens": -1}}, "reasoning.max_tokens"),
    ({"reasoning": {"summary": "auto"}}, "reasoning.summary"),
    ({"chat_template_kwargs": {"enable_thinking": False}}, "chat_template_kwargs.enable_thinking"),
    ({"chat_template_kwargs": {"chat_template": "{{ 1 }}"}}, "chat_template_kwargs.chat_template"),
    ({"chat_template_kwargs": {"tokenize": True}}, "chat_template_kwargs.tokenize"),
    ({"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs.messages"),
    ({"chat_template_kwargs": {"bos_token": "x"}}, "chat_template_kwargs.bos_token"),
    ({"chat_template_kwargs": {"tone": "x"}}, "chat_template_kwargs.tone"),
    ({"tools": [{"type": "function"}]}, "tools"),
    ({"tool_choice": "required"}, "tool_choice"),
    ({"functions": [{}]}, "functions"),
    ({"audio": {"voice": "a"}}, "audio"),
    ({"modalities": ["audio"]}, "modalities.0"),
    ({"prediction": {"type": "content"}}, "prediction"),
    ({"store": True}, "store"),
    ({"service_tier": "flex"}, "service_tier"),
    ({"verbosity": "low"}, "verbosity"),
    ({"web_search_options": {}}, "web_search_options"),
    ({"echo": True}, "echo"),
]  # fmt: skip
BAD_TEXT: list[tuple[dict[str, Any], str]] = [
    ({"prompt": ""}, "prompt"),
    ({"prompt": []}, "prompt"),
    ({"prompt": ["a", ""]}, "prompt.1"),
    ({"prompt": [5, 10**6]}, "prompt"),
    ({"prompt": [-1]}, "prompt.0"),
    ({"prompt": ["a"] * 65}, "prompt"),
    ({"prompt": [[5]] * 65}, "prompt"),
    ({"prompt": {"a": 1}}, "prompt"),
    ({"prompt": "a" * 4000}, "prompt"),
    ({"max_tokens": 10**6}, "max_tokens"),
    ({"echo": True}, "echo"),
    ({"suffix": "a"}, "suffix"),
    ({"best_of": 2}, "best_of"),
    ({"logprobs": 21}, "logprobs"),
    ({"logprobs": True}, "logprobs"),
    ({"reasoning_effort": "low"}, "reasoning_effort"),
    ({"messages": []}, "messages"),
]


@pytest.mark.parametrize(
    ("path", "fields", "param"),
    [(path, *case) for path in (CHAT, TEXT) for case in BAD]
    + [(CHAT, *case) for case in BAD_CHAT]
    + [(TEXT, *case) for case in BAD_TEXT],
)
def test_bad_parameters_are_named(plain: Running, path: str, fields: dict[str, Any], param: str) -> None:
    error = refused(plain.client.post(path, json=body(path, **fields)))
    assert error.param == param, error.message
    assert error.type == "invalid_request_error"
    assert error.message


def test_missing_and_unknown(plain: Running) -> None:
    for path, name in ((CHAT, "messages"), (TEXT, "prompt"), (CHAT, "model")):
        what = body(path)
        del what[name]
        error = refused(plain.client.post(path, json=what))
        assert (error.param, error.code) == (name, "missing_required_parameter")
    error = refused(plain.client.post(CHAT, json=body(CHAT, model="gpt-4")), 404)
    assert (error.param, error.code) == ("model", "model_not_found")
    with pytest.raises(openai.NotFoundError, match="there is no model"):
        plain.openai().chat.completions.create(model="gpt-4", messages=[{"role": "user", "content": "a"}])
    refused(plain.client.get("/v1/models/gpt-4"), 404)
    refused(plain.client.get("/v1/nothing"), 404)
    refused(plain.client.get(CHAT), 405)


def test_contradictions(thinking: Running) -> None:
    for fields, words in (
        ({"max_completion_tokens": 3}, "max_completion_tokens"),
        ({"reasoning_effort": "low", "reasoning": {"effort": "high"}}, "reasoning.effort"),
        ({"thinking_budget": 3, "reasoning": {"max_tokens": 4}}, "reasoning.max_tokens"),
        ({"reasoning_effort": "none", "thinking_budget": 3}, "does not reason"),
        ({"stream_options": {"include_usage": True}}, "stream: true"),
        ({"top_logprobs": 2}, "logprobs: true"),
        ({"chat_template_kwargs": {"enable_thinking": "yes"}}, "allowed: true, false"),
        ({"reasoning_effort": "auto"}, "calibrate"),
    ):
        assert words in refused(thinking.client.post(CHAT, json=body(CHAT, **fields))).message


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"text"',
        b"\xff\xfe",
        b'{"model": "\xff"}',
        b'{"model": "tiny", "messages": [{"role": "user", "content": "\\ud800"}]}',
        b'{"model": "tiny", "messages": [{"role": "user", "content": "a"}], "temperature": NaN}',
        b'{"model": "tiny", "messages": [{"role": "user", "content": "a"}], "temperature": 1e999}',
        b'{"model": "tiny", "messages": [{"role": "user", "content": "a"}], "seed": ' + b"9" * 5000 + b"}",
        b'{"model": "tiny", "messages": ' + b"[" * 100_000,
        b'{"model": "tiny", "messages": [{"role": "user", "content": "a"}], "chat_template_kwargs": {"a": '
        + b'{"a":' * 300 + b"1" + b"}" * 300 + b"}}",
    ],
)  # fmt: skip
def test_malformed_bodies(plain: Running, content: bytes) -> None:
    refused(plain.client.post(CHAT, content=content, headers=JSON))
    refused(plain.client.post(TEXT, content=content, headers=JSON))


def test_only_json_is_read(plain: Running) -> None:
    """A web page may send forms and plain text to any address; all else needs a preflight request."""
    content = json.dumps(body(CHAT))
    for kind in ("text/plain", "application/x-www-form-urlencoded", ""):
        answer = plain.client.post(CHAT, content=content, headers={"content-type": kind})
        assert refused(answer).code == "invalid_content_type"
    answer = plain.client.post(
        CHAT, content=content, headers={"content-type": "application/json; charset=utf-8"}
    )
    assert answer.status_code == 200


def test_hostile_text_is_only_text(plain: Running) -> None:
    for text in ("{{ 7 * 7 }}{% for x in range(10) %}", "\u0000\u202e\U0010ffff", "<|im_end|></s>", " "):
        for fields in ({"messages": [{"role": "user", "content": text}]}, {"stop": text}, {"user": text}):
            answer = plain.client.post(CHAT, json=body(CHAT, **fields))
            assert answer.status_code == 200, answer.text


def test_an_error_in_a_list_is_named(plain: Running) -> None:
    for path, fields, words in (
        (TEXT, {"prompt": ["a"] * 65}, ("at most 64", "65")),
        (TEXT, {"prompt": [[5]] * 65}, ("at most 64", "65")),
        (TEXT, {"stop": ["a"] * 5}, ("at most 4", "5")),
        (CHAT, {"stop": ["a"] * 5}, ("at most 4", "5")),
        (CHAT, {"stop": ["a", "a" * 257]}, ("at most 256 characters",)),
        (TEXT, {"prompt": [5, "a"]}, ("valid",)),
    ):
        message = refused(plain.client.post(path, json=body(path, **fields))).message
        assert all(word in message for word in words), message


@pytest.mark.parametrize("coding", ["gzip", "br", "deflate, gzip", "GZIP"])
def test_a_compressed_body_is_named(plain: Running, coding: str) -> None:
    headers = JSON | {"content-encoding": coding}
    content = gzip.compress(json.dumps(body(CHAT)).encode())
    gateway = create_gateway(Gateway(GatewaySettings(plain.address, UpstreamOptions("vllm"))))
    with served(gateway) as before:
        for address in (plain.address, before):
            for path in (CHAT, TEXT):
                answer = httpx.post(address + path, content=content, headers=headers)
                error = refused(answer, 415)
                assert (error.code, answer.headers["accept-encoding"]) == (
                    "unsupported_content_encoding",
                    "identity",
                )
                assert coding.lower() in error.message
    plainly = JSON | {"content-encoding": "identity"}
    answer = plain.client.post(CHAT, content=json.dumps(body(CHAT)), headers=plainly)
    assert answer.status_code == 200


def test_names_and_notes_of_clients_are_taken(plain: Running) -> None:
    """This template ignores names, so they have no effect, as in transformers."""
    told = []
    for more in ({}, {"name": "Bob", "provider_specific_fields": {"refusal": None, "x": [1]}}):
        first = {"role": "user", "content": "a"} | more
        turn = {"role": "assistant", "content": "b"} | more
        answer = plain.client.post(CHAT, json=body(CHAT, messages=[first, turn, first], temperature=0))
        assert answer.status_code == 200, answer.text
        told.append((answer.json()["choices"][0]["message"], answer.json()["usage"]["prompt_tokens"]))
    assert told[0] == told[1]


def test_a_model_that_never_reasons_takes_effort_none(plain: Running) -> None:
    usual = plain.client.post(CHAT, json=body(CHAT, temperature=0)).json()["choices"][0]["message"]
    for fields in (
        {"reasoning_effort": "none"},
        {"reasoning_effort": "minimal"},
        {"reasoning": {"effort": "none"}},
    ):
        answer = plain.client.post(CHAT, json=body(CHAT, temperature=0, **fields)).json()
        assert answer["choices"][0]["message"] == usual
