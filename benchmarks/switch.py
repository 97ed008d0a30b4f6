"""Measure accuracy against tokens for every method of choosing between slow and fast mode.

    python benchmarks/switch.py --results switch.jsonl              resumes after an interruption; prints the tables
    python benchmarks/switch.py --results switch.jsonl --tables-only --picture docs/switch.png
    python benchmarks/switch.py --results switch.jsonl --again budget       reruns only the methods of this name

The engine answers held-out problems of eight levels and two kinds greedily, with zoo:slow and zoo:fast (or another pair
that can answer the zoo's problems, such as smollm2-slow and smollm2-fast, which `justright zoo build` trains from the
packaged model in hours). The probe of `auto` and the threshold of `escalate` are calibrated on other problems (the last
60 of each kind and level; the first ones are measured). Methods: always slow; always fast (the fast model itself); the
hard switch at shares tau of the energy; soft adapter scales; interpolation of all weights; the template alone (no
reasoning, no switch); reasoning budgets; routers (random, heuristic, oracle, the probe); and two models under the same
router.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from justright.adapter.extract import extract
from justright.adapter.pair import Pair
from justright.adapter.ranks import RankRule
from justright.bench.decode import describe_machine
from justright.bench.tables import machine_line, markdown_table
from justright.checkpoint.sources import resolve
from justright.engine.chat_modes import Reasoning
from justright.engine.llm import LLM
from justright.errors import UsageError
from justright.evaluate.both_modes import collect, is_right, read_questions
from justright.reasoning.budget import ThinkingTags
from justright.reasoning.scorers import Probe
from justright.reasoning.thresholds import fit_probe
from justright.records import read_rows

KINDS = ("chain", "story")
LEVELS = (1, 2, 3, 4, 5, 6, 7, 8)
TAUS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
FACTORS = (0.2, 0.4, 0.5, 0.6, 0.8)
SOFT_TAU = 0.5
USED_TAU = 0.9
BUDGETS = (25, 50, 100, 200, 400)
FLOORS = (0.5, 0.6, 0.7, 0.8, 0.9)
CALIBRATED_FLOOR = 0.9
MAX_TOKENS = 1024
SLOTS = 16


@dataclass(frozen=True)
class Cell:
    """The results of one method: per problem, whether it is right, its tokens, and whether the model reasoned."""

    way: str
    value: float | None
    right: list[bool]
    tokens: list[int]
    slow: list[bool]
    machine: str

    @property
    def key(self) -> tuple[str, float | None]:
        """Identifies the cell."""
        return self.way, self.value

    @property
    def accuracy(self) -> float:
        """Share of right answers over all problems."""
        return sum(self.right) / len(self.right)

    @property
    def mean_tokens(self) -> float:
        """Mean tokens per problem."""
        return sum(self.tokens) / len(self.tokens)


@dataclass(frozen=True)
class Way:
    """A method: the engine (the slow model with an adapter of ``tau``, or none; or the fast model), and the request."""

    way: str
    value: float | None
    thinking: Reasoning
    tau: float | None = USED_TAU
    model: str = "slow"


def ways() -> Iterator[Way]:
    """All methods that need a run; other routers are computed from their results."""
    yield Way("slow", None, Reasoning(), None)
    yield Way("fast model", None, Reasoning(), None, "fast")
    for tau in TAUS:
        yield Way("hard switch, tau", tau, Reasoning("none"), tau)
    yield Way("template alone", None, Reasoning("none"), None)
    for factor in FACTORS:
        yield Way("interpolation, factor", factor, Reasoning(factor=factor), 1.0)
        yield Way(f"soft switch of tau {SOFT_TAU}, factor", factor, Reasoning(factor=factor), SOFT_TAU)
    for budget in BUDGETS:
        yield Way("budget, tokens", budget, Reasoning(budget=budget), None)
        begun = Reasoning(budget=budget, closing="\n</think>\nThe answer is")
        yield Way("budget, answer begun, tokens", budget, begun, None)
    yield Way("heuristic", None, Reasoning("auto", scorer="heuristic"))
    for floor in FLOORS:
        yield Way("auto, floor", floor, Reasoning("auto"))
        yield Way("escalate, floor", floor, Reasoning("escalate"))


class Engines:
    """Loads each engine once; adapters of all taus come from one decomposition."""

    def __init__(self, folder: Path, pair: tuple[str, str]) -> None:
        self.folder, self.pair = folder, pair
        self._key: tuple[str, float | None] | None = None
        self._engine: LLM | None = None
        self._probes: dict[float, Probe] = {}

    def adapter(self, tau: float) -> Path:
        """The switch at ``tau``, with exact small tensors."""
        path = self.folder / f"tau-{tau}"
        if not path.exists():
            slow, fast = (resolve(name).path for name in self.pair)
            extract(Pair(slow, fast), path, RankRule("energy", tau), spectra=self.folder / "spectra")
        return path

    def load(self, model: str, tau: float | None) -> LLM:
        """The slow model with the switch at ``tau``, or the fast model."""
        if self._key != (model, tau):
            name = self.pair[0] if model == "slow" else self.pair[1]
            switch = None if tau is None else str(self.adapter(tau))
            self._engine = LLM(name, slots=SLOTS, switch=switch)
            self._key = (model, tau)
            if self._engine.modes is not None and self._engine.modes.tags is None:
                self._engine.modes.tags = ThinkingTags()  # the fine-tune's base model had no reasoning tags
        assert self._engine is not None
        return self._engine

    def thresholds(self, floor: float, problems: list[str]) -> Probe:
        """The probe calibrated for a floor; both modes answer the problems once, for all floors."""
        if floor not in self._probes:
            engine = self.load("slow", USED_TAU)
            kept = self.folder / "outcomes"
            outcomes = collect(engine, read_questions(problems), kept, max_tokens=MAX_TOKENS)
            self._probes[floor] = fit_probe(outcomes, floor)
            if floor == CALIBRATED_FLOOR:
                self._probes[floor].save(self.adapter(USED_TAU))
        return self._probes[floor]


def problems(count: int) -> list[tuple[str, int, str, str]]:
    """``(kind, level, question, answer)``: the first ``count`` of each kind and level."""
    from justright_zoo.measure import evaluation_problems

    return [
        (kind, level, p.question, str(p.answer))
        for kind in KINDS
        for level in LEVELS
        for p in evaluation_problems(kind, level, count)  # type: ignore[arg-type]
    ]


def run(way: Way, engines: Engines, count: int) -> Cell:
    """Answer all problems with one method."""
    thinking = way.thinking
    if thinking.effort in ("auto", "escalate") and way.value is not None:
        probe = engines.thresholds(way.value, ["zoo"])
        engines.thresholds(CALIBRATED_FLOOR, ["zoo"])  # the probe itself is the same at all floors
        threshold = probe.threshold if thinking.effort == "auto" else probe.about["escalate"]["threshold"]
        thinking = Reasoning(thinking.effort, threshold=threshold)
    engine = engines.load(way.model, way.tau)
    asked = problems(count)
    requests = [
        engine.conversation([{"role": "user", "content": q}], thinking=thinking, max_tokens=MAX_TOKENS)
        for _, _, q, _ in asked
    ]
    engine.generate_requests(requests)
    tags = engine.modes.tags if engine.modes is not None else None
    return Cell(
        way.way,
        way.value,
        [is_right(r.text, answer, tags) for r, (_, _, _, answer) in zip(requests, asked, strict=True)],
        [len(r.token_ids) + r.stats.discarded_tokens for r in requests],
        [r.stats.reasoning_tokens > 0 for r in requests],
        machine_line(describe_machine()),
    )


def routed(name: str, value: float | None, choose: Callable[[int], bool], slow: Cell, fast: Cell) -> Cell:
    """Result of a router that takes ``slow``'s answer where ``choose`` is true, and ``fast``'s elsewhere."""
    picks = [choose(i) for i in range(len(slow.right))]
    sides = [slow if pick else fast for pick in picks]
    return Cell(
        name,
        value,
        [side.right[i] for i, side in enumerate(sides)],
        [side.tokens[i] for i, side in enumerate(sides)],
        picks,
        slow.machine,
    )


def computed(cells: dict[tuple[str, float | None], Cell]) -> list[Cell]:
    """Routers whose answers follow from the runs: the oracle, and two models under the probe."""
    slow, fast = cells["slow", None], cells["hard switch, tau", USED_TAU]
    found = [routed("oracle", None, lambda i: slow.right[i] and not fast.right[i], slow, fast)]
    for floor in FLOORS:
        auto = cells.get(("auto, floor", floor))
        if auto is not None:
            other = cells["fast model", None]
            found.append(routed("two models, floor", floor, lambda i, a=auto: a.slow[i], slow, other))  # type: ignore[misc]
    return found


def random_router(share: float, slow: Cell, fast: Cell) -> tuple[float, float]:
    """Exact expected ``(accuracy, tokens)`` of a router that chooses slow mode with probability ``share``."""
    accuracy = share * slow.accuracy + (1 - share) * fast.accuracy
    return accuracy, share * slow.mean_tokens + (1 - share) * fast.mean_tokens


def overall(cells: dict[tuple[str, float | None], Cell]) -> str:
    """The table of all methods."""
    from justright_zoo.measure import wilson

    slow, fast = cells["slow", None], cells["hard switch, tau", USED_TAU]
    rows = []
    for cell in [*cells.values(), *computed(cells)]:
        low, high = wilson(sum(cell.right), len(cell.right))
        name = cell.way if cell.value is None else f"{cell.way} {cell.value:g}"
        baseline = _random_accuracy_at(cell.mean_tokens, slow, fast)
        rows.append(
            (
                name,
                f"{cell.accuracy:.1%}",
                f"{low:.0%} to {high:.0%}",
                f"{cell.mean_tokens:.0f}",
                f"{slow.mean_tokens / cell.mean_tokens:.1f}",
                f"{sum(cell.slow) / len(cell.slow):.0%}",
                "" if baseline is None else f"{100 * (cell.accuracy - baseline):+.0f}",
            )
        )
    for share in (0.25, 0.5, 0.75):
        accuracy, tokens = random_router(share, slow, fast)
        fewer = f"{slow.mean_tokens / tokens:.1f}"
        name = f"random router {share:g}"
        rows.append((name, f"{accuracy:.1%}", "", f"{tokens:.0f}", fewer, f"{share:.0%}", "+0"))
    header = (
        "method",
        "right",
        "95%",
        "tokens",
        "times fewer",
        "with reasoning",
        "points over a random router of equal tokens",
    )
    return str(markdown_table(header, rows))


def _random_accuracy_at(tokens: float, slow: Cell, fast: Cell) -> float | None:
    """Accuracy of the random router that uses ``tokens`` tokens; None outside its range."""
    share = (tokens - fast.mean_tokens) / (slow.mean_tokens - fast.mean_tokens)
    return random_router(share, slow, fast)[0] if -0.01 <= share <= 1.01 else None


def by_level(cells: dict[tuple[str, float | None], Cell], count: int) -> str:
    """The table of right answers (with intervals) and tokens by difficulty, for the main methods."""
    from justright_zoo.measure import wilson

    wanted: list[tuple[str, float | None]] = [
        ("slow", None),
        ("fast model", None),
        ("hard switch, tau", USED_TAU),
    ]
    wanted += [("budget, tokens", 100), ("budget, answer begun, tokens", 100)]
    wanted += [("auto, floor", 0.8), ("escalate, floor", 0.8)]
    levels = [level for _ in KINDS for level in LEVELS for _ in range(count)]
    rows = []
    for key in wanted:
        cell = cells.get(key)
        if cell is None:
            continue
        row = [key[0] if key[1] is None else f"{key[0]} {key[1]:g}"]
        for level in LEVELS:
            mine = [i for i, one in enumerate(levels) if one == level]
            right = sum(cell.right[i] for i in mine)
            low, high = wilson(right, len(mine))
            tokens = sum(cell.tokens[i] for i in mine) / len(mine)
            row.append(f"{right / len(mine):.0%} ({low:.0%} to {high:.0%}), {tokens:.0f}")
        rows.append(tuple(row))
    return str(markdown_table(("right (95%), tokens at level", *map(str, LEVELS)), rows))


STYLES = {
    "slow": ("k", "s"), "fast model": ("k", "D"), "hard switch, tau": ("C0", "o"), "template alone": ("C7", "X"),
    "interpolation, factor": ("C1", "^"), f"soft switch of tau {SOFT_TAU}, factor": ("C8", "v"),
    "budget, tokens": ("C3", "<"),
    "budget, answer begun, tokens": ("darkred", "p"),
    "auto, floor": ("C2", "o"),
    "escalate, floor": ("C4", "P"), "two models, floor": ("C5", "d"), "heuristic": ("C6", "h"), "oracle": ("gold", "*"),
}  # fmt: skip


def picture(cells: dict[tuple[str, float | None], Cell], file: Path) -> None:
    """Plot accuracy against tokens; needs matplotlib."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    everything = [*cells.values(), *computed(cells)]
    for way, (color, marker) in STYLES.items():
        mine = sorted((c for c in everything if c.way == way), key=lambda c: c.value or 0)
        if mine:
            axes.plot(
                [c.mean_tokens for c in mine], [100 * c.accuracy for c in mine], color=color, marker=marker,
                markersize=6, linewidth=1 if len(mine) > 1 else 0, label=way.removesuffix(", floor"),
            )  # fmt: skip
    slow, fast = cells["slow", None], cells["hard switch, tau", USED_TAU]
    axes.plot(
        [fast.mean_tokens, slow.mean_tokens], [100 * fast.accuracy, 100 * slow.accuracy], ":", color="0.5",
        label="random router",
    )  # fmt: skip
    axes.set_xlabel("mean tokens per answer, reasoning included")
    axes.set_ylabel("right answers, %")
    axes.set_ylim(0, 101)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="lower right")
    figure.savefig(file, dpi=110)


def read(file: Path) -> dict[tuple[str, float | None], Cell]:
    """Read the cells of a results file; of repeated cells, the last counts."""
    if not file.exists():
        return {}
    found = [Cell(**row) for _, row in read_rows(file)]
    return {cell.key: cell for cell in found}


def main() -> int:
    """Run the missing methods, then print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--results", type=Path, required=True, help="JSON lines file that collects the results"
    )
    parser.add_argument("--count", type=int, default=25, help="problems of each kind and level (at most 140)")
    parser.add_argument("--slow", default="zoo:slow", help="the reasoning model")
    parser.add_argument("--fast", default="zoo:fast", help="the model that it was trained from")
    parser.add_argument("--tables-only", action="store_true")
    parser.add_argument("--again", metavar="NAME", help="rerun only the methods whose name starts with this")
    parser.add_argument("--picture", type=Path)
    chosen = parser.parse_args()
    cells = read(chosen.results)
    if not chosen.tables_only:
        with tempfile.TemporaryDirectory() as folder:
            engines = Engines(Path(folder), (chosen.slow, chosen.fast))
            for way in ways():
                done = (way.way, way.value) in cells
                if done if chosen.again is None else not way.way.startswith(chosen.again):
                    continue
                try:
                    cell = run(way, engines, chosen.count)
                except UsageError as error:  # no off switch in the template, a floor out of reach
                    print(f"{way.way} {way.value or ''} is skipped: {error}", file=sys.stderr)
                    continue
                with chosen.results.open("a", encoding="utf-8") as out:
                    out.write(json.dumps(asdict(cell)) + "\n")
                cells[cell.key] = cell
                print(
                    f"{way.way} {way.value or ''}: {cell.accuracy:.1%}, {cell.mean_tokens:.0f} tokens",
                    file=sys.stderr,
                )
    if not {("slow", None), ("hard switch, tau", USED_TAU)} <= cells.keys():
        print(
            "no tables: the file lacks slow or the hard switch, the baselines of the tables", file=sys.stderr
        )
        return 0
    print(f"{next(iter(cells.values())).machine}\n\n{overall(cells)}\n\n{by_level(cells, chosen.count)}")
    if chosen.picture is not None:
        picture(cells, chosen.picture)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
