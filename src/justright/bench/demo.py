"""The main job, shown: long-context tasks decoded plainly and with drafts, the same tokens, in less time."""

from __future__ import annotations

import statistics
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from justright.bench.contenders import PLAIN
from justright.bench.decode import (
    DecodeSetting,
    Progress,
    Results,
    check_room,
    measure,
    open_contenders,
)
from justright.bench.demo_picture import need_matplotlib, save_picture
from justright.bench.tables import median_ratio
from justright.bench.tasks import build
from justright.checkpoint.sources import resolve
from justright.checkpoint.tokenizer import load_tokenizer
from justright.errors import JustrightError, UsageError

MODEL = "packaged:smollm2-135m-instruct"
TASKS = ("summarise", "quote-and-answer", "rewrite-code", "multi-turn")
RESULTS, PICTURE = "results.json", "acceptance.png"


@dataclass(frozen=True, slots=True)
class DemoSetting:
    """What the demonstration runs; the defaults take some three minutes on two cores.

    Attributes:
        model: any model.
        context: prompt tokens.
        tokens: emitted per task and contender.
        repeats: of each; the tables have medians.
        draft: the drafter's name.
        engine: further options of `EngineOptions`.
    """

    model: str = MODEL
    context: int = 2048
    tokens: int = 96
    repeats: int = 2
    draft: str = "suffix"
    engine: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Demo:
    """What came of it.

    Attributes:
        results: every run.
        speed_ratio: drafted over plain, median over the tasks.
        acceptance_length: of the drafted runs, median over the tasks.
        files: what was written.
    """

    results: Results
    speed_ratio: float
    acceptance_length: float
    files: list[Path]


def run_demo(
    setting: DemoSetting,
    out: Path,
    *,
    picture: bool = True,
    progress: Progress | None = None,
) -> Demo:
    """Run the tasks, compare the outputs, write ``results.json`` and the picture into ``out``.

    Args:
        setting: what to run.
        out: directory, made if need be.
        picture: draw it (needs matplotlib).
        progress: told before each run.

    Raises:
        MissingExtraError: the picture is wanted and matplotlib is not there; checked before the work.
        JustrightError: any of its kinds. (Outputs that differ do not raise: see `refuse_mismatches`.)
    """
    if setting.draft in ("none", PLAIN):
        raise UsageError("the demonstration compares plain decoding with a drafter: give one, such as suffix")
    if picture:
        need_matplotlib()
    out.mkdir(parents=True, exist_ok=True)
    path = resolve(setting.model).path
    tokenizer = load_tokenizer(path)
    tasks = [build(kind, tokenizer, setting.context) for kind in TASKS]
    decode = DecodeSetting((PLAIN, setting.draft), setting.tokens, setting.repeats, setting.engine)
    opened = open_contenders(path, decode)
    assert opened.engine is not None
    check_room(tasks, setting.tokens, opened.engine.verifier.max_tokens)
    results = Results({"demo": asdict(setting)})
    measure(opened, tasks, decode, results, progress)
    results.file = out / RESULTS
    results.save()
    files = [results.file]
    if picture:
        files.append(save_picture(results, setting.draft, out / PICTURE))
    ratio = median_ratio(results, setting.draft, PLAIN)
    assert ratio is not None
    lengths = [row[setting.draft].median("acceptance_length") for row in results.cells.values()]
    return Demo(results, ratio, statistics.median(lengths), files)


def refuse_mismatches(results: Results) -> None:
    """Fail if an output is wrong.

    Raises:
        JustrightError: an output differs from the reference, and not by a tie.
    """
    if results.mismatches:
        raise JustrightError(
            f"outputs differ beyond noise: {'; '.join(results.mismatches)}; please report this"
        )
