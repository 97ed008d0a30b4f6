"""How many tokens of keys and values this machine has memory for."""

from __future__ import annotations

from pathlib import Path

import torch

from justright.engine.model_runner import Verifier
from justright.model.summary import cached_values_per_token

CGROUPS = Path("/sys/fs/cgroup")
LEAST_TOKENS = 256
"""Of keys and values, that a server must have room for."""
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

    return min([int(psutil.virtual_memory().available), *_left_of_limits()])


def _left_of_limits() -> list[int]:
    """What a container's or a service's own limit leaves, where there is one (cgroup v2)."""
    try:
        own = Path("/proc/self/cgroup").read_text(encoding="ascii").strip().rpartition("::")[2].lstrip("/")
    except OSError:
        return []
    found = []
    folder = CGROUPS / own
    for one in (folder, *folder.parents):
        try:
            most, now = ((one / f"memory.{name}").read_text(encoding="ascii") for name in ("max", "current"))
            found.append(max(int(most) - int(now), 0))
        except (OSError, ValueError):  # none here, or "max": no limit
            continue
    return found
