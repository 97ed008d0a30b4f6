"""Server robustness: too many connections, incomplete headers, a full disk, a dead engine."""

from __future__ import annotations

import contextlib
import errno
import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch

from justright.engine.chat_modes import Reasoning
from justright.engine.llm import LLM
from justright.engine.step_cost import StepCost
from justright.errors import JustrightError, ResourceError
from justright.serve.lifecycle import HttpServer, bind
from justright.serve.metrics import Metrics
from justright.serve.responses import ErrorBody
from justright.serve.scheduler import Scheduler
from justright.serve.server import serve
from justright.serve.server_settings import ServeSettings
from serve_helpers import MODEL, Running, running

NO_MEMORY = RuntimeError(
    "[enforce fail at alloc_cpu.cpp:121] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate "
    "1152921504606846976 bytes. Error code 12 (Cannot allocate memory)"
)
"""What torch's CPU allocator raises, letter for letter (see tests/test_errors.py)."""
CHAT = "/v1/chat/completions"
BODY: dict[str, Any] = {
    "model": MODEL,
    "messages": [{"role": "user", "content": "Hello"}],
    "max_tokens": 400,
    "temperature": 0,
}


@pytest.fixture(scope="module")
def engine(tiny_path: Path) -> LLM:
    return LLM(str(tiny_path), slots=2)


def connect(address: str) -> socket.socket:
    host, port = address.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=20)


def all_of(found: socket.socket) -> bytes:
    """Read until the other side closes."""
    return b"".join(iter(lambda: found.recv(4096), b""))


def test_connections_beyond_the_limit_get_a_retry_error(engine: LLM) -> None:
    with running(engine, max_connections=3) as server, contextlib.ExitStack() as held:
        before = server.client.post(CHAT, json=BODY | {"max_tokens": 2})  # its connection stays open
        assert before.status_code == 200
        half = [held.enter_context(connect(server.address)) for _ in range(2)]
        half[0].sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n")
        with server.http() as another:
            assert another.get("/health/live").status_code == 204, (
                "the process is alive, so no supervisor should end it"
            )
            answer = another.post(CHAT, json=BODY)
        assert answer.status_code == 503
        assert int(answer.headers["retry-after"]) >= 1
        assert answer.headers["connection"] == "close"
        error = ErrorBody.model_validate_json(answer.content).error
        assert (error.type, error.code) == ("server_error", "too_many_connections")
        again = server.client.post(CHAT, json=BODY | {"max_tokens": 2})
        assert again.status_code == 200, "open connections are still served"
        half.pop().close()
        end = time.monotonic() + 20
        while True:  # the server sees it a moment later
            with server.http() as another:
                if another.post(CHAT, json=BODY | {"max_tokens": 2}).status_code == 200:
                    break
            assert time.monotonic() < end
        text = server.client.get("/metrics").text
        assert 'justright_http_requests_total{path="/v1/chat/completions",status="503"}' in text


@contextlib.contextmanager
def echo(head_s: float) -> Iterator[str]:
    """A server of one line."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
            await send({"type": "http.response.body", "body": b"ok"})

    ready = threading.Event()
    with bind("127.0.0.1", 0) as bound:
        address = "http://{}:{}".format(*bound.getsockname())
        server = HttpServer(app, bound, head_s=head_s, on_ready=ready.set)
        thread = threading.Thread(target=server.run_until_stopped, daemon=True)
        thread.start()
        assert ready.wait(20)
        yield address
        server.stop()
        thread.join(20)
        assert not thread.is_alive()


def all_gone(server: Running) -> None:
    """Wait until the scheduler holds no request: its thread may end one just after its answer is sent."""
    end = time.monotonic() + 60
    while server.scheduler._entries:
        assert time.monotonic() < end
        time.sleep(0.01)


def until_ok(found: socket.socket) -> bool:
    """Read one answer, which may arrive in pieces."""
    read = b""
    while not read.endswith(b"ok"):
        piece = found.recv(4096)
        assert piece, read
        read += piece
    return read.startswith(b"HTTP/1.1 200")


def trickle(found: socket.socket) -> bytes:
    """Send endless headers, one byte at a time; return the answer."""
    found.settimeout(0.05)
    for letter in b"GET / HTTP/1.1\r\nX-Long: " + b"x" * 1000:
        with contextlib.suppress(TimeoutError):
            if piece := found.recv(4096):
                found.settimeout(20)
                with contextlib.suppress(
                    ConnectionResetError
                ):  # a byte may arrive after the connection's end
                    piece += all_of(found)
                return piece
        found.sendall(bytes([letter]))
    raise AssertionError("nobody minds")


def test_a_head_that_does_not_come_is_not_waited_for() -> None:
    with echo(head_s=0.5) as address:
        with connect(address) as silent:
            assert all_of(silent) == b"", "a client that sends nothing gets no answer"
        with connect(address) as slow:
            head, _, body = trickle(slow).partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 408 Request Timeout")
            assert ErrorBody.model_validate_json(body).error.code == "head_timeout"
        with connect(address) as later:
            later.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            assert until_ok(later)
            time.sleep(0.8)  # between two requests there is more time
            later.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            assert until_ok(later)
            assert trickle(later).startswith(b"HTTP/1.1 408"), "nor is that of a second request"
        with connect(address) as none:
            none.sendall(b"\x16\x03\x01 this is no HTTP\r\n\r\n")
            head, _, body = all_of(none).partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 400")
            assert ErrorBody.model_validate_json(body).error.code == "invalid_http"


def test_a_full_disk_costs_the_measured_costs(tiny_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(StepCost, "save", full)
    monkeypatch.setattr(StepCost, "read", lambda *_: None)
    with running(LLM(str(tiny_path), draft="suffix")) as server:
        assert server.client.post(CHAT, json=BODY | {"max_tokens": 2}).status_code == 200


def deadly(server_or_scheduler: Any) -> None:
    """An error occurs between two steps, outside of any request."""

    def broken() -> None:
        raise MemoryError("no more of it")

    server_or_scheduler._enforce = broken


def test_the_death_of_the_engine_is_reported(engine: LLM) -> None:
    with running(engine) as server:
        server.scheduler.on_death = lambda: None  # keep the server, so that the test can inspect it
        step = engine.verifier.step

        def slow_step(*arguments: Any) -> Any:
            time.sleep(0.02)
            return step(*arguments)

        engine.verifier.step = slow_step  # type: ignore[method-assign]
        try:
            with server.client.stream("POST", CHAT, json=BODY | {"stream": True, "n": 4}) as answer:
                lines = answer.iter_lines()
                next(lines)
                deadly(server.scheduler)
                last = [line for line in lines if line][-1]
        finally:
            engine.verifier.step = step  # type: ignore[method-assign]
        error = ErrorBody.model_validate_json(last.removeprefix("data: ")).error
        assert (error.type, error.code) == ("server_error", "engine_error")
        assert "no more of it" in error.message
        health = server.client.get("/health")
        assert (health.status_code, health.json()["status"]) == (503, "failed")
        assert server.client.get("/health/live").status_code == 204
        assert "justright_engine_up 0.0" in server.client.get("/metrics").text
        assert server.client.post(CHAT, json=BODY).status_code == 503
        all_gone(server)
    for slot in range(engine.verifier.slots):
        engine.verifier.clear(slot)


def test_the_death_of_the_engine_ends_the_server(engine: LLM) -> None:
    scheduler, ended, ready = Scheduler(engine), list[BaseException](), threading.Event()
    with bind("127.0.0.1", 0) as bound:
        address = "http://{}:{}".format(*bound.getsockname())

        def run() -> None:
            try:
                serve(engine, scheduler, ServeSettings(MODEL), bound, on_ready=ready.set)
            except BaseException as error:
                ended.append(error)

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        assert ready.wait(20)
        deadly(scheduler)
        answer = httpx.post(address + CHAT, json=BODY, timeout=20)
        assert answer.status_code == 500
        assert ErrorBody.model_validate_json(answer.content).error.code == "engine_error"
        thread.join(20)
        assert not thread.is_alive()
    [error] = ended
    assert isinstance(error, JustrightError)
    assert error.exit_code == 1
    assert "the engine died (MemoryError: no more of it)" in str(error)


def test_a_scrape_is_one_look(thinking: Running) -> None:
    looks = 0

    def look() -> Any:
        nonlocal looks
        looks += 1
        return thinking.scheduler.snapshot()

    found = Metrics(look)
    looks = 0
    assert "justright_slots 3.0" in found.render().decode()
    assert looks == 1


def test_what_is_held_back_tells_of_no_pace(pair: tuple[Path, Path]) -> None:
    """An accepted fast answer arrives in one chunk at the end."""
    name = "justright_time_per_output_token_seconds_count"
    settings = ServeSettings(MODEL, thinking=Reasoning("escalate", threshold=0.0))
    with running(LLM(str(pair[0]), switch=str(pair[1])), settings) as server:

        def ask(**fields: Any) -> Any:
            return server.client.post(CHAT, json=BODY | {"max_tokens": 8} | fields).json()

        def count() -> str:
            lines = server.client.get("/metrics").text.splitlines()
            return next(line for line in lines if line.startswith(name))

        text = ask(reasoning_effort="none")["choices"][0]["message"]["content"]
        before = count()
        assert before.endswith(" 1.0")
        told = ask(stop=text[-1])
        assert told["choices"][0]["justright"]["mode"] == "fast"
        assert told["usage"]["completion_tokens"] > 1
        assert count() == before


def half_closed(address: str, *lines: str, body: bytes = b"") -> bytes:
    """Send a request, close the sending side as ``nc -N`` does, and read to the end."""
    with connect(address) as found:
        found.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        found.sendall("\r\n".join((*lines, "", "")).encode() + body)
        found.shutdown(socket.SHUT_WR)
        return all_of(found)


def final(answer: bytes) -> tuple[bytes, bytes]:
    """Head and body of a final answer, after interim ones."""
    head, _, rest = answer.partition(b"\r\n\r\n")
    return final(rest) if head.startswith(b"HTTP/1.1 100 ") else (head, rest)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("slow_s", [0.0, 0.05])
def test_a_client_that_only_stops_sending_gets_its_answer(
    engine: LLM, stream: bool, slow_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = engine.verifier.step

    def slow_step(*arguments: Any) -> Any:
        time.sleep(slow_s)
        return step(*arguments)

    monkeypatch.setattr(engine.verifier, "step", slow_step)
    content = json.dumps(BODY | {"max_tokens": 8, "stream": stream}).encode()
    lines = ["Host: localhost", "Content-Type: application/json", f"Content-Length: {len(content)}"]
    with running(engine) as server:
        head, body = final(half_closed(server.address, f"POST {CHAT} HTTP/1.1", *lines, body=content))
        assert head.startswith(b"HTTP/1.1 200")
        assert (b"[DONE]" in body) if stream else (json.loads(body)["usage"]["completion_tokens"] == 8)
        answer = half_closed(server.address, f"POST {CHAT} HTTP/1.0", *lines, body=content)
        assert answer.startswith(b"HTTP/1.1 200"), "HTTP/1.0 knows no interim answers"
        half = half_closed(server.address, f"POST {CHAT} HTTP/1.1", *lines, body=content[:-1])
        assert half == b"", "half a request gets no answer"
        assert (
            half_closed(server.address, "GET /metrics HTTP/1.1", "Host: localhost").count(b"HTTP/1.1 200")
            == 1
        )
        all_gone(server)


def test_an_upgrade_is_answered_without_advice(engine: LLM, caplog: pytest.LogCaptureFixture) -> None:
    with running(engine) as server:
        for protocol in ("websocket", "h2c"):
            headers = {"Connection": "Upgrade", "Upgrade": protocol}
            answer = server.client.post(CHAT, json=BODY | {"max_tokens": 2}, headers=headers)
            assert answer.status_code == 200
    assert "uvicorn[standard]" not in caplog.text
    assert "pgrade" not in caplog.text


@pytest.mark.parametrize("error", [ResourceError("none"), torch.OutOfMemoryError("none"), NO_MEMORY])
def test_a_trial_without_memory_is_no_death(engine: LLM, error: Exception) -> None:
    assert trial_of(engine, error) is None


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("CUDA error: an illegal memory access was encountered"),
        RuntimeError("CUDA error: device-side assert triggered"),
        RuntimeError("out of order"),
    ],
)
def test_a_trial_on_a_dead_device_is_its_death(engine: LLM, error: Exception) -> None:
    assert trial_of(engine, error) is error


def trial_of(engine: LLM, error: Exception) -> BaseException | None:
    """The error with which the scheduler ends if all allocations fail with ``error``."""
    verifier = engine.verifier
    kept, scheduler = verifier.cache, Scheduler(engine)
    verifier.resize(engine.verifier.slots)

    def allocate(*_: Any, **__: Any) -> Any:
        raise error

    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(torch, "empty", allocate)
        try:
            scheduler._try_one_token()
        except BaseException as ended:
            return ended
        finally:
            monkeypatch.undo()
            verifier.cache = kept
    return None
