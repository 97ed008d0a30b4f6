"""Different numbers of experts by layer in ``config.json``.

Stock config classes hold one number for all layers. An uneven checkpoint stores the largest there (so that unaware
engines fail on a tensor's shape instead of running wrongly), and lists the numbers under a key of its own.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from justright.architectures.spec import architecture_of, moe_layers, num_experts, num_layers
from justright.errors import CheckpointError

KEY = "experts_by_layer"
"""In ``config.json``: a list with one number per decoder layer, 0 for a layer without experts."""


def experts_by_layer(config: dict[str, Any]) -> dict[int, int]:
    """Layer -> routed experts, for every layer that has any.

    Raises:
        CheckpointError: The list does not fit the model.
    """
    layers, most = moe_layers(config), num_experts(config)
    found = config.get(KEY)
    if found is None:
        return dict.fromkeys(layers, most)
    good = (
        isinstance(found, list)
        and len(found) == num_layers(config)
        and all(type(n) is int and (0 < n <= most) == (i in layers) for i, n in enumerate(found))
    )
    if not good:
        raise CheckpointError(
            f"config.json has {KEY} = {found!r}; allowed: {num_layers(config)} numbers, 1 to {most} for the layers "
            f"{list(layers)} and 0 for others"
        )
    return {index: found[index] for index in layers}


def is_uneven(config: dict[str, Any]) -> bool:
    """Whether some layers have fewer experts than others, so that stock loaders cannot read the checkpoint."""
    return config.get(KEY) is not None and len(set(experts_by_layer(config).values())) > 1


def with_experts(config: dict[str, Any], counts: Mapping[int, int]) -> dict[str, Any]:
    """``config.json`` for the given numbers of experts: every key that counts them, at any level.

    Args:
        config: Content of a ``config.json``; it is not modified.
        counts: Layer -> experts; empty for a dense model.
    """
    moe = architecture_of(config).moe
    out: dict[str, Any] = json.loads(json.dumps(config))
    out.pop(KEY, None)
    if moe is None or not counts:
        return out
    for settings in (out, out.get("text_config") or {}):
        for key in moe.count_keys:
            if settings.get(key) is not None:
                settings[key] = max(counts.values())
    if len(set(counts.values())) > 1:
        out[KEY] = [counts.get(index, 0) for index in range(num_layers(config))]
    return out
