"""A tiny pair, its switch and a drafter, for the tests of bundles."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from draft_helpers import network_for
from justright.models.identity import weights_identity
from justright.switch.extract import extract
from justright.switch.pair import Pair
from justright.switch.ranks import RankRule
from tiny import save_tiny


@dataclass(frozen=True)
class Parts:
    """What a bundle is made of."""

    slow: Path
    fast: Path
    switch: Path
    draft: Path


def tiny_pair(folder: Path, family: str = "llama") -> tuple[Path, Path]:
    """``(slow, fast)``: slow has learnt a little in every matrix of its layers."""
    slow, fast = save_tiny(family, folder / "slow"), save_tiny(family, folder / "fast")
    tensors = load_file(slow / "model.safetensors")
    generator = torch.Generator().manual_seed(1)
    for name, tensor in tensors.items():
        if tensor.ndim >= 2 and ".layers." in name and "gate.weight" not in name:
            tensors[name] = tensor + torch.randn(tensor.shape, generator=generator) * 0.05
    save_file(tensors, slow / "model.safetensors", {"format": "pt"})
    return slow, fast


def tiny_drafter(model: Path, folder: Path) -> Path:
    """An untrained drafter that says it is for ``model``."""
    network = network_for(AutoModelForCausalLM.from_pretrained(model))
    about = {"verifier": weights_identity(model), "data": {"factors": [0.0, 1.0]}}
    network.save(folder, about, dtype=torch.float32)
    return folder


def tiny_parts(folder: Path) -> Parts:
    """All of it; to be left as it is."""
    slow, fast = tiny_pair(folder)
    extract(Pair(slow, fast), folder / "switch", RankRule(value=0.99))
    return Parts(slow, fast, folder / "switch", tiny_drafter(slow, folder / "draft"))
