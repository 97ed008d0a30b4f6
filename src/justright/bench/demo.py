"""The demonstration: long-context tasks decoded plainly and with drafts; the same tokens in less time."""

from __future__ import annotations

import statistics
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from justright.bench.contenders import PLAIN
from justright.bench.decode import (
    DecodeSetting,
    Results,
    check_context,
    measure,
    open_contenders,
)
from justright.bench.demo_picture import need_matplotlib, save_picture
from justright.bench.tables import median_ratio
from justright.bench.tasks import build
from justright.checkpoint.sources import resolve
from justright.checkpoint.tokenizer import load_tokenizer
from justright.errors import JustrightError, UsageError
from justright.progress import ProgressCallback

MODEL = "packaged:smollm2-135m-instruct"
TASKS = ("summarise", "quote-and-answer", "rewrite-code", "multi-turn")
RESULTS, PICTURE = "results.json", "acceptance.png"


@dataclass(frozen=True, slots=True)
class DemoSetting:
    """Settings of the demonstration; the defaults take some three minutes on two cores.

    Attributes:
        model: any model.
        context: prompt tokens.
        tokens: generated per task and contender.
        repeats: runs per task and contender; the tables show medians.
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
    """Result of the demonstration.

    Attributes:
        results: every run.
        speed_ratio: drafted over plain, median over the tasks.
        acceptance_length: of the drafted runs, median over the tasks.
        files: written files.
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
    progress: ProgressCallback | None = None,
) -> Demo:
    """Run the tasks, compare the outputs, write ``results.json`` and the picture into ``out``.

    Args:
        setting: settings.
        out: directory, created if missing.
        picture: draw the picture (needs matplotlib).
        progress: called before each run.

    Raises:
        MissingExtraError: the picture is requested without matplotlib; checked before the work.
        JustrightError: the model cannot be run. Differing outputs do not raise, see `refuse_mismatches`.
    """
    if setting.draft in ("none", PLAIN):
        raise UsageError(f"the drafter is {setting.draft!r}; the demonstration needs one, such as suffix")
    if picture:
        need_matplotlib()
    out.mkdir(parents=True, exist_ok=True)
    path = resolve(setting.model).path
    tokenizer = load_tokenizer(path)
    tasks = [build(kind, tokenizer, setting.context) for kind in TASKS]
    decode = DecodeSetting((PLAIN, setting.draft), setting.tokens, setting.repeats, setting.engine)
    opened = open_contenders(path, decode)
    assert opened.engine is not None
    check_context(tasks, setting.tokens, opened.engine.verifier.max_tokens)
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
    """Raise if an output is wrong.

    Raises:
        JustrightError: an output differs from the reference by more than a tie.
    """
    if results.mismatches:
        raise JustrightError(
            f"outputs differ by more than noise: {'; '.join(results.mismatches)}. Please report this"
        )
