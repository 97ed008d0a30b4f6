"""``justright bundle``: make, inspect and check bundles, and use them in other commands."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from bundle_helpers import Parts, tiny_parts
from cli_helpers import Run
from justright.adapter.pair import Pair
from justright.bundle import build, contents
from justright.checkpoint.bundle_manifest import MANIFEST, is_bundle
from tiny import save_tiny


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Parts:
    return tiny_parts(tmp_path_factory.mktemp("parts"))


@pytest.fixture
def bundle(run: Run, parts: Parts, tmp_path: Path) -> Path:
    made = run(
        *("bundle", parts.slow, "--switch", parts.switch, "--draft", parts.draft, "-o", tmp_path / "bundle"),
        *("--draft-option", "spec=false", "--default", "effort=none", "--default", "top_k=3"),
    )
    assert made.code == 0, made.err
    return tmp_path / "bundle"


def test_it_is_made_and_looked_at(run: Run, parts: Parts, bundle: Path, tmp_path: Path) -> None:
    seen = run("bundle", "inspect", bundle, "--verify")
    assert seen.code == 0, seen.err
    assert "kind lstm, width 24, with [SPEC], for both modes" in seen.out
    assert "chat template of the fast mode: switch/chat_template.jinja" in seen.out
    assert "defaults: draft hybrid, effort none, draft option spec False, top_k 3" in seen.out
    assert "All files match the manifest." in seen.out
    (found,) = map(json.loads, run("bundle", "inspect", bundle, "--json").out.splitlines())
    assert found["verifier"] == found["parts"]["draft"]["verifier"]
    assert found["provenance"]["argv"]
    assert "verified" not in found
    # The same with the full command name, options first.
    made = run("bundle", "make", "-o", tmp_path / "b", parts.slow, "--json")
    other = run("bundle", "-o", tmp_path / "c", parts.slow, "--json")
    assert made.code == other.code == 0, other.err
    assert json.loads(made.out)["files"] == json.loads(other.out)["files"]


def test_a_dry_run_writes_nothing(run: Run, parts: Parts, tmp_path: Path) -> None:
    dry = run("bundle", parts.slow, "--draft", "suffix", "--dry-run")
    assert dry.code == 0, dry.err
    assert "draft suffix" in dry.out
    found = json.loads(run("bundle", parts.slow, "--switch", parts.switch, "--dry-run", "--json").out)
    assert found["size_bytes"] > 0
    assert list(found["parts"]) == ["switch"]
    assert not list(tmp_path.iterdir())


def test_what_is_damaged_is_named(run: Run, bundle: Path) -> None:
    weights = bundle / "model.safetensors"
    damaged = weights.read_bytes()[:1000]
    weights.unlink()  # a hard link: the model's own files are unchanged
    weights.write_bytes(damaged)
    (bundle / "switch" / "notes.txt").write_text("mine")
    seen = run("bundle", "inspect", bundle, "--verify")
    assert seen.code == 3
    assert "model.safetensors is changed" in seen.err
    assert "not part of the bundle: switch/notes.txt" in seen.err
    report, error = map(json.loads, run("bundle", "inspect", bundle, "--verify", "--json").out.splitlines())
    assert report["verified"] == {
        "missing": [],
        "changed": ["model.safetensors"],
        "added": ["switch/notes.txt"],
        "whole": False,
    }
    assert error["error"]["exit_code"] == 3


def test_commands_take_it_as_a_model(run: Run, parts: Parts, bundle: Path) -> None:
    words = ("-p", "the quick fox", "--max-tokens", "12", "--json")
    ours = json.loads(run("generate", bundle, *words).out)
    theirs = json.loads(run("generate", parts.slow, *words, "--switch", parts.switch, "--effort", "none").out)
    assert ours["token_ids"] == theirs["token_ids"], "top_k alone leaves greedy output as it is"
    assert (ours["options"]["draft"], theirs["options"]["draft"]) == ("hybrid", "suffix")
    assert ours["options"]["top_k"] == 3
    assert ours["stats"]["decision"]["mode"] == "fast"
    slow = json.loads(run("generate", parts.slow, *words).out)
    for turned_off in (("--switch", "none", "--draft", "none", "--top-k", "0"), ("--factor", "0")):
        plain = json.loads(run("generate", bundle, *words, *turned_off).out)
        assert plain["token_ids"] == slow["token_ids"]
        assert plain["stats"]["fast_tokens"] == 0
    assert plain["options"]["top_k"] == 3
    raw = run("generate", bundle, *words, "--raw")
    assert raw.code == 0, raw.err
    talk = run("chat", bundle, "--max-tokens", "8", "--json", stdin="hello\n")
    assert json.loads(talk.out)["stats"]["decision"]["mode"] == "fast"
    assert run("path", bundle).out.strip() == str(bundle)
    assert run("inspect", bundle).code == 0


def test_the_bench_takes_its_drafter(run: Run, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr("justright.bench.running.run_plan", lambda plan, *_: seen.append(plan) or 1 / 0)
    run("bench", "decode", bundle)
    run("bench", "decode", bundle, "--draft", "suffix")
    assert [plan.decode.contenders[1] for plan in seen] == ["hybrid:spec=false", "suffix"]


def test_other_checkpoints_are_made_of_its_checkpoint(
    run: Run, parts: Parts, bundle: Path, tmp_path: Path
) -> None:
    pruned = run("prune", bundle, "-o", tmp_path / "pruned", "--weights", "magnitude", "--sparsity", "0.2")
    assert pruned.code == 0, pruned.err
    merged = run("switch", "extract", bundle, parts.fast, "-o", tmp_path / "merged", "--form", "merged")
    assert merged.code == 0, merged.err
    adapter = run("switch", "extract", bundle, parts.fast, "-o", tmp_path / "adapter")
    assert adapter.code == 0, adapter.err
    for name in ("pruned", "merged", "adapter"):
        held = {file.name for file in (tmp_path / name).iterdir()}
        assert not held & {MANIFEST, "switch", "draft"}, name
        assert not is_bundle(tmp_path / name)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["bundle", "SLOW"], 2, "there is no output directory"),
        (["bundle", "SLOW", "-o", "SLOW"], 2, "exists already"),
        (["bundle", "SLOW", "-o", "SLOW", "--dry-run"], 2, "exists already"),
        (["bundle", "SLOW", "-o", "SLOW/config.json/out", "--dry-run"], 2, "is a file; give another folder"),
        (["bundle", "SLOW", "-o", "/proc/out", "--dry-run"], 2, "read-only for you"),
        (["bundle", "SLOW", "-o", "OUT", "--switch", "DRAFT"], 2, "is a checkpoint, not an adapter"),
        (["bundle", "FAST", "-o", "OUT", "--switch", "SWITCH"], 2, "was made for"),
        (["bundle", "FAST", "-o", "OUT", "--draft", "DRAFT"], 2, "was trained for a model"),
        (["bundle", "SLOW", "-o", "OUT", "--default", "effort"], 2, "give KEY=VALUE"),
        (["bundle", "SLOW", "-o", "OUT", "--default", "mood=good"], 2, "unknown default 'mood'"),
        (["bundle", "./nowhere", "-o", "OUT"], 3, "no model './nowhere'"),
        (["bundle", "inspect", "SLOW"], 2, "is not a bundle"),
    ],
)
def test_bad_input(
    run: Run, parts: Parts, tmp_path: Path, arguments: list[str], code: int, message: str
) -> None:
    places = {"SLOW": parts.slow, "FAST": parts.fast, "SWITCH": parts.switch, "DRAFT": parts.draft}
    places["SLOW/config.json/out"] = parts.slow / "config.json" / "out"
    done = run(*({"OUT": tmp_path / "out", **places}.get(word, word) for word in arguments))
    assert done.code == code, done.err
    assert message in done.err
    assert not list(tmp_path.iterdir())


def test_help_answers_for_the_group_and_its_commands(run: Run) -> None:
    assert "inspect" in run("bundle", "--help").out
    assert "--switch" in run("bundle", "make", "--help").out


def test_a_tiny_model_of_experts_is_bundled_too(run: Run, tmp_path: Path) -> None:
    model = save_tiny("olmoe", tmp_path / "moe")
    made = run("bundle", model, "--draft", "recycling", "-o", tmp_path / "out")
    assert made.code == 0, made.err
    used = run("generate", tmp_path / "out", "-p", "the fox", "--max-tokens", "8", "--json")
    assert json.loads(used.out)["options"]["draft"] == "recycling"


def test_a_recipe_is_built(run: Run, parts: Parts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"model: {parts.slow}\nfast: {parts.fast}\ndefaults: {{effort: none}}\n")
    lacking = run("bundle", "build", recipe)
    assert lacking.code == 2
    assert "out in the recipe" in lacking.err
    dry = run("bundle", "build", recipe, "-o", tmp_path / "out", "--dry-run")
    assert dry.code == 0, dry.err
    assert [line.split()[0] for line in dry.out.splitlines()] == ["switch", "bundle", "total"]
    assert "(decompositions, temporary)" in dry.out
    steps = json.loads(run("bundle", "build", recipe, "-o", tmp_path / "out", "--dry-run", "--json").out)
    assert [step["stage"] for step in steps["stages"]] == ["switch", "bundle"]
    assert list(tmp_path.iterdir()) == [recipe]
    assert run("bundle", "build", recipe, "-o", "/proc/out", "--dry-run").code == 2
    recipe.write_text(recipe.read_text() + f"out: {tmp_path / 'out'}\n")
    whole = contents.check_contents
    strange = ("the parts are strange",)
    monkeypatch.setattr(build, "check_contents", lambda *a, **k: replace(whole(*a, **k), notes=strange))
    monkeypatch.setattr(Pair, "notes", lambda _: ["the pair is strange"])
    with monkeypatch.context() as patch:
        patch.setattr(contents.Contents, "write", lambda *_, **__: 1 / 0)
        run("bundle", "build", recipe)
    said = recipe.read_text()
    recipe.write_text(said + "switch: {value: 0.5}\n")
    dry = run("bundle", "build", recipe, "--dry-run")
    assert "switch was made with other settings (value): give --redo" in dry.err
    assert "the pair is strange" in dry.err
    assert "give --redo" not in run("bundle", "build", recipe, "--dry-run", "--redo").err
    recipe.write_text(said)
    made = run("bundle", "build", recipe)
    assert made.code == 0, made.err
    assert [line for line in made.err.splitlines() if "strange" in line] == [
        "note: the pair is strange",
        "note: the parts are strange",
    ]
    assert "defaults: effort none" in made.out
    recipe.write_text("model: a\ncolour: red\n")
    wrong = run("bundle", "build", recipe)
    assert wrong.code == 2
    assert "unknown key colour; allowed: model" in wrong.err
