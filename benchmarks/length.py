"""Measure acceptance by context length alone: the same positions in the same texts, after more and more context.

python benchmarks/length.py --rnn DIR --attention DIR        about ten minutes on two cores

Other benchmarks use different prompts at each length, and the long ones may be easier. Here only the length differs.
Every draft is verified in full.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from justright.bench.decode import describe_machine
from justright.bench.longtexts import zoo_texts
from justright.bench.running import numbers
from justright.bench.tables import machine_line, markdown_table
from justright.engine.llm import LLM


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", nargs="?", default="packaged:smollm2-135m-instruct")
    parser.add_argument("--rnn", type=Path, help="the RNN baseline")
    parser.add_argument("--attention", type=Path, help="the attention baseline")
    parser.add_argument("--contexts", default="64,256,1024,4096")
    parser.add_argument("--places", type=int, default=1, help="positions in each text")
    parser.add_argument("--tokens", type=int, default=64)
    chosen = parser.parse_args()
    contexts = numbers(chosen.contexts)
    drafters: dict[str, tuple[str, dict[str, object]]] = {"recycling": ("recycling", {})}
    if chosen.attention is not None:
        drafters["attention"] = ("attention", {"path": str(chosen.attention)})
    if chosen.rnn is not None:
        drafters["rnn"] = ("lstm", {"path": str(chosen.rnn)})
    drafters |= {"lstm": ("lstm", {"spec": False}), "lstm+[SPEC]": ("lstm", {"spec": True})}
    engine = LLM(chosen.model)
    ends = []
    for text in zoo_texts():
        ids = engine.encode(text.text[: 8 * max(contexts) * (chosen.places + 1)])
        ends += [ids[: max(contexts) + place * 1500] for place in range(chosen.places)]
    rows = []
    for name, (drafter, options) in drafters.items():
        cells = [name]
        for context in contexts:
            drafting = engine.with_draft(drafter, adaptive=False, **options)
            stats = [
                drafting.generate_request(ids[-context:], max_tokens=chosen.tokens, ignore_eos=True).stats
                for ids in ends
            ]
            tokens = sum(one.output_tokens - 1 for one in stats)
            cells.append(f"{tokens / sum(one.verifications for one in stats):.2f}")
            print(name, context, cells[-1], file=sys.stderr, flush=True)
        rows.append((*cells, f"{float(cells[-1]) / float(cells[1]):.0%}"))
    print(markdown_table(("drafter", *map(str, contexts), "longest / shortest"), rows))
    print(f"{len(ends)} places; {machine_line(describe_machine())}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
