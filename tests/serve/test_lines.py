"""Every event of a stream is one line, also for clients that split lines like Python's str.splitlines."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
import requests

from gateway_helpers import served
from justright.readable import json_line
from justright.serve.answer_chunks import event
from justright.serve.discover import UpstreamOptions
from justright.serve.gateway import Gateway, GatewaySettings, create_gateway
from justright.serve.server_settings import ServeSettings
from serve_helpers import Running, running

BREAKS = "".join(chr(code) for code in range(0x3000) if len(f"a{chr(code)}b".splitlines()) > 1)
NAME = f"a{BREAKS}é\u2027€b"
"""A model's name: every chunk of a stream holds it."""


def test_a_text_of_line_breaks_stays_one_line() -> None:
    assert {"\n", "\r", "\v", "\f", "\x1c", "\x85", "\u2028", "\u2029"} <= set(BREAKS)
    assert len(json_line({"x": NAME}).splitlines()) == 1
    assert json.loads(json_line({NAME: NAME})) == {NAME: NAME}
    assert "é" in json_line("é")
    [line, empty] = event({"x": NAME}).decode().splitlines()
    assert (json.loads(line.removeprefix("data: ")), empty) == ({"x": NAME}, "")


def streams(address: str, path: str, body: dict[str, Any]) -> list[list[str]]:
    """The lines of a stream as both clients read them."""
    with httpx.stream("POST", address + path, json=body, timeout=30) as answer:
        found = [list(answer.iter_lines())]
    with requests.post(address + path, json=body, timeout=30, stream=True) as answer:
        answer.encoding = "utf-8"
        found.append(list(answer.iter_lines(decode_unicode=True)))
    return found


def check(lines: list[str], field: str) -> None:
    *events, last = [line.removeprefix("data: ") for line in lines if line and not line.startswith(":")]
    assert last == "[DONE]"
    assert len(events) > 1
    assert [json.loads(one)[field] for one in events] == [NAME] * len(events)


@pytest.mark.parametrize(
    ("path", "asked"),
    [
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "Hello"}]}),
        ("/v1/completions", {"prompt": "Hello"}),
    ],
)
def test_streams_are_read_line_by_line(plain: Running, path: str, asked: dict[str, Any]) -> None:
    body = {"model": NAME, "max_tokens": 3, "stream": True, "stream_options": {"include_usage": True}} | asked
    with running(plain.engine, ServeSettings(NAME)) as server:
        settings = GatewaySettings(server.address, UpstreamOptions("vllm"))
        with served(create_gateway(Gateway(settings))) as gateway:
            for address in (server.address, gateway):
                for lines in streams(address, path, body):
                    check(lines, "model")


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_the_gateway_passes_what_an_upstream_sends_byte_for_byte(size: int) -> None:
    raw = f"data: {json.dumps({'model': NAME}, ensure_ascii=False)}\n\n".encode() * 2 + b": x\r\n\xe2\x80"
    models = json.dumps({"data": [{"id": "a", "owned_by": "vllm", "x": NAME}]}, ensure_ascii=False).encode()

    async def upstream(scope: Any, receive: Any, send: Any) -> None:
        media, data = (
            (b"application/json", models)
            if scope["path"] == "/v1/models"
            else (b"text/event-stream; charset=utf-8", raw)
        )
        headers = [(b"content-type", media), (b"x-own", b"1")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        for at in range(0, len(data), size):
            await send({"type": "http.response.body", "body": data[at : at + size], "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    with served(upstream) as there, served(create_gateway(Gateway(GatewaySettings(there)))) as gateway:
        for path, more in (("/v1/chat/completions", {"stream": True}), ("/v1/completions", {})):
            answer = httpx.post(gateway + path, json={"model": "a", **more})
            assert answer.content == raw
            assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
            assert (answer.headers["x-own"], answer.headers["x-justright-mode"]) == ("1", "slow")
        assert httpx.get(gateway + "/v1/models").content == models
