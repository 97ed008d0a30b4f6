"""Run a recipe: data, training, and the finished checkpoint."""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import PreTrainedModel

from justright.bench.decode import describe_machine
from justright.checkpoint.sources import resolve
from justright.checkpoint.tokenizer import load_tokenizer
from justright.errors import SourceError
from justright.files import cache_folder
from justright.kernels.cpu import has_bfloat16
from justright.provenance import collect
from justright_zoo.recipes.catalogue import RECIPES, Recipe
from justright_zoo.recipes.data import Corpus, prepare
from justright_zoo.recipes.training import Report, Training


@dataclass(frozen=True, slots=True)
class Estimate:
    """Estimate of a build: ``seconds`` of training on this machine without other load, ``size_bytes`` of the result."""

    parameters: int
    tokens: int
    seconds: float
    size_bytes: int

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def work_folder() -> Path:
    """Folder of downloads, prepared data and checkpoints."""
    return cache_folder() / "zoo"


def check(name: str) -> None:
    """Validate the name of a recipe.

    Raises:
        SourceError: there is no such recipe.
    """
    if name not in RECIPES:
        raise SourceError(f"there is no recipe {name!r}; allowed: {', '.join(RECIPES)}")


def estimate(name: str, work: Path) -> Estimate:
    """Time a step of a recipe on this machine; only the prepared data is kept."""
    recipe = RECIPES[name]
    corpus = _corpus(recipe, work)
    model = recipe.model()
    scratch = work / "estimate"
    training = Training(model, lambda step: recipe.batch(corpus, step), recipe.schedule, scratch, {})
    training.take_step()
    begin = time.perf_counter()
    training.take_step()
    took = time.perf_counter() - begin
    schedule = recipe.schedule
    count = sum(p.numel() for p in model.parameters())
    tokens = schedule.steps * schedule.rows * schedule.length
    return Estimate(count, tokens, took * schedule.steps, 2 * count)


def build(name: str, work: Path, out: Path, report: Report) -> Path:
    """Train or resume model ``name`` in ``work`` (its parent first), and write it to ``out``.

    Args:
        name: a key of `RECIPES`.
        work: folder of downloads, prepared data and checkpoints; kept.
        out: directory of the finished checkpoint.
        report: called after every step.

    Returns:
        ``out``.
    """
    recipe = RECIPES[name]
    corpus = _corpus(recipe, work)
    model = recipe.model()
    if recipe.parent is not None:
        parent = work / "training" / recipe.parent
        if not _finished(parent, RECIPES[recipe.parent]):
            build(recipe.parent, work, work / "models" / recipe.parent, report)
        with torch.no_grad():
            weights = load_file(parent / "weights.safetensors")
            for key, parameter in model.named_parameters():
                parameter.copy_(weights[key])
    for key, parameter in model.named_parameters():
        parameter.requires_grad_(not any(part in key for part in recipe.frozen))
    training = Training(
        model,
        lambda step: recipe.batch(corpus, step),
        recipe.schedule,
        work / "training" / name,
        recipe.fingerprint(name),
    )
    training.run(report)
    _write(name, recipe, model, corpus, training, out)
    return out


def _corpus(recipe: Recipe, work: Path) -> Corpus:
    """The recipe's tokenizer with its chat template, and the zoo's texts unless it starts from another model."""
    if recipe.base is not None:
        return Corpus(load_tokenizer(resolve(recipe.base).path), {})
    corpus = prepare(work / "data")
    corpus.tokenizer.chat_template = recipe.template
    return corpus


def _finished(folder: Path, recipe: Recipe) -> bool:
    state = folder / "state.json"
    return state.exists() and json.loads(state.read_text(encoding="utf-8"))["step"] == recipe.schedule.steps


def _write(
    name: str, recipe: Recipe, model: PreTrainedModel, corpus: Corpus, training: Training, out: Path
) -> None:
    """Write the checkpoint in bfloat16 with tokenizer, template, training curve and provenance."""
    partial = out.with_name(out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    model.config.justright_zoo = {"name": name, "parent": recipe.parent}
    if hasattr(model.config, "output_router_logits"):
        model.config.output_router_logits = False  # for training only
    model.to(torch.bfloat16).save_pretrained(partial)
    corpus.tokenizer.save_pretrained(partial)
    curve = {
        "steps_and_losses": training.curve,
        "seconds": round(training.seconds),
        "products": "bfloat16" if has_bfloat16() else "float32",
        "of": training.fingerprint,
    }
    (partial / "training.json").write_text(json.dumps(curve) + "\n", encoding="utf-8")
    provenance = collect(
        seed=recipe.seed,
        recipe=name,
        training_seconds=round(training.seconds),
        products=curve["products"],
        machine=describe_machine(),
    )
    (partial / "provenance.json").write_text(provenance.to_json(), encoding="utf-8")
    if out.exists():
        shutil.rmtree(out)
    partial.replace(out)
