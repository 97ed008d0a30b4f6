"""The packaged drafters: each matches its model, has accepted guesses, and changes no token."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from justright.bench.longtexts import zoo_texts
from justright.checkpoint.fingerprint import weights_identity
from justright.checkpoint.sources import resolve
from justright.engine.llm import LLM
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
