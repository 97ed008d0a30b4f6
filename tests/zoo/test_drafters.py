"""The drafters that the package carries: each is for its model, guesses better than nothing, and changes no token."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from justright.draft.lstm import read_config
from justright.engine.api import Engine
from justright.models.identity import weights_identity
from justright.models.sources import resolve
from justright_zoo import DRAFTERS, drafters
from justright_zoo.recipes.drafters import DRAFTER_RECIPES

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
    plain = Engine.load(model)
    prompt = plain.encode("The cat sat on the mat. Then the cat")
    expected = plain.generate(prompt, max_tokens=48, ignore_eos=True).token_ids
    for draft in ("lstm", "hybrid"):
        engine = plain.with_draft(draft, adaptive=False)
        request = engine.generate(prompt, max_tokens=48, ignore_eos=True)
        assert request.token_ids == expected
        assert request.stats.acceptance_length > 1.2


@pytest.mark.parametrize("folder", sorted(DRAFTERS.glob("*/")), ids=lambda folder: folder.name)
def test_what_is_shipped_beside_it(folder: Path) -> None:
    about = json.loads((folder / "config.json").read_text())
    recipe = DRAFTER_RECIPES[folder.name]
    assert read_config(folder).spec
    assert set(about["trees"]) == {"plain", "spec"}
    assert about["texts"] == list(recipe.texts)
    assert about["data"]["sequences"] == recipe.data.sequences
    assert about["training"]["spec_steps"] == recipe.training.spec_steps
    assert json.loads((folder / "curve.json").read_text())
    assert json.loads((folder / "provenance.json").read_text())["inputs"]
    assert sum(file.stat().st_size for file in folder.iterdir()) < 9_500_000
