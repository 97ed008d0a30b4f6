"""Derive single facts of a `ModelSpec` from the settings of its decoder, and validate their values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from justright.architectures.schema import Architecture, LayerRule, LinearModule, Moe, Window
from justright.errors import CheckpointError, UnsupportedModelError

EXPERTS_BY_LAYER = "experts_by_layer"
"""In ``config.json``: a list with one number per decoder layer, 0 for a layer without experts."""


def context(settings: Any) -> int:
    """`ModelSpec.context`."""
    length = number(settings, "max_position_embeddings", 1)
    rope = getattr(settings, "rope_parameters", None) or getattr(settings, "rope_scaling", None) or {}
    if rope.get("rope_type", rope.get("type")) == "yarn":
        original = rope.get("original_max_position_embeddings") or length
        length = max(length, int(original * rope.get("factor", 1)))
    return length


def rope_switch_length(settings: Any) -> int | None:
    """Sequence length at which the rotary frequencies of all positions change, or None."""
    rope = getattr(settings, "rope_parameters", None) or {}
    for scaling in (rope, *(value for value in rope.values() if isinstance(value, Mapping))):
        if scaling.get("rope_type") == "longrope":
            return int(scaling.get("original_max_position_embeddings") or settings.max_position_embeddings)
        if scaling.get("rope_type") == "dynamic":
            return int(settings.max_position_embeddings)
    return None


def windows(row: Architecture, settings: Any, layers: int) -> tuple[Window | None, ...]:
    """`ModelSpec.windows`."""
    if row.reach == "full":
        return (None,) * layers
    if row.reach == "every_layer":
        size = getattr(settings, "sliding_window", None)
        return (None if size is None else Window("sliding", int(size)),) * layers
    return tuple(_window(kind, settings) for kind in settings.layer_types[:layers])


def _window(kind: str, settings: Any) -> Window | None:
    if kind == "full_attention":
        return None
    if kind not in ("sliding_attention", "chunked_attention"):
        raise UnsupportedModelError(
            f"Unknown attention layer type {kind!r} in layer_types; known: full_attention, "
            "sliding_attention, chunked_attention."
        )
    key = "sliding_window" if kind == "sliding_attention" else "attention_chunk_size"
    size = getattr(settings, key, None)
    if not size:
        raise UnsupportedModelError(
            f"layer_types has {kind}, but {key} is {size!r}: the config contradicts itself. Set {key}, or "
            "make the layer full_attention."
        )
    return Window("sliding" if kind == "sliding_attention" else "chunked", int(size))


def experts(moe: Moe | None, settings: Any, layers: int, by_layer: Any) -> tuple[int, ...]:
    """Routed experts of each layer; ``by_layer`` is the value of `EXPERTS_BY_LAYER`."""
    count = 0 if moe is None else first(settings, moe.count_keys)
    if moe is None or count == 0:
        return (0,) * layers
    with_experts = _moe_layers(moe.layers, settings, layers)
    if by_layer is None:
        return tuple(count if index in with_experts else 0 for index in range(layers))
    good = (
        isinstance(by_layer, list)
        and len(by_layer) == layers
        and all(type(n) is int and (0 < n <= count) == (i in with_experts) for i, n in enumerate(by_layer))
    )
    if not good:
        raise CheckpointError(
            f"config.json has {EXPERTS_BY_LAYER} = {by_layer!r}; allowed: {layers} numbers, 1 to {count} for the "
            f"layers {sorted(with_experts)} and 0 for others"
        )
    return tuple(by_layer)


def _moe_layers(rule: LayerRule, settings: Any, layers: int) -> frozenset[int]:
    only = _setting(settings, rule.only)
    if only is not None:
        return frozenset(i for i in _indices(only, rule.only) if i < layers)
    step = _whole(_setting(settings, rule.step, 1), rule.step, 1)
    start = _whole(_setting(settings, rule.start, 0), rule.start)
    end = _whole(_setting(settings, rule.end, layers - 1), rule.end, -1)
    end = layers - 1 if end == -1 else end
    skip = frozenset(_indices(_setting(settings, rule.skip, ()), rule.skip))
    return frozenset(
        i for i in range(start, min(end, layers - 1) + 1) if (i + 1) % step == 0 and i not in skip
    )


def expert_groups(moe: Moe | None, settings: Any) -> tuple[int, int]:
    """`ModelSpec.expert_groups`."""
    if moe is None or moe.group_keys is None or getattr(settings, "topk_method", None) == "greedy":
        return (1, 1)
    groups, chosen = (_whole(_setting(settings, key, 1), key, 1) for key in moe.group_keys)
    return (groups, chosen)


def linears(
    row: Architecture, settings: Any, experts: tuple[int, ...]
) -> tuple[tuple[LinearModule, ...], tuple[tuple[str, ...], ...]]:
    """The linear matrices that exist, and their fused groups."""
    no_shared = row.moe is not None and _setting(settings, row.moe.shared_count_key, 1) == 0
    modules: list[LinearModule] = []
    groups: list[tuple[str, ...]] = []
    for index, count in enumerate(experts):
        prefix, kind = row.memory.layer(index), "moe" if count else "dense"
        present = {
            linear.name: linear.part
            for linear in row.linears
            if linear.layers in ("all", kind)
            and (linear.when is None or _setting(settings, linear.when) is not None)
            and (linear.unless is None or _setting(settings, linear.unless) is None)
            and not (no_shared and linear.part == "shared_experts")
        }
        modules += [LinearModule(f"{prefix}.{name}", index, part) for name, part in present.items()]
        groups += [
            tuple(f"{prefix}.{name}" for name in group) for group in row.fused if present.keys() >= set(group)
        ]
    return tuple(modules), tuple(groups)


def cached_values(settings: Any, linears: tuple[LinearModule, ...]) -> int:
    """Elements per token and layer in the KV cache.

    Multi-head latent attention is cached expanded, as keys of every head and (narrower) values of every head.
    """
    heads = number(settings, "num_attention_heads", 1)
    if any(module.name.endswith("kv_b_proj") for module in linears):
        key = int(settings.qk_nope_head_dim) + int(settings.qk_rope_head_dim)
        return heads * (key + int(settings.v_head_dim))
    size = getattr(settings, "head_dim", None) or int(settings.hidden_size) // heads
    return 2 * int(getattr(settings, "num_key_value_heads", None) or heads) * int(size)


def _setting(settings: Any, key: str | None, default: Any = None) -> Any:
    """Return the value of ``key``, or the default if the key or the value is None."""
    value = getattr(settings, key, None) if key else None
    return default if value is None else value


def number(settings: Any, key: str, least: int) -> int:
    """Validate the integer at ``key``; raises like `_whole`."""
    return _whole(getattr(settings, key, None), key, least)


def _whole(value: Any, key: str | None, least: int = 0) -> int:
    """Validate an integer of a config.

    Raises:
        CheckpointError: It is not an integer, or below ``least``.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise CheckpointError(
            f"config.json has {key} = {value!r}; allowed: a whole number from {least}. Fetch the file again"
        )
    return value


def _indices(value: Any, key: str | None) -> list[int]:
    """Validate a list of layer indices; raises like `_whole`."""
    if not isinstance(value, list | tuple):
        raise CheckpointError(f"config.json has {key} = {value!r}; allowed: a list. Fetch the file again")
    return [_whole(one, key) for one in value]


def first(settings: Any, keys: tuple[str, ...]) -> int:
    """Return the integer at the first key that the config has."""
    for key in keys:
        if getattr(settings, key, None) is not None:
            return _whole(getattr(settings, key), key)
    raise UnsupportedModelError(
        f"The config has none of the keys {', '.join(keys)}, which this family needs."
    )
