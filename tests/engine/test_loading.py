"""An incomplete checkpoint raises an error with names and shapes; optional tensors may be missing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from justright.engine.loading import load_model
from justright.errors import CheckpointError, ResourceError
from tiny import ALL, save_tiny, tiny_model


def load(path: Path) -> torch.nn.Module:
    return load_model(path, dtype=torch.float32, device=torch.device("cpu"))


def edit_config(path: Path, **changes: object) -> None:
    file = path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def rewrite(path: Path, drop: str) -> None:
    file = path / "model.safetensors"
    tensors = {name: tensor for name, tensor in load_file(file).items() if drop not in name}
    save_file(tensors, file, {"format": "pt"})


@pytest.mark.parametrize("family", ALL)
def test_a_whole_checkpoint_loads_as_it_was(family: str, tmp_path: Path) -> None:
    loaded = load(save_tiny(family, tmp_path)).state_dict()
    for name, tensor in tiny_model(family).state_dict().items():
        torch.testing.assert_close(loaded[name], tensor, rtol=0, atol=0)


def test_a_layer_too_few_is_refused(tmp_path: Path) -> None:
    save_tiny("llama", tmp_path)
    edit_config(tmp_path, num_hidden_layers=5)
    with pytest.raises(
        CheckpointError, match=r"lacks 9 tensors.*model\.layers\.4\.input_layernorm\.weight.*fetch"
    ):
        load(tmp_path)


@pytest.mark.parametrize(
    ("family", "drop"),
    [
        ("llama", "layers.2.mlp.up_proj"),
        ("llama", "lm_head"),
        ("smollm3", "embed_tokens"),
        ("qwen3_moe", "layers.1.mlp.experts.3"),
        ("qwen3_moe", "layers.1.mlp.experts"),
        ("deepseek_v3", "e_score_correction_bias"),
    ],
)
def test_a_missing_tensor_is_refused(family: str, drop: str, tmp_path: Path) -> None:
    save_tiny(family, tmp_path)
    rewrite(tmp_path, drop)
    with pytest.raises(CheckpointError, match=r"lacks|has shape"):
        load(tmp_path)


def test_another_shape_is_named(tmp_path: Path) -> None:
    save_tiny("llama", tmp_path)
    edit_config(tmp_path, intermediate_size=80)
    expected = (
        r"^the tensor .*layers\.0\.mlp\.down_proj\.weight of .* has shape \[64, 96\].* "
        r"config\.json requires \[64, 80\] \(12 tensors differ"
    )
    with pytest.raises(CheckpointError, match=expected):
        load(tmp_path)


@pytest.mark.parametrize(
    ("error", "found"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), ResourceError),
        (RuntimeError("CUDA error: uncorrectable ECC error encountered"), RuntimeError),
    ],
)
def test_a_device_that_fails_is_no_damaged_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, found: type[Exception]
) -> None:
    def failing(*_: object, **__: object) -> None:
        raise error

    path = save_tiny("llama", tmp_path)
    monkeypatch.setattr(PreTrainedModel, "to", failing)
    with pytest.raises(found) as caught:
        load(path)
    assert type(caught.value) is found
