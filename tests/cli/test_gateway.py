"""``justright gateway``, as a process: what it says, what it refuses, how it ends."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys

import httpx

from cli_helpers import Run


def test_it_runs_until_it_is_told_to_stop() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        nobody = "http://{}:{}".format(*free.getsockname())
    command = [sys.executable, "-m", "justright", "gateway", "--upstream", nobody, "--port", "0", "--json"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    ready = json.loads(process.stdout.readline())
    assert ready["event"] == "ready"
    assert "cannot be reached" in ready["upstream"]
    assert httpx.get(f"{ready['address']}/v1/models").status_code == 502
    request = json.loads(process.stdout.readline())
    assert (request["event"], request["path"], request["status"]) == ("request", "/v1/models", 502)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=20)
    assert process.returncode in (0, -signal.SIGTERM)


def test_what_makes_no_sense_is_refused_at_once(run: Run) -> None:
    for arguments, told in (
        (["--upstream", "localhost:1"], "allowed: http://HOST:PORT"),
        (["--upstream", "http://a", "--kind", "tgi"], "allowed: vllm, sglang, llama.cpp"),
        (["--upstream", "http://a", "--effort", "escalate"], "allowed: none, minimal"),
        (["--upstream", "http://a", "--host", "256.0.0.1"], "cannot be used"),
        ([], "--upstream"),
    ):
        result = run("gateway", *arguments)
        assert result.code == 2, result
        assert told in result.err
