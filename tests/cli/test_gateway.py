"""``justright gateway`` as a process: its output, the input it rejects, and its exit."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest

from cli_helpers import Run


def test_it_runs_until_a_signal() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        nobody = "http://{}:{}".format(*free.getsockname())
    with started(nobody) as (process, ready):
        assert process.stdout is not None
        assert ready["event"] == "ready"
        assert "cannot be reached" in ready["upstream"]
        assert httpx.get(f"{ready['address']}/v1/models").status_code == 502
        request = json.loads(process.stdout.readline())
        assert (request["event"], request["path"], request["status"]) == ("request", "/v1/models", 502)
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=20)
        assert process.returncode == 0


class Upstream(BaseHTTPRequestHandler):
    """A vLLM of one model and its fast adapter; with ``hang`` in a body it never answers."""

    def do_GET(self) -> None:
        cards = [{"id": "base", "owned_by": "vllm"}, {"id": "quick", "owned_by": "vllm", "parent": "base"}]
        self._answer({"object": "list", "data": cards})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if "hang" in body:
            asked.set()
            time.sleep(60)
        self._answer({"model": body["model"]})

    def _answer(self, content: Any) -> None:
        data = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        """Nothing."""


asked = threading.Event()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_full_disk_costs_lines_and_no_answer() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "justright", "gateway", "--upstream", "http://127.0.0.1:9", "--json"]
    with Path("/dev/full").open("w") as full:
        process = subprocess.Popen([*command, "--port", str(port)], stdout=full, stderr=subprocess.PIPE)
    for _ in range(200):
        with suppress(httpx.TransportError):
            if httpx.get(f"http://127.0.0.1:{port}/v1/models").status_code == 502:
                break
        time.sleep(0.1)
    assert httpx.get(f"http://127.0.0.1:{port}/health/live").status_code == 204
    process.terminate()
    assert b"No space left" in process.communicate(timeout=30)[1]


@contextmanager
def started(upstream: str) -> Iterator[tuple[subprocess.Popen[str], dict[str, Any]]]:
    """A gateway in its own process, and the line with its address."""
    command = [sys.executable, "-m", "justright", "gateway", "--upstream", upstream, "--port", "0", "--json"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield process, json.loads(process.stdout.readline())
    finally:
        process.kill()
        process.communicate()


@pytest.fixture
def gateway() -> Iterator[tuple[subprocess.Popen[str], dict[str, Any]]]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Upstream) as upstream:
        upstream.daemon_threads = True
        upstream.block_on_close = False
        threading.Thread(target=upstream.serve_forever, daemon=True).start()
        with started(f"http://127.0.0.1:{upstream.server_port}") as running:
            yield running
        upstream.shutdown()


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="no /proc here")
def test_auto_is_decided_without_torch(gateway: tuple[subprocess.Popen[str], dict[str, Any]]) -> None:
    process, ready = gateway
    for question, mode, model in (
        ("Hi", "fast", "quick"),
        ("Prove why 1 + 2 - 3 < 4 * 5, step by step, then each 6", "slow", "base"),
    ):
        body = {"messages": [{"role": "user", "content": question}], "reasoning_effort": "auto"}
        answer = httpx.post(f"{ready['address']}/v1/chat/completions", json=body)
        assert answer.headers["x-justright-mode"] == mode
        assert answer.headers["x-justright-reason"].startswith("heuristic score")
        assert answer.json() == {"model": model}
    loaded = Path(f"/proc/{process.pid}/maps").read_text()
    assert "libpython" in loaded or "python" in loaded
    assert "torch" not in loaded


def test_a_second_signal_does_not_wait(gateway: tuple[subprocess.Popen[str], dict[str, Any]]) -> None:
    process, ready = gateway

    def ask() -> None:
        with suppress(httpx.HTTPError):
            httpx.post(
                f"{ready['address']}/v1/chat/completions", json={"messages": [], "hang": 1}, timeout=60
            )

    request = threading.Thread(target=ask, daemon=True)
    request.start()
    assert asked.wait(20)
    process.send_signal(signal.SIGTERM)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(1.5)
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) == 128 + signal.SIGTERM


def test_what_makes_no_sense_is_refused_at_once(run: Run) -> None:
    for arguments, told in (
        (["--upstream", "localhost:1"], "allowed: http://HOST:PORT"),
        (["--upstream", "http://a", "--kind", "tgi"], "allowed: vllm, sglang, llama.cpp"),
        (["--upstream", "http://a", "--effort", "escalate"], "allowed: none, minimal"),
        (["--upstream", "http://a", "--host", "256.0.0.1", "--no-api-key"], "cannot be used"),
        (["--upstream", "http://a", "--host", "0.0.0.0"], "say --no-api-key"),
        ([], "--upstream"),
    ):
        result = run("gateway", *arguments)
        assert result.code == 2, result
        assert told in result.err
