"""Small checkpoints for the reader's and writer's tests."""

import torch
from safetensors.torch import save_file

from justright.checkpoint.writer import CheckpointWriter

CONFIG = {"model_type": "tiny", "hidden_size": 4}


def some_tensors(count=7):
    return {f"layers.{n}.weight": torch.full((n + 1, 8), float(n)) for n in range(count)}


def write(out, tensors, **options):
    with CheckpointWriter(out, **options) as writer:
        for name, tensor in tensors.items():
            writer.add(name, tensor)
        return writer.finish(CONFIG)


def content(folder):
    return {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}


def bits(tensor):
    return tensor.contiguous().reshape(-1).view(torch.uint8).tolist()


def make_model(path):
    path.mkdir(parents=True)
    save_file({"weight": torch.ones(2)}, path / "model.safetensors")
    (path / "config.json").write_text("{}")
    (path / "tokenizer.json").write_text("{}")
    return path
