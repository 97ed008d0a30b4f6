"""Extraction: full rank restores the fast model in all forms, errors fall with rank, bad input fails before work."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from justright.adapter.adapter import read_adapter
from justright.adapter.extract import estimate, extract
from justright.adapter.pair import Pair
from justright.adapter.ranks import RankRule
from justright.engine.chat_modes import Reasoning
from justright.engine.llm import LLM
from justright.errors import CheckpointError, UsageError
from tiny import ALL, DENSE, EXPERT_COUNTS, MOE, save_tiny, tiny_model, tiny_tokenizer, tokenizer_with, twelve

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
        assert config["target_modules"] == sorted(config["target_modules"]), "the order is that of PEFT's set"
        assert not config["rank_pattern"]


def test_ranks_differ_by_matrix_in_a_compact_adapter(make_pair: MakePair, tmp_path: Path) -> None:
    """PEFT applies each module's own rank, and gives the logits of a merged checkpoint with the same ranks."""
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


def test_the_error_falls_with_rank_as_the_spectrum_predicts(make_pair: MakePair, tmp_path: Path) -> None:
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


def test_spectra_serve_another_rule_and_an_interrupted_run_continues(
    make_pair: MakePair, tmp_path: Path
) -> None:
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
    assert not list(tmp_path.glob("*.partial*")), "no file is left"
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


def test_tensors_that_are_not_covered_are_reported(make_pair: MakePair, tmp_path: Path) -> None:
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


@pytest.mark.filterwarnings("ignore:The following .*_pattern keys:RuntimeWarning")  # PEFT still applies them
@pytest.mark.parametrize("family", MOE)
def test_experts_are_in_compact_adapters_too(make_pair: MakePair, tmp_path: Path, family: str) -> None:
    """PEFT applies the experts' factors, each with its own rank, and gives the merged checkpoint's logits."""
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


@pytest.mark.filterwarnings("ignore:The following .*_pattern keys:RuntimeWarning")
@pytest.mark.parametrize("family", ["llama", *MOE])
def test_twelve_experts_or_layers_keep_their_places(make_pair: MakePair, tmp_path: Path, family: str) -> None:
    """At full energy, PEFT with the adapter equals the fast model, also for names where 10 sorts before 2 as text."""
    changes = twelve(family)
    if family not in ("llama", "olmoe"):  # four layers, to save time
        changes = {key: value for key, value in changes.items() if key in EXPERT_COUNTS}
    slow, fast = make_pair(family, rank=2, **changes)
    extract(Pair(slow, fast), tmp_path / "out", RankRule("energy", 0.999999))
    model = load(slow)
    expected, base = logits(load(fast)), logits(model)
    found = logits(PeftModel.from_pretrained(model, str(tmp_path / "out")).eval())
    assert float((found - expected).abs().max()) < 0.05 * float((base - expected).abs().max())


SCALED = {"rope_type": "linear", "rope_theta": 10_000.0, "factor": 2.0}


@pytest.mark.parametrize(
    ("family", "change"),
    [
        ("qwen3", {"rope_parameters": {"rope_type": "default", "rope_theta": 5_000.0}}),
        ("llama", {"rope_parameters": SCALED}),
        ("llama", {"rms_norm_eps": 1e-3}),
        ("llama", {"hidden_act": "gelu"}),
        ("mistral", {"sliding_window": 3}),
        ("gemma3_text", {"layer_types": ["full_attention"] * 4}),
        ("llama", {"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 8}),
        ("gemma2", {"attn_logit_softcapping": 2.0}),
        ("gemma2", {"query_pre_attn_scalar": 3}),
        ("granite", {"residual_multiplier": 0.2}),
        ("qwen3_moe", {"num_experts_per_tok": 3}),
        ("qwen3_moe", {"norm_topk_prob": False}),
        ("deepseek_v3", {"routed_scaling_factor": 1.0}),
        ("deepseek_v3", {"topk_group": 1}),
        ("smollm3", {"no_rope_layers": [1, 1, 1, 1]}),
    ],
)
def test_a_pair_with_another_function_is_an_error(
    tmp_path: Path, family: str, change: dict[str, Any]
) -> None:
    """A setting matters if transformers gives other logits with it for the same weights."""
    slow = save_tiny(family, tmp_path / "slow")
    fast = tmp_path / "fast"
    load(slow).save_pretrained(fast)
    tiny_tokenizer().save_pretrained(fast)
    config = json.loads((fast / "config.json").read_text())
    (fast / "config.json").write_text(json.dumps(config | change))
    assert float((logits(load(slow)) - logits(load(fast))).abs().max()) > 1e-3
    with pytest.raises(UsageError, match=f"cannot change .*{next(iter(change))}") as refused:
        Pair(slow, fast)
    if change == {"rope_parameters": {"rope_type": "default", "rope_theta": 5_000.0}}:
        assert "(rope_parameters.rope_theta: 10000.0 and 5000.0)" in str(refused.value), (
            "not two dictionaries"
        )


def test_the_message_names_only_the_nested_setting_that_differs(make_pair: MakePair) -> None:
    slow, fast = make_pair("qwen2")
    config = json.loads((fast / "config.json").read_text())
    config["rope_parameters"]["rope_theta"] = 777.0
    (fast / "config.json").write_text(json.dumps(config))
    with pytest.raises(
        UsageError, match=r"cannot change \(rope_parameters\.rope_theta: [\d.]+ and 777\.0\)\. Give"
    ):
        Pair(slow, fast)


def test_settings_that_change_nothing_may_differ(make_pair: MakePair) -> None:
    slow, fast = make_pair("qwen2")
    config = json.loads((fast / "config.json").read_text())
    change: dict[str, Any] = {"made_by": {"name": "a tool"}, "use_mrope": False}  # unknown to transformers
    change |= {"max_position_embeddings": 99, "eos_token_id": 7, "use_cache": False, "initializer_range": 0.5}
    change |= {
        "attention_dropout": 0.5,
        "_name_or_path": "x",
        "transformers_version": "4.0",
        "dtype": "bfloat16",
    }
    (fast / "config.json").write_text(json.dumps(config | change))
    assert torch.equal(logits(load(fast)), logits(tiny_model("qwen2")))
    Pair(slow, fast)


@pytest.mark.parametrize("tied", ["slow", "fast"])
def test_pairs_of_a_tied_and_an_untied_head_and_of_further_rows(
    make_pair: MakePair, tmp_path: Path, tied: str
) -> None:
    """The adapter restores the fast model with the slow model's embeddings and head."""
    paths = dict(zip(("slow", "fast"), make_pair("llama"), strict=True))
    tensors = {name: load_file(path / "model.safetensors") for name, path in paths.items()}
    embedding = tensors[tied]["model.embed_tokens.weight"]
    del tensors[tied]["lm_head.weight"]
    tensors["slow"]["model.embed_tokens.weight"] = torch.cat(
        [tensors["slow"]["model.embed_tokens.weight"], torch.ones(8, 64)]
    )
    if tied == "fast":
        tensors["slow"]["lm_head.weight"] = torch.cat([tensors["slow"]["lm_head.weight"], torch.ones(8, 64)])
    tensors["fast"]["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(8)
    for name, path in paths.items():
        save_file(tensors[name], path / "model.safetensors", {"format": "pt"})
        config = json.loads((path / "config.json").read_text())
        config |= {"tie_word_embeddings": name == tied, "vocab_size": 328 if name == "slow" else 320}
        (path / "config.json").write_text(json.dumps(config))
    pair = Pair(paths["slow"], paths["fast"])
    assert "the head differ" in pair.notes()[0]
    done = extract(pair, tmp_path / "out", FULL)
    head = tensors["slow" if tied == "fast" else "fast"]["lm_head.weight"][:320]
    ours, theirs = (head, embedding) if tied == "fast" else (embedding, head)
    assert done.residuals["lm_head.weight"] == pytest.approx(float((ours - theirs).norm() / theirs.norm()))
    assert done.residuals["model.embed_tokens.weight"] == 0
    merged = extract(pair, tmp_path / "merged", FULL, form="merged").path
    model = load(paths["slow"])
    expected = load(paths["slow"])
    layers = {name: t for name, t in tensors["fast"].items() if ".layers." in name and "inv_freq" not in name}
    expected.load_state_dict(layers, strict=False)
    peft = PeftModel.from_pretrained(model, str(done.path)).eval()
    for found in (logits(peft), logits(load(merged))):
        torch.testing.assert_close(found, logits(expected), rtol=1e-3, atol=1e-3)


def test_words_of_the_fast_model_alone_are_refused(make_pair: MakePair) -> None:
    slow, fast = make_pair("llama")
    tensors = load_file(fast / "model.safetensors")
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        tensors[name] = torch.cat([tensors[name], torch.ones(8, 64)])
    save_file(tensors, fast / "model.safetensors", {"format": "pt"})
    Pair(slow, fast)  # rows without tokens
    tokenizer_with(None, "<extra>").save_pretrained(fast)
    with pytest.raises(UsageError, match="'<extra>' is token 320"):
        Pair(slow, fast)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize(
    "name", ["model.layers.2.mlp.up_proj.weight", "model.layers.3.input_layernorm.weight"]
)
def test_weights_that_are_not_finite_are_refused(
    make_pair: MakePair, tmp_path: Path, name: str, bad: float
) -> None:
    slow, fast = make_pair("llama")
    tensors = load_file(fast / "model.safetensors")
    tensors[name].view(-1)[3] = bad
    save_file(tensors, fast / "model.safetensors", {"format": "pt"})
    pair = Pair(slow, fast)
    for make in (lambda: estimate(pair), lambda: extract(pair, tmp_path / "out", FULL)):
        with pytest.raises(CheckpointError, match=f"{fast}: the tensor {name} holds"):
            make()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fast", "slow"]


def test_differences_and_factors_that_overflow_are_refused(make_pair: MakePair, tmp_path: Path) -> None:
    slow, fast = make_pair("llama")
    kept = {path: load_file(path / "model.safetensors") for path in (slow, fast)}
    name = "model.layers.2.mlp.up_proj.weight"
    for size, dtype, error, message in [
        (3e38, torch.float32, CheckpointError, "difference of mlp.up_proj.weight in layer 2"),
        (1e12, torch.float16, UsageError, "factors of mlp.up_proj.weight in layer 2 overflow"),
    ]:
        for path, sign in ((slow, 1), (fast, -1)):
            tensors = kept[path] | {name: torch.zeros_like(kept[path][name])}
            tensors[name][0, 0] = sign * size
            save_file(tensors, path / "model.safetensors", {"format": "pt"})
        with pytest.raises(error, match=message):
            extract(Pair(slow, fast), tmp_path / "out", FULL, dtype=dtype)
        assert not (tmp_path / "out").exists()


def test_no_pairs_are_refused_before_work(make_pair: MakePair, tmp_path: Path) -> None:
    slow, fast = make_pair("llama")
    other = save_tiny("llama", tmp_path / "other", seed=3)
    with pytest.raises(UsageError, match="are not a pair"):
        Pair(slow, other)
    with pytest.raises(UsageError, match="is llama"):
        Pair(slow, save_tiny("qwen3", tmp_path / "qwen"))
    with pytest.raises(UsageError, match="tensors are in one of the two models only"):
        Pair(slow, save_tiny("llama", tmp_path / "short", num_hidden_layers=3))
    with pytest.raises(UsageError, match="the same matrices"):
        extract(Pair(fast, fast), tmp_path / "none", FULL)
    with pytest.raises(UsageError, match="has shape"):
        Pair(slow, save_tiny("llama", tmp_path / "wide", intermediate_size=128))
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
    """For a fast model saved by transformers 4, fast mode uses its template, end token and special tokens."""
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
    engine = LLM(str(slow), switch=str(tmp_path / "switch"), draft="none")
    messages = [{"role": "user", "content": "fox"}]
    assert engine.tokenizer is not None
    quick = engine.conversation(messages, thinking=Reasoning("none"))
    assert engine.tokenizer.decode(quick.prompt_ids) == "<pad>fox"
    assert quick.stop_token_ids == {77}
    deep = engine.conversation(messages, thinking=Reasoning())
    assert deep.stop_token_ids == engine.stop_token_ids != {77}
    assert (
        engine.conversation(messages, thinking=Reasoning("none"), ignore_eos=True).stop_token_ids
        == frozenset()
    )
    route = engine.conversation(messages, thinking=Reasoning("escalate", threshold=1.0))
    assert route.stop_token_ids == {77}
    engine.generate_requests([route])  # escalates, and then ends at the slow mode's end token
    assert route.stats.decision is not None
    assert route.stats.decision.mode == "slow"
    assert route.stop_token_ids == engine.stop_token_ids
    expected = AutoTokenizer.from_pretrained(tmp_path / "switch").apply_chat_template(
        messages, tokenize=False
    )
    assert expected == "<pad>fox"
