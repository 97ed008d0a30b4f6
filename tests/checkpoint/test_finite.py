"""A tensor with a non-finite value raises an error that names it, wherever the value is."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from bundle_helpers import Parts, tiny_parts
from justright.adapter.adapter import read_adapter
from justright.bundle.contents import check_contents
from justright.checkpoint.finite import check_finite
from justright.engine.llm import LLM
from justright.errors import CheckpointError
from justright.speculative.lstm_network import LstmModel
from justright.speculative.store import read_tensors

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.float8_e5m2, torch.float8_e4m3fn]


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Parts:
    return tiny_parts(tmp_path_factory.mktemp("parts"))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", [0, 33, -1])
def test_one_number_among_many(dtype: torch.dtype, number: float, place: int, tmp_path: Path) -> None:
    good = torch.linspace(-3, 3, 67).to(dtype)
    check_finite({"a": good, "none": good[:0], "ids": torch.arange(3)}, tmp_path)
    bad = good.clone()
    no_infinity = dtype == torch.float8_e4m3fn
    bad[place] = torch.tensor(math.nan if no_infinity else number).to(dtype)
    with pytest.raises(CheckpointError, match=r"f\.safetensors: the tensor b holds (nan|-?inf); only finite"):
        check_finite({"a": good, "b": bad.view(67, 1)}, tmp_path / "f.safetensors")


def spoil(file: Path, name: str) -> None:
    """Put a NaN into a tensor of a file, which may be linked to others."""
    tensors = load_file(file)
    tensors[name].view(-1)[-1] = math.nan
    file.unlink()
    save_file(tensors, file, {"format": "pt"})


def copied(folder: Path, to: Path) -> Path:
    to.mkdir()
    for file in folder.iterdir():
        (to / file.name).write_bytes(file.read_bytes())
    return to


def test_drafters_and_adapters_are_refused_when_they_are_read(parts: Parts, tmp_path: Path) -> None:
    drafter = copied(parts.draft, tmp_path / "draft")
    spoil(drafter / "model.safetensors", "spec")
    with pytest.raises(CheckpointError, match=r"draft/model\.safetensors: the tensor spec holds nan"):
        read_tensors(drafter, 0, 10_000)
    with pytest.raises(CheckpointError, match="the tensor spec holds nan"):
        LLM(str(parts.slow), draft="lstm", draft_options={"path": str(drafter)}, adaptive=False)
    adapter = copied(parts.switch, tmp_path / "adapter")
    save_file({"model.norm.weight": torch.tensor([0.0, math.inf])}, adapter / "exact_deltas.safetensors")
    with pytest.raises(
        CheckpointError, match=r"exact_deltas\.safetensors: the tensor model.norm.weight holds inf"
    ):
        read_adapter(adapter)
    name = min(load_file(adapter / "adapter_model.safetensors"))
    spoil(adapter / "adapter_model.safetensors", name)
    with pytest.raises(CheckpointError, match=rf"adapter_model\.safetensors: the tensor {name} holds nan"):
        read_adapter(adapter)
    settings = json.loads((adapter / "adapter_config.json").read_text()) | {"lora_alpha": math.nan}
    settings |= {"alpha_pattern": {}}
    adapter = copied(parts.switch, tmp_path / "scaled")
    (adapter / "adapter_config.json").write_text(json.dumps(settings))
    with pytest.raises(CheckpointError, match=r"lora_alpha = nan; expected a number above 0"):
        read_adapter(adapter)


def test_a_drafter_that_is_not_finite_is_not_written(tmp_path: Path) -> None:
    from draft_helpers import network_for
    from tiny import tiny_model

    network: LstmModel = network_for(tiny_model("llama"))
    network.later.weight[1, 2] = math.inf
    with pytest.raises(CheckpointError, match=r"the tensor later\.weight holds inf"):
        network.save(tmp_path / "d")
    assert not (tmp_path / "d").exists()


def test_a_bundle_is_refused_when_it_is_made_and_when_it_is_read(parts: Parts, tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    check_contents(str(parts.slow)).write(out, copy=True)
    LLM(str(out))
    name = "model.layers.1.mlp.up_proj.weight"
    spoil(out / "model.safetensors", name)
    with pytest.raises(CheckpointError, match=rf"bundle/model\.safetensors: the tensor {name} holds nan"):
        LLM(str(out))
    model = copied(parts.slow, tmp_path / "model")
    spoil(model / "model.safetensors", name)
    with pytest.raises(CheckpointError, match=rf"model/model\.safetensors: the tensor {name} holds nan"):
        check_contents(str(model))
