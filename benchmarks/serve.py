"""The server under load, against peers with the same weights: throughput, first token, each token, as ratios.

python benchmarks/serve.py                             about half an hour on two cores
python benchmarks/serve.py --quick                     a few minutes, to see that it works
python benchmarks/serve.py --overload 600              ten minutes at twice the capacity instead

Peers: `transformers serve` (needs what `pip install transformers[serving]` brings) and llama.cpp's server
(`pip install xllamacpp`; it computes in 4 bits, ours in float32: the same values, other arithmetic). A peer that is not
installed is left out. Each server runs alone, gets the same requests in the same order, and answers greedily.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import httpx

from justright.bench.decode import describe_machine
from justright.bench.longtexts import zoo_texts
from justright.bench.report import machine_line, markdown_table
from justright.bench.running import numbers, words
from justright.models.packaged import MODELS, find_parts
from justright.models.sources import resolve

NAME = "packaged:smollm2-135m-instruct"
START_S = 180.0
LENGTHS = (400, 1600, 6400)  # characters of text in the question: about 100, 400 and 1,600 tokens
TASKS = ("Summarise this text.", "Repeat the first paragraph.", "What happens next?")


@dataclass(frozen=True, slots=True)
class Question:
    text: str
    max_tokens: int


@dataclass(slots=True)
class Answer:
    """Seconds are from the request's start."""

    status: int
    first_s: float = 0.0
    end_s: float = 0.0
    tokens: int = 0
    text: str = ""

    @property
    def each_s(self) -> float:
        return (self.end_s - self.first_s) / max(self.tokens - 1, 1)


@dataclass(slots=True)
class Load:
    """What one server did under one number of clients."""

    server: str
    clients: int
    wall_s: float
    answers: list[Answer] = field(default_factory=list)

    @property
    def tokens_per_s(self) -> float:
        return sum(a.tokens for a in self.answers) / self.wall_s

    def percentiles(self, name: str) -> list[float]:
        values = sorted(getattr(a, name) for a in self.answers if a.status == 200)
        return (
            [values[min(len(values) - 1, int(q * len(values)))] for q in (0.5, 0.95, 0.99)] if values else []
        )


def questions(count: int, tokens: int) -> list[Question]:
    """Mixed lengths and tasks, the same in every run; some texts come twice, as they do at work."""
    texts = [source.text for source in zoo_texts()]
    chance = random.Random(0)
    found = []
    for index in range(count):
        text, length = chance.choice(texts), LENGTHS[index % len(LENGTHS)]
        begin = chance.randrange(0, max(len(text) - length, 1))
        found.append(Question(f"{text[begin : begin + length]}\n\n{chance.choice(TASKS)}", tokens))
    return found


# --- servers


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def commands(slots: int, port: int) -> dict[str, list[str]]:
    path, python = resolve(NAME).path, sys.executable
    ours = [python, "-m", "justright", "serve", NAME, "--port", str(port), "--slots", str(slots)]
    found = {"justright": [*ours, "--draft", "hybrid"], "justright, plain": [*ours, "--draft", "none"]}
    transformers = str(Path(python).with_name("transformers"))
    stock = [transformers, "serve", str(path), "--port", str(port), "--dtype", "float32", "--device", "cpu"]
    if find_spec("fastapi"):
        found["transformers"] = [*stock, "--continuous-batching"]
    if find_spec("xllamacpp"):
        [gguf] = find_parts(MODELS[NAME.partition(":")[2]])
        code = (
            "import sys, time, xllamacpp as x\n"
            "p = x.CommonParams()\n"
            "p.model.path, p.port, p.n_parallel = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])\n"
            "p.hostname, p.n_ctx = '127.0.0.1', 8192 * p.n_parallel\n"
            "s = x.Server(p)\n"
            "time.sleep(1e9)\n"
        )
        found["llama.cpp"] = [python, "-c", code, str(gguf), str(port), str(slots)]
    return found


@contextlib.contextmanager
def running(command: Sequence[str], port: int, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("wb") as output:
        server = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, env={**os.environ, "HF_HUB_OFFLINE": "1"}
        )
        try:
            end = time.monotonic() + START_S
            while True:
                with contextlib.suppress(httpx.HTTPError):
                    if httpx.get(f"http://127.0.0.1:{port}/health", timeout=2).status_code == 200:
                        break
                if server.poll() is not None or time.monotonic() > end:
                    tail = log.read_text(errors="replace")[-2000:]
                    raise SystemExit(f"{' '.join(command[:6])} ... did not start:\n{tail}")
                time.sleep(0.2)
            yield server
        finally:
            server.send_signal(signal.SIGTERM)
            try:
                server.wait(20)
            except subprocess.TimeoutExpired:
                server.kill()


# --- clients


async def ask(client: httpx.AsyncClient, model: str, question: Question) -> Answer:
    begin = time.perf_counter()
    body = {
        "model": model,
        "messages": [{"role": "user", "content": question.text}],
        "max_tokens": question.max_tokens,
        "temperature": 0.0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    answer = Answer(0)
    async with client.stream("POST", "/v1/chat/completions", json=body) as response:
        answer.status = response.status_code
        async for data in _events(response):
            for choice in data.get("choices", []):
                piece = choice.get("delta", {}).get("content") or ""
                if piece and not answer.first_s:
                    answer.first_s = time.perf_counter() - begin
                answer.text += piece
            if usage := data.get("usage"):
                answer.tokens = usage["completion_tokens"]
    answer.end_s = time.perf_counter() - begin
    return answer


async def _events(response: httpx.Response) -> AsyncIterator[dict[str, Any]]:
    async for line in response.aiter_lines():
        data = line.removeprefix("data:").strip()
        if line.startswith("data:") and data != "[DONE]":
            yield json.loads(data)


async def load(server: str, port: int, clients: int, asked: Sequence[Question]) -> Load:
    """So many clients, each asking its next question when the last one is answered."""
    waiting = list(reversed(asked))
    found = Load(server, clients, 0.0)
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=900) as client:
        model = (
            (await client.get("/v1/models")).json()["data"][0]["id"]
            if server != "transformers"
            else str(resolve(NAME).path)
        )
        await ask(client, model, Question("Hello", 4))

        async def one() -> None:
            while waiting:
                found.answers.append(await ask(client, model, waiting.pop()))

        begin = time.perf_counter()
        await asyncio.gather(*(one() for _ in range(clients)))
        found.wall_s = time.perf_counter() - begin
    return found


async def overload(port: int, seconds: float, rate: float, pid: int) -> dict[str, Any]:
    """Requests at ``rate`` a second, whether or not earlier ones are answered: everyone gets an answer or a 429."""
    import psutil

    process = psutil.Process(pid)
    pool = questions(300, 32)
    statuses: dict[str, int] = {}
    memory: list[tuple[float, float]] = []
    tasks: set[asyncio.Task[None]] = set()
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=900, limits=limits) as client:
        model = (await client.get("/v1/models")).json()["data"][0]["id"]

        async def one(question: Question) -> None:
            try:
                answer = await ask(client, model, question)
                name = "answered" if answer.status == 200 and answer.tokens else str(answer.status)
            except httpx.HTTPError as error:
                name = type(error).__name__
            statuses[name] = statuses.get(name, 0) + 1

        begin = time.monotonic()
        sent = 0
        while (now := time.monotonic() - begin) < seconds:
            task = asyncio.create_task(one(pool[sent % len(pool)]))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
            sent += 1
            if not memory or now - memory[-1][0] > seconds / 40:
                memory.append((now, process.memory_info().rss / 2**20))
            await asyncio.sleep(max(0.0, sent / rate - (time.monotonic() - begin)))
        await asyncio.gather(*tasks)
        page = (await client.get("/metrics")).text
    lines = dict(line.rsplit(" ", 1) for line in page.splitlines() if line.startswith("justright_requests_"))
    return {
        "sent": sent,
        "statuses": statuses,
        "lost": sent - sum(statuses.values()),
        "memory_mib": memory,
        "after": lines,
    }


def in_engine(slots: int, asked: Sequence[Question]) -> float:
    """The same questions without HTTP: tokens a second of the scheduler alone."""
    import queue

    from justright.engine.api import Engine
    from justright.engine.request import Emission
    from justright.serve.scheduler import Scheduler

    engine = Engine.load(NAME, slots=slots, draft="hybrid", reuse_prefix=True)
    scheduler = Scheduler(engine, max_waiting=len(asked))
    scheduler.start()
    ended: queue.Queue[Emission] = queue.Queue()

    def listener(emission: Emission) -> None:
        if emission.finish_reason is not None:
            ended.put(emission)

    requests = [
        engine.conversation([{"role": "user", "content": q.text}], max_tokens=q.max_tokens) for q in asked
    ]
    waiting = list(reversed(requests))
    begin = time.perf_counter()
    for _ in range(min(slots, len(waiting))):
        scheduler.submit(waiting.pop(), listener)
    for _ in requests:
        ended.get()
        if waiting:
            scheduler.submit(waiting.pop(), listener)
    seconds = time.perf_counter() - begin
    scheduler.drain(1)
    return sum(len(r.token_ids) for r in requests) / seconds


# --- report


def table(loads: Sequence[Load]) -> str:
    own = {load.clients: load for load in loads if load.server == "justright"}
    rows = []
    for one in sorted(loads, key=lambda load: load.clients):
        ours = own[one.clients].tokens_per_s
        first, each = one.percentiles("first_s"), one.percentiles("each_s")
        rows.append(
            (
                str(one.clients),
                one.server,
                f"{one.tokens_per_s:.1f}",
                f"{ours / one.tokens_per_s:.2f}",
                " / ".join(f"{value:.2f}" for value in first),
                " / ".join(f"{1000 * value:.0f}" for value in each),
                str(len(one.answers)),
            )
        )
    header = (
        "clients",
        "server",
        "tokens/s",
        "ours is",
        "first token s, p50 / p95 / p99",
        "each token ms",
        "answers",
    )
    return markdown_table(header, rows)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clients", default="1,4,16")
    parser.add_argument("--requests", type=int, default=24, help="of each number of clients")
    parser.add_argument("--tokens", type=int, default=48, help="of each answer, at most")
    parser.add_argument("--slots", type=int, default=4)
    parser.add_argument("--servers", default="", help="only these, e.g. 'justright,llama.cpp'")
    parser.add_argument("--overload", type=float, default=0.0, help="seconds at twice the capacity, instead")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args()
    clients = (1, 4) if chosen.quick else numbers(chosen.clients)
    count, tokens = (6, 16) if chosen.quick else (chosen.requests, chosen.tokens)
    asked = questions(count, tokens)
    logs = Path(os.environ.get("TMPDIR", "/tmp")) / f"justright-serve-{os.getpid()}"
    logs.mkdir(parents=True)
    result: dict[str, Any] = {"machine": describe_machine()}
    if chosen.overload:
        port = free_port()
        command = commands(chosen.slots, port)["justright"]
        with running(command, port, logs / "justright.log") as server:
            measured = asyncio.run(load("justright", port, chosen.slots, asked))
            rate = 2 * len(measured.answers) / measured.wall_s
            result["overload"] = asyncio.run(overload(port, chosen.overload, rate, server.pid))
            result["rate"] = rate
        print(json.dumps(result["overload"], indent=1))
    else:
        wanted = words(chosen.servers) if chosen.servers else None
        loads: list[Load] = []
        for name in commands(chosen.slots, 0):
            if wanted is not None and name not in wanted:
                continue
            for many in clients:
                port = free_port()
                print(f"{name}, {many} clients", file=sys.stderr, flush=True)
                with running(
                    commands(chosen.slots, port)[name], port, logs / f"{name.replace(', ', '-')}-{many}.log"
                ):
                    loads.append(asyncio.run(load(name, port, many, asked)))
        bare = statistics.median(in_engine(chosen.slots, asked) for _ in range(3))
        result |= {"loads": [asdict(one) for one in loads], "in_engine_tokens_per_s": bare}
        print(table(loads))
        for one in loads:
            if one.server == "justright" and one.clients == chosen.slots:
                over = one.tokens_per_s / bare - 1
                print(
                    f"The engine alone: {bare:.1f} tokens/s; over HTTP {one.tokens_per_s:.1f} ({over:+.1%})."
                )
        print(f"\n{machine_line(result['machine'])}")
    if chosen.out is not None:
        chosen.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
