"""How many tokens of KV cache fit into this machine's memory."""

from __future__ import annotations

from pathlib import Path

import torch

from justright.engine.model_runner import Verifier

CGROUPS = Path("/sys/fs/cgroup")
LEAST_TOKENS = 256
"""Least tokens of KV cache that a server needs room for."""
SHARE = 0.8
"""Share of the memory free after loading the model; the rest is for a step's tensors and other processes."""


def affordable_tokens(verifier: Verifier) -> int:
    """Return the most tokens to keep at once: what fits into memory, and no more than all slots can use."""
    each = verifier.spec.cached_values * verifier.dtype.itemsize
    return min(int(SHARE * free_bytes(verifier.device)) // each, verifier.slots * verifier.max_tokens)


def free_bytes(device: torch.device) -> int:
    """Return the free memory of ``device``, in bytes."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    import psutil

    return min([int(psutil.virtual_memory().available), *_cgroup_headroom()])


def _cgroup_headroom() -> list[int]:
    """Return what the limits of a container or service leave, in bytes, if there are any (cgroup v2)."""
    try:
        group = Path("/proc/self/cgroup").read_text(encoding="ascii").strip().rpartition("::")[2].lstrip("/")
    except OSError:
        return []
    found = []
    folder = CGROUPS / group
    for one in (folder, *folder.parents):
        try:
            most, now = ((one / f"memory.{name}").read_text(encoding="ascii") for name in ("max", "current"))
            found.append(max(int(most) - int(now), 0))
        except (OSError, ValueError):  # no such file, or "max": no limit
            continue
    return found
