"""Time the suffix drafter: both backends, chain and tree, on copied, fresh and looping texts.

    python benchmarks/suffix.py                 a table
    python benchmarks/suffix.py --json          the same numbers as JSON

A seed generates the texts: words with Zipf frequencies from 8,192 tokens. In `copy`, the output repeats the prompt with
an edit about every 40 tokens; in `fresh`, it does not; `loop` repeats one single token, the worst case, where all
positions look alike. Each figure is the median over a run's calls, with the 10th and 90th percentile.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from justright.errors import MissingExtraError
from justright.speculative.suffix import BACKENDS, SuffixDrafter, SuffixOptions

VOCABULARY = 8192
KINDS = ("copy", "fresh", "loop")


@dataclass(frozen=True)
class Row:
    """One line of the table: microseconds per call, except for ``start_ms``."""

    backend: str
    mode: str
    text: str
    prompt_tokens: int
    start_ms: tuple[float, float, float]
    observe_us: tuple[float, float, float]
    propose_us: tuple[float, float, float]
    mean_nodes: float
    mean_score: float


def make_text(kind: str, prompt_tokens: int, output_tokens: int, seed: int) -> tuple[list[int], list[int]]:
    """A prompt and an output of the given kind."""
    rng = np.random.default_rng(seed)

    def words(count: int) -> NDArray[np.int64]:
        ranks: NDArray[np.int64] = rng.zipf(1.2, size=4 * count + 64)
        return ranks[ranks < VOCABULARY][:count]

    if kind == "loop":
        return [7] * prompt_tokens, [7] * output_tokens
    prompt = words(prompt_tokens)
    if kind == "fresh":
        return prompt.tolist(), words(output_tokens).tolist()
    start = int(rng.integers(0, max(1, prompt_tokens - output_tokens)))
    output = np.resize(prompt[start:], output_tokens).copy()
    edits = rng.random(output_tokens) < 1 / 40
    output[edits] = words(int(edits.sum()))
    return prompt.tolist(), output.tolist()


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    begin = time.perf_counter_ns()
    result = call()
    return (time.perf_counter_ns() - begin) / 1e3, result


def spread(values: list[float]) -> tuple[float, float, float]:
    """Median, 10th and 90th percentile."""
    low, middle, high = np.percentile(values, [10, 50, 90])
    return round(float(middle), 2), round(float(low), 2), round(float(high), 2)


def measure(options: SuffixOptions, kind: str, prompt_tokens: int, args: argparse.Namespace) -> Row:
    start_us: list[float] = []
    observe_us: list[float] = []
    propose_us: list[float] = []
    nodes: list[int] = []
    scores: list[float] = []
    drafter = SuffixDrafter(options)
    for repeat in range(args.repeats):
        prompt, output = make_text(kind, prompt_tokens, args.output_tokens, args.seed + repeat)
        start_us.append(timed(lambda: drafter.start(repeat, prompt))[0])  # noqa: B023  # called at once
        place = 0
        while place < len(output):
            micros, draft = timed(lambda: drafter.propose(repeat, args.max_nodes))  # noqa: B023
            propose_us.append(micros)
            nodes.append(len(draft))
            scores.append(draft.score)
            accepted = output[place : place + 1 + args.accepted]
            observe_us.append(timed(lambda: drafter.observe(repeat, accepted))[0])  # noqa: B023
            place += len(accepted)
        drafter.stop(repeat)
    return Row(
        backend=drafter.backend,
        mode="tree" if options.tree else "chain",
        text=kind,
        prompt_tokens=prompt_tokens,
        start_ms=spread([micros / 1e3 for micros in start_us]),
        observe_us=spread(observe_us),
        propose_us=spread(propose_us),
        mean_nodes=round(float(np.mean(nodes)), 2),
        mean_score=round(float(np.mean(scores)), 2),
    )


def parse(argv: list[str] | None) -> argparse.Namespace:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prompt-tokens", type=int, nargs="+", default=[1024, 4096, 8192])
    parser.add_argument("--output-tokens", type=int, default=256)
    parser.add_argument("--accepted", type=int, default=3, help="most draft tokens accepted per step")
    parser.add_argument("--max-nodes", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=3, help="requests per line of the table")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--backends", nargs="+", choices=BACKENDS[1:], default=BACKENDS[1:])
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    rows: list[Row] = []
    missing: list[str] = []
    for backend in args.backends:
        try:
            SuffixDrafter(SuffixOptions(backend=backend))
        except MissingExtraError as error:
            missing.append(str(error))
            continue
        for tree in (False, True):
            for kind in KINDS:
                for prompt_tokens in args.prompt_tokens:
                    options = SuffixOptions(backend=backend, tree=tree)
                    rows.append(measure(options, kind, prompt_tokens, args))
    if args.json:
        settings = {key: value for key, value in vars(args).items() if key != "json"}
        machine = {"python": platform.python_version(), "machine": platform.machine()}
        print(
            json.dumps({**settings, **machine, "missing": missing, "rows": list(map(asdict, rows))}, indent=2)
        )
        return
    print(f"{'':28}{'start ms':>20}{'observe us':>22}{'propose us':>24}{'nodes':>8}{'score':>8}")
    for row in rows:
        label = f"{row.backend:7}{row.mode:6}{row.text:6}{row.prompt_tokens:>8}"
        figures = [f"{middle} ({low}-{high})" for middle, low, high in (row.start_ms, row.observe_us)]
        middle, low, high = row.propose_us
        print(
            f"{label:28}{figures[0]:>20}{figures[1]:>22}{f'{middle} ({low}-{high})':>24}"
            f"{row.mean_nodes:>8}{row.mean_score:>8}"
        )
    for message in missing:
        print(f"skipped: {message}")


if __name__ == "__main__":
    main()
