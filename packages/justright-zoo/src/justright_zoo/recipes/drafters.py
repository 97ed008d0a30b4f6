"""The package's drafters: ``python -m justright_zoo.recipes drafter:NAME`` trains one."""

from __future__ import annotations

import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from justright.adapter.extract import extract
from justright.adapter.pair import Pair
from justright.adapter.ranks import RankRule
from justright.checkpoint.sources import resolve
from justright.errors import UsageError
from justright.training.pipeline import DrafterShape, Job, TrainingJob
from justright.training.self_generated import DataSetting
from justright.training.trainer import TrainSetting
from justright_zoo import DRAFTERS

_TEXTS = tuple(f"zoo:{domain}" for domain in ("fiction", "legal", "manuals", "dialogue", "python", "c"))


@dataclass(frozen=True, slots=True)
class DrafterRecipe:
    """The recipe of one drafter.

    Attributes:
        model: the verifier.
        texts: sources of prompts.
        data: amount of data.
        training: length and learning rates.
        fast: the fast model of the verifier's switch; the drafter then serves both modes.
        shipped: whether the package may contain it; results from Gemma are under Gemma's terms.
    """

    model: str
    texts: tuple[str, ...]
    data: DataSetting
    training: TrainSetting
    fast: str | None = None
    shipped: bool = True


DRAFTER_RECIPES = {
    "smollm2-135m-instruct": DrafterRecipe(
        "packaged:smollm2-135m-instruct",
        _TEXTS,
        DataSetting(sequences=2816),
        TrainSetting(epochs=2.5, spec_steps=700, evaluate_every=110),
    ),
    "gemma-3-270m": DrafterRecipe(
        "packaged:gemma-3-270m",
        _TEXTS,
        DataSetting(sequences=448, batch=32, chat=0.0),  # it has no chat template
        TrainSetting(epochs=4, spec_steps=700, evaluate_every=100),
        shipped=False,
    ),
    "slow": DrafterRecipe(
        "zoo:slow",
        ("zoo:problems",),
        DataSetting(sequences=2048, chat=1.0, prompt_tokens=160),
        TrainSetting(epochs=2, spec_steps=150),
        fast="zoo:fast",
    ),
    "slow-moe": DrafterRecipe(
        "zoo:slow-moe",
        ("zoo:problems",),
        DataSetting(sequences=1024, chat=1.0, prompt_tokens=160),
        TrainSetting(epochs=2, spec_steps=100),
    ),
    "fast": DrafterRecipe(
        "zoo:fast",
        ("zoo:problems",),
        DataSetting(sequences=1024, chat=1.0, prompt_tokens=160),
        TrainSetting(epochs=2, spec_steps=100),
    ),
    "moe": DrafterRecipe(
        "zoo:moe", ("zoo",), DataSetting(sequences=1024), TrainSetting(epochs=3, spec_steps=100)
    ),
    "dense": DrafterRecipe(
        "zoo:dense", ("zoo",), DataSetting(sequences=1024), TrainSetting(epochs=3, spec_steps=100)
    ),
}


def build_drafter(name: str, work: Path, *, release: bool = False) -> Path:
    """Train or resume drafter ``name`` in ``work``; with ``release`` add it to the package."""
    recipe = DRAFTER_RECIPES[name]
    if release and not recipe.shipped:
        raise UsageError(f"the drafter {name} may not be in the package; omit --release")
    folder = work / "drafters"
    folder.mkdir(parents=True, exist_ok=True)
    switch = None if recipe.fast is None else _switch(recipe, folder / f"{name}-switch")
    out = folder / name
    job = Job(
        resolve(recipe.model).path,
        out,
        recipe.texts,
        DrafterShape(),
        recipe.data,
        recipe.training,
        None if switch is None else str(switch),
        folder / f"{name}-data",
    )

    def report(stage: str, done: int, total: int, detail: str) -> None:
        if stage == "data" or "acceptance" in detail or done % 20 == 0:
            print(f"{stage} {done}/{total} {detail}", file=sys.stderr, flush=True)

    if not out.exists():
        TrainingJob(job).run(report)
    if release:
        target = DRAFTERS / name
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(out, target)
        return target
    return out


def _switch(recipe: DrafterRecipe, folder: Path) -> Path:
    if not folder.exists():
        pair = Pair(resolve(recipe.model).path, resolve(str(recipe.fast)).path)
        extract(pair, folder, RankRule("energy", 1.0))
    return folder
