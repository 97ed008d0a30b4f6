"""Measure the quality that pruning costs, by method and sparsity.

    python benchmarks/prune.py --results quality.jsonl              resumes after an interruption; prints the tables
    python benchmarks/prune.py --results quality.jsonl --tables-only --picture docs/prune.png

It prunes zoo:moe with calibration data that no evaluation contains: by STUN with several shares of experts (the same
number in every layer, or uneven), by single weights alone, by experts alone (STUN, REAP, frequency, output norm,
random), and in the reverse order (single weights first). Each method runs with several seeds of the calibration
windows. Measured are right answers on held-out word problems of four levels, perplexity on six domains, and the
kurtosis of the weights.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from justright.bench.decode import describe_machine
from justright.bench.tables import machine_line, markdown_table
from justright.checkpoint.sources import resolve
from justright.prune.outcome import Pruned
from justright.prune.pipeline import Pruning
from justright.prune.settings import Settings
from justright.records import read_rows

SPARSITIES = (0.2, 0.4, 0.5, 0.65)
SHARES = (0.125, 0.25, 0.375, 0.5)
EXPERT_CRITERIA = ("stun", "reap", "frequency", "output_norm", "random")
LEVELS = (1, 2, 3, 4)
WEIGHTS_FIRST_SHARE = 0.125


@dataclass(frozen=True)
class Method:
    """A row of the table: the settings that reach one sparsity."""

    name: str
    settings: dict[str, Any]
    weights_first: bool = False


@dataclass(frozen=True)
class Cell:
    """The measurements of one pruned model."""

    method: str
    sparsity: float
    seed: int
    reached: float
    experts: int
    correct: list[int]
    problems: int
    perplexity: dict[str, float]
    kurtosis: list[float | None] = field(default_factory=list)
    machine: str = ""

    @property
    def key(self) -> tuple[str, float, int]:
        return (self.method, self.sparsity, self.seed)

    @property
    def accuracy(self) -> float:
        """Share of right answers over all levels."""
        return sum(self.correct) / (self.problems * len(self.correct))

    @property
    def mean_perplexity(self) -> float:
        """Geometric mean over the domains."""
        return math.exp(statistics.fmean(map(math.log, self.perplexity.values())))


def methods(sparsity: float) -> Iterator[Method]:
    """All methods that reach ``sparsity``, without expert shares that exceed it."""
    for share in SHARES:
        if share < sparsity:
            yield Method(f"STUN, {share:.1%} of the experts, then Wanda", {"expert_sparsity": share})
    for share in SHARES[:2]:
        if share < sparsity:
            name = f"STUN uneven, {share:.1%} of the experts, then Wanda"
            yield Method(name, {"expert_sparsity": share, "uneven": True})
    yield Method("REAP, 12.5% of the experts, then Wanda", {"expert_sparsity": 0.125, "criterion": "reap"})
    yield Method("Wanda", {"expert_sparsity": 0.0})
    yield Method("Wanda, outlier-weighed", {"expert_sparsity": 0.0, "ratios": "outlier_weighed"})
    for criterion in EXPERT_CRITERIA:
        name = "STUN" if criterion == "stun" else "REAP" if criterion == "reap" else criterion
        yield Method(f"experts only, {name}", {"weights": "none", "criterion": criterion})
    yield Method("Wanda, then STUN, 12.5% of the experts", {"expert_sparsity": 0.125}, weights_first=True)


def prune(
    model: Path, folder: Path, method: Method, base: Settings, stats: Path
) -> tuple[Path, Pruned, list[float | None]]:
    """Return the pruned checkpoint, the result of the last run, and the kurtosis before, between and after stages."""
    settings = replace(base, **method.settings)
    if not method.weights_first:
        out = folder / "out"
        pruning = Pruning(model, settings, rows=4)
        if pruning.takes_statistics:
            pruning = Pruning(model, settings, rows=4, statistics=stats)
        done = pruning.run(out)
        return out, done, list(done.kurtosis)
    second = Pruning(model, settings, rows=4).sizes.second
    first = Pruning(model, replace(base, sparsity=second, expert_sparsity=0.0), rows=4).run(
        folder / "weights"
    )
    experts = replace(base, weights="none", expert_sparsity=settings.expert_sparsity)
    done = Pruning(folder / "weights", experts, rows=4).run(folder / "out")
    sizes = done.sizes
    gone = 1 - (1 - first.sparsity) * (1 - sizes.removed / sizes.prunable)
    return (
        folder / "out",
        replace(done, sparsity=gone),
        [first.kurtosis[0], first.kurtosis[2], done.kurtosis[2]],
    )


def measure(model: Path, problems: int) -> tuple[list[int], dict[str, float]]:
    """Right answers by level, perplexity by domain."""
    from justright.engine.llm import LLM
    from justright_zoo.cards import perplexities
    from justright_zoo.measure import score

    engine = LLM(str(model), slots=64, dtype="float32")
    scores = score(engine, [("story", level) for level in LEVELS], problems, max_tokens=96)
    return [s.correct for s in scores], perplexities(engine)


def quality(options: argparse.Namespace) -> list[Cell]:
    """Measure all cells that ``--results`` lacks; return all."""
    file: Path = options.results
    found = [Cell(**row) for _, row in read_rows(file)] if file.exists() else []
    if options.tables_only:
        return found
    done, machine = {cell.key for cell in found}, machine_line(describe_machine())
    model = resolve(options.model).path
    jobs: list[tuple[Method, float, int]] = [(Method("unpruned", {}), 0.0, 0)]
    jobs += [(m, s, seed) for seed in range(options.seeds) for s in options.sparsities for m in methods(s)]
    with tempfile.TemporaryDirectory() as work, file.open("a") as out:
        for number, (method, sparsity, seed) in enumerate(jobs, 1):
            if (method.name, sparsity, seed) in done:
                continue
            print(
                f"{number}/{len(jobs)} {sparsity:.0%} {method.name}, seed {seed}", file=sys.stderr, flush=True
            )
            base = Settings(sparsity=sparsity, calibration=("zoo",), sequences=options.sequences,
                            length=options.length, seed=seed)  # fmt: skip
            with tempfile.TemporaryDirectory(dir=work) as folder:
                path, reached, experts, kurtosis = model, 0.0, 16, list[float | None]()
                if method.settings:
                    path, pruned, kurtosis = prune(
                        model, Path(folder), method, base, Path(work) / f"stats-{seed}"
                    )
                    reached, experts = pruned.sparsity, pruned.plan.kept
                correct, perplexity = measure(path, options.problems)
            cell = Cell(method.name, sparsity, seed, reached, experts, correct, options.problems, perplexity, kurtosis,
                        machine)  # fmt: skip
            out.write(json.dumps(asdict(cell)) + "\n")
            out.flush()
            found.append(cell)
    return found


def grouped(cells: list[Cell]) -> dict[tuple[float, str], list[Cell]]:
    """Group cells by sparsity and method, in the order of the methods."""
    groups: dict[tuple[float, str], list[Cell]] = defaultdict(list)
    for cell in cells:
        groups[cell.sparsity, cell.method].append(cell)
    return dict(sorted(groups.items(), key=lambda item: item[0][0]))


def spread(values: list[float], digits: int = 0, scale: float = 1.0) -> str:
    """``mean +- standard deviation`` over the seeds."""
    mean = f"{statistics.fmean(values) * scale:.{digits}f}"
    return mean if len(values) < 2 else f"{mean} ± {statistics.stdev(values) * scale:.{digits}f}"


def quality_tables(cells: list[Cell]) -> str:
    """Markdown: one table per sparsity, with each figure's mean and standard deviation over the seeds."""
    domains = list(cells[0].perplexity)
    text = []
    for sparsity in sorted({cell.sparsity for cell in cells}):
        body = []
        for (_, name), group in grouped([c for c in cells if c.sparsity == sparsity]).items():
            body.append([
                name, str(group[0].experts), spread([c.reached for c in group], 1, 100),
                spread([c.accuracy for c in group], 0, 100),
                spread([c.correct[-1] / c.problems for c in group], 0, 100),
                spread([c.mean_perplexity for c in group], 1),
                *(spread([c.perplexity[d] for c in group], 1) for d in domains),
                " / ".join(f"{v:.2f}" for v in group[0].kurtosis if v is not None),
            ])  # fmt: skip
        header = [
            "method",
            "experts kept",
            "removed, %",
            "right, %",
            "level 4, %",
            "perplexity",
            *domains,
            "kurtosis",
        ]
        text.append(f"### {sparsity:.0%}\n\n{markdown_table(header, body)}")
    return "\n".join(text)


def summary_table(cells: list[Cell]) -> str:
    """Markdown: one row per method, with right answers (%) and perplexity at every sparsity."""
    groups = grouped(cells)
    sparsities = sorted({cell.sparsity for cell in cells} - {0.0})
    names = dict.fromkeys(name for sparsity, name in groups if sparsity)

    def text(group: list[Cell]) -> str:
        right, perplexity = ([c.accuracy for c in group], [c.mean_perplexity for c in group])
        return f"{spread(right, 0, 100)}; {spread(perplexity, 1)}" if group else ""

    body = [[name, *(text(groups.get((s, name), [])) for s in sparsities)] for name in names]
    return markdown_table(["right, %; perplexity", *(f"{s:.0%}" for s in sparsities)], body)


def draw(cells: list[Cell], file: Path) -> None:
    """Plot accuracy and perplexity against the removed share, one line per method."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    lines: dict[str, list[tuple[float, list[Cell]]]] = defaultdict(list)
    unpruned = next((c for c in cells if not c.sparsity), None)
    for (sparsity, name), group in grouped(cells).items():
        if sparsity:
            lines[name].append((statistics.fmean(c.reached for c in group), group))
    figure = Figure(figsize=(12, 5.2), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    styles = ("-", "--", ":", "-.")
    for number, (name, points) in enumerate(lines.items()):
        for axes, value in ((left, lambda c: 100 * c.accuracy), (right, lambda c: c.mean_perplexity)):
            means = [statistics.fmean(map(value, group)) for _, group in points]
            errors = [statistics.stdev(map(value, group)) if len(group) > 1 else 0.0 for _, group in points]
            axes.errorbar([100 * x for x, _ in points], means, errors, marker="o", markersize=3.5, capsize=2,
                          linewidth=1.3, linestyle=styles[number // 10], label=name)  # fmt: skip
    for axes, title in ((left, "right answers, %"), (right, "perplexity (geometric mean of six domains)")):
        axes.set_title(title, loc="left")
        axes.set_xlabel("removed share of the prunable parameters, %")
        axes.spines[["top", "right"]].set_visible(False)
    if unpruned is not None:
        left.axhline(100 * unpruned.accuracy, color="#595959", linewidth=0.8)
        right.axhline(unpruned.mean_perplexity, color="#595959", linewidth=0.8)
    right.set_yscale("log")
    right.set_yticks([30, 40, 50, 60, 80], ["30", "40", "50", "60", "80"])
    right.minorticks_off()
    handles, labels = left.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=8, frameon=False)
    figure.savefig(file, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--results", type=Path, required=True, help="JSON lines file, one line per pruned model"
    )
    parser.add_argument("--model", default="zoo:moe")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--sparsities", type=float, nargs="+", default=SPARSITIES)
    parser.add_argument("--problems", type=int, default=50, help="problems per level")
    parser.add_argument("--sequences", type=int, default=112)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--tables-only", action="store_true", help="print the tables without measuring")
    parser.add_argument("--picture", type=Path)
    options = parser.parse_args()
    cells = quality(options)
    print(f"{summary_table(cells)}\n{quality_tables(cells)}")
    print("\n".join(sorted({cell.machine for cell in cells})))
    if options.picture:
        draw(cells, options.picture)


if __name__ == "__main__":
    main()
