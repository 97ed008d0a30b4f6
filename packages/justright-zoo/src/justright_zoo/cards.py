"""The models' cards: measured from the weights, stored beside them, shown as tables."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from justright.records import read_rows
from justright_zoo import DATA, MODELS, manifest, zoo

if TYPE_CHECKING:
    from justright.engine.llm import LLM

CARD = "card.json"
SLOTS = 32
DOMAIN_NAMES = ("fiction", "manuals", "python", "c", "legal", "dialogue")
MOE_BASELINE = {"moe": "dense", "slow-moe": "moe"}
"""Baseline of a mixture-of-experts model's perplexity."""

PARENT = {"slow": "fast", "slow-moe": "moe"}
"""Baseline of a model's answers."""

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Card:
    """The card of a shipped model.

    Attributes:
        name: without ``zoo:``.
        description: one line.
        origin: its parent, or random weights.
        size_bytes: of the weights.
        summary: the main results in one line.
        measured: the results of `measure_model`, with command, machine and date.
    """

    name: str
    description: str
    origin: str
    size_bytes: int
    summary: str
    measured: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def cards() -> list[Card]:
    """The cards of all shipped models."""
    found = []
    for name, entry in manifest().items():
        folder = MODELS / name
        measured = json.loads((folder / CARD).read_text(encoding="utf-8"))
        size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
        found.append(
            Card(name, str(entry["description"]), str(entry["origin"]), size, summary(measured), measured)
        )
    return found


def summary(measured: dict[str, Any]) -> str:
    """One line of results: accuracy and tokens on easy, medium and hard problems, mean perplexity."""
    parts = []
    scores = measured["problems"]
    levels = sorted({s["level"] for s in scores})
    for level in dict.fromkeys((levels[0], levels[len(levels) // 2], levels[-1])):
        chosen = [s for s in scores if s["level"] == level]
        right = sum(s["correct"] for s in chosen) / sum(s["problems"] for s in chosen)
        tokens = sum(s["tokens"] for s in chosen) / len(chosen)
        cut = sum(s["cut"] for s in chosen) / sum(s["problems"] for s in chosen)
        unfinished = f" ({cut:.0%} unfinished)" if cut else ""
        parts.append(f"level {level}: {right:.0%} right, {tokens:.0f} tokens{unfinished}")
    means = {
        name: sum(by_domain.values()) / len(by_domain)
        for name, by_domain in measured.get("perplexity", {}).items()
    }
    if means:
        own, *others = means
        beside = "".join(f" (zoo:{name}: {means[name]:.1f})" for name in others)
        parts.append(f"perplexity {means[own]:.1f}{beside}, mean of the domains")
    return "; ".join(parts)


def measure_model(
    name: str,
    problems: int,
    picture: Path | None = None,
    *,
    folder: Path | None = None,
    say: Say = lambda _: None,
) -> dict[str, Any]:
    """Measure a model of the zoo.

    Args:
        name: without ``zoo:``.
        problems: number per kind and level.
        picture: file for a plot of a mixture-of-experts model's routing.
        folder: the checkpoint, if it is not the shipped one.
        say: called with each result as text.

    Returns:
        JSON-ready: ``model``, ``problems`` (a list of `justright_zoo.measure.Score`), for a model with a shipped
        parent ``parent`` (its name and ``problems``), and for mixture-of-experts
        models ``perplexity`` (model -> domain -> value) and ``routing`` (``specialisation`` per layer,
        ``dead_experts``, ``shares`` by domain, layer and expert).

    Raises:
        JustrightError: an unknown model or a damaged file.
    """
    from justright.engine.llm import LLM
    from justright_zoo.measure import score
    from justright_zoo.recipes.build import check
    from justright_zoo.recipes.catalogue import RECIPES

    check(name)
    path = folder or zoo.path(name)
    engine = LLM(str(path), slots=SLOTS)
    kinds = RECIPES[name].kinds
    scores = score(engine, kinds, problems, report=lambda s: say(f"{s.kind} {s.level}: {s.accuracy:.0%}"))
    measured: dict[str, Any] = {"model": name, "problems": [asdict(s) for s in scores]}
    parent = PARENT.get(name)
    if parent in manifest():
        fast = LLM(str(zoo.path(str(parent))), slots=SLOTS)
        measured["parent"] = {"model": parent, "problems": [asdict(s) for s in score(fast, kinds, problems)]}
    if name in MOE_BASELINE or name in MOE_BASELINE.values():
        measured["perplexity"] = {name: perplexities(engine)}
        baseline = MOE_BASELINE.get(name)
        if baseline in manifest():
            other = LLM(str(zoo.path(str(baseline))))
            measured["perplexity"][baseline] = perplexities(other)
    if name in MOE_BASELINE:
        measured["routing"] = _routing(path, picture)
    return measured


def perplexities(engine: LLM) -> dict[str, float]:
    """Perplexity per token on the evaluation texts of every domain."""
    from justright.engine.step import StepInput
    from justright_zoo.measure import perplexity

    verifier = engine.verifier

    def logits(ids: Any) -> Any:
        [output] = verifier.step([StepInput(0, ids[0].tolist())])
        verifier.clear(0)
        return output.logits[None]

    assert engine.tokenizer is not None
    return {d: round(perplexity(logits, engine.tokenizer, evaluation_texts(d)), 3) for d in DOMAIN_NAMES}


def evaluation_texts(domain: str) -> list[str]:
    """The shipped evaluation texts of a domain."""
    return [row["text"] for _, row in read_rows(DATA / "evaluation" / f"{domain}.jsonl")]


def _routing(path: Path, picture: Path | None) -> dict[str, Any]:
    import torch
    from transformers import AutoModelForCausalLM

    from justright.checkpoint.tokenizer import load_tokenizer
    from justright_zoo.routing import dead_experts, routing_shares, save_picture, specialisation

    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    shares = routing_shares(model, load_tokenizer(path), {d: evaluation_texts(d) for d in DOMAIN_NAMES})
    if picture is not None:
        save_picture(shares, DOMAIN_NAMES, picture)
    return {
        "specialisation": [round(value, 3) for value in specialisation(shares).tolist()],
        "dead_experts": dead_experts(shares),
        "shares": {
            d: [[round(value, 4) for value in layer] for layer in shares[i].tolist()]
            for i, d in enumerate(DOMAIN_NAMES)
        },
    }


Table = tuple[str, list[str], list[list[str]]]


def tables(measured: dict[str, Any]) -> list[Table]:
    """Tables of the results: title, header, rows."""
    from justright_zoo.measure import wilson

    header = ["problems", "level", "right (95% interval)", "tokens an answer", "cut short"]
    parent = measured.get("parent")
    if parent:
        header += [f"zoo:{parent['model']}: right", "tokens", "times the tokens"]
    rows = []
    for index, s in enumerate(measured["problems"]):
        low, high = wilson(s["correct"], s["problems"])
        accuracy = f"{s['correct'] / s['problems']:.0%} ({low:.0%} to {high:.0%})"
        row = [s["kind"], str(s["level"]), accuracy, f"{s['tokens']:.0f}", str(s["cut"])]
        if parent:
            other = parent["problems"][index]
            share = other["correct"] / other["problems"]
            row += [f"{share:.0%}", f"{other['tokens']:.0f}", f"{s['tokens'] / other['tokens']:.1f}"]
        rows.append(row)
    found: list[Table] = [("Held-out problems, greedy", header, rows)]
    if by_model := measured.get("perplexity"):
        names = list(by_model)
        body = [[d, *(f"{by_model[n][d]:.2f}" for n in names)] for d in DOMAIN_NAMES]
        found.append(("Perplexity a token by domain", ["domain", *(f"zoo:{n}" for n in names)], body))
    if routing := measured.get("routing"):
        body = [[str(layer), f"{value:.3f}"] for layer, value in enumerate(routing["specialisation"])]
        dead = len(routing["dead_experts"])
        found.append((f"Routing: {dead} dead experts", ["layer", "specialisation (0 to 1)"], body))
    return found
