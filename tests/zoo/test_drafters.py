"""The packaged drafters: each matches its model, has accepted guesses, and changes no token."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from justright.adapter.extract import extract
from justright.adapter.pair import Pair
from justright.adapter.ranks import RankRule
from justright.bench.longtexts import zoo_texts
from justright.checkpoint.fingerprint import weights_identity
from justright.checkpoint.sources import resolve
from justright.engine.chat_modes import Reasoning
from justright.engine.llm import LLM
from justright.reasoning.effort import EFFORTS
from justright.speculative.lstm_network import LstmConfig
from justright.speculative.store import read_config
from justright_zoo import DRAFTERS, drafters
from justright_zoo.recipes.drafters import DRAFTER_RECIPES, DrafterRecipe

SHIPPED = {name: recipe for name, recipe in DRAFTER_RECIPES.items() if recipe.shipped}
MODELS = [
    pytest.param(
        name, recipe.model, marks=[pytest.mark.packaged] if recipe.model.startswith("packaged") else []
    )
    for name, recipe in SHIPPED.items()
]


def test_every_recipe_is_shipped_and_nothing_else() -> None:
    assert {folder.name for folder in DRAFTERS.iterdir() if folder.is_dir()} == set(SHIPPED)
    assert len(drafters()) == len(SHIPPED)


@pytest.mark.parametrize(("name", "model"), MODELS)
def test_it_is_found_by_its_model_and_drafts_losslessly(name: str, model: str) -> None:
    path = resolve(model).path
    identity = weights_identity(path)
    assert drafters()[identity]["lstm"] == DRAFTERS / name
    plain = LLM(model)
    prompts = of_its_kind(plain, DRAFTER_RECIPES[name])
    expected = [plain.generate_request(prompt, max_tokens=48).token_ids for prompt in prompts]
    for draft in ("lstm", "hybrid"):
        engine = plain.with_draft(draft, adaptive=False)
        requests = [engine.generate_request(prompt, max_tokens=48) for prompt in prompts]
        assert [request.token_ids for request in requests] == expected
        steps = sum(1 + request.stats.verifications for request in requests)
        assert sum(map(len, expected)) / steps > 1.3


@pytest.fixture(scope="module")
def switched(tmp_path_factory: pytest.TempPathFactory) -> LLM:
    """zoo:slow with the switch to zoo:fast."""
    pair = Pair(resolve("zoo:slow").path, resolve("zoo:fast").path)
    adapter = tmp_path_factory.mktemp("switch") / "adapter"
    extract(pair, adapter, RankRule("energy", 0.99), svd="randomized")
    return LLM("zoo:slow", switch=str(adapter), slots=4)


@pytest.mark.parametrize("effort", [None, *EFFORTS])
def test_every_effort_answers_alike_with_every_drafter(switched: LLM, effort: str | None) -> None:
    """Answer, score and decision are those of plain decoding; `auto` scores by the heuristic."""
    questions = ("What is 17 + 5 - 8?", "What is 3 + 4?", "What is 23 - 9 + 4?")
    more = {"scorer": "heuristic", "threshold": 0.4} if effort == "auto" else {}
    if effort == "escalate":
        more = {"threshold": 0.42}
    expected: list[tuple[list[int], str | None, str | None]] | None = None
    scores: list[float | None] = []
    for draft in ("none", "suffix", "recycling", "lstm", "hybrid"):
        engine = switched if draft == "none" else switched.with_draft(draft, adaptive=False)
        requests = [
            engine.conversation(
                [{"role": "user", "content": question}], thinking=Reasoning(effort, **more), max_tokens=48
            )
            for question in questions
        ]
        engine.generate_requests(requests)
        decisions = [request.stats.decision for request in requests]
        found = [
            (request.token_ids, request.finish_reason, None if one is None else one.mode)
            for request, one in zip(requests, decisions, strict=True)
        ]
        own = [None if one is None else one.score for one in decisions]
        if expected is None:
            expected, scores = found, own
        assert found == expected
        assert own == pytest.approx(scores, abs=1e-4)
        if draft != "none":
            assert sum(request.stats.drafted for request in requests) > 0
    if effort == "escalate":
        assert {mode for _, _, mode in expected or ()} == {"fast", "slow"}


def of_its_kind(engine: LLM, recipe: DrafterRecipe) -> list[list[int]]:
    """Prompts like those that a drafter was trained on."""
    if recipe.data.chat == 1:
        questions = ("What is 17 + 5 - 8?", "What is 9 + 8 - 3 + 4?", "What is 40 - 7 - 6?")
        return [engine.chat_prompt([{"role": "user", "content": question}]) for question in questions]
    return [engine.encode(source.text[2000:2300]) for source in zoo_texts()[:3]]


@pytest.mark.parametrize("folder", sorted(DRAFTERS.glob("*/")), ids=lambda folder: folder.name)
def test_what_is_shipped_beside_it(folder: Path) -> None:
    about = json.loads((folder / "config.json").read_text())
    recipe = DRAFTER_RECIPES[folder.name]
    assert read_config(folder, "lstm", LstmConfig).spec
    assert set(about["trees"]) == {"plain", "spec"}
    assert about["texts"] == list(recipe.texts)
    assert about["data"]["sequences"] == recipe.data.sequences
    assert about["training"]["spec_steps"] == recipe.training.spec_steps
    assert json.loads((folder / "curve.json").read_text())
    assert json.loads((folder / "provenance.json").read_text())["inputs"]
    assert sum(file.stat().st_size for file in folder.iterdir()) < 9_500_000
