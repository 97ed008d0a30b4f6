"""LongSpecBench: speculative decoding by context length and kind of task.

After arXiv:2510.07535, section 5. The prompts are those of `justright.bench.longset`: from the zoo's texts, a file or
WildChat. Every contender generates the same tokens (checked against transformers or the first contender).
Prefill, drafting and verification are reported separately, acceptance length is tokens per verification, and times are
medians.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from justright.bench.contenders import LOOKUP, PLAIN, TRANSFORMERS
from justright.bench.decode import (
    Cell,
    DecodeSetting,
    Results,
    check_context,
    measure,
    open_contenders,
)
from justright.bench.longset import KINDS, Prompt, build, read
from justright.bench.longtexts import counter, zoo_texts
from justright.bench.tables import speed_ratio
from justright.bench.tasks import Frame, Task, encode
from justright.checkpoint.sources import resolve
from justright.checkpoint.tokenizer import load_tokenizer
from justright.errors import ResourceError, UsageError
from justright.progress import ProgressCallback
from justright.provenance import file_sha256


@dataclass(frozen=True, slots=True)
class LongTask(Task):
    """A prompt of the set, as tokens.

    Attributes:
        id: the prompt's.
    """

    id: str = ""

    @property
    def name(self) -> str:
        """Kind, length and the prompt's id: ``summarise@4096#summarise-4096-0``."""
        return f"{self.kind}@{self.context}#{self.id}"


@dataclass(frozen=True, slots=True)
class LongPlan:
    """Settings of a measurement.

    Attributes:
        model: name, as users give it.
        decode: contenders, tokens, repeats, engine.
        prompts: a file from `justright bench longset`; None: built from the zoo's texts.
        buckets: lengths to measure; those beyond the model's context are reduced to fit, or omitted.
        kinds: of tasks.
        per_cell: prompts built per kind and length.
        seed: of the places in the texts.
    """

    model: str
    decode: DecodeSetting
    prompts: Path | None = None
    buckets: tuple[int, ...] = (1024, 2048, 4096, 8192)
    kinds: tuple[str, ...] = KINDS
    per_cell: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        unknown = [kind for kind in self.kinds if kind not in KINDS]
        if unknown or not self.kinds or not self.buckets:
            raise UsageError(
                f"kinds {', '.join(self.kinds) or 'none'}, lengths {', '.join(map(str, self.buckets)) or 'none'}; "
                f"allowed: at least one length, and kinds out of {', '.join(KINDS)}"
            )


def run_longspec(
    plan: LongPlan, file: Path | None = None, progress: ProgressCallback | None = None
) -> Results:
    """Run the measurement; results that the file already holds are not measured again.

    Raises:
        JustrightError: prompts, context or the file do not fit; checked before anything is timed.
    """
    path = resolve(plan.model).path
    identity = asdict(plan)
    for varying in ("kinds", "buckets"):  # later runs may add more of these to the file
        del identity[varying]
    for varying in ("contenders", "repeats"):
        del identity["decode"][varying]
    prompts = None if plan.prompts is None else file_sha256(plan.prompts)
    results = Results({"longspec": {**identity, "prompts": prompts}}, file)
    results.record_contenders(plan.decode.contenders)
    tokenizer = load_tokenizer(path)
    opened = open_contenders(path, plan.decode)
    context = (
        opened.engine.verifier.max_tokens
        if opened.engine is not None
        else opened.model.config.max_position_embeddings  # type: ignore[union-attr]
    )
    tasks = _tasks(plan, tokenizer, context - plan.decode.tokens)
    if not tasks:
        raise ResourceError(
            f"no prompt fits the model's context of {context} tokens with {plan.decode.tokens} output tokens; "
            "give shorter --buckets"
        )
    check_context(tasks, plan.decode.tokens, context)
    measure(opened, tasks, plan.decode, results, progress, share_prefill=True)
    return results


def left_out(plan: LongPlan, results: Results) -> list[str]:
    """``LENGTH`` or ``KIND@LENGTH`` of a plan without prompts: beyond the context, or without a long enough text."""
    there = {name.partition("#")[0] for name in results.cells}
    found = []
    for bucket in plan.buckets:
        missing = [f"{kind}@{bucket}" for kind in plan.kinds if f"{kind}@{bucket}" not in there]
        found += [str(bucket)] if len(missing) == len(plan.kinds) else missing
    return found


def _tasks(plan: LongPlan, tokenizer: Any, most: int) -> list[Task]:
    """Prompts of at most ``most`` tokens, shortest first; buckets up to a ninth longer are reduced to ``most``."""
    if plan.prompts is not None:
        prompts: Iterable[Prompt] = read(plan.prompts)
    else:
        fitting = {
            bucket if bucket <= most else most: bucket for bucket in plan.buckets if bucket * 0.9 <= most
        }
        if not fitting:
            return []
        made = build(
            zoo_texts(),
            counter(plan.model),
            buckets=tuple(fitting),
            kinds=plan.kinds,
            per_cell=plan.per_cell,
            seed=plan.seed,
        )
        prompts = [replace(p, bucket=fitting[p.bucket]) for p in made]
    found = []
    for prompt in prompts:
        if prompt.kind in plan.kinds and prompt.bucket in plan.buckets:
            frame = Frame([dict(message) for message in prompt.messages], prompt.steering)
            ids = encode(frame, tokenizer, special=True)
            if len(ids) <= most:
                found.append(
                    LongTask(prompt.kind, prompt.bucket, False, prompt.steering, tuple(ids), prompt.id)
                )
    return sorted(found, key=lambda task: task.context)


@dataclass(frozen=True, slots=True)
class Summary:
    """Results of one contender at one length (or for one kind of task).

    Attributes:
        group: the length in tokens, or the kind.
        contender: its label.
        prompts: number of prompts.
        acceptance_length: tokens per verification, over all prompts together.
        x_plain: throughput over plain decoding's, median over the prompts; None without it.
        x_plain_least: the lowest of these ratios.
        x_plain_all: plain decoding's total time for the same number of tokens of each prompt, over this contender's.
        x_transformers: throughput over that of transformers' ``generate``, median over the prompts.
        draft_ms: drafting time per verification, in milliseconds.
        verify_ms: verification time, in milliseconds.
        tokens_per_s: median over the prompts.
        prefill_s: median over the prompts.
        outputs: verdicts on the outputs.
    """

    group: str
    contender: str
    prompts: int
    acceptance_length: float
    x_plain: float | None
    x_plain_least: float | None
    x_plain_all: float | None
    x_transformers: float | None
    draft_ms: float
    verify_ms: float
    tokens_per_s: float
    prefill_s: float
    outputs: str


def summaries(results: Results, *, by: str = "length") -> list[Summary]:
    """Per length (or ``by="kind"``) and contender, lengths ascending."""
    groups: dict[str, list[dict[str, Cell]]] = {}
    for task, row in results.cells.items():
        kind, _, length = task.partition("#")[0].partition("@")
        groups.setdefault(length if by == "length" else kind, []).append(row)
    order = sorted(groups, key=lambda group: (int(group) if group.isdigit() else 0, group))
    found = []
    for group in order:
        names = dict.fromkeys(name for row in groups[group] for name in row)
        found += [_summary(group, name, [row for row in groups[group] if name in row]) for name in names]
    return found


def _summary(group: str, name: str, rows: Sequence[dict[str, Cell]]) -> Summary:
    cells = [row[name] for row in rows if row[name].runs]
    runs = [run for cell in cells for run in cell.runs]
    tokens = sum(len(run.token_ids) - run.first_tokens for run in runs)
    steps = sum(run.verifications for run in runs)
    plain = [r for row in rows if (r := speed_ratio(row[name], row.get(PLAIN))) is not None]
    pairs = [(row[name], row[PLAIN]) for row in rows if row[name].runs and PLAIN in row and row[PLAIN].runs]
    own_s, plain_s = (sum(1 / pair[i].median("tokens_per_s") for pair in pairs) for i in (0, 1))
    stock = [r for row in rows if (r := speed_ratio(row[name], row.get(TRANSFORMERS))) is not None]
    ours = name not in (TRANSFORMERS, LOOKUP)
    verdicts = sorted({cell.agreement.verdict if cell.agreement else "-" for cell in cells})
    return Summary(
        group,
        name,
        len(cells),
        tokens / max(steps, 1),
        statistics.median(plain) if plain else None,
        min(plain) if plain else None,
        plain_s / own_s if own_s else None,
        statistics.median(stock) if stock else None,
        1000 * sum(run.draft_s for run in runs) / max(steps, 1) if ours else 0.0,
        1000 * sum(run.verify_s for run in runs) / max(steps, 1) if ours else 0.0,
        statistics.median(cell.median("tokens_per_s") for cell in cells),
        statistics.median(cell.median("prefill_s") for cell in cells),
        ", ".join(verdicts),
    )


HEADER = (
    "length", "contender", "prompts", "tokens/step", "x plain", "least", "all", "x transformers", "draft ms",
    "verify ms", "tokens/s", "output",
)  # fmt: skip


def table_rows(found: Sequence[Summary]) -> list[tuple[str, ...]]:
    """Rows for `HEADER`."""

    def times(value: float | None) -> str:
        return "" if value is None else f"{value:.2f}"

    return [
        (
            one.group,
            one.contender,
            str(one.prompts),
            f"{one.acceptance_length:.2f}",
            times(one.x_plain),
            times(one.x_plain_least),
            times(one.x_plain_all),
            times(one.x_transformers),
            f"{one.draft_ms:.1f}" if one.verify_ms else "",
            f"{one.verify_ms:.1f}" if one.verify_ms else "",
            f"{one.tokens_per_s:.1f}",
            one.outputs,
        )
        for one in found
    ]


NARROW = (
    "contender", "tokens\n/step", "x\nplain", "least", "draft\nms", "verify\nms", "tokens\n/s", "output",
)  # fmt: skip


def narrow_rows(found: Sequence[Summary]) -> list[tuple[str, ...]]:
    """Rows for `NARROW`, which fit 80 columns: each group has its own line above its contenders."""
    rows: list[tuple[str, ...]] = []
    for number, (one, row) in enumerate(zip(found, table_rows(found), strict=True)):
        if number == 0 or one.group != found[number - 1].group:
            rows.append((one.group, *("" for _ in NARROW[1:])))
        name = one.contender if len(one.contender) < 20 else f"{one.contender[:8]}…{one.contender[-10:]}"
        rows.append((f"  {name}", *row[3:6], *row[8:]))
    return rows


def draw(results: Results, file: Path) -> Path:
    """Draw acceptance length and speed-up by context length, and time per verification (needs matplotlib)."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from justright.bench.tables import machine_line, steadiness_line

    found = summaries(results)
    lengths = list(dict.fromkeys(one.group for one in found))
    names = list(dict.fromkeys(one.contender for one in found))
    figure = Figure(figsize=(15, 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    left, middle, right = figure.subplots(1, 3)
    for index, name in enumerate(names):
        mine = {one.group: one for one in found if one.contender == name}
        at = [lengths.index(group) for group in mine]
        style = {"marker": "osD^vP*X"[index % 8], "label": name}
        left.plot(at, [one.acceptance_length for one in mine.values()], **style)
        if all(one.x_plain is not None for one in mine.values()):
            middle.plot(at, [one.x_plain for one in mine.values()], **style)
    for axes, title in ((left, "tokens per verification"), (middle, "speed, times plain decoding")):
        axes.set_xticks(range(len(lengths)), lengths)
        axes.set(title=title, xlabel="context (tokens)")
        axes.spines[["top", "right"]].set_visible(False)
    middle.axhline(1.0, color="0.6", linestyle=":")
    left.legend(fontsize=8)
    last = [one for one in found if one.group == lengths[-1] and one.verify_ms]
    labels = [one.contender for one in last]
    right.barh(labels, [one.verify_ms for one in last], color="#0072B2", label="verify")
    right.barh(
        labels,
        [one.draft_ms for one in last],
        left=[one.verify_ms for one in last],
        color="#E69F00",
        label="draft",
    )
    right.set(title=f"milliseconds per verification, {lengths[-1]} tokens", xlabel="ms")
    right.invert_yaxis()
    right.legend(fontsize=8)
    figure.supxlabel(
        f"{machine_line(results.machine)}\n{steadiness_line(results)}", fontsize=8, color="#595959"
    )
    figure.savefig(file, dpi=120)
    return file
