"""Compare the extraction of an adapter of fixed rank with mergekit's: time, peak memory and error.

    python benchmarks/extract.py --slow SLOW --fast FAST --rank 32 --mergekit PATH/TO/mergekit-extract-lora

mergekit pins other versions of justright's dependencies, so it needs its own environment (`python -m venv mk &&
mk/bin/pip install mergekit==0.1.5`). The tools run in turns, several times, each in its own process. The error is
``||delta - B A|| / ||delta||`` over all matrices that the adapter covers, and its excess over the best error of that
rank. Memory is the process's largest resident set; the table also shows the memory of the imports alone.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file

from justright.adapter.export import module_of
from justright.adapter.pair import Pair
from justright.adapter.spectra import deltas
from justright.bench.decode import describe_machine
from justright.bench.tables import machine_line, markdown_table
from justright.checkpoint.sources import resolve


@dataclass(frozen=True)
class Tool:
    """A command that writes an adapter; its last argument is the output folder."""

    name: str
    command: list[str]


def measure(command: list[str]) -> tuple[float, float]:
    """``(seconds, MiB)`` of a process: wall-clock time and largest resident set."""
    begin = time.perf_counter()
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    assert child.stderr is not None
    errors = child.stderr.read()
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise SystemExit(f"{command[0]} failed: {errors.decode()[-1000:]}")
    return time.perf_counter() - begin, usage.ru_maxrss / 1024


def error(pair: Pair, folder: Path) -> tuple[float, float, int]:
    """``(relative error, best possible error at the same ranks, matrices)`` over all matrices of the adapter."""
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    tensors = load_file(folder / "adapter_model.safetensors")
    scale = config["lora_alpha"] / config["r"]
    left = best = total = 0.0
    count = 0
    for index in range(pair.layers):
        for name, _, delta in deltas(pair, index):
            key = f"base_model.model.{module_of(pair, index, name)}"
            if f"{key}.lora_A.weight" not in tensors:
                continue
            a, b = (tensors[f"{key}.lora_{which}.weight"].double() for which in "AB")
            wanted = -delta.double()  # the adapter turns slow into fast
            values = torch.linalg.svdvals(wanted)
            left += float((wanted - scale * b @ a).square().sum())
            best += float(values[a.shape[0] :].square().sum())
            total += float(values.square().sum())
            count += 1
    return math.sqrt(left / total), math.sqrt(best / total), count


def tools(slow: Path, fast: Path, rank: int, mergekit: str | None) -> list[Tool]:
    """The tools to compare."""
    ours = [sys.executable, "-m", "justright", "switch", "extract", str(slow), str(fast), "--rule", "fixed"]
    ours += ["--value", str(rank), "--max-rank", str(rank), "--no-exact", "-o"]
    found = [
        Tool("importing torch and transformers", [sys.executable, "-c", "import torch, transformers, peft"]),
        Tool("justright, exact", [*ours[:-1], "--svd", "exact", "-o"]),
        Tool("justright, randomized", [*ours[:-1], "--svd", "randomized", "-o"]),
    ]
    if mergekit is not None:
        command = [mergekit, "--model", str(fast), "--base-model", str(slow), "--max-rank", str(rank)]
        command += ["--exclude-regex", "embed_tokens|lm_head|norm", "--skip-undecomposable", "--out-path"]
        found.append(Tool("mergekit-extract-lora", command))
    return found


def main() -> int:
    """Parse the arguments and compare the tools on the pair."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--slow")
    parser.add_argument("--fast")
    parser.add_argument(
        "--made",
        type=int,
        metavar="HIDDEN",
        help="instead of --slow and --fast: generate a random pair of two layers of this width",
    )
    parser.add_argument("--rank", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--mergekit", help="path of mergekit-extract-lora; without it, only justright runs")
    chosen = parser.parse_args()
    if chosen.made:
        with tempfile.TemporaryDirectory() as folder:
            chosen.slow, chosen.fast = (str(path) for path in make_pair(chosen.made, Path(folder)))
            return compare(chosen)
    if not (chosen.slow and chosen.fast):
        parser.error("give --slow and --fast, or --made")
    return compare(chosen)


def make_pair(hidden: int, folder: Path) -> tuple[Path, Path]:
    """Make random Llama layers whose difference has singular values like ``1 / sqrt(i)``, as a fine-tune's."""
    from transformers import AutoModelForCausalLM, LlamaConfig

    from justright.checkpoint.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(resolve("zoo:fast").path)
    config = LlamaConfig(
        hidden_size=hidden, intermediate_size=hidden * 11 // 4, num_hidden_layers=2, num_attention_heads=16,
        num_key_value_heads=8, vocab_size=len(tokenizer), tie_word_embeddings=True,
    )  # fmt: skip
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    paths = folder / "slow", folder / "fast"
    for path in paths:
        model.save_pretrained(path)
        tokenizer.save_pretrained(path)
        for name, tensor in model.named_parameters():
            if tensor.ndim == 2 and ".layers." in name:
                small = min(tensor.shape)
                u, v = (torch.linalg.qr(torch.randn(n, small)).Q for n in tensor.shape)
                falling = torch.arange(1, small + 1).float().rsqrt()
                tensor.data += (0.2 * (u * falling) @ v.T).to(tensor.dtype)
    return paths


def compare(chosen: argparse.Namespace) -> int:
    """Run the tools on one pair in turns, and print the table."""
    slow, fast = resolve(chosen.slow).path, resolve(chosen.fast).path
    pair = Pair(slow, fast)
    compared = tools(slow, fast, chosen.rank, chosen.mergekit)
    runs: dict[str, list[tuple[float, float]]] = {tool.name: [] for tool in compared}
    errors: dict[str, tuple[float, float, int]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(chosen.repeats):
            for number, tool in enumerate(compared):
                out = Path(folder) / str(number)
                shutil.rmtree(out, ignore_errors=True)
                runs[tool.name].append(measure([*tool.command, str(out)] if number else tool.command))
                if number and tool.name not in errors:
                    errors[tool.name] = error(pair, out)
    importing = statistics.median(mib for _, mib in runs[compared[0].name])
    rows = []
    for tool in compared:
        seconds = [s for s, _ in runs[tool.name]]
        memory = statistics.median(mib for _, mib in runs[tool.name])
        row = [tool.name, f"{statistics.median(seconds):.1f} ({min(seconds):.1f} to {max(seconds):.1f})"]
        row += [f"{memory:.0f}", f"{memory - importing:.0f}"]
        if tool.name in errors:
            relative, best, count = errors[tool.name]
            row += [f"{relative:.4f}", f"{relative / best - 1:.2%}", str(count)]
        else:
            row += ["", "", ""]
        rows.append(tuple(row))
    print(machine_line(describe_machine()))
    what = f"random pair of width {chosen.made}" if chosen.made else f"{chosen.slow} and {chosen.fast}"
    print(f"\n{what}, rank {chosen.rank}, {pair.slow.checkpoint.nbytes / 2**20:.0f} MiB per model\n")
    header = ("", "seconds", "peak MiB", "above imports", "error", "over the best", "matrices")
    print(markdown_table(header, rows))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
