"""Pruning on GPUs makes the CPU's choices up to rounding ties; several GPUs give the bytes of one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from justright.prune.pipeline import prune
from justright.prune.settings import Settings

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
Get = Callable[[str], Path]


@pytest.mark.parametrize("family", ["qwen3_moe", "gpt_oss", "deepseek_v2", "llama"])
def test_a_gpu_chooses_as_the_cpu_does(checkpoint: Get, texts: str, tmp_path: Path, family: str) -> None:
    chosen = Settings(sparsity=0.6, calibration=(texts,), sequences=6, length=40, min_tokens=4)
    here, there = (
        prune(checkpoint(family), tmp_path / name, chosen, rows=2, device=name) for name in ("cpu", "cuda")
    )
    assert here.plan.experts == there.plan.experts
    a, b = (load_file(tmp_path / name / "model.safetensors") for name in ("cpu", "cuda"))
    different = sum(int(((a[n] == 0) != (b[n] == 0)).sum()) for n in a)
    assert different <= 0.001 * sum(tensor.numel() for tensor in a.values())


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_layers_in_flight_on_several_gpus(checkpoint: Get, texts: str, tmp_path: Path) -> None:
    chosen = Settings(sparsity=0.6, calibration=(texts,), sequences=7, length=40, min_tokens=4)
    for name, device in (("one", "cuda:0"), ("two", "cuda:0,cuda:1")):
        prune(checkpoint("qwen3_moe"), tmp_path / name, chosen, rows=2, device=device)
    files = [tmp_path / name / "model.safetensors" for name in ("one", "two")]
    assert files[0].read_bytes() == files[1].read_bytes()
