"""Peak memory of a run in its own process, as the system measures it, against a layer's size and the dry run."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, PretrainedConfig, Qwen3MoeConfig

from justright.checkpoint.sources import resolve
from justright.checkpoint.writer import CheckpointWriter

if not Path("/proc/self/clear_refs").exists():
    pytest.skip("only Linux tells a process's peak from a moment on", allow_module_level=True)

RUN = """
import json, sys
from pathlib import Path
import torch, transformers
from justright.prune.pipeline import Pruning
from justright.prune.settings import Settings

def status(key):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))

model, settings, texts = sys.argv[1:]
begin = status("VmRSS")
given = json.loads(settings)
pruning = Pruning(Path(model), Settings(calibration=(texts,), sequences=2, length=64, **given), rows=2)
estimate = pruning.estimate().memory_bytes
pruning.run(Path(model + "-out"))
print(json.dumps({"peak": status("VmHWM") - begin, "estimate": estimate}))
"""
LIBRARIES = 64 * 2**20
"""What a run imports when it needs it, and the tokenizer: about 40 MiB."""

Shapes = dict[str, tuple[int, ...]]
COMMON: dict[str, Any] = {
    "vocab_size": 4096,
    "head_dim": 64,
    "num_hidden_layers": 2,
    "max_position_embeddings": 512,
    "tie_word_embeddings": True,
}


def mixture(hidden: int, experts: int) -> tuple[PretrainedConfig, Shapes]:
    shapes: Shapes = {"mlp.gate.weight": (experts, hidden)}
    for expert in range(experts):
        for name, shape in {"gate": (512, hidden), "up": (512, hidden), "down": (hidden, 512)}.items():
            shapes[f"mlp.experts.{expert}.{name}_proj.weight"] = shape
    shapes |= {f"self_attn.{n}_norm.weight": (64,) for n in "qk"}
    config = Qwen3MoeConfig(
        **COMMON, hidden_size=hidden, num_attention_heads=hidden // 64, num_key_value_heads=hidden // 64,
        moe_intermediate_size=512, num_experts=experts, num_experts_per_tok=2, architectures=["Qwen3MoeForCausalLM"],
    )  # fmt: skip
    return config, shapes


def dense(hidden: int, _: int) -> tuple[PretrainedConfig, Shapes]:
    wide = 4 * hidden
    shapes: Shapes = {"gate": (wide, hidden), "up": (wide, hidden), "down": (hidden, wide)}
    config = LlamaConfig(
        **COMMON, hidden_size=hidden, num_attention_heads=hidden // 64, num_key_value_heads=hidden // 64,
        intermediate_size=wide, architectures=["LlamaForCausalLM"],
    )  # fmt: skip
    return config, {f"mlp.{name}_proj.weight": shape for name, shape in shapes.items()}


def made(out: Path, config: PretrainedConfig, shapes: Shapes, dtype: torch.dtype) -> int:
    """Write a checkpoint of random weights; return the bytes of a layer in float32."""
    hidden = config.hidden_size
    shapes |= {f"self_attn.{n}_proj.weight": (hidden, hidden) for n in "qkvo"}
    shapes |= {f"{n}_layernorm.weight": (hidden,) for n in ("input", "post_attention")}
    generator = torch.Generator().manual_seed(0)
    with CheckpointWriter(out) as writer:
        every = {"model.embed_tokens.weight": (4096, hidden), "model.norm.weight": (hidden,)}
        for layer in range(config.num_hidden_layers):
            every |= {f"model.layers.{layer}.{name}": shape for name, shape in shapes.items()}
        for name, shape in every.items():
            one = torch.ones(shape) if len(shape) == 1 else torch.randn(shape, generator=generator) / 50
            writer.add(name, one.to(dtype))
        writer.finish(config.to_dict())
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (out / file).write_bytes((resolve("zoo:moe").path / file).read_bytes())
    return 4 * sum(torch.Size(shape).numel() for shape in shapes.values())


@pytest.mark.parametrize(
    ("kind", "size", "dtype", "settings"),
    [
        (mixture, (512, 20), torch.bfloat16, {"sparsity": 0.5, "expert_sparsity": 0.25}),
        (dense, (1024, 0), torch.float32, {"sparsity": 0.5}),
    ],
)
def test_a_run_takes_two_and_a_half_layers_at_most(
    kind: Callable[[int, int], tuple[PretrainedConfig, Shapes]],
    size: tuple[int, int],
    dtype: torch.dtype,
    settings: dict[str, float],
    tmp_path: Path,
) -> None:
    layer = made(tmp_path / "model", *kind(*size), dtype)
    text = "\n".join(f"The {n} apples of tree {n * n} are {n % 7} days old." for n in range(600))
    (tmp_path / "texts.txt").write_text(text)
    command = [sys.executable, "-c", RUN, str(tmp_path / "model"), json.dumps(settings)]
    result = subprocess.run(
        [*command, str(tmp_path / "texts.txt")], capture_output=True, text=True, check=True
    )
    found = json.loads(result.stdout.splitlines()[-1])
    assert found["peak"] < 2.5 * layer + LIBRARIES, found
    assert found["estimate"] == pytest.approx(found["peak"], rel=0.2)
