"""From a pair to a switch: the fast model back at full rank, in every form; errors that fall; refusals before work."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from justright.engine.api import Engine
from justright.engine.modes import Thinking
from justright.errors import UsageError
from justright.switch.adapter import read_adapter
from justright.switch.extract import extract
from justright.switch.pair import Pair
from justright.switch.ranks import RankRule
from tiny import ALL, DENSE, MOE, save_tiny

MakePair = Callable[..., tuple[Path, Path]]
IDS = torch.arange(5, 30)[None]
FULL = RankRule("energy", 1.0)


def load(path: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(IDS).logits
    return found


@pytest.mark.parametrize("family", ALL)
def test_merged_at_full_rank_is_the_fast_model(make_pair: MakePair, tmp_path: Path, family: str) -> None:
    slow, fast = make_pair(family)
    extract(Pair(slow, fast), tmp_path / "merged", FULL, form="merged")
    torch.testing.assert_close(logits(load(tmp_path / "merged")), logits(load(fast)), rtol=1e-3, atol=1e-3)
    assert not torch.allclose(logits(load(slow)), logits(load(fast)), atol=1e-2)


@pytest.mark.parametrize("family", [f for f in DENSE if f != "gemma3"])
def test_adapters_are_the_fast_model_too(make_pair: MakePair, tmp_path: Path, family: str) -> None:
    slow, fast = make_pair(family, rank=5)
    expected, base = logits(load(fast)), logits(load(slow))
    for form in ("compact", "portable"):
        found = extract(Pair(slow, fast), tmp_path / form, RankRule("energy", 0.999999), form=form)  # type: ignore[arg-type]
        assert set(found.ranks.values()) == {5}
        model = PeftModel.from_pretrained(load(slow), str(tmp_path / form)).eval()
        torch.testing.assert_close(logits(model), expected, rtol=1e-3, atol=1e-3)
        with model.disable_adapter():
            assert torch.equal(logits(model), base)
        config = json.loads((tmp_path / form / "adapter_config.json").read_text())
        assert config["r"] == config["lora_alpha"] == (8 if form == "portable" else 5)
        assert not config["rank_pattern"]


def test_ranks_differ_by_matrix_in_a_compact_adapter(make_pair: MakePair, tmp_path: Path) -> None:
    """PEFT applies every module's own rank, and gives what a merged checkpoint of the same ranks gives."""
    slow, fast = make_pair("llama")
    pair, rule = Pair(slow, fast), RankRule("energy", 0.7, scope="global")
    found = extract(pair, tmp_path / "compact", rule)
    assert len(set(found.ranks.values())) > 2
    merged = extract(pair, tmp_path / "merged", rule, form="merged")
    assert merged.ranks == found.ranks
    model = PeftModel.from_pretrained(load(slow), str(tmp_path / "compact")).eval()
    torch.testing.assert_close(logits(model), logits(load(tmp_path / "merged")), rtol=1e-3, atol=1e-3)
    portable = extract(pair, tmp_path / "portable", rule, form="portable")
    shapes = {
        t.shape[0] for n, t in load_file(portable.path / "adapter_model.safetensors").items() if "lora_A" in n
    }
    assert len(shapes) == 1
    model = PeftModel.from_pretrained(load(slow), str(portable.path)).eval()
    torch.testing.assert_close(logits(model), logits(load(tmp_path / "merged")), rtol=1e-3, atol=1e-3)


def test_the_error_falls_with_rank_as_the_spectrum_says(make_pair: MakePair, tmp_path: Path) -> None:
    slow, fast = make_pair("qwen3")
    pair = Pair(slow, fast)
    name = "model.layers.1.mlp.up_proj.weight"
    target = load_file(fast / "model.safetensors")[name].double()
    errors = []
    for rank in (1, 4, 16, 64):
        done = extract(
            pair, tmp_path / str(rank), RankRule("fixed", rank), form="merged", spectra=tmp_path / "spectra"
        )
        error = float((load_file(done.path / "model.safetensors")[name].double() - target).norm())
        spectrum = load_file(tmp_path / "spectra" / "layer-00001.safetensors")[
            "mlp.up_proj.weight.s"
        ].double()
        assert error == pytest.approx(float(spectrum[rank:].norm()), rel=1e-3, abs=1e-4)
        errors.append(error)
    assert errors == sorted(errors, reverse=True)


def test_spectra_serve_another_rule_and_a_cut_run_goes_on(make_pair: MakePair, tmp_path: Path) -> None:
    slow, fast = make_pair("llama")
    pair, kept = Pair(slow, fast), tmp_path / "spectra"

    def cut(stage: str, done: int, _: int) -> None:
        if (stage, done) == ("decomposing", 2):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        extract(pair, tmp_path / "out", FULL, spectra=kept, tick=cut)
    first = {f.name: f.stat().st_mtime_ns for f in kept.glob("layer-*")}
    assert len(first) >= 2, "a layer that was under way may have been finished"
    assert not (tmp_path / "out").exists()
    extract(pair, tmp_path / "out", FULL, spectra=kept)
    assert {f.name: f.stat().st_mtime_ns for f in kept.glob("layer-*") if f.name in first} == first
    extract(pair, tmp_path / "other", FULL)
    assert not list(tmp_path.glob("*.partial*")), "nothing is left behind"
    files = [tmp_path / name / "adapter_model.safetensors" for name in ("out", "other")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_a_budget_is_met(make_pair: MakePair, tmp_path: Path) -> None:
    slow, fast = make_pair("llama")
    done = extract(
        Pair(slow, fast), tmp_path / "out", RankRule(scope="global"), budget=60_000, dtype=torch.bfloat16
    )
    assert done.bytes <= 60_000
    stored = load_file(done.path / "adapter_model.safetensors")
    assert sum(t.nbytes for t in stored.values()) == done.bytes
    assert json.loads((done.path / "switch.json").read_text())["rule"]["value"] == done.rule.value


def test_what_is_not_covered_is_told(make_pair: MakePair, tmp_path: Path) -> None:
    slow, fast = make_pair("llama", norms=True)
    done = extract(Pair(slow, fast), tmp_path / "out", FULL, exact=False)
    far = [name for name, distance in done.residuals.items() if distance > 0]
    assert far
    assert all("norm" in name for name in far)
    assert done.residuals["lm_head.weight"] == 0
    assert not (done.path / "exact_deltas.safetensors").exists()
    exact = extract(Pair(slow, fast), tmp_path / "exact", FULL)
    assert sorted(exact.exact) == sorted(far)
    assert max(exact.residuals.values()) == 0


@pytest.mark.filterwarnings(
    "ignore:The following .*_pattern keys:RuntimeWarning"
)  # PEFT honours them all the same
@pytest.mark.parametrize("family", MOE)
def test_experts_are_in_compact_adapters_too(make_pair: MakePair, tmp_path: Path, family: str) -> None:
    """PEFT applies the experts' factors, each of its own rank, and gives what the merged checkpoint gives."""
    slow, fast = make_pair(family)
    pair, rule = Pair(slow, fast), RankRule("energy", 0.6)
    found = extract(pair, tmp_path / "compact", rule)
    merged = extract(pair, tmp_path / "merged", rule, form="merged")
    expected = logits(load(tmp_path / "merged"))
    assert not torch.allclose(expected, logits(load(slow)), atol=1e-2)
    assert any("#" in name for name in found.ranks)
    model = PeftModel.from_pretrained(load(slow), str(tmp_path / "compact")).eval()
    torch.testing.assert_close(logits(model), expected, rtol=2e-3, atol=2e-3)
    stored = load_file(found.path / "adapter_model.safetensors")
    assert found.bytes == sum(t.nbytes for t in stored.values()) == merged.bytes
    with pytest.raises(UsageError, match="stacked experts"):
        extract(pair, tmp_path / "out", rule, form="portable")
    assert not (tmp_path / "out").exists()


def test_no_pairs_are_refused_before_work(make_pair: MakePair, tmp_path: Path) -> None:
    slow, fast = make_pair("llama")
    other = save_tiny("llama", tmp_path / "other", seed=3)
    with pytest.raises(UsageError, match="they are no pair"):
        Pair(slow, other)
    with pytest.raises(UsageError, match="is llama"):
        Pair(slow, save_tiny("qwen3", tmp_path / "qwen"))
    with pytest.raises(UsageError, match="tensors are in one model only"):
        Pair(slow, save_tiny("llama", tmp_path / "short", num_hidden_layers=3))
    with pytest.raises(UsageError, match="the same matrices"):
        extract(Pair(fast, fast), tmp_path / "none", FULL)
    with pytest.raises(UsageError, match="vocabularies differ"):
        Pair(slow, save_tiny("llama", tmp_path / "words", vocab_size=328))
    (tmp_path / "there").mkdir()
    with pytest.raises(UsageError, match="exists already"):
        extract(Pair(slow, fast), tmp_path / "there", FULL)
    tokens = json.loads((fast / "tokenizer.json").read_text())
    vocab = tokens["model"]["vocab"]
    a, b = list(vocab)[-2:]
    vocab[a], vocab[b] = vocab[b], vocab[a]
    (fast / "tokenizer.json").write_text(json.dumps(tokens))
    with pytest.raises(UsageError, match="is token"):
        Pair(slow, fast)
    same = save_tiny("llama", tmp_path / "again")
    pair = Pair(slow, same)
    with pytest.raises(UsageError, match="max-rank"):
        extract(pair, tmp_path / "low", FULL, max_rank=2)


def test_what_belongs_to_the_fast_mode_goes_with_the_adapter(make_pair: MakePair, tmp_path: Path) -> None:
    """A fast model as transformers 4 saved it: its template, end token and special tokens are the fast mode's."""
    slow, fast = make_pair("qwen3", rank=5)
    (fast / "chat_template.jinja").unlink()
    (fast / "generation_config.json").unlink(missing_ok=True)
    config = json.loads((fast / "tokenizer_config.json").read_text())
    config |= {"chat_template": "{{ eos_token }}{{ messages[0]['content'] }}", "eos_token": "<pad>"}
    (fast / "tokenizer_config.json").write_text(json.dumps(config))
    config = json.loads((fast / "config.json").read_text()) | {"eos_token_id": 77}
    (fast / "config.json").write_text(json.dumps(config))
    extract(Pair(slow, fast), tmp_path / "switch", RankRule("energy", 0.999999), form="compact")

    adapter = read_adapter(tmp_path / "switch")
    assert adapter.template == "{{ eos_token }}{{ messages[0]['content'] }}"
    assert adapter.end_tokens == {77}
    engine = Engine.load(str(slow), switch=str(tmp_path / "switch"), draft="none")
    messages = [{"role": "user", "content": "fox"}]
    assert engine.tokenizer is not None
    quick = engine.conversation(messages, thinking=Thinking("none"))
    assert engine.tokenizer.decode(quick.prompt_ids) == "<pad>fox"
    assert quick.stop_token_ids == {77}
    deep = engine.conversation(messages, thinking=Thinking())
    assert deep.stop_token_ids == engine.stop_token_ids != {77}
    assert (
        engine.conversation(messages, thinking=Thinking("none"), ignore_eos=True).stop_token_ids
        == frozenset()
    )
    route = engine.conversation(messages, thinking=Thinking("escalate", threshold=1.0))
    assert route.stop_token_ids == {77}
    engine.generate_batch([route])  # escalates, and then ends where the slow mode does
    assert route.stats.decision is not None
    assert route.stats.decision.mode == "slow"
    assert route.stop_token_ids == engine.stop_token_ids
    expected = AutoTokenizer.from_pretrained(tmp_path / "switch").apply_chat_template(
        messages, tokenize=False
    )
    assert expected == "<pad>fox"
