"""Inspection agrees with the model that transformers builds and with the cache that the engine fills."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from engine_helpers import prompt_of, verifier_of
from justright.errors import CheckpointError, UnsupportedModelError
from justright.model.summary import Inspection, inspect
from tiny import ALL, MOE, save_tiny, tiny_model


@pytest.fixture(scope="module")
def inspected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Inspection]:
    folder = tmp_path_factory.mktemp("families")
    return {family: inspect(save_tiny(family, folder / family)) for family in ALL}


@pytest.mark.parametrize("family", ALL)
def test_parameters_are_those_of_the_model(inspected: dict[str, Inspection], family: str) -> None:
    found, model = inspected[family], tiny_model(family)
    buffers = sum(b.numel() for n, b in model.named_buffers() if n.endswith("e_score_correction_bias"))
    expected = sum(p.numel() for p in model.parameters()) + buffers
    assert found.total + found.parameters["other"] == expected
    assert found.parameters["embedding"] == model.get_input_embeddings().weight.numel()
    head = 0 if found.tied_embeddings else model.get_output_embeddings().weight.numel()
    assert found.parameters["head"] == head
    assert bool(found.parameters["experts"]) == (family in MOE)
    assert found.disk_dtypes == {"F32": found.disk_bytes}
    assert found.weights_bytes["bfloat16"] * 2 == found.weights_bytes["float32"]


@pytest.mark.parametrize("family", ALL)
def test_cache_is_what_the_engine_stores(family: str) -> None:
    verifier = verifier_of(family)
    for _ in verifier.prefill(0, prompt_of(8)):
        pass
    stored = sum(
        store[0][:, 0].numel()
        for store in (*verifier.cache._keys, *verifier.cache._values)
        if store is not None
    )
    assert verifier.spec.cached_values == stored


@pytest.mark.parametrize("family", MOE)
def test_active_parameters_leave_idle_experts_out(inspected: dict[str, Inspection], family: str) -> None:
    found = inspected[family]
    assert found.experts is not None
    idle = found.parameters["experts"] * (1 - found.experts.top_k / found.experts.count)
    assert found.active == pytest.approx(found.total - idle)
    assert found.experts.shared == bool(found.parameters["shared_experts"])
    by_name = {one.name: one.status for one in found.capabilities}
    assert by_name["run"] == by_name["draft"] == "yes"
    assert by_name["prune experts"] == "yes"


def test_a_dense_model_has_no_experts_to_prune(inspected: dict[str, Inspection]) -> None:
    found = inspected["llama"]
    assert found.experts is None
    assert found.active == found.total
    assert {one.name: one.status for one in found.capabilities}["prune experts"] == "no"


def test_windows_are_counted(inspected: dict[str, Inspection]) -> None:
    assert inspected["llama"].windows == {"full": 4}
    assert inspected["gemma3_text"].windows == {"sliding 8": 3, "full": 1}


def test_json_ready(inspected: dict[str, Inspection]) -> None:
    for found in inspected.values():
        assert json.loads(json.dumps(found.to_dict()))["family"] == found.family


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    return save_tiny("llama", tmp_path / "llama")


def test_a_tied_head_on_disk_counts_once(llama: Path) -> None:
    tensors = load_file(llama / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, llama / "model.safetensors", {"format": "pt"})
    config = json.loads((llama / "config.json").read_text())
    (llama / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))
    found = inspect(llama)
    assert found.parameters["head"] == 0
    assert found.parameters["embedding"] == 320 * 64


def test_without_tokenizer_it_cannot_run(llama: Path) -> None:
    (llama / "tokenizer.json").unlink()
    run = inspect(llama).capabilities[0]
    assert (run.name, run.status) == ("run", "no")
    assert "no tokenizer" in run.reason


def test_quantised_weights_are_refused_with_the_reason(llama: Path) -> None:
    config = json.loads((llama / "config.json").read_text())
    (llama / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "fp8"}}))
    found = inspect(llama)
    assert found.quantization == "fp8"
    assert {one.status for one in found.capabilities} == {"no"}
    assert all("fp8" in one.reason for one in found.capabilities if one.name.startswith(("run", "prune w")))


def test_no_weight_is_read(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> torch.Tensor:
        raise AssertionError("a weight was read")

    monkeypatch.setattr("justright.checkpoint.reader.Checkpoint.tensor", refuse)
    assert inspect(llama).total > 0


def test_weights_of_another_model_are_refused(llama: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(llama, tmp_path / "other"))
    save_file({"something.else": torch.zeros(2)}, other / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match="are of different models"):
        inspect(other)


def test_a_layer_too_few_is_refused(llama: Path) -> None:
    config = json.loads((llama / "config.json").read_text())
    (llama / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 5}))
    with pytest.raises(
        CheckpointError, match=r"lacks 7 of the 35 matrices.*such as .*layers\.4\.self_attn\.q_proj\.weight"
    ):
        inspect(llama)


def test_unknown_family(llama: Path) -> None:
    config = json.loads((llama / "config.json").read_text())
    (llama / "config.json").write_text(json.dumps(config | {"model_type": "gpt_neox"}))
    with pytest.raises(UnsupportedModelError, match="not in the architecture table"):
        inspect(llama)
