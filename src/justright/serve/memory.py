"""How many tokens of keys and values this machine has memory for."""

from __future__ import annotations

import torch

from justright.engine.verifier import Verifier
from justright.models.inspect import cached_values_per_token

SHARE = 0.8
"""Of the memory that is free once the model is loaded; the rest is for a step's own tensors and for others."""


def affordable_tokens(verifier: Verifier) -> int:
    """The most tokens to keep at once: what memory allows, and no more than all slots can use."""
    each = cached_values_per_token(verifier.config) * verifier.dtype.itemsize
    return min(int(SHARE * free_bytes(verifier.device)) // each, verifier.slots * verifier.max_tokens)


def free_bytes(device: torch.device) -> int:
    """Memory of ``device`` that nobody uses."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    import psutil

    return int(psutil.virtual_memory().available)
