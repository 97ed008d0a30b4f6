"""Recipes build what they state, and an invalid field raises an error that names it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from justright.bundle.recipe import Recipe, SwitchRecipe
from justright.errors import UsageError
from justright.prune.settings import Settings


def read(said: Any, folder: Path) -> Recipe:
    file = folder / "recipe.yaml"
    file.write_text(said if isinstance(said, str) else yaml.safe_dump(said))
    return Recipe.read(file)


def test_the_recipe_is_read(tmp_path: Path) -> None:
    found = read(
        """
model: org/slow
fast: org/fast
out: bundles/one
device: cpu
prune: {sparsity: 0.3, calibration: [zoo, notes.txt], parts: [experts]}
switch: {value: 0.8, scope: layer}
draft: {texts: [zoo=2], sequences: 64, width: 32, epochs: 1, seed: 3}
draft_options: {nodes: 4}
defaults: {effort: none, top_p: 0.9}
""",
        tmp_path,
    )
    assert (found.model, found.fast, found.out, found.device) == (
        *("org/slow", "org/fast", Path("bundles/one"), "cpu"),
    )
    assert found.prune == Settings(sparsity=0.3, calibration=("zoo", "notes.txt"), parts=("experts",))
    assert found.switch == SwitchRecipe(value=0.8, scope="layer")
    assert found.draft is not None
    assert found.draft.texts == ("zoo=2",)
    assert (found.draft.shape.width, found.draft.data.sequences, found.draft.training.epochs) == (32, 64, 1)
    assert (found.draft.data.seed, found.draft.training.seed) == (3, 3), "one seed for both"
    assert found.defaults.to_dict() == {
        "draft": "hybrid",
        "draft_options": {"nodes": 4},
        "effort": "none",
        "sampling": {"top_p": 0.9},
    }


def test_sections_that_are_left_out_or_empty(tmp_path: Path) -> None:
    bare = read({"model": "m"}, tmp_path)
    assert (bare.prune, bare.switch, bare.draft) == (None, None, None)
    empty = read({"model": "m", "fast": "f", "prune": None, "draft": {}}, tmp_path)
    assert empty.prune == Settings(calibration=("zoo",))
    assert empty.switch == SwitchRecipe()
    assert empty.draft is not None
    assert empty.draft.training.epochs == 2.5


@pytest.mark.parametrize(
    ("cell", "name"), [("attention", "attention"), ("rnn", "hybrid"), ("lstm", "hybrid")]
)
def test_options_are_for_the_drafter_that_is_trained(cell: str, name: str) -> None:
    found = Recipe.of({"model": "m", "draft": {"cell": cell}, "draft_options": {"nodes": 4}})
    assert found.defaults.draft == name


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ("model: [", "is not YAML"),
        ("just text", "a mapping with the keys model, fast"),
        ({}, "the key model is missing"),
        ({"model": 3}, "model is 3; allowed: text"),
        ({"model": "m", "fats": "f"}, r"unknown key fats; allowed: model, fast.* Did you mean fast\?"),
        ({"model": "m", "device": "tpu"}, "device is 'tpu'; allowed: auto, cpu"),
        ({"model": "m", "switch": {}}, "needs two models; give fast"),
        ({"model": "m", "prune": {"sparsty": 0.3}}, r"unknown key prune.sparsty; .* Did you mean prune.sparsity\?"),
        ({"model": "m", "prune": {"sparsity": "much"}}, "prune.sparsity is 'much': .*valid number"),
        ({"model": "m", "prune": {"sparsity": 2}}, r"prune: sparsity 2\S*; allowed: 0 to below 1"),
        ({"model": "m", "prune": [1]}, r"prune is \[1\]; allowed: keys"),
        ({"model": "m", "fast": "f", "prune": {"uneven": True}}, "uneven models cannot have a switch"),
        ({"model": "m", "fast": "f", "switch": {"rule": "luck"}}, "no rank rule 'luck'"),
        ({"model": "m", "fast": "f", "switch": {"value": 3.0}}, "allowed: above 0 to 1"),
        ({"model": "m", "draft": {"sequence": 3}}, r"unknown key draft.sequence; .* Did you mean draft.sequences\?"),
        ({"model": "m", "draft": {"factors": [0]}}, "unknown key draft.factors"),
        ({"model": "m", "draft": {"rows": 0}}, "rows is 0; allowed: above 0"),
        ({"model": "m", "draft": {"texts": "zoo"}}, "draft.texts is 'zoo'; allowed: a list"),
        ({"model": "m", "defaults": {"mood": "good"}}, "unknown default 'mood'"),
        ({"model": "m", "defaults": 3}, "defaults is 3"),
    ],
)  # fmt: skip
def test_what_it_cannot_say(said: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=message):
        read(said, tmp_path)


def test_no_code_is_run_by_reading(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is not YAML"):
        read("model: !!python/object/apply:os.system ['true']", tmp_path)
    with pytest.raises(UsageError, match="cannot be read"):
        Recipe.read(tmp_path / "nowhere.yaml")
