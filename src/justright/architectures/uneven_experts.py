"""Different numbers of experts by layer in ``config.json``.

Stock config classes hold one number for all layers. An uneven checkpoint stores the largest there (so that unaware
engines fail on a tensor's shape instead of running wrongly), and lists the numbers under a key of its own, which
`ModelSpec.experts` reads.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from justright.architectures.derive import EXPERTS_BY_LAYER
from justright.architectures.spec import ModelSpec


def with_experts(config: dict[str, Any], spec: ModelSpec, counts: Mapping[int, int]) -> dict[str, Any]:
    """``config.json`` for the given numbers of experts: every key that counts them, at any level.

    Args:
        config: Content of a ``config.json``; it is not modified.
        spec: Its spec.
        counts: Layer -> experts; empty for a dense model.
    """
    moe = spec.architecture.moe
    out: dict[str, Any] = json.loads(json.dumps(config))
    out.pop(EXPERTS_BY_LAYER, None)
    if moe is None or not counts:
        return out
    for settings in (out, out.get("text_config") or {}):
        for key in moe.count_keys:
            if settings.get(key) is not None:
                settings[key] = max(counts.values())
    if len(set(counts.values())) > 1:
        out[EXPERTS_BY_LAYER] = [counts.get(index, 0) for index in range(spec.num_layers)]
    return out
