"""Measure the cost of a switch: its size, and decoding speed when off, on and mixed, relative to the plain model.

    python benchmarks/switch_speed.py                                   zoo:slow and zoo:fast
    python benchmarks/switch_speed.py --slow DIR --fast DIR --tau 0.5   another pair

All contenders decode the same random prompts without drafts, in turns in one process, so that other load on the machine
affects all of them. Ratios compare medians; the spread is over single rounds.
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
from pathlib import Path

from justright.adapter.extract import extract
from justright.adapter.pair import Pair
from justright.adapter.ranks import RankRule
from justright.bench.decode import describe_machine
from justright.bench.tables import machine_line, markdown_table
from justright.checkpoint.sources import resolve
from justright.engine.llm import LLM
from justright.engine.request import Request
from justright.readable import readable_bytes
from justright.reasoning.budget import ModePlan

PROMPT = 64


def round_of(engine: LLM, factors: list[float], tokens: int) -> float:
    """Tokens per second of a batch with one request per adapter scale in ``factors``."""
    rng = random.Random(0)
    vocab = engine.verifier.spec.vocab_size
    requests = []
    for factor in factors:
        prompt = [rng.randrange(vocab) for _ in range(PROMPT)]
        requests.append(Request(prompt, max_tokens=tokens, plan=ModePlan(factor)))
    engine.generate_requests(requests)
    seconds = max(request.stats.decode_s for request in requests)
    return sum(request.stats.output_tokens - 1 for request in requests) / seconds


def main() -> int:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--slow", default="zoo:slow")
    parser.add_argument("--fast", default="zoo:fast")
    parser.add_argument("--tau", type=float, default=0.9)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=7)
    chosen = parser.parse_args()
    slow, fast = resolve(chosen.slow).path, resolve(chosen.fast).path
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        done = extract(Pair(slow, fast), Path(folder) / "adapter", RankRule("energy", chosen.tau))
        plain, other = LLM(str(slow)), LLM(str(fast))
        switched = LLM(str(slow), switch=str(done.path))
        assert switched.modes is not None
        assert switched.modes.adapter is not None
        kept = switched.modes.adapter
        for batch in (1, 8):
            for engine in (plain, other, switched):
                engine.verifier.resize(batch)
            half = [1.0 if i % 2 else 0.0 for i in range(batch)]
            contenders = {
                "slow model, no switch": (plain, [0.0] * batch),
                "fast model": (other, [0.0] * batch),
                "switch, off": (switched, [0.0] * batch),
                "switch, on": (switched, [1.0] * batch),
            }
            if batch > 1:
                contenders["switch, half of the requests"] = (switched, half)
            speeds: dict[str, list[float]] = {name: [] for name in contenders}
            for number in range(chosen.rounds + 1):
                for name, (engine, factors) in contenders.items():
                    speed = round_of(engine, factors, chosen.tokens)
                    if number:  # the first round warms up
                        speeds[name].append(speed)
            base = speeds["slow model, no switch"]
            for name, found in speeds.items():
                ratios = [one / other for one, other in zip(found, base, strict=True)]
                spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
                ratio = statistics.median(found) / statistics.median(base)
                rows.append((str(batch), name, f"{statistics.median(found):.0f}", f"{ratio:.3f}", spread))
        size = kept.nbytes
    print(machine_line(describe_machine()))
    print(
        f"\n{chosen.slow} and {chosen.fast}, tau {chosen.tau}, {chosen.tokens} tokens after {PROMPT}, float32\n"
    )
    header = ("requests at once", "", "tokens/s", "relative to the slow model", "single rounds")
    print(markdown_table(header, rows))
    numbers = sum(p.numel() for p in LLM(str(fast), cpu_kernels="plain").verifier.model.parameters())
    print(
        f"\nSize: {kept.parameters:,} parameters ({readable_bytes(size)}, float32), {numbers / kept.parameters:.1f} "
        f"times fewer than a second model's {numbers:,}."
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
