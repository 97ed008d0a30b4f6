"""A tiny pair, its switch and a drafter, for bundle tests."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from draft_helpers import network_for
from justright.adapter.extract import extract
from justright.adapter.pair import Pair
from justright.adapter.ranks import RankRule
from justright.checkpoint.fingerprint import weights_identity
from tiny import save_pair, tokenizer_with


@dataclass(frozen=True)
class Parts:
    """The folders that a bundle is made from."""

    slow: Path
    fast: Path
    switch: Path
    draft: Path


def thinking_pair(folder: Path, slow_template: str, fast_template: str, **shape: Any) -> tuple[Path, Path]:
    """``(slow model, switch)`` of a pair with one template per mode; ``shape`` goes to `save_pair`."""
    slow, fast = save_pair(folder, **shape)
    for path, template in ((slow, slow_template), (fast, fast_template)):
        tokenizer_with(template).save_pretrained(path)
    return slow, extract(Pair(slow, fast), folder / "adapter", RankRule("energy", 1.0)).path


def tiny_drafter(model: Path, folder: Path) -> Path:
    """Save an untrained drafter whose config names ``model`` as its verifier."""
    network = network_for(AutoModelForCausalLM.from_pretrained(model))
    about = {"verifier": weights_identity(model), "data": {"factors": [0.0, 1.0]}}
    network.save(folder, about, dtype=torch.float32)
    return folder


def tiny_parts(folder: Path) -> Parts:
    """All parts; tests share them and must not change them."""
    slow, fast = save_pair(folder, "llama")
    extract(Pair(slow, fast), folder / "switch", RankRule(value=0.99))
    return Parts(slow, fast, folder / "switch", tiny_drafter(slow, folder / "draft"))
