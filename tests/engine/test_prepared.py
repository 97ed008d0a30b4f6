"""A model up to its weights: each file is read once on the way to a loaded model."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from justright.adapter import adapter as adapters
from justright.checkpoint.fingerprint import weights_identity
from justright.engine.chat_modes import Reasoning
from justright.engine.checks import check_prompt
from justright.engine.llm import LLM
from justright.engine.options import EngineOptions
from justright.engine.prepared import prepare_model
from justright.errors import ResourceError, UsageError
from tiny import save_tiny


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A tiny model, and a switch that changes nothing."""
    folder = tmp_path_factory.mktemp("prepared")
    model, switch = save_tiny("llama", folder / "model"), folder / "switch"
    switch.mkdir()
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_{}.weight"
    factors = {name.format("A"): torch.zeros(2, 64), name.format("B"): torch.zeros(64, 2)}
    save_file(factors, switch / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["q_proj"]}
    (switch / "adapter_config.json").write_text(json.dumps(config))
    (switch / "switch.json").write_text(json.dumps({"base": weights_identity(model)}))
    return model, switch


def test_the_config_and_the_adapter_are_read_once(
    parts: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Our own reads: transformers opens config.json by itself, not through `Path.read_text`."""
    model, switch = parts
    read: Counter[Path] = Counter()

    def counted(reader: Any) -> Any:
        def call(path: Path, *args: Any, **kwargs: Any) -> Any:
            read[path] += 1
            return reader(path, *args, **kwargs)

        return call

    monkeypatch.setattr(Path, "read_text", counted(Path.read_text))
    monkeypatch.setattr(adapters, "load_tensors", counted(adapters.load_tensors))
    prepared = prepare_model(str(model), EngineOptions(switch=str(switch)))
    prepared.check_reasoning(Reasoning("none"))
    with LLM(prepared) as llm:
        assert llm.modes is not None
        assert llm.modes.adapter is prepared.adapter is not None
    files = [model / "config.json", switch / "adapter_model.safetensors"]
    files += [switch / "adapter_config.json", switch / "switch.json"]
    assert {file.name: read[file] for file in files} == dict.fromkeys((file.name for file in files), 1)


def test_a_prepared_model_has_its_options(parts: tuple[Path, Path]) -> None:
    prepared = prepare_model(str(parts[0]), EngineOptions(max_context=40), default_draft="suffix")
    assert prepared.options.draft == "suffix"
    assert prepared.drafter is not None
    assert (prepared.context, prepared.spec.context) == (40, 512)
    with pytest.raises(UsageError, match="already has its options"):
        LLM(prepared, slots=2)


def test_a_prompt_leaves_one_token_for_the_answer() -> None:
    check_prompt([1] * 39, 40)
    with pytest.raises(
        ResourceError, match="this message has 40 tokens; the context holds 40, with at least one"
    ):
        check_prompt([1] * 40, 40, "this message")
    with pytest.raises(UsageError, match="prompt 2 of 3 is empty"):
        check_prompt([], 40, "prompt 2 of 3")
