"""A server's life: clients that disconnect or do not read, full queues, keys, limits, draining, signals."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

import serve_helpers
from justright.engine.llm import LLM
from justright.errors import UsageError
from justright.serve.lifecycle import bind
from justright.serve.responses import ErrorBody
from justright.serve.server_settings import ServeSettings
from serve_helpers import MODEL, Running, running

CHAT = "/v1/chat/completions"
HELLO = [{"role": "user", "content": "Hello"}]


def body(**fields: Any) -> dict[str, Any]:
    return {"model": MODEL, "messages": HELLO, "max_tokens": 450, "temperature": 0, **fields}


def until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "the exception did not occur"
        time.sleep(0.01)


@pytest.fixture(scope="module")
def engine(tiny_path: Path) -> LLM:
    return LLM(str(tiny_path), slots=1, prefill_chunk=32)


@contextlib.contextmanager
def slowly(server: Running, seconds: float = 0.05) -> Iterator[None]:
    """Make every step slow."""
    step = server.engine.verifier.step

    def slow_step(*arguments: Any) -> Any:
        time.sleep(seconds)
        return step(*arguments)

    server.engine.verifier.step = slow_step  # type: ignore[method-assign]
    try:
        yield
    finally:
        del server.engine.verifier.step


def begin(server: Running, **fields: Any) -> socket.socket:
    """Send a request, and read nothing."""
    host, port = server.address.removeprefix("http://").split(":")
    found = socket.create_connection((host, int(port)))
    content = json.dumps(body(**fields)).encode()
    lines = (
        f"POST {CHAT} HTTP/1.1",
        "Host: localhost",
        "Content-Type: application/json",
        f"Content-Length: {len(content)}",
    )
    head = "\r\n".join((*lines, "", ""))
    found.sendall(head.encode() + content)
    return found


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_frees_its_slot(engine: LLM, stream: bool) -> None:
    with running(engine) as server, slowly(server):
        running_now = begin(server, stream=stream)
        until(lambda: server.scheduler.snapshot().running == 1)
        waiting = begin(server, stream=stream)
        until(lambda: server.scheduler.snapshot().waiting == 1)
        waiting.close()
        until(lambda: server.scheduler.snapshot().waiting == 0)
        running_now.close()
        until(lambda: server.scheduler.snapshot().running == 0)
        assert server.engine.verifier.cache.lengths[0] < 450
        answer = server.client.post(CHAT, json=body(max_tokens=2))
        assert answer.status_code == 200
        assert 'justright_answers_total{ended_by="abandoned"} 2.0' in server.client.get("/metrics").text


def test_a_slow_reader_does_not_block_others(tiny_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If one client never reads, another still gets its answer, and the first is dropped in the end.

    The system buffers little, so that the server soon has nowhere to write to.
    """

    def narrow(host: str, port: int) -> socket.socket:
        found = bind(host, port)
        found.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)  # connections inherit it
        return found

    monkeypatch.setattr(serve_helpers, "bind", narrow)
    with running(
        LLM(str(tiny_path), slots=2), ServeSettings(MODEL, send_timeout_s=0.5, keep_alive_s=0.1)
    ) as server:
        lazy = begin(server, stream=True, n=16, max_tokens=450, logprobs=True, top_logprobs=20)
        lazy.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        answer = server.client.post(CHAT, json=body(max_tokens=5))
        assert answer.status_code == 200
        until(lambda: server.scheduler.snapshot().running == 0, 60)
        given_up = 'justright_answers_total{ended_by="abandoned"}'
        assert figures(server)[given_up] > 0, "the answer is incomplete"
        lazy.close()


def test_a_full_queue_is_reported(engine: LLM) -> None:
    with running(engine, max_waiting=1) as server, slowly(server):
        held = [begin(server, stream=True)]
        until(lambda: server.scheduler.snapshot().running == 1)
        held.append(begin(server, stream=True))
        until(lambda: server.scheduler.snapshot().waiting == 1)
        for stream in (False, True):
            answer = server.client.post(CHAT, json=body(stream=stream))
            assert answer.status_code == 429
            assert int(answer.headers["retry-after"]) >= 1
            assert ErrorBody.model_validate_json(answer.content).error.code == "queue_full"
        with pytest.raises(openai.RateLimitError):
            server.openai().chat.completions.create(**body())
        answer = server.client.post(CHAT, json=body(n=2))
        assert answer.status_code == 429
        assert server.scheduler.snapshot().waiting == 1, "either all choices are queued or none"
        for one in held:
            one.close()


def test_what_never_fits_is_refused(engine: LLM) -> None:
    with running(engine, cache_tokens=200) as server:
        answer = server.client.post(CHAT, json=body(max_tokens=200))
        error = ErrorBody.model_validate_json(answer.content).error
        assert (answer.status_code, error.code) == (400, "context_length_exceeded")
        assert server.client.post(CHAT, json=body(max_tokens=20)).status_code == 200


def test_a_deadline_cuts(engine: LLM) -> None:
    with running(engine, ServeSettings(MODEL, deadline_s=2.0)) as server, slowly(server):
        cut = server.client.post(CHAT, json=body()).json()
        assert cut["choices"][0]["finish_reason"] == "length"
        assert cut["choices"][0]["justright"]["ended_by"] == "deadline"
        assert 0 < cut["usage"]["completion_tokens"] < 450


def test_keep_alive_while_nothing_comes(engine: LLM) -> None:
    with running(engine, ServeSettings(MODEL, keep_alive_s=0.05)) as server, slowly(server, 0.3):
        text = server.client.post(CHAT, json=body(stream=True, max_tokens=3)).text
        assert ": still working" in text
        assert text.endswith("data: [DONE]\n\n")
        chunks = list(server.openai().chat.completions.create(**body(stream=True, max_tokens=3)))
        assert chunks[-1].choices[0].finish_reason == "length"


def test_keys(engine: LLM) -> None:
    with running(engine, ServeSettings(MODEL, api_keys=("one", "two"))) as server:
        assert server.client.get("/health").status_code == 200
        assert server.client.get("/").status_code == 200
        for headers in (
            {},
            {"Authorization": "Bearer wrong"},
            {"Authorization": "one"},
            {"Authorization": "Basic one"},
        ):
            for path in ("/v1/models", "/metrics", "/openapi.json", "/nothing"):
                answer = server.client.get(path, headers=headers)
                assert answer.status_code == 401
                assert answer.headers["www-authenticate"] == "Bearer"
                assert ErrorBody.model_validate_json(answer.content).error.type == "authentication_error"
        with pytest.raises(openai.AuthenticationError):
            server.openai("wrong").models.list()
        assert [len(server.openai(key).models.list().data) for key in ("one", "two")] == [1, 1]
        assert "two" not in server.client.get("/openapi.json", headers={"Authorization": "Bearer one"}).text


def test_bodies_are_limited(engine: LLM) -> None:
    with running(engine, ServeSettings(MODEL, max_body_bytes=2000)) as server:
        large = json.dumps(body(user="x" * 2000)).encode()

        def in_pieces() -> Iterator[bytes]:
            yield from (large[at : at + 100] for at in range(0, len(large), 100))

        for content in (large, in_pieces()):
            answer = server.client.post(CHAT, content=content, headers={"content-type": "application/json"})
            assert answer.status_code == 413
            assert ErrorBody.model_validate_json(answer.content).error.code == "body_too_large"
        assert server.client.post(CHAT, json=body(max_tokens=2)).status_code == 200


def test_half_a_body_is_not_waited_for(engine: LLM) -> None:
    with running(engine, ServeSettings(MODEL, body_timeout_s=0.3)) as server:
        host, port = server.address.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as half:
            half.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\n\r\n{")
            assert b" 408 " in half.recv(1000)


def test_draining(engine: LLM) -> None:
    with running(engine, drain_s=20) as server, slowly(server, 0.03):
        got: list[httpx.Response] = []

        def ask() -> None:
            with server.http() as client:
                got.append(client.post(CHAT, json=body(max_tokens=60)))

        request = threading.Thread(target=ask)
        request.start()
        until(lambda: server.scheduler.snapshot().running == 1)
        server.server.stop()
        until(lambda: server.scheduler.snapshot().draining)
        health = server.client.get("/health")
        assert (health.status_code, health.json()["status"]) == (503, "draining")
        assert server.client.get("/health/live").status_code == 204
        refused = server.client.post(CHAT, json=body())
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "shutting_down")
        request.join(30)
        assert got[0].json()["usage"]["completion_tokens"] == 60


def test_requests_left_after_the_drain_are_reported(engine: LLM) -> None:
    with running(engine, drain_s=0.2) as server, slowly(server):
        got: list[str] = []

        def ask() -> None:
            with server.http() as client:
                got.append(client.post(CHAT, json=body(stream=True)).text)

        stream = threading.Thread(target=ask)
        stream.start()
        until(lambda: server.scheduler.snapshot().running == 1)
        server.server.stop()
        stream.join(30)
        last = got[0].strip().splitlines()[-1].removeprefix("data: ")
        assert json.loads(last)["error"]["code"] == "shutting_down"


def test_an_engine_failure_is_reported_and_the_server_continues(engine: LLM) -> None:
    with running(engine) as server:
        step, trial = server.engine.verifier.step, server.engine.verifier.time_step

        def broken(*_: Any) -> Any:
            raise RuntimeError("out of order")

        server.engine.verifier.step = broken  # type: ignore[method-assign]
        server.engine.verifier.time_step = lambda *_: 0.0  # type: ignore[method-assign]  # the device works
        answer = server.client.post(CHAT, json=body(max_tokens=5))
        assert answer.status_code == 500
        assert ErrorBody.model_validate_json(answer.content).error.code == "engine_error"
        with pytest.raises(openai.APIError, match="out of order"):
            list(server.openai().chat.completions.create(**body(max_tokens=5, stream=True)))
        server.engine.verifier.step, server.engine.verifier.time_step = step, trial  # type: ignore[method-assign]
        assert server.client.post(CHAT, json=body(max_tokens=5)).status_code == 200


def test_a_dead_engine_is_reported(engine: LLM) -> None:
    with running(engine, ServeSettings(MODEL, keep_alive_s=0.05)) as server, slowly(server):
        stream = server.client.stream("POST", CHAT, json=body(stream=True))
        with stream as answer:
            lines = answer.iter_lines()
            next(lines)
            now = server.scheduler.snapshot()
            server.scheduler.snapshot = lambda: replace(now, alive=False)  # type: ignore[method-assign]
            server.scheduler.drain(0)
            last = [line for line in lines if line][-1]
        assert json.loads(last.removeprefix("data: "))["error"]["type"] == "server_error"
        assert server.client.get("/health").json()["status"] == "failed"


def test_no_more_prompts_are_encoded_than_could_wait(engine: LLM) -> None:
    with running(engine, max_waiting=0) as server:
        go = threading.Event()
        server.service._encoding.submit(go.wait, 20)
        server.service._encoding.submit(go.wait, 20)
        held = begin(server, max_tokens=2)
        until(lambda: server.service._encoding_now == 1)
        answer = server.client.post(CHAT, json=body(max_tokens=2))
        assert (answer.status_code, answer.json()["error"]["code"]) == (429, "queue_full")
        go.set()
        until(lambda: server.service._encoding_now == 0)
        until(lambda: server.scheduler.snapshot().running == 0)
        assert held.recv(100).startswith(b"HTTP/1.1 200")
        held.close()


def test_metrics(thinking: Running) -> None:
    before = figures(thinking)
    thinking.client.post(CHAT, json=body(max_tokens=20))
    thinking.client.post(CHAT, json=body(max_tokens=20, reasoning_effort="none", stream=True))
    counted = 'justright_request_duration_seconds_count{path="/v1/chat/completions"}'
    until(
        lambda: figures(thinking)[counted] == before.get(counted, 0.0) + 2
    )  # a stream's end is counted after it is sent
    now = figures(thinking)

    def more(name: str) -> float:
        return now[name] - before.get(name, 0.0)

    assert more("justright_output_tokens_total") == more("justright_emitted_tokens_total") == 40
    assert more('justright_mode_tokens_total{mode="fast"}') == 20
    assert more("justright_reasoning_tokens_total") == 20
    assert more('justright_decisions_total{by="effort",mode="fast"}') == 1
    assert more('justright_http_requests_total{path="/v1/chat/completions",status="200"}') == 2
    assert more("justright_time_to_first_token_seconds_count") == 2
    assert more("justright_time_per_output_token_seconds_count") == 2
    assert more('justright_request_duration_seconds_count{path="/v1/chat/completions"}') == 2
    assert more('justright_acceptance_length_tokens_count{context="1024"}') == 38
    assert now["justright_slots"] == 3
    assert now["justright_engine_up"] == 1


def figures(server: Running) -> dict[str, float]:
    answer = server.client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=")
    lines = [line.rpartition(" ") for line in answer.text.splitlines() if not line.startswith("#")]
    return {name: float(value) for name, _, value in lines}


def test_ports() -> None:
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        with bind("127.0.0.1", 0) as listening:
            listening.listen()
            with socket.create_connection(listening.getsockname()), listening.accept()[0] as accepted:
                assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 60_000
    with bind("127.0.0.1", 0) as taken:
        taken.listen()
        with pytest.raises(UsageError, match="give another --port"):
            bind("127.0.0.1", taken.getsockname()[1])
    with pytest.raises(UsageError, match="cannot be used"):
        bind("192.0.2.1", 0)
    with pytest.raises(UsageError, match="host"):
        bind("no such host", 0)
