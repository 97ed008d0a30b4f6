"""The verifier for training: frozen, and fast enough on a CPU to generate its own data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from justright.engine.loading import load_model
from justright.kernels.cpu import has_bfloat16


class HalfLinear(nn.Module):
    """A linear module that multiplies in bfloat16; the output has the dtype of the input."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.out_features, self.in_features = linear.weight.shape
        self.weight = nn.Parameter(linear.weight.detach().bfloat16(), requires_grad=False)
        self.bias = None if linear.bias is None else nn.Parameter(linear.bias.detach(), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """``x [..., in]`` to ``[..., out]``."""
        out = F.linear(x.bfloat16(), self.weight).to(x.dtype)
        return out if self.bias is None else out + self.bias


def load_frozen(path: Path, device: torch.device, **options: Any) -> PreTrainedModel:
    """Load a checkpoint without gradients: in bfloat16 on an accelerator, in float32 on a CPU.

    A CPU with fast bfloat16 multiplies in bfloat16; sums, norms and the KV cache stay in float32.

    Args:
        path: a checkpoint directory.
        device: any torch device.
        options: for transformers, such as the attention implementation.

    Raises:
        JustrightError: see `load_model`.
    """
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    model = load_model(path, dtype=dtype, device=device, **options)
    model.requires_grad_(False)
    if device.type == "cpu" and has_bfloat16():
        for name, module in list(model.named_modules()):
            if type(module) is nn.Linear:
                parent, _, leaf = name.rpartition(".")
                setattr(model.get_submodule(parent), leaf, HalfLinear(module))
    return model.eval()


@torch.no_grad()
def embedded(model: PreTrainedModel, token_ids: Tensor) -> Tensor:
    """Embeddings of tokens ``[...]`` as the first layer gets them (some families scale them):
    ``[..., hidden_size]`` float32.
    """
    found: Tensor = model.get_input_embeddings()(token_ids)
    return found.float()
