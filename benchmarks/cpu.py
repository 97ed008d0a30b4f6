"""Measure one request at a time on a CPU, from a GGUF file, beside llama.cpp on the same file.

    python benchmarks/cpu.py [MODEL]            some fifteen minutes on two cores; pip install xllamacpp for llama.cpp

Every contender has its own process, reads the same prompts (the five tasks of `justright bench decode`, at every
length) as token ids, and writes the same number of greedy tokens. Contenders take turns at each prompt. Nothing is
reused from one prompt to the next.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import Any

import httpx
import torch

from justright.bench.decode import describe_machine
from justright.bench.peak_memory import own_peak_bytes
from justright.bench.running import numbers
from justright.bench.tables import machine_line, markdown_table
from justright.bench.tasks import KINDS, build
from justright.checkpoint.sources import resolve
from justright.checkpoint.tokenizer import load_tokenizer
from justright.engine.llm import LLM
from justright.errors import UsageError

OURS = ("plain", "suffix", "hybrid")
THEIRS = ("llama.cpp", "llama.cpp without flash attention", "llama.cpp n-gram drafts")
Answer = dict[str, Any]
Generate = Callable[[list[int], int], Answer]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", nargs="?", default="packaged:smollm2-135m-instruct")
    parser.add_argument("--contexts", default="256,1024,4096", help="prompt tokens, separated by commas")
    parser.add_argument("--tokens", type=int, default=64, help="output tokens of each measurement")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--without", default="", help="contenders to leave out, separated by commas")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.worker:
        return work(chosen.worker, chosen.model, max(numbers(chosen.contexts)) + chosen.tokens)
    theirs = THEIRS if find_spec("xllamacpp") else ()
    names = [name for name in (*OURS, *theirs) if name not in chosen.without.split(",")]
    workers = {name: Worker(name, sys.argv[1:]) for name in names}
    tokenizer = load_tokenizer(resolve(chosen.model).path)
    print(
        f"{chosen.model}, {chosen.tokens} output tokens, medians (least to most) of the tasks of a length\n"
    )
    for context in numbers(chosen.contexts):
        found: dict[str, list[Answer]] = defaultdict(list)
        prompts = prompts_of(tokenizer, context)
        for prompt, _ in product(prompts.values(), range(chosen.repeats)):
            for name, worker in workers.items():
                found[name].append(worker.ask(prompt, chosen.tokens))
        rows = [row(name, answers, chosen.tokens, found["plain"]) for name, answers in found.items()]
        print(f"{', '.join(prompts)}:\n")
        print(markdown_table([f"{context} tokens", *COLUMNS], rows), "\n", flush=True)
    for worker in workers.values():
        worker.stop()
    print(machine_line(describe_machine()))
    return 0


COLUMNS = ("ms a token", "prompt tokens/s", "prompt and answer, s", "equal to plain", "peak MiB")


def prompts_of(tokenizer: Any, context: int) -> dict[str, list[int]]:
    """The tasks that have a prompt of this length: the shortest lengths do not hold every task's instructions."""
    found = {}
    for kind in KINDS:
        with contextlib.suppress(UsageError):
            found[kind] = list(build(kind, tokenizer, context).prompt_ids)
    return found


def row(name: str, answers: list[Answer], tokens: int, plain: list[Answer]) -> list[str]:
    """One line of the table."""
    equal = sum(one["token_ids"] == other["token_ids"] for one, other in zip(answers, plain, strict=True))
    return [
        name,
        spread([1000 * one["decode_s"] / (tokens - 1) for one in answers], 1),
        spread([one["prompt_tokens"] / one["prefill_s"] for one in answers], 0),
        spread([one["prefill_s"] + one["decode_s"] for one in answers], 2),
        f"{equal} of {len(answers)}",
        f"{max(one['peak'] for one in answers) / 2**20:.0f}",
    ]


def spread(values: list[float], digits: int) -> str:
    middle, low, high = (f(values) for f in (statistics.median, min, max))
    return f"{middle:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


class Worker:
    """A contender in a process of its own, asked over its standard input."""

    def __init__(self, name: str, arguments: list[str]) -> None:
        command = [sys.executable, __file__, *arguments, "--worker", name]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._read()  # the model is loaded

    def ask(self, prompt: list[int], tokens: int) -> Answer:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps([prompt, tokens]) + "\n")
        self.process.stdin.flush()
        return self._read()

    def stop(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()

    def _read(self) -> Answer:
        assert self.process.stdout is not None
        while line := self.process.stdout.readline():
            if line.startswith('{"answer":'):
                answer: Answer = json.loads(line)["answer"]
                return answer
        raise SystemExit(f"a contender ended: {self.process.wait()}")


def work(name: str, model: str, longest: int) -> int:
    """Answer the requests on standard input."""
    generate = our_engine(name, model) if name in OURS else llama_cpp(name, model, longest)
    generate([10, 11, 12, 13], 4)
    print(json.dumps({"answer": {}}), flush=True)
    for line in sys.stdin:
        answer = generate(*json.loads(line))
        print(json.dumps({"answer": answer | {"peak": own_peak_bytes()}}), flush=True)
    return 0


def our_engine(name: str, model: str) -> Generate:
    llm = LLM(model, draft="none" if name == "plain" else name)

    def generate(prompt: list[int], tokens: int) -> Answer:
        llm.verifier.resize(1)  # no prefix of an earlier prompt is reused
        found = llm.generate_request(prompt, max_tokens=tokens, ignore_eos=True)
        return {
            "token_ids": found.token_ids,
            "prompt_tokens": len(prompt),
            "prefill_s": found.stats.prefill_s,
            "decode_s": found.stats.decode_s,
        }

    return generate


def llama_cpp(name: str, model: str, longest: int) -> Generate:
    xllamacpp: Any = import_module("xllamacpp")
    params = xllamacpp.CommonParams()
    [params.model.path] = [str(file.resolve()) for file in Path(resolve(model).path).glob("*.gguf")]
    params.n_ctx, params.n_parallel, params.port = longest + 64, 1, 0
    params.verbosity = 0
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = torch.get_num_threads()
    if name.endswith("without flash attention"):
        params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    elif name.endswith("n-gram drafts"):
        params.speculative.types = [xllamacpp.common_speculative_type.COMMON_SPECULATIVE_TYPE_NGRAM_MOD]
    server = xllamacpp.Server(params)
    client = httpx.Client(base_url=server.listening_address, timeout=600)

    def generate(prompt: list[int], tokens: int) -> Answer:
        fields = {"temperature": 0, "ignore_eos": True, "cache_prompt": False, "return_tokens": True}
        reply = client.post("/completion", json={"prompt": prompt, "n_predict": tokens, **fields})
        reply.raise_for_status()
        body = reply.json()
        timings = body["timings"]
        return {
            "token_ids": body["tokens"],
            "prompt_tokens": timings["prompt_n"],
            "prefill_s": timings["prompt_ms"] / 1000,
            "decode_s": timings["predicted_ms"] / 1000,
        }

    generate.__dict__["server"] = server  # lives as long as the function
    return generate


if __name__ == "__main__":
    raise SystemExit(main())
