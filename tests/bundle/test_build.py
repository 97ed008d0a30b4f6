"""Build a bundle from a tiny pair, in one run and with interruptions."""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from justright.bundle import build as module
from justright.bundle.build import BundleBuild
from justright.bundle.recipe import Recipe
from justright.checkpoint.bundle_manifest import Bundle
from justright.checkpoint.reader import Checkpoint
from justright.engine.llm import LLM
from justright.engine.sampler import SamplingParams
from justright.errors import CheckpointError, UsageError
from justright.prune.plan import Plan
from tiny import save_pair

WORDS = "the cat sat on a mat and the dog ran to the cat with a hat "
STAGES = ("slow", "fast", "switch", "draft")


@pytest.fixture(autouse=True)
def cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUSTRIGHT_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return save_pair(tmp_path_factory.mktemp("pair"), "olmoe")


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> str:
    file = tmp_path_factory.mktemp("texts") / "words.txt"
    file.write_text(WORDS * 200)
    return str(file)


@pytest.fixture(scope="module")
def said(pair: tuple[Path, Path], texts: str) -> dict[str, Any]:
    return {
        "model": str(pair[0]),
        "fast": str(pair[1]),
        "device": "cpu",
        "prune": {
            "sparsity": 0.4,
            "expert_sparsity": 0.25,
            "calibration": [texts],
            "sequences": 4,
            "length": 32,
            "min_tokens": 1,
        },
        "switch": {"value": 0.99},
        "draft": {
            "texts": [texts],
            "sequences": 16,
            "held_out": 8,
            "prompt_tokens": 12,
            "output_tokens": 24,
            "batch": 8,
            "chat": 0,
            "epochs": 1,
            "rows": 4,
            "spec_steps": 2,
            "spec_rows": 4,
            "width": 32,
            "steps": 3,
            "evaluate_every": 4,
        },
        "defaults": {"effort": "none", "draft": "lstm"},
    }


@pytest.fixture(scope="module")
def built(said: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("built") / "bundle"
    BundleBuild(Recipe.of(said), out).run()
    return out


def test_it_is_a_bundle_that_runs(built: Path, said: dict[str, Any]) -> None:
    bundle = Bundle.open(built)
    assert bundle.verify().whole
    assert list(bundle.parts) == ["switch", "draft"]
    assert bundle.parts["draft"]["factors"] == [0.0, 1.0]
    assert bundle.provenance["extra"]["recipe"] == said
    assert not built.with_name("bundle.partial").exists()
    adapter = json.loads((built / "switch" / "adapter_config.json").read_text())
    assert adapter["base_model_name_or_path"] == str(built)  # not the stage's folder, which is deleted
    named = json.loads((built / "switch" / "switch.json").read_text())
    assert (named["slow"], named["path"]) == (str(built), str(built / "switch"))
    made = json.loads((built / "switch" / "provenance.json").read_text())["inputs"]
    assert (made["slow"]["path"], made["fast"]["path"]) == (str(built), said["fast"])
    made = bundle.provenance["inputs"]
    assert {name: one["path"] for name, one in made.items()} == {
        name: said[name] for name in ("model", "fast")
    }
    engine = LLM(str(built), adaptive=False)
    plain = LLM(str(built), draft="none")
    talk = [{"role": "user", "content": "the dog"}]
    requests = [e.conversation(talk, SamplingParams(), max_tokens=12) for e in (engine, plain)]
    ours, theirs = (e.generate_requests([r])[0] for e, r in zip((engine, plain), requests, strict=True))
    assert ours.token_ids == theirs.token_ids
    assert ours.stats.fast_tokens == len(ours.token_ids)
    assert ours.stats.drafted > 0


def strings(value: Any) -> list[str]:
    """All strings of a JSON value, names of members too."""
    if isinstance(value, dict):
        return [*value, *(text for one in value.values() for text in strings(one))]
    if isinstance(value, list):
        return [text for one in value for text in strings(one)]
    return [value] if isinstance(value, str) else []


def test_no_file_names_a_folder_that_is_gone(built: Path) -> None:
    """The stages' folders are temporary: every path in the bundle's JSON exists once it is built."""
    files = list(built.rglob("*.json"))
    assert {"justright.json", "switch.json", "config.json"} <= {file.name for file in files}
    for file in files:
        found = strings(json.loads(file.read_text()))
        assert not [text for text in found if ".partial" in text], file.name
        assert not [text for text in found if text.startswith("/") and not Path(text).exists()], file.name


def test_both_are_pruned_alike(said: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "extract", stop)
    with pytest.raises(KeyboardInterrupt):
        BundleBuild(Recipe.of(said), tmp_path / "out").run()
    stages = tmp_path / "out.partial" / "stages"
    slow, fast = (Checkpoint.open(stages / name / "out") for name in ("slow", "fast"))
    plan = Plan.read(stages / "slow" / "out" / "plan.json")
    assert plan.kept == 6
    original = Checkpoint.open(Path(said["fast"]))
    name = "model.layers.1.mlp.experts.{}.up_proj.weight"
    for place, expert in enumerate(plan.experts[1].kept):
        ours, whole = fast.tensor(name.format(place)), original.tensor(name.format(expert))
        zeros = slow.tensor(name.format(place)) == 0
        assert 0.1 < float(zeros.float().mean()) < 0.5
        assert torch.equal(ours, whole * ~zeros)
    assert torch.equal(fast.tensor("model.norm.weight"), original.tensor("model.norm.weight"))
    assert set(slow) == set(fast)


def test_killed_in_every_stage_it_continues(said: dict[str, Any], built: Path, tmp_path: Path) -> None:
    out, stages = tmp_path / "out", tmp_path / "out.partial" / "stages"
    told: list[str] = []

    def dying(in_stage: str, what: str, done: int, *_: Any) -> None:
        told.append(what.partition(":")[0])
        if told[-1] == in_stage and done:
            raise KeyboardInterrupt

    for number, stage in enumerate([*STAGES, "bundle"]):
        told.clear()
        with pytest.raises(KeyboardInterrupt):
            BundleBuild(Recipe.of(said), out).run(partial(dying, stage))
        assert not out.exists()
        assert set(told) <= set([*STAGES, "bundle"][max(0, number - 1) :]), "finished stages are not repeated"
        assert all((stages / name / "out").is_dir() for name in STAGES[:number])
    steps = BundleBuild(Recipe.of(said), out).estimate()
    assert [step.done for step in steps] == [True] * 4 + [False]
    BundleBuild(Recipe.of(said), out).run()
    one, other = Bundle.open(built), Bundle.open(out)
    weights = [name for name in one.files if name.endswith(".safetensors")]
    assert {"model.safetensors", "draft/model.safetensors", "switch/adapter_model.safetensors"} <= set(
        weights
    )
    for name in weights:
        assert one.files[name] == other.files[name], name


def test_a_recipe_that_changed_meanwhile(
    said: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = {name: value for name, value in said.items() if name not in ("draft", "defaults")}
    monkeypatch.setattr(module, "check_contents", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        BundleBuild(Recipe.of(said), tmp_path / "out").run()
    stages = tmp_path / "out.partial" / "stages"
    times = {name: (stages / name / "out").stat().st_mtime_ns for name in ("slow", "fast", "switch")}
    other = said | {"switch": {"value": 0.5}}
    with pytest.raises(UsageError, match=r"switch was made with other settings \(value\)\. Give --redo"):
        BundleBuild(Recipe.of(other), tmp_path / "out").run()
    with pytest.raises(ZeroDivisionError):
        BundleBuild(Recipe.of(other), tmp_path / "out").run(redo=True)
    now = {name: (stages / name / "out").stat().st_mtime_ns for name in times}
    assert [name for name in times if now[name] != times[name]] == ["switch"]


def switch_only(said: dict[str, Any], value: float) -> Recipe:
    return Recipe.of({"model": said["model"], "fast": said["fast"], "switch": {"value": value}})


def adapter_of(bundle: Path) -> bytes:
    return (bundle / "switch" / "adapter_model.safetensors").read_bytes()


def test_killed_while_a_stage_is_removed_it_is_not_taken_as_made(
    said: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(folder: Path, *_: Any, **__: Any) -> None:
        (folder / "stage.json").unlink()
        raise KeyboardInterrupt

    up_to_the_bundle(said, tmp_path / "out", monkeypatch)
    with monkeypatch.context() as patch:
        patch.setattr(module.shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            BundleBuild(switch_only(said, 0.5), tmp_path / "out").run(redo=True)
    BundleBuild(switch_only(said, 0.5), tmp_path / "out").run()
    BundleBuild(switch_only(said, 0.5), tmp_path / "fresh").run()
    assert adapter_of(tmp_path / "out") == adapter_of(tmp_path / "fresh")


def test_what_others_keep_beside_it_is_left(said: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "out.partial" / "checkpoint").mkdir(parents=True)
    BundleBuild(switch_only(said, 0.99), tmp_path / "out").run()
    assert [file.name for file in (tmp_path / "out.partial").iterdir()] == ["checkpoint"]


def up_to_the_bundle(said: dict[str, Any], out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Extract the switch, and fail before it is bundled."""
    with monkeypatch.context() as patch:
        patch.setattr(module, "check_contents", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            BundleBuild(switch_only(said, 0.99), out).run()


def test_a_stage_without_its_settings_is_made_anew(
    said: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    up_to_the_bundle(said, tmp_path / "out", monkeypatch)
    about = tmp_path / "out.partial" / "stages" / "switch" / "stage.json"
    about.write_text("{")
    work = BundleBuild(switch_only(said, 0.5), tmp_path / "out")
    assert not work.estimate()[0].done
    work.run()
    BundleBuild(switch_only(said, 0.5), tmp_path / "fresh").run()
    assert adapter_of(tmp_path / "out") == adapter_of(tmp_path / "fresh")


def test_it_prunes_as_the_command_does(
    said: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bare = {name: said[name] for name in ("model", "prune")}
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    for device, wanted in (("auto", "cuda:0,cuda:1"), ("cpu", "cpu")):
        pruning = BundleBuild(Recipe.of(bare | {"device": device}), tmp_path / "out").pruning
        assert pruning is not None
        assert (pruning.device, pruning.rows) == (wanted, 4)


def test_a_dry_run_tells_and_writes_nothing(said: dict[str, Any], tmp_path: Path) -> None:
    steps = BundleBuild(Recipe.of(said), tmp_path / "out").estimate()
    assert [step.stage for step in steps] == [*STAGES, "bundle"]
    assert all(step.size_bytes > 0 and not step.done for step in steps)
    assert [step.seconds is None for step in steps] == [False, True, False, False, True]
    assert [step.held.split(",")[0] for step in steps] == [
        *("the pruned model", "the pruned model", "decompositions", "training data", "the model")
    ]
    assert not list(tmp_path.iterdir())


def test_a_dry_run_tells_what_has_to_be_made_anew(
    said: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    up_to_the_bundle(said, tmp_path / "out", monkeypatch)
    same, other = (
        BundleBuild(switch_only(said, value), tmp_path / "out").estimate()[0] for value in (0.99, 0.5)
    )
    assert (same.done, same.changed) == (True, ())
    assert (other.done, other.changed) == (False, ("value",))


def test_an_edited_text_is_another_setting_and_workers_are_none(
    said: dict[str, Any], texts: str, tmp_path: Path
) -> None:
    file = tmp_path / "notes.txt"
    file.write_text(Path(texts).read_text())
    recipe = {name: said[name] for name in ("model", "fast", "device")}
    recipe["draft"] = said["draft"] | {"texts": [str(file)]}

    def keys(**changes: Any) -> dict[str, dict[str, Any]]:
        return BundleBuild(Recipe.of(recipe | changes), tmp_path / "out").keys

    first = keys()
    assert keys(switch={"workers": 4}) == first
    file.write_text(file.read_text() + "and one more thought")
    assert [name for name, value in keys()["draft"].items() if value != first["draft"][name]] == ["prompts"]
    assert len(first["draft"]["prompts"]) == 2, "of both modes"


def test_what_whoever_builds_should_know_is_kept(said: dict[str, Any], tmp_path: Path) -> None:
    model, fast = (Path(shutil.copytree(said[name], tmp_path / name)) for name in ("model", "fast"))
    for path in (model, fast):
        (path / "chat_template.jinja").unlink(missing_ok=True)
        config = json.loads((path / "tokenizer_config.json").read_text())
        config.pop("chat_template", None)
        (path / "tokenizer_config.json").write_text(json.dumps(config))
    work = BundleBuild(Recipe.of({"model": str(model), "fast": str(fast)}), tmp_path / "out")
    assert "the fast model has no chat template" in work.notes[-1]
    work.run()
    assert "the switch has no chat template" in work.notes[-1]


def test_a_model_alone(pair: tuple[Path, Path], tmp_path: Path) -> None:
    recipe = Recipe.of({"model": str(pair[0]), "defaults": {"draft": "suffix", "temperature": 0.5}})
    BundleBuild(recipe, tmp_path / "out").run()
    bundle = Bundle.open(tmp_path / "out")
    assert not bundle.parts
    assert bundle.defaults == {"draft": "suffix", "sampling": {"temperature": 0.5}}
    with pytest.raises(UsageError, match="exists already"):
        BundleBuild(recipe, tmp_path / "out")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"defaults": {"effort": "auto"}}, "switch calibrate"),
        ({"defaults": {"effort": "escalate"}, "fast": None}, "needs a switch"),
        ({"defaults": {"draft": "lstm"}, "draft": None}, "add a section draft"),
        ({"defaults": {"max_context": 4096}}, "the model's context is 512"),
        ({"draft": {"output_tokens": 4096}}, "do not fit the model's context"),
        ({"prune": {"expert_sparsity": 0.9}}, "experts would be kept"),
        ({"draft": {"chat": 0.5}}, "the chat template needs"),
        (
            {"draft": {"cell": "attention"}, "defaults": {"draft": "hybrid"}},
            "kind lstm.* one of the kind attention",
        ),
        ({"draft": {}, "defaults": {"draft": "attention"}}, "kind attention.* one of the kind lstm"),
        ({"switch": {"svd": "randomized", "rule": "entropy"}}, "needs all singular values"),
        ({"switch": {"workers": 0}}, "workers 0"),
    ],
)
def test_what_cannot_be_is_refused_before_any_work(
    change: dict[str, Any], message: str, said: dict[str, Any], texts: str, tmp_path: Path
) -> None:
    changed = said | change
    for name in ("draft", "prune"):
        key = {"draft": "texts", "prune": "calibration"}[name]
        if change.get(name):
            changed[name] = {**said[name], **change[name], key: [texts]}
    if changed["fast"] is None:
        changed = {name: value for name, value in changed.items() if name not in ("fast", "switch")}
    if changed["draft"] is None:
        del changed["draft"]
    with pytest.raises(UsageError, match=message):
        BundleBuild(Recipe.of(changed), tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_template_that_leaves_thinking_out_needs_no_switch(pair: tuple[Path, Path], tmp_path: Path) -> None:
    model = Path(shutil.copytree(pair[0], tmp_path / "model"))
    template = "{{ messages[0].content }}{% if enable_thinking is false %} {% endif %}"
    (model / "chat_template.jinja").write_text(template)
    recipe = Recipe.of({"model": str(model), "defaults": {"effort": "none"}})
    BundleBuild(recipe, tmp_path / "out").run()
    assert LLM(str(tmp_path / "out")).defaults.effort == "none"


def test_a_model_that_cannot_be_run_is_refused_before_any_work(
    pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Path(shutil.copytree(pair[0], tmp_path / "model"))
    (model / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match="has no tokenizer"):
        BundleBuild(Recipe.of({"model": str(model)}), tmp_path / "out")


def test_settings_lie_beside_what_they_made(
    said: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "extract", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        BundleBuild(Recipe.of(said), tmp_path / "out").run()
    found = json.loads((tmp_path / "out.partial/stages/slow/stage.json").read_text())
    assert found["sparsity"] == 0.4
