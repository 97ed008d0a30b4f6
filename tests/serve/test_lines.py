"""Every event of a stream is one line, for clients too that split lines as Python's str.splitlines does."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
import requests

from gateway_helpers import served
from justright.readable import json_line
from justright.serve.answer_chunks import event
from justright.serve.discover import Wanted
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
        settings = GatewaySettings(server.address, Wanted("vllm"))
        with served(create_gateway(Gateway(settings))) as gateway:
            for address in (server.address, gateway):
                for lines in streams(address, path, body):
                    check(lines, "model")


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_the_gateway_escapes_what_an_upstream_sends(size: int) -> None:
    """However its bytes fall into pieces; what is no event stream, or ends in half a character, is left as it is."""
    raw = f"data: {json.dumps({'model': NAME}, ensure_ascii=False)}\n\n".encode() * 2 + b"data: [DONE]\n\n"
    assert "\u2028".encode() in raw

    async def upstream(scope: Any, receive: Any, send: Any) -> None:
        path = scope["path"]
        media = b"application/json" if path == "/v1/models" else b"text/event-stream"
        data = raw if path == "/v1/chat/completions" else raw + b"\xe2\x80"
        if path == "/v1/models":
            data = json.dumps(
                {"data": [{"id": "a", "owned_by": "vllm", "x": NAME}]}, ensure_ascii=False
            ).encode()
        start = {"type": "http.response.start", "status": 200, "headers": [(b"content-type", media)]}
        await send(start)
        for at in range(0, len(data), size):
            await send({"type": "http.response.body", "body": data[at : at + size], "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    with served(upstream) as there, served(create_gateway(Gateway(GatewaySettings(there)))) as gateway:
        for lines in streams(gateway, "/v1/chat/completions", {"model": "a", "stream": True}):
            check(lines, "model")
        cut = httpx.post(gateway + "/v1/completions", json={"model": "a"}).content
        assert cut.endswith(b"[DONE]\n\n\xe2\x80")
        assert "\u2028" in httpx.get(gateway + "/v1/models").text
