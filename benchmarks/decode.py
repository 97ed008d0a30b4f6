"""Measure the README's decode table: four contenders, five tasks, and 1K, 4K and 7K tokens of context in one run.

python benchmarks/decode.py --out decode.json        about an hour on two cores; resumes after an interruption
python benchmarks/decode.py --quick                  two minutes, a smoke test
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from justright.bench.contenders import LOOKUP, TRANSFORMERS
from justright.bench.decode import DecodeSetting, Results
from justright.bench.running import DecodePlan, run_plan
from justright.bench.tables import (
    HEADER,
    cost_rows,
    machine_line,
    markdown_table,
    ratio,
    rows,
    steadiness_line,
)
from justright.bench.tasks import COPY_HEAVY, KINDS

CONTENDERS = ("plain", "suffix", "transformers", "transformers-lookup")
CONTEXTS = (1024, 4096, 7168)


def wide_rows(results: Results) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Header and one row a task: everyone's tokens/s, the ratios to transformers, and whether all outputs agree."""
    names = list(dict.fromkeys(name for row in results.cells.values() for name in row))
    against = [name for name in names if name not in (TRANSFORMERS, LOOKUP)]
    header = ("task", *names, *(f"{name} / transformers" for name in against), "outputs")
    found = []
    for task, row in results.cells.items():
        speeds = [f"{row[name].median('tokens_per_s'):.1f}" if name in row else "" for name in names]
        ratios = [ratio(row[name], row.get(TRANSFORMERS)) if name in row else "" for name in against]
        verdicts = sorted({str(cell.agreement or "-") for cell in row.values()})
        found.append((task, *speeds, *ratios, "; ".join(verdicts)))
    return header, found


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", nargs="?", default="packaged:smollm2-135m-instruct")
    parser.add_argument(
        "--out", type=Path, help="JSON file that collects the results; a repeated command resumes from it"
    )
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--quick", action="store_true", help="1K of context, 32 tokens, one repeat, no memory measurement"
    )
    chosen = parser.parse_args()
    quick = chosen.quick
    setting = DecodeSetting(CONTENDERS, 32 if quick else chosen.tokens, 1 if quick else chosen.repeats)
    plan = DecodePlan(chosen.model, KINDS, CONTEXTS[:1] if quick else CONTEXTS, setting, memory=not quick)
    results = run_plan(plan, chosen.out, lambda what, done, of: print(f"{done}/{of} {what}", file=sys.stderr))
    print("Tokens per second, medians:\n")
    print(markdown_table(*wide_rows(results)))
    print(markdown_table(HEADER, rows(results)))
    if results.cost is not None:
        print(markdown_table(*cost_rows(results.cost)))
    print(f"{machine_line(results.machine)}; copy-heavy tasks: {', '.join(COPY_HEAVY)}")
    print(steadiness_line(results))
    for mismatch in results.mismatches:
        print(f"MISMATCH: {mismatch}", file=sys.stderr)
    return 1 if results.mismatches else 0


if __name__ == "__main__":
    sys.exit(main())
