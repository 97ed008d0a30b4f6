"""The packaged models: found by name, checked by hash, loaded by plain transformers, able to do sums."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import justright_zoo
from justright.checkpoint.sources import available, resolve
from justright.errors import CheckpointError, SourceError
from justright.provenance import Provenance, file_sha256
from justright_zoo import DATA, MODELS, ZooProvider, manifest, zoo
from justright_zoo.measure import evaluation_problems
from justright_zoo.recipes.catalogue import RECIPES
from justright_zoo.recipes.export import _conversations
from justright_zoo.recipes.problems import KINDS, LEVELS
from justright_zoo.recipes.texts import DOMAINS
from justright_zoo.texts import long_texts

SHIPPED = tuple(manifest())


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A zoo of one model whose files are a few bytes."""
    folder = tmp_path / "one"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"weights")
    files = {"model.safetensors": file_sha256(folder / "model.safetensors")}
    found = {"one": {"description": "a model", "origin": "nowhere", "files": files}}
    monkeypatch.setattr(justright_zoo, "MODELS", tmp_path)
    monkeypatch.setattr(justright_zoo, "manifest", lambda: found)
    return folder


def test_a_model_is_found_by_name(fake: Path) -> None:
    assert ZooProvider().path("one") == fake
    assert dict(ZooProvider().names()) == {"one": "a model"}
    with pytest.raises(SourceError, match=r"two.*one"):
        ZooProvider().path("two")


def test_a_wrong_weight_file_is_noticed(fake: Path) -> None:
    (fake / "model.safetensors").write_bytes(b"weightz")
    with pytest.raises(CheckpointError, match="not the shipped file"):
        ZooProvider().path("one")


def test_a_missing_file_is_noticed(fake: Path) -> None:
    (fake / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="missing"):
        ZooProvider().path("one")


def test_the_weights_are_small_enough_for_a_package() -> None:
    assert sum(file.stat().st_size for file in MODELS.rglob("*.safetensors")) <= 60e6


@pytest.mark.parametrize("name", SHIPPED)
def test_it_is_offered_and_whole(name: str) -> None:
    assert f"zoo:{name}" in available()
    folder = resolve(f"zoo:{name}").path
    assert folder == zoo.path(name)
    for file in (
        "config.json",
        "tokenizer.json",
        "README.md",
        "card.json",
        "training.json",
        "training.png",
        "LICENSE",
        "provenance.json",
    ):
        assert (folder / file).is_file(), file
    assert Provenance.read(folder).seed is not None
    config = json.loads((folder / "config.json").read_text())
    assert config["justright_zoo"]["name"] == name, "the pair records its parentage"


@pytest.mark.parametrize("name", SHIPPED)
def test_plain_transformers_loads_it(name: str) -> None:
    folder = zoo.path(name)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    kind, level = RECIPES[name].kinds[0]
    problem = evaluation_problems(kind, level, 1)[0]
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": problem.question}], tokenize=False, add_generation_prompt=True
    )
    ids = torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"]])
    out = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=400, do_sample=False, pad_token_id=0
    )
    assert f"The answer is {problem.answer}." in tokenizer.decode(out[0, ids.shape[1] :])


def test_texts_name_their_domain_licence_and_source() -> None:
    for split in ("calibration", "evaluation"):
        for domain in DOMAINS:
            lines = (DATA / split / f"{domain.name}.jsonl").read_text(encoding="utf-8").splitlines()
            rows = [json.loads(line) for line in lines]
            assert all(row["licence"] and row["source"] and row["domain"] == domain.name for row in rows)
            assert sum(len(row["text"]) for row in rows) > 80_000, (split, domain.name)


def test_calibration_and_evaluation_share_no_text() -> None:
    def texts(split: str) -> set[str]:
        files = [DATA / split / f"{domain.name}.jsonl" for domain in DOMAINS]
        return {
            json.loads(line)["text"] for f in files for line in f.read_text(encoding="utf-8").splitlines()
        }

    assert not texts("calibration") & texts("evaluation")


def test_problems_on_disk_are_those_that_are_held_out() -> None:
    from justright_zoo.measure import evaluation_problems

    for kind in KINDS:
        for level in LEVELS:
            lines = (DATA / "problems" / f"{kind}-{level}.jsonl").read_text(encoding="utf-8").splitlines()
            rows = [json.loads(line) for line in lines]
            problems = evaluation_problems(kind, level, len(rows))
            assert len(rows) == 200
            assert [row["question"] for row in rows] == [p.question for p in problems]
            assert [row["answer"] for row in rows] == [str(p.answer) for p in problems]


def test_long_texts_fill_64k_tokens() -> None:
    found = long_texts()
    assert any(text["code"] for text in found)
    assert any(not text["code"] for text in found)
    assert all(len(text["text"]) > 300_000 and text["licence"] for text in found)


def test_problems_to_calibrate_on_are_none_to_evaluate_on() -> None:
    """By their operations, not by their words, as the recipe generates them."""
    lines = (DATA / "calibration" / "problems.jsonl").read_text(encoding="utf-8").splitlines()
    found = [json.loads(line)["messages"] for line in lines]
    assert found == [one["messages"] for one in _conversations()]
    solutions = {turns[1]["content"].partition(" The answer")[0] for turns in found}
    for kind in KINDS:
        for level in LEVELS[:4]:
            for problem in evaluation_problems(kind, level, 200):
                assert ". ".join(map(str, problem.steps)) + "." not in solutions
