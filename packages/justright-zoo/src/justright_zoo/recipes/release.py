"""Add a built model to the package: measure it, and write its card, its plots and its hashes."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

from justright.bench.decode import describe_machine
from justright.bench.tables import machine_line
from justright.provenance import file_sha256
from justright_zoo import MANIFEST, MODELS, manifest
from justright_zoo.cards import CARD, measure_model, tables
from justright_zoo.recipes.catalogue import RECIPES
from justright_zoo.recipes.texts import DOMAINS

PROBLEMS = 50


def release(name: str, built: Path) -> Path:
    """Measure the checkpoint ``built`` and add it to the package as ``name``; returns its folder there."""
    recipe = RECIPES[name]
    partial = MODELS / f"{name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(built, partial)
    moe = hasattr(recipe.config(), "num_experts")
    picture = partial / "routing.png" if moe else None
    measured = measure_model(
        name, PROBLEMS, picture, folder=partial, say=lambda text: print(text, file=sys.stderr)
    )
    measured["command"] = f"justright zoo measure {name} --problems {PROBLEMS}"
    measured["machine"] = machine_line(describe_machine())
    (partial / CARD).write_text(json.dumps(measured, indent=1) + "\n", encoding="utf-8")
    curve = json.loads((partial / "training.json").read_text(encoding="utf-8"))
    save_curve(curve["steps_and_losses"], partial / "training.png")
    shutil.copy(MODELS.parent / "LICENSE", partial / "LICENSE")
    (partial / "README.md").write_text(card_text(name, measured, curve), encoding="utf-8")
    files = {file.name: file_sha256(file) for file in sorted(partial.iterdir())}
    folder = MODELS / name
    shutil.rmtree(folder, ignore_errors=True)
    partial.replace(folder)
    origin = _origin(recipe.parent)
    entries = manifest() | {name: {"description": recipe.description, "origin": origin, "files": files}}
    ordered = {key: entries[key] for key in RECIPES if key in entries}
    MANIFEST.write_text(json.dumps(ordered, indent=1) + "\n", encoding="utf-8")
    manifest.cache_clear()
    return folder


def _origin(parent: str | None) -> str:
    if parent is None:
        return "random weights"
    return f"zoo:{parent}" if RECIPES[parent].shipped else f"zoo:{parent} (build it: it is not shipped)"


def save_curve(steps_and_losses: list[tuple[int, float]], file: Path) -> None:
    """Draw a training curve: the recorded losses, and their running mean over twenty. Needs matplotlib."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    steps = [step for step, _ in steps_and_losses]
    losses = [loss for _, loss in steps_and_losses]
    means = [sum(losses[max(0, i - 19) : i + 1]) / min(20, i + 1) for i in range(len(losses))]
    figure = Figure(figsize=(6, 3), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.plot(steps, losses, color="#9ecae1", linewidth=0.7, label="a step's loss")
    axes.plot(steps, means, color="#08519c", label="mean of 20")
    axes.set_xlabel("step")
    axes.set_ylabel("loss (nats a learned token)")
    axes.set_yscale("log")
    axes.legend()
    figure.savefig(file, dpi=80)


def card_text(name: str, measured: dict[str, Any], training: dict[str, Any]) -> str:
    """The model card in Markdown, with the hub's header."""
    recipe = RECIPES[name]
    schedule = recipe.schedule
    header = "---\nlicense: apache-2.0\nlibrary_name: transformers\npipeline_tag: text-generation\n---\n"
    steps = training["steps_and_losses"]
    lines = [
        header,
        f"# justright zoo: {name}\n",
        f"{recipe.description[0].upper()}{recipe.description[1:]}.\n",
        f"Made for the development and the tests of justright; of no use as an assistant. Made from "
        f"{_origin(recipe.parent)}.\n",
        "## Training\n",
        f"`justright zoo build {name}`: {schedule.steps} steps of {schedule.rows} x {schedule.length} tokens "
        f"({schedule.steps * schedule.rows * schedule.length / 1e6:.1f}M), "
        f"{'Muon and AdamW' if schedule.muon else 'AdamW'}, peak rate {schedule.rate}, seed "
        f"{recipe.seed}, float32 weights, products in {training['products']}, {training['seconds'] / 60:.0f} minutes "
        "on the machine of `provenance.json`, one thread, another training beside it. "
        f"Loss from {steps[0][1]:.2f} to {steps[-1][1]:.2f}; each step's is in `training.json`.\n",
        "![Training curve](training.png)\n",
    ]
    if recipe.parent is None and "perplexity" in measured:
        lines += ["Texts:\n"]
        lines += [f"- {d.name}: {s.what}, {s.licence}" for d in DOMAINS for s in d.sources]
        lines += [""]
    lines += ["## Measured\n", f"`{measured['command']}`: {measured['machine']}.\n"]
    for title, head, rows in tables(measured):
        lines += [
            f"**{title}**\n",
            "| " + " | ".join(head) + " |",
            "| " + " | ".join(["---"] * len(head)) + " |",
        ]
        lines += ["| " + " | ".join(row) + " |" for row in rows] + [""]
    if "routing" in measured:
        lines += ["![Which experts each domain uses](routing.png)\n"]
    return "\n".join(lines)
