"""``justright serve``: input that it rejects before reading weights, and its life as a process."""

from __future__ import annotations

import builtins
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from cli_helpers import Run
from justright.cli.output import Terminal
from justright.cli.serve_options import access_log


@contextmanager
def process(*arguments: object, **environment: str) -> Iterator[tuple[subprocess.Popen[str], dict[str, Any]]]:
    """A server in its own process, and the line with its address."""
    command = [sys.executable, "-m", "justright", "serve", *map(str, arguments), "--json", "--port", "0"]
    found = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | environment
    )
    assert found.stdout is not None
    try:
        line = found.stdout.readline()
        assert line, found.stderr and found.stderr.read()
        yield found, json.loads(line)
    finally:
        found.kill()
        found.communicate()


@pytest.mark.usefixtures("no_weights_loaded")
@pytest.mark.parametrize("module", ["fastapi", "h11", "llguidance", "prometheus_client", "psutil", "uvicorn"])
def test_a_missing_package_is_named_with_the_extra(
    run: Run, module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    result = run("serve", "zoo:moe")
    assert result.code == 6
    assert f"{module}; in the checkout of justright: pip install '.[serve]'" in result.err


@pytest.mark.usefixtures("no_weights_loaded")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--port", "99999"), "65535"),
        (("--host", "no such host", "--no-api-key"), "cannot be used"),
        (("--slots", "0"), "--slots"),
        (("--cache-tokens", "5"), "256"),
        (("--deadline", "-1"), "deadline_s is -1"),
        (("--temperature", "-1"), "temperature is -1"),
        (("--effort", "escalate"), "switch"),
        (("--effort", "enormous"), "allowed"),
        (("--thinking-budget", "5"), "has no reasoning tags"),
        (("--api-key", ""), "API key is empty"),
        (("--api-key-file", "nowhere"), "cannot be read"),
        (("--host", "0.0.0.0"), "anybody who reaches 0.0.0.0 could use this server: set --api-key"),
        (("--host", "::"), "say --no-api-key"),
        (("--no-api-key", "--api-key", "k"), "--no-api-key contradicts the API key"),
        (("--allowed-host", "http://box"), "without scheme and port"),
        (("--draft", "luck"), "suffix"),
        (("--engine", "steam"), "embedded, vllm"),
        (("--copies", "2"), "--engine vllm"),
    ],
)
def test_bad_options(run: Run, tiny_llama: Path, arguments: tuple[str, ...], message: str) -> None:
    port = () if "--port" in arguments else ("--port", 0)
    result = run("serve", tiny_llama, *port, *arguments)
    assert result.code == 2, result.err
    assert message in result.err


@pytest.mark.usefixtures("no_weights_loaded")
def test_a_port_in_use_is_refused(run: Run, tiny_llama: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = run("serve", tiny_llama, "--port", port)
    assert result.code == 2
    assert f"port {port} of 127.0.0.1 cannot be used" in result.err
    (tmp_path / "keys").write_text("\n\n")
    result = run("serve", tiny_llama, "--port", 0, "--api-key-file", tmp_path / "keys")
    assert "is empty" in result.err


def test_a_missing_extra_is_named(run: Run, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    really = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name == "llguidance":
            raise ModuleNotFoundError("No module named 'llguidance'", name=name)
        return really(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    result = run("serve", tiny_llama)
    assert result.code == 6
    assert "serving needs llguidance; in the checkout of justright: pip install '.[serve]'" in result.err


def test_a_small_cache_is_a_shorter_context(tiny_llama: Path) -> None:
    arguments = (tiny_llama, "--name", "mine", "--cache-tokens", 300, "--draft", "none")
    with process(*arguments) as (_, ready), httpx.Client(base_url=ready["address"], timeout=60) as client:
        assert client.get("/v1/models").json()["data"][0]["justright"]["context_length"] == 300
        body = {"model": "mine", "messages": [{"role": "user", "content": "Hello"}], "temperature": 0}
        usage = client.post("/v1/chat/completions", json=body).json()["usage"]
        assert usage["total_tokens"] == 300, "without max_tokens, as many as the context holds"


def test_requests_are_logged_in_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    seen = [
        ("GET", "/metrics", 200),
        ("POST", "/v1/chat/\x1b[2J\n", 404),
        ("GET", "/v1/models", 200),
        ("GET", "/health", 503),
    ]
    for output in (Terminal(), Terminal(quiet=True), Terminal(json=True)):
        log = access_log(output)
        for method, path, status in seen:
            log({"method": method, "path": path, "status": status, "seconds": 1.234})
    found = capsys.readouterr()
    assert [line.split(" ", 1)[1] for line in found.err.splitlines()] == [
        "POST /v1/chat/%1B%5B2J%0A 404 1.23 s",
        "GET /v1/models 200 1.23 s",
        "GET /health 503 1.23 s",
    ]
    assert [json.loads(line)["status"] for line in found.out.splitlines()] == [200, 404, 200, 503]


def test_without_a_key_only_if_told(tiny_llama: Path) -> None:
    arguments = (tiny_llama, "--host", "0.0.0.0", "--no-api-key")
    with process(*arguments) as (_, ready):
        port = ready["address"].rpartition(":")[2]
        assert httpx.get(f"http://127.0.0.1:{port}/v1/models").status_code == 200


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_full_disk_costs_lines_and_no_answer(tiny_llama: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "justright", "serve", str(tiny_llama), "--json", "--port", str(port)]
    with Path("/dev/full").open("w") as full:
        server = subprocess.Popen(command, stdout=full, stderr=subprocess.PIPE, text=True)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
            for _ in range(300):
                with suppress(httpx.TransportError):
                    if client.get("/health").status_code == 200:
                        break
                time.sleep(0.2)
            model = client.get("/v1/models").json()["data"][0]["id"]
            body = {"model": model, "prompt": "Hello", "max_tokens": 3}
            assert client.post("/v1/completions", json=body).json()["usage"]["completion_tokens"] == 3
        server.terminate()
        assert "No space left" in server.communicate(timeout=30)[1]
    finally:
        server.kill()


def test_it_serves_and_drains(tiny_llama: Path, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("from-file\n")
    arguments = (tiny_llama, "--name", "mine", "--slots", 2, "--api-key-file", keys, "--draft", "none")
    with process(*arguments, JUSTRIGHT_API_KEY="from-env also-env") as (server, ready):
        assert ready["event"] == "ready"
        assert ready["model"] == "mine"
        client = httpx.Client(base_url=ready["address"], timeout=60)
        assert client.get("/v1/models").status_code == 401
        for key in ("from-file", "from-env", "also-env"):
            assert client.get("/v1/models", headers={"Authorization": f"Bearer {key}"}).status_code == 200
        client.headers["Authorization"] = "Bearer from-file"
        body = {"model": "mine", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 400}
        body["temperature"] = 0
        first = client.post("/v1/chat/completions", json=body | {"max_tokens": 2})
        assert first.status_code == 200
        got: list[int] = []

        def long() -> None:
            answer = client.post("/v1/chat/completions", json=body)
            got.append(answer.json()["usage"]["completion_tokens"])

        request = threading.Thread(target=long)
        request.start()
        while client.get("/health").json()["running"] == 0 and request.is_alive():
            pass
        server.send_signal(signal.SIGTERM)
        request.join(60)
        out, err = server.communicate(timeout=60)
        client.close()
    assert server.returncode == 0, err
    assert got == [400], "running requests finished"
    events = [json.loads(line) for line in out.splitlines()]
    assert {"event": "request", "method": "POST", "path": "/v1/chat/completions", "status": 200} in [
        {k: v for k, v in event.items() if k != "seconds"} for event in events
    ]
    assert "the server has stopped" in err


def test_a_second_signal_does_not_wait(tiny_llama: Path) -> None:
    with process(tiny_llama, "--drain", 60, "--draft", "none") as (server, ready):
        body = {
            "model": ready["model"],
            "messages": [{"role": "user", "content": "Hello"}],
            "max_tokens": 450,
        }
        url = f"{ready['address']}/v1/chat/completions"
        with httpx.stream("POST", url, json=body | {"stream": True, "n": 16}, timeout=60) as answer:
            lines = answer.iter_lines()  # keep a reference: a collected response closes the connection
            next(lines)
            server.send_signal(signal.SIGINT)
            with httpx.Client(base_url=ready["address"]) as client:
                while client.get("/health").json()["status"] != "draining":
                    pass
            server.send_signal(signal.SIGINT)
            assert server.wait(20) == 130


def test_a_dead_engine_ends_the_process(tiny_llama: Path) -> None:
    """The exit code makes systemd restart it; waiting requests get an error."""
    code = """if True:
        from justright.cli import main
        from justright.serve.scheduler import Scheduler

        def broken(self):
            raise MemoryError("no more of it")

        Scheduler._enforce = broken
        main()
    """
    command = [
        sys.executable,
        "-c",
        code,
        "serve",
        str(tiny_llama),
        "--json",
        "--port",
        "0",
        "--draft",
        "none",
    ]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert server.stdout is not None
    try:
        ready = json.loads(server.stdout.readline())
        body = {"model": ready["model"], "prompt": "Hello", "max_tokens": 3}
        answer = httpx.post(f"{ready['address']}/v1/completions", json=body, timeout=60)
        assert (answer.status_code, answer.json()["error"]["code"]) == (500, "engine_error")
        _, err = server.communicate(timeout=30)
    finally:
        server.kill()
    assert server.returncode == 1
    assert "error: the engine died (MemoryError: no more of it): restart the server" in err
