"""Compare all drafters on long prompts, by length: the tables and picture of docs/draft.md, and a check of the goals.

python benchmarks/longspec.py --rnn DIR --attention DIR --out longspec.json     about an hour on two cores; resumable
python benchmarks/longspec.py ... --fixed --out fixed.json                      acceptance only, drafts at full length
python benchmarks/longspec.py --quick                                           a few minutes, a smoke test

`justright draft train MODEL --cell rnn` and `--cell attention` train the baselines, on the same data; a baseline
without a folder is skipped. Another MODEL needs its own drafter: --lstm DIR.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from justright.bench.decode import DecodeSetting, Results
from justright.bench.longset import KINDS
from justright.bench.longspec import HEADER, LongPlan, Summary, draw, run_longspec, summaries, table_rows
from justright.bench.running import numbers, words
from justright.bench.tables import machine_line, markdown_table, steadiness_line


def contenders(chosen: argparse.Namespace) -> tuple[str, ...]:
    """All contenders, with the baselines that have a folder; with --fixed only drafters, verified in full."""
    own = {} if chosen.lstm is None else {"path": str(chosen.lstm)}
    drafters: list[tuple[str, str, dict[str, str]]] = [
        ("suffix", "suffix", {}),
        ("recycling", "recycling", {}),
    ]
    if chosen.attention is not None:
        drafters.append(("attention", "attention", {"path": str(chosen.attention)}))
    if chosen.rnn is not None:
        drafters.append(("rnn", "lstm", {"path": str(chosen.rnn)}))
    drafters += [
        ("lstm", "lstm", own | {"spec": "false"}),
        ("lstm+[SPEC]", "lstm", own | {"spec": "true"}),
        ("hybrid", "hybrid", own),
    ]
    more = {"adaptive": "false"} if chosen.fixed else {}
    found = [] if chosen.fixed else ["plain", "transformers", "transformers-lookup"]
    for label, name, options in drafters:
        listed = ";".join(f"{key}={value}" for key, value in (options | more).items())
        found.append(f"{label}={name}:{listed}" if listed else label)
    left_out = words(chosen.without) if chosen.without else ()
    if unknown := [name for name in left_out if name not in {one.partition("=")[0] for one in found}]:
        raise SystemExit(
            f"--without {', '.join(unknown)}: allowed are {', '.join(one.partition('=')[0] for one in found)}"
        )
    return tuple(one for one in found if one.partition("=")[0] not in left_out)


def verdicts(found: Sequence[Summary]) -> Iterator[str]:
    """Compare the figures with the goals, one line each."""
    by: dict[str, dict[str, Summary]] = {}
    for one in found:
        by.setdefault(one.contender, {})[one.group] = one
    lengths = list(dict.fromkeys(one.group for one in found))
    short, long = lengths[0], lengths[-1]
    for name in ("lstm", "lstm+[SPEC]", "rnn", "attention"):
        if name in by:
            kept = by[name][long].acceptance_length / by[name][short].acceptance_length
            goal = "; goal at least 95%" if name.startswith("lstm") else ""
            yield f"{name}: acceptance length at {long} is {kept:.0%} of that at {short}{goal}"
    if "lstm" in by and "lstm+[SPEC]" in by:
        gains = [by["lstm+[SPEC]"][g].acceptance_length / by["lstm"][g].acceptance_length for g in lengths]
        yield f"[SPEC]: {min(gains) - 1:+.0%} to {max(gains) - 1:+.0%} acceptance length; goal +10%"
    for group in lengths:
        row = {name: by[name][group] for name in by if group in by[name] and by[name][group].x_plain}
        if not row:
            continue  # acceptance only
        best = max(row, key=lambda name: row[name].x_plain or 0)
        first = max(row, key=lambda name: row[name].x_plain_all or 0)
        hybrid = row.get("hybrid")
        if hybrid is not None:
            text = f"hybrid at {group}: {hybrid.x_plain:.2f}x plain (best: {best}, {row[best].x_plain:.2f}x)"
            text += f", all prompts together {hybrid.x_plain_all:.2f}x (best: {first}, {row[first].x_plain_all:.2f}x)"
            text += f", least {hybrid.x_plain_least:.2f}x (goal 0.97x)"
            if hybrid.x_transformers is not None:
                text += f", {hybrid.x_transformers:.2f}x generate"
            yield text + ("; goals from 4K: 2x, 3.08x" if int(group) >= 4096 else "")


def report(results: Results) -> None:
    for by in ("length", "kind"):
        found = summaries(results, by=by)
        print(markdown_table((by, *HEADER[1:]), table_rows(found)))
    for line in verdicts(summaries(results)):
        print(f"- {line}")
    print(f"\n{machine_line(results.machine)}\n{steadiness_line(results)}")
    for mismatch in results.mismatches:
        print(f"MISMATCH: {mismatch}", file=sys.stderr)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", nargs="?", default="packaged:smollm2-135m-instruct")
    parser.add_argument("--lstm", type=Path, help="trained LSTM drafter (default: the packaged one)")
    parser.add_argument("--rnn", type=Path, help="the RNN baseline")
    parser.add_argument("--attention", type=Path, help="the attention baseline")
    parser.add_argument("--buckets", default="1024,2048,4096,8192")
    parser.add_argument("--kinds", default=",".join(KINDS))
    parser.add_argument("--tokens", type=int, default=96)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--per-cell", type=int, default=1)
    parser.add_argument(
        "--fixed",
        action="store_true",
        help="measure acceptance only: verify every draft in full, in trees of at most 32 rows, [SPEC] included",
    )
    parser.add_argument(
        "--without", metavar="NAMES", help="contenders to skip; a later run with the same --out may add them"
    )
    parser.add_argument("--quick", action="store_true", help="512 tokens of context, one kind, one repeat")
    parser.add_argument(
        "--out", type=Path, help="JSON file that collects the results; a repeated command resumes from it"
    )
    parser.add_argument("--picture", type=Path, help="PNG file")
    chosen = parser.parse_args()
    quick = chosen.quick
    setting = DecodeSetting(
        contenders(chosen), 24 if quick else chosen.tokens, 1 if quick else chosen.repeats
    )
    plan = LongPlan(
        chosen.model,
        setting,
        None,
        (512, 1024) if quick else numbers(chosen.buckets),
        ("summarise",) if quick else tuple(words(chosen.kinds)),
        chosen.per_cell,
    )
    results = run_longspec(
        plan, chosen.out, lambda what, done, of: print(f"{done}/{of} {what}", file=sys.stderr, flush=True)
    )
    report(results)
    if chosen.picture is not None:
        draw(results, chosen.picture)
    return 1 if results.mismatches else 0


if __name__ == "__main__":
    sys.exit(main())
