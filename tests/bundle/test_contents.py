"""Bundle contents: the parts must match each other, and are used by default."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from bundle_helpers import Parts, tiny_drafter, tiny_parts
from engine_helpers import prompt_of
from justright.bundle.contents import check_contents
from justright.checkpoint.bundle_manifest import MANIFEST, Bundle
from justright.cli.output import Terminal
from justright.cli.prepare import prepare
from justright.engine.chat_modes import Reasoning
from justright.engine.defaults import Defaults, settle
from justright.engine.llm import LLM
from justright.engine.options import EngineOptions
from justright.engine.sampler import SamplingParams
from justright.errors import CheckpointError, JustrightError, UsageError
from justright.reasoning.effort import EFFORTS
from justright.speculative.hybrid import HybridDrafter
from justright.speculative.lstm_drafter import LstmDrafter
from justright.speculative.store import drafter_at_hand, named_drafter
from tiny import save_tiny

PROMPT = prompt_of(15)
TALK = [{"role": "user", "content": "the quick fox"}]


@pytest.fixture(autouse=True)
def cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUSTRIGHT_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Parts:
    return tiny_parts(tmp_path_factory.mktemp("parts"))


@pytest.fixture(scope="module")
def bundle(parts: Parts, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("bundles") / "all"
    check_contents(
        str(parts.slow), switch=str(parts.switch), draft=str(parts.draft), draft_options={"nodes": 3, "spec": False},
        defaults={"draft": "lstm", "effort": "none", "max_context": 200, "temperature": 0.8, "top_k": 5},
    ).write(out)  # fmt: skip
    return out


def test_a_drafter_goes_by_its_bundles_name(parts: Parts, bundle: Path, tmp_path: Path) -> None:
    assert named_drafter(str(bundle)) == bundle / "draft"
    assert named_drafter(str(parts.draft)) == parts.draft
    shutil.copytree(bundle, other := tmp_path / "other")
    config = other / "draft" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"kind": "attention"}))
    assert named_drafter(str(other)) == other / "draft", "of whatever kind"


def test_greedy_output_is_that_of_the_parts(parts: Parts, bundle: Path) -> None:
    plain, switched = LLM(str(parts.slow)), LLM(str(parts.slow), switch=str(parts.switch))
    engine = LLM(str(bundle), adaptive=False)
    greedy: dict[str, Any] = {"params": SamplingParams(), "max_tokens": 24, "ignore_eos": True}
    drafted = engine.generate_request(PROMPT, **greedy)
    assert drafted.token_ids == plain.generate_request(PROMPT, **greedy).token_ids
    assert drafted.stats.drafted > 0
    fast = [e.conversation(TALK, thinking=Reasoning("none"), **greedy) for e in (engine, switched)]
    ours, theirs = (e.generate_requests([r])[0] for e, r in zip((engine, switched), fast, strict=True))
    assert ours.token_ids == theirs.token_ids
    assert ours.stats.fast_tokens > 0


def test_its_defaults_apply_where_the_user_sets_nothing(bundle: Path) -> None:
    engine = LLM(str(bundle))
    assert isinstance(engine.drafter, LstmDrafter)
    assert engine.drafter.options.nodes == 3
    assert engine.options.draft == "lstm"
    assert engine.options.switch == str(bundle / "switch")
    assert engine.verifier.max_tokens == 200
    assert engine.request(PROMPT).params == SamplingParams(0.8, 5)
    request = engine.conversation(TALK)
    assert request.plan.factor == 1.0
    assert engine.with_draft("none").request(PROMPT).params.top_k == 5


def test_the_users_options_override_its_defaults(parts: Parts, bundle: Path) -> None:
    engine = LLM(str(bundle), draft="none", switch="none", max_context=300)
    assert engine.drafter is None
    assert engine.modes is not None
    assert engine.modes.adapter is None
    assert engine.verifier.max_tokens == 300
    assert engine.conversation(TALK).plan.factor == 0.0
    assert engine.request(PROMPT, SamplingParams()).params == SamplingParams()
    hybrid = LLM(str(bundle), draft="hybrid", draft_options={"spec": False})
    assert isinstance(hybrid.drafter, HybridDrafter), "it uses the bundle's drafter"
    more = LLM(str(bundle), draft_options={"nodes": 2})
    assert isinstance(more.drafter, LstmDrafter)
    assert (more.drafter.options.nodes, more.drafter.options.spec) == (2, False)
    slow = LLM(str(bundle), switch=str(parts.switch)).conversation(TALK, thinking=Reasoning(factor=0.0))
    assert slow.plan.factor == 0.0


def test_a_plain_checkpoint_is_as_before(parts: Parts) -> None:
    engine = LLM(str(parts.slow))
    assert engine.options.draft == "none"
    assert engine.options.switch is None
    assert engine.defaults == Defaults()
    assert not drafter_at_hand(parts.slow)


def test_transformers_loads_it_as_it_is(parts: Parts, bundle: Path) -> None:
    ours, theirs = (AutoModelForCausalLM.from_pretrained(path) for path in (bundle, parts.slow))
    assert type(ours) is type(theirs)
    for name, tensor in theirs.state_dict().items():
        assert bool((ours.state_dict()[name] == tensor).all()), name
    assert AutoTokenizer.from_pretrained(bundle)("the fox")["input_ids"]
    assert drafter_at_hand(bundle)


def test_names_of_drafters_without_files(parts: Parts, tmp_path: Path) -> None:
    found = check_contents(str(parts.slow), draft="suffix", draft_options={"tree": True})
    assert found.parts == {}
    found.write(tmp_path / "out")
    assert Bundle.open(tmp_path / "out").defaults == {"draft": "suffix", "draft_options": {"tree": True}}
    assert LLM(str(tmp_path / "out")).options.draft_options == {"tree": True}


def test_a_bundle_is_made_of_another(parts: Parts, bundle: Path, tmp_path: Path) -> None:
    """If a bundle is given as the model, its checkpoint is used, and its drafter by name."""
    check_contents(str(bundle)).write(tmp_path / "bare")
    assert Bundle.open(tmp_path / "bare").parts == {}
    check_contents(str(bundle), draft="lstm").write(tmp_path / "drafting")
    assert list(Bundle.open(tmp_path / "drafting").parts) == ["draft"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"switch": "SLOW"}, "a checkpoint, not an adapter"),
        ({"switch": "./nowhere"}, "neither a directory nor a hub id"),
        ({"draft": "SLOW"}, "allowed for a drafter"),
        ({"draft": "./nowhere"}, "neither a directory nor a hub id"),
        ({"draft": "lstm"}, "no installed package has"),
        ({"model": "OTHER"}, "was made for"),
        ({"model": "OTHER", "switch": None}, "was trained for a model with the identity"),
        ({"draft_options": {"path": "x"}}, "leave out the path"),
        ({"draft_options": {"nodes": 0}}, "nodes is 0"),
        ({"draft_options": {"nodes": 33}}, "allowed: at most max_draft \\(32\\)"),
        ({"draft": None, "draft_options": {"nodes": 3}}, "no default drafter"),
        ({"draft": None, "defaults": {"draft": "lstm"}}, "need a trained drafter"),
        ({"defaults": {"draft": "attention"}}, "need a trained drafter of the kind attention"),
        ({"defaults": {"effort": "much"}}, "reasoning effort 'much'"),
        ({"defaults": {"effort": 3}}, "effort is 3"),
        ({"switch": None, "defaults": {"effort": "escalate"}}, "needs a switch"),
        ({"defaults": {"effort": "auto"}}, "calibrate"),
        ({"defaults": {"max_context": 5000}}, "the model's context is 512"),
        ({"defaults": {"max_context": "long"}}, "a whole number"),
        ({"defaults": {"temperature": -1}}, "temperature is -1"),
        ({"defaults": {"top_k": 1.5}}, "a whole number"),
        ({"defaults": {"colour": "red"}}, "unknown default 'colour'; allowed: draft, effort"),
    ],
)
def test_what_does_not_belong_together_is_refused(
    change: dict[str, Any], message: str, parts: Parts, tmp_path: Path
) -> None:
    places = {"SLOW": str(parts.slow), "OTHER": str(parts.fast)}
    given = {"model": str(parts.slow), "switch": str(parts.switch), "draft": str(parts.draft)} | change
    given = {
        name: places.get(value, value) if isinstance(value, str) else value for name, value in given.items()
    }
    with pytest.raises(JustrightError, match=message):
        check_contents(**given)


def test_other_tokens_are_refused(parts: Parts, tmp_path: Path) -> None:
    switch = Path(shutil.copytree(parts.switch, tmp_path / "switch"))
    file = switch / "tokenizer.json"
    found = json.loads(file.read_text())
    vocab = found["model"]["vocab"]
    one, other = list(vocab)[10:12]
    vocab[one], vocab[other] = vocab[other], vocab[one]
    file.write_text(json.dumps(found))
    with pytest.raises(UsageError, match="with other tokens"):
        check_contents(str(parts.slow), switch=str(switch))


def test_a_model_with_one_more_token_is_another_model(parts: Parts, tmp_path: Path) -> None:
    """A drafter with this identity has the same vocabulary, so comparing identities suffices."""
    larger = AutoModelForCausalLM.from_pretrained(parts.slow)
    rows = larger.config.vocab_size
    with torch.no_grad():
        larger.resize_token_embeddings(rows + 1, mean_resizing=False)
        larger.get_input_embeddings().weight[rows:] = larger.get_input_embeddings().weight[rows - 1 : rows]
        larger.get_output_embeddings().weight[rows:] = larger.get_output_embeddings().weight[rows - 1 : rows]
    shutil.copytree(parts.slow, tmp_path / "larger")
    larger.save_pretrained(tmp_path / "larger")
    with pytest.raises(UsageError, match="was trained for a model with the identity"):
        check_contents(str(tmp_path / "larger"), draft=str(parts.draft))


def test_an_adapter_that_does_not_tell_its_model_gets_a_note(parts: Parts, tmp_path: Path) -> None:
    switch = Path(shutil.copytree(parts.switch, tmp_path / "switch"))
    (switch / "switch.json").unlink()
    (switch / "chat_template.jinja").unlink()
    notes = check_contents(str(parts.slow), switch=str(switch)).notes
    assert "does not record its model" in notes[0]
    assert "no chat template" in notes[1]


def test_a_damaged_part_is_refused(parts: Parts, tmp_path: Path) -> None:
    draft = tiny_drafter(parts.slow, tmp_path / "draft")
    weights = draft / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    with pytest.raises(CheckpointError, match="cannot be read"):
        check_contents(str(parts.slow), draft=str(draft))


def test_another_models_weights_in_a_bundle_are_found_out(bundle: Path, parts: Parts, tmp_path: Path) -> None:
    mixed = Path(shutil.copytree(bundle, tmp_path / "mixed"))
    save_tiny("llama", tmp_path / "other", seed=5)
    shutil.copy(tmp_path / "other" / "model.safetensors", mixed / "model.safetensors")
    with pytest.raises(UsageError, match="was made for"):
        LLM(str(mixed))
    with pytest.raises(UsageError, match="was trained for a model"):
        LLM(str(mixed), switch="none")


def changed(bundle: Path, folder: Path, **defaults: Any) -> Path:
    copy = Path(shutil.copytree(bundle, folder))
    data = json.loads((copy / MANIFEST).read_text())
    data["defaults"] |= defaults
    (copy / MANIFEST).write_text(json.dumps(data))
    return copy


def test_a_drafter_that_is_not_installed_is_missed_only_where_it_is_used(
    bundle: Path, tmp_path: Path
) -> None:
    other = changed(bundle, tmp_path / "other", draft="magic", draft_options={"spell": 3})
    assert LLM(str(other), draft="none").drafter is None
    assert isinstance(LLM(str(other), draft="lstm").drafter, LstmDrafter)
    with pytest.raises(UsageError, match="unknown drafter 'magic'"):
        LLM(str(other))
    with pytest.raises(CheckpointError, match="are invalid: draft is 'lstm'"):
        LLM(str(changed(bundle, tmp_path / "damaged", draft_options=[1])))


def test_without_the_switch_only_efforts_that_need_it_go(bundle: Path, tmp_path: Path) -> None:
    left = {}
    for effort in EFFORTS:
        path = changed(bundle, tmp_path / effort, effort=effort)
        left[effort] = settle(EngineOptions(switch="none"), path)[1].effort
    assert [name for name, found in left.items() if found == name] == ["low", "medium", "high"]
    assert {left[name] for name in ("none", "minimal", "auto", "escalate")} == {None}


def test_the_bundles_own_drafter_by_name_keeps_its_options(bundle: Path) -> None:
    for draft, options, kept in (
        ("lstm", {}, {"nodes": 3, "spec": False}),
        ("lstm", {"nodes": 2}, {"nodes": 2, "spec": False}),
        ("hybrid", {}, {}),
    ):
        found = settle(EngineOptions(draft=draft, draft_options=options), bundle)[0]
        assert (found.draft, found.draft_options) == (draft, kept)


def test_a_drafter_is_made_once(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    first = LstmDrafter.__init__
    monkeypatch.setattr(LstmDrafter, "__init__", lambda self, *a: made.append(a) or first(self, *a))
    for options in ({}, {"draft": "lstm"}, {"draft": "lstm", "draft_options": {"nodes": 2}}):
        LLM(str(bundle), adaptive=False, **options)  # type: ignore[arg-type]
    assert len(made) == 3
    ready = prepare(str(bundle), Terminal(), {"draft": "lstm", "adaptive": False})
    assert len(made) == 4
    LLM(ready)
    assert len(made) == 4


def test_defaults_of_a_later_version_are_refused(bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="mood"):
        LLM(str(changed(bundle, tmp_path / "later", mood="good")))


def test_fast_mode_by_the_template_alone_gets_a_note(parts: Parts) -> None:
    [note] = check_contents("zoo:slow", defaults={"effort": "none"}).notes
    assert "it may reason all the same" in note
    for effort in ("low", None):
        assert not check_contents("zoo:slow", defaults={"effort": effort} if effort else {}).notes
    assert not check_contents("zoo:fast", defaults={"effort": "none"}).notes, "it never reasons"
    made = check_contents(str(parts.slow), switch=str(parts.switch), defaults={"effort": "none"})
    assert not any("all the same" in one for one in made.notes)
