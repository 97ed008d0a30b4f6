"""Measure the cost of pruning, and what it saves.

    python benchmarks/prune_cost.py scaling     time and memory, 8 to 256 experts, 2 to 16 layers, synthetic weights
    python benchmarks/prune_cost.py store       disk, memory and speed with zeros, the container and fewer experts

Every run has its own process, so that its time and peak memory are measured alone.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch

from justright.bench.decode import describe_machine
from justright.bench.peak_memory import own_peak_bytes
from justright.bench.tables import machine_line, markdown_table
from justright.checkpoint.sources import resolve
from justright.prune.pipeline import Pruning
from justright.prune.settings import Settings

EXPERTS = (8, 16, 32, 64, 128, 256)
LAYERS = (2, 4, 8, 16)
STAGES = ("checking weights", "calibrating", "deciding", "weights", "writing")


def synthetic(folder: Path, experts: int, layers: int) -> Path:
    """Write a random mixture of experts (bfloat16, hidden size 256, 98,304 parameters an expert, zoo tokenizer)."""
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    torch.manual_seed(0)
    config = Qwen3MoeConfig(
        vocab_size=4096, hidden_size=256, head_dim=64, num_attention_heads=4, num_key_value_heads=2,
        num_hidden_layers=layers, moe_intermediate_size=128, num_experts=experts, num_experts_per_tok=2,
        max_position_embeddings=2048, tie_word_embeddings=True,
    )  # fmt: skip
    Qwen3MoeForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(resolve("zoo:moe").path / name, folder / name)
    return folder


def one_run(job: dict[str, Any]) -> None:
    """Prune once, in this process, and print seconds by stage and peak memory as JSON."""
    settings = Settings(
        sparsity=0.5, expert_sparsity=0.25, calibration=("zoo:python",), sequences=16, length=256
    )
    pruning = Pruning(Path(job["model"]), settings, rows=4)
    before, last, stage = own_peak_bytes(), time.perf_counter(), STAGES[0]
    seconds = dict.fromkeys(STAGES, 0.0)

    def tick(name: str, done: int, total: int) -> None:
        nonlocal last, stage
        now = time.perf_counter()
        seconds[stage] += now - last
        last, stage = now, "deciding" if name == "calibrating" and done == total else name

    done = pruning.run(Path(job["out"]), tick)
    layer = pruning.estimate().memory_bytes
    peak = own_peak_bytes()
    found = {
        "parameters": done.sizes.total,
        "seconds": seconds,
        "peak": peak,
        "before": before,
        "estimate": layer,
    }
    print(json.dumps(found))


def run_scaling(options: argparse.Namespace) -> None:
    """Print time and memory by size, as medians of the repeats."""
    shapes = [(experts, 4) for experts in EXPERTS] + [(32, layers) for layers in LAYERS if layers != 4]
    body, rows = [], []
    for experts, layers in shapes:
        print(f"{experts} experts, {layers} layers", file=sys.stderr, flush=True)
        with tempfile.TemporaryDirectory() as folder:
            model = synthetic(Path(folder) / "model", experts, layers)
            runs = []
            for repeat in range(options.repeats):
                job = {"model": str(model), "out": f"{folder}/out-{repeat}"}
                command = [sys.executable, __file__, "one", json.dumps(job)]
                result = subprocess.run(command, capture_output=True, text=True, check=True)
                runs.append(json.loads(result.stdout.splitlines()[-1]))
        rows.append({"experts": experts, "layers": layers, "runs": runs})
        totals = [sum(run["seconds"].values()) for run in runs]
        stages = [statistics.median(run["seconds"][stage] for run in runs) for stage in STAGES]
        memory = statistics.median(run["peak"] - run["before"] for run in runs) / 2**20
        billions = runs[0]["parameters"] / 1e9
        body.append([
            str(experts), str(layers), f"{billions * 1000:.1f}M", *(f"{s:.2f}" for s in stages),
            f"{statistics.median(totals):.2f} ({min(totals):.2f} to {max(totals):.2f})",
            f"{statistics.median(totals) / billions:.0f}", f"{memory:.0f}",
            f"{memory / 1024 / billions:.1f}", f"{runs[0]['estimate'] / 2**20:.0f}",
        ])  # fmt: skip
    header = ["experts", "layers", "parameters", *(f"{stage}, s" for stage in STAGES), "total, s",
              "s per billion", "peak above start, MiB", "GiB per billion", "estimate, MiB"]  # fmt: skip
    if options.json:
        print(json.dumps({"machine": describe_machine(), "rows": rows}))
        return
    print(markdown_table(header, body))
    print(machine_line(describe_machine()))


STORES: dict[str, tuple[str, dict[str, Any], str]] = {
    "dense model": ("packaged:smollm2-135m-instruct", {}, "dense"),
    "25% zeros": ("packaged:smollm2-135m-instruct", {"sparsity": 0.25}, "dense"),
    "25% zeros, container": ("packaged:smollm2-135m-instruct", {"sparsity": 0.25}, "sparse"),
    "50% zeros": ("packaged:smollm2-135m-instruct", {"sparsity": 0.5}, "dense"),
    "50% zeros, container": ("packaged:smollm2-135m-instruct", {"sparsity": 0.5}, "sparse"),
    "mixture of experts": ("zoo:moe", {}, "dense"),
    "half of the experts": (
        "zoo:moe",
        {"weights": "none", "expert_sparsity": 0.5, "criterion": "router"},
        "dense",
    ),
}


def one_load(job: dict[str, Any]) -> None:
    """Load a model and decode 128 tokens in this process; print seconds, tokens per second and memory as JSON."""
    from justright.engine.llm import LLM

    before, begin = own_peak_bytes(), time.perf_counter()
    engine = LLM(job["model"])
    loaded = time.perf_counter() - begin
    request = engine.request(engine.encode("Once upon a time"), max_tokens=128, ignore_eos=True)
    answer = engine.generate_request(request.prompt_ids, max_tokens=128, ignore_eos=True)
    found = {
        "load_s": loaded,
        "tokens_per_s": answer.stats.decode_tokens_per_s,
        "peak": own_peak_bytes() - before,
    }
    print(json.dumps(found))


def run_store(options: argparse.Namespace) -> None:
    """Print disk size, loading time, memory and speed with zeros, the container and fewer experts."""
    with tempfile.TemporaryDirectory() as folder:
        paths = {}
        for number, (name, (model, changes, store)) in enumerate(STORES.items()):
            paths[name] = resolve(model).path
            if changes:
                settings = Settings(**({"weights": "magnitude"} | changes))
                out = Path(folder) / str(number)
                Pruning(paths[name], settings).run(out, store=store)  # type: ignore[arg-type]
                paths[name] = out
        runs: dict[str, list[dict[str, float]]] = defaultdict(list)
        for _ in range(options.repeats):
            for (
                name,
                path,
            ) in paths.items():  # interleaved, so that other load on the machine affects all alike
                command = [sys.executable, __file__, "load", json.dumps({"model": str(path)})]
                result = subprocess.run(command, capture_output=True, text=True, check=True)
                runs[name].append(json.loads(result.stdout.splitlines()[-1]))
        body = []
        for name, path in paths.items():
            disk = sum(file.stat().st_size for file in path.glob("*.safetensors"))
            speeds = [run["tokens_per_s"] for run in runs[name]]
            body.append([
                name, f"{disk / 2**20:.1f}", f"{statistics.median(r['load_s'] for r in runs[name]):.2f}",
                f"{statistics.median(r['peak'] for r in runs[name]) / 2**20:.0f}",
                f"{statistics.median(speeds):.1f} ({min(speeds):.1f} to {max(speeds):.1f})",
            ])  # fmt: skip
    print(markdown_table(["", "on disk, MiB", "loading, s", "peak above start, MiB", "tokens/s"], body))
    print(machine_line(describe_machine()))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True)
    of_scaling = commands.add_parser("scaling")
    of_scaling.add_argument("--repeats", type=int, default=3)
    of_scaling.add_argument("--json", action="store_true")
    of_scaling.set_defaults(run=run_scaling)
    of_store = commands.add_parser("store")
    of_store.add_argument("--repeats", type=int, default=3)
    of_store.set_defaults(run=run_store)
    for name, run in (
        ("one", one_run),
        ("load", one_load),
    ):  # started as child processes by the other commands
        of_run = commands.add_parser(name)
        of_run.add_argument("job", type=json.loads)
        of_run.set_defaults(run=lambda options, run=run: run(options.job))
    options = parser.parse_args()
    options.run(options)


if __name__ == "__main__":
    main()
