"""Start and stop the servers that benchmarks/serve.py compares."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path

import httpx
import torch

from justright.checkpoint.packaged import MODELS, find_parts
from justright.checkpoint.sources import resolve

PACKAGED, OURS = "packaged:smollm2-135m-instruct", "justright"
LLAMA = """
import sys, time
import xllamacpp as x
p = x.CommonParams()
p.model.path, p.port, p.n_parallel = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
p.hostnames, p.n_ctx = ["127.0.0.1"], 8192 * p.n_parallel
p.cpuparams.n_threads = p.cpuparams_batch.n_threads = int(sys.argv[4])
s = x.Server(p)
time.sleep(1e9)
"""
START_S = 300.0
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_PLUGINS": "",
}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def commands(model: str, slots: int, port: int, vllm: Path | None = None) -> dict[str, list[str]]:
    """The command of each installed server, by name."""
    path, python, threads = resolve(model).path, sys.executable, str(torch.get_num_threads())
    ours = [python, "-m", "justright", "serve", model, "--port", str(port), "--slots", str(slots)]
    ours += ["--device", "cpu"]
    found = {OURS: [*ours, "--draft", "hybrid"], "justright-plain": [*ours, "--draft", "none"]}
    if find_spec("fastapi") and find_spec("openai"):
        program = str(Path(python).with_name("transformers"))
        stock = [program, "serve", str(path), "--port", str(port), "--dtype", "float32", "--device", "cpu"]
        found |= {"transformers": stock, "transformers-batching": [*stock, "--continuous-batching"]}
    if find_spec("xllamacpp") and model == PACKAGED:
        [gguf] = find_parts(MODELS[model.partition(":")[2]])
        found["llama.cpp"] = [python, "-c", LLAMA, str(gguf), str(port), str(slots), threads]
    if vllm is not None:
        # vllm-cpu's own `vllm serve` looks for a distribution named vllm, and fails.
        server = [
            str(vllm / "bin" / "python"),
            "-m",
            "vllm.entrypoints.openai.api_server",
            "--model",
            str(path),
        ]
        limits = ["--max-num-seqs", str(slots), "--max-model-len", "8192"]
        found["vllm-cpu"] = [*server, "--port", str(port), "--dtype", "float32", *limits]
    return found


class NotStarted(Exception):
    """A server did not start; the message has the end of its log."""


@contextlib.contextmanager
def running(command: Sequence[str], port: int, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("wb") as output:
        server = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, env={**os.environ, **ENVIRONMENT}
        )
        try:
            end = time.monotonic() + START_S
            while True:
                with contextlib.suppress(httpx.HTTPError):
                    if httpx.get(f"http://127.0.0.1:{port}/health", timeout=2).status_code == 200:
                        break
                if server.poll() is not None or time.monotonic() > end:
                    tail = log.read_text(errors="replace")[-2000:]
                    raise NotStarted(f"{' '.join(command[:4])} ... did not start:\n{tail}")
                time.sleep(0.2)
            yield server
        finally:
            server.send_signal(signal.SIGTERM)
            try:
                server.wait(20)
            except subprocess.TimeoutExpired:
                server.kill()
