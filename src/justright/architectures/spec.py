"""Derive facts about a model from its config and the architecture table.

The table's rows are data (:mod:`justright.architectures.table`). The functions here derive facts about one
config: its family, the layers with experts, the attention reach of each layer, the linear matrices and their
fused groups, and the part of each parameter. Only this module normalises config keys; no other code reads
``model_type``.

A config is a transformers config object, or the dictionary of a ``config.json``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, Literal

from justright.architectures.schema import (
    Architecture,
    ExpertLayout,
    LayerRule,
    Linear,
    Moe,
    Names,
    Part,
    Router,
)
from justright.architectures.table import FAMILIES, RECURRENT
from justright.errors import CheckpointError, UnsupportedModelError

__all__ = [
    "Architecture",
    "ExpertLayout",
    "LayerRule",
    "Linear",
    "LinearModule",
    "Moe",
    "Names",
    "Part",
    "Router",
    "Window",
    "architecture_of",
    "attention_windows",
    "context_length",
    "expert_groups",
    "experts_per_token",
    "fused_groups",
    "linear_modules",
    "moe_layers",
    "num_experts",
    "num_layers",
    "parameter_part",
    "rope_switch_length",
    "supported_families",
    "text_config",
]

Config = Any  # a transformers config object, or the dictionary of a config.json

_RECURRENT_LAYERS = frozenset(
    ["linear_attention", "mamba", "mamba2", "conv", "recurrent", "hybrid", "hybrid_sliding"]
)  # entries of `layer_types` and of its older names that mean a recurrent state


@dataclass(frozen=True, slots=True)
class Window:
    """Attention window of one layer.

    Attributes:
        kind: "sliding": the query at position q sees the keys k with ``q - size < k <= q``, so that
            ``size`` counts the query's own token. "chunked": it sees the keys of its own chunk,
            ``k // size == q // size`` and ``k <= q``.
        size: In tokens.

    Source: ``sliding_window_overlay`` and ``chunked_overlay`` of transformers' ``masking_utils.py``.
    """

    kind: Literal["sliding", "chunked"]
    size: int


@dataclass(frozen=True, slots=True)
class LinearModule:
    """One linear matrix of a model: its module path in memory, its layer and its part."""

    name: str
    layer: int
    part: Part


def supported_families() -> tuple[str, ...]:
    """The ``model_type`` of every family in the table, sorted."""
    return tuple(sorted(FAMILIES))


def architecture_of(config: Config) -> Architecture:
    """Return the table row of a config's family.

    Args:
        config: A transformers config, or the dictionary of a ``config.json``.

    Raises:
        UnsupportedModelError: The family keeps a recurrent state, attends to later tokens, or is unknown.
            Each case has its own message with advice.
    """
    family = _get(config, "model_type")
    if not family or not isinstance(family, str):
        raise UnsupportedModelError(
            "The config has no model_type, so the model's family is unknown. Add model_type to config.json; "
            f"supported: {', '.join(supported_families())}."
        )
    inner = _get(config, "text_config") or config
    if not isinstance(inner, Mapping) and isinstance(config, Mapping):
        raise CheckpointError(
            f"config.json has text_config = {inner!r}; allowed: an object. Fetch the file again"
        )
    if family in RECURRENT or _recurrent_layers(inner):
        raise UnsupportedModelError(
            f"The family {family!r} is recurrent or hybrid: some of its layers carry a state from token to "
            "token, which cannot be rolled back when drafted tokens are rejected. justright supports "
            f"models whose layers all use attention: {', '.join(supported_families())}."
        )
    if family not in FAMILIES:
        raise UnsupportedModelError(
            f"The family {family!r} is not in the architecture table. Supported: "
            f"{', '.join(supported_families())}. To add it, write a row in justright/architectures/table.py "
            "and a tiny config in tests/tiny.py; the test matrix checks the row."
        )
    if _get(inner, "use_bidirectional_attention") or _get(inner, "is_causal", True) is False:
        raise UnsupportedModelError(
            f"This {family!r} model attends to later tokens (an embedding model), so it cannot generate. "
            "Use a causal model of the family."
        )
    return FAMILIES[family]


def text_config(config: Config) -> Any:
    """The decoder's own settings as an object, with the family's defaults filled in.

    Raises:
        UnsupportedModelError: See :func:`architecture_of`.
        CheckpointError: transformers rejects the values.
    """
    architecture = architecture_of(config)
    if isinstance(config, Mapping):
        if not architecture.stock:
            return SimpleNamespace(**config)
        from transformers import AutoConfig

        values = {key: value for key, value in config.items() if key != "model_type"}
        try:
            config = AutoConfig.for_model(architecture.family, **values)
        except Exception as error:  # its validators raise many types
            raise CheckpointError(
                f"The config of this {architecture.family} model is invalid: {error}"
            ) from error
    return config.text_config if architecture.nested else config


def num_layers(config: Config) -> int:
    """The number of decoder layers that run (extra prediction layers on disk are not counted)."""
    return _whole(text_config(config).num_hidden_layers, "num_hidden_layers", 1)


def context_length(config: Config) -> int:
    """Number of positions that the model was trained for.

    ``max_position_embeddings``, or ``original_max_position_embeddings * factor`` of a YaRN scaling where
    that is larger (users often add YaRN to a config without raising the first). Other scalings are not
    multiplied, since most checkpoints with them already state the scaled length.
    """
    settings = text_config(config)
    length = _whole(settings.max_position_embeddings, "max_position_embeddings", 1)
    rope = getattr(settings, "rope_parameters", None) or getattr(settings, "rope_scaling", None) or {}
    if rope.get("rope_type", rope.get("type")) == "yarn":
        original = rope.get("original_max_position_embeddings") or length
        length = max(length, int(original * rope.get("factor", 1)))
    return length


def rope_switch_length(config: Config) -> int | None:
    """The sequence length above which the rotary frequencies of *all* positions change, or None.

    With LongRoPE ("longrope") and dynamic NTK ("dynamic") scaling, a forward whose largest position reaches
    this length rotates every token differently: keys cached from shorter forwards are no longer valid.

    Source: ``dynamic_rope_update`` of transformers' ``modeling_rope_utils.py``; ``generate`` recomputes the
    cache of phi3 at this point (``Phi3ForCausalLM.prepare_inputs_for_generation``).
    """
    settings = text_config(config)
    rope = getattr(settings, "rope_parameters", None) or {}
    for scaling in (rope, *(value for value in rope.values() if isinstance(value, Mapping))):
        if scaling.get("rope_type") == "longrope":
            return int(scaling.get("original_max_position_embeddings") or settings.max_position_embeddings)
        if scaling.get("rope_type") == "dynamic":
            return int(settings.max_position_embeddings)
    return None


def attention_windows(config: Config) -> tuple[Window | None, ...]:
    """Each decoder layer's attention reach; None means that it sees everything before it.

    This follows the mask that the family's modelling code builds, because only the mask has an effect: some
    families pass ``sliding_window`` to the attention function of layers that do not slide (olmoe), or pass
    nothing to layers that do (qwen2_moe).

    Raises:
        UnsupportedModelError: A layer type is unknown, or a window has no size.
    """
    reach = architecture_of(config).reach
    settings = text_config(config)
    layers = _whole(settings.num_hidden_layers, "num_hidden_layers", 1)
    if reach == "full":
        return (None,) * layers
    if reach == "every_layer":
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


def moe_layers(config: Config) -> tuple[int, ...]:
    """The indices of the layers that have routed experts; empty for a dense model."""
    moe = architecture_of(config).moe
    if moe is None or num_experts(config) == 0:
        return ()
    settings, rule = text_config(config), moe.layers
    layers = _whole(settings.num_hidden_layers, "num_hidden_layers", 1)
    only = _setting(settings, rule.only)
    if only is not None:
        return tuple(sorted(i for i in _indices(only, rule.only) if i < layers))
    step = _whole(_setting(settings, rule.step, 1), rule.step, 1)
    start = _whole(_setting(settings, rule.start, 0), rule.start)
    end = _whole(_setting(settings, rule.end, layers - 1), rule.end, -1)
    end = layers - 1 if end == -1 else end
    skip = frozenset(_indices(_setting(settings, rule.skip, ()), rule.skip))
    return tuple(i for i in range(start, min(end, layers - 1) + 1) if (i + 1) % step == 0 and i not in skip)


def num_experts(config: Config) -> int:
    """Routed experts in each MoE layer; 0 for a dense model."""
    moe = architecture_of(config).moe
    return _first(text_config(config), moe.count_keys) if moe else 0


def experts_per_token(config: Config) -> int:
    """Routed experts per token (top-k); 0 for a dense model."""
    moe = architecture_of(config).moe
    return _first(text_config(config), moe.top_k_keys) if moe else 0


def expert_groups(config: Config) -> tuple[int, int]:
    """Group-limited routing: (number of expert groups, groups per token).

    (1, 1) if routing has no groups. Consecutive experts form a group.
    """
    moe = architecture_of(config).moe
    settings = text_config(config)
    if moe is None or moe.group_keys is None or getattr(settings, "topk_method", None) == "greedy":
        return (1, 1)
    groups, chosen = (_whole(_setting(settings, key, 1), key, 1) for key in moe.group_keys)
    return (groups, chosen)


def linear_modules(config: Config) -> tuple[LinearModule, ...]:
    """Every plain linear matrix of the decoder layers (without routed experts and router), in layer order.

    Names are module paths in the causal LM in memory.
    """
    return tuple(
        LinearModule(f"{prefix}.{linear.name}", index, linear.part)
        for index, prefix, linears in _layers(config)
        for linear in linears
    )


def fused_groups(config: Config) -> tuple[tuple[str, ...], ...]:
    """Groups of module paths that receive the same input tensor, in layer order.

    The members of a group may be computed as one product; concatenate the outputs in the given order.
    """
    fused = architecture_of(config).fused
    groups = []
    for _, prefix, linears in _layers(config):
        present = {linear.name for linear in linears}
        groups += [
            tuple(f"{prefix}.{name}" for name in group) for group in fused if present.issuperset(group)
        ]
    return tuple(groups)


def _layers(config: Config) -> Iterator[tuple[int, str, tuple[Linear, ...]]]:
    """(index, prefix in memory, linear matrices that exist) for each decoder layer."""
    architecture, settings = architecture_of(config), text_config(config)
    with_experts = frozenset(moe_layers(config))
    moe = architecture.moe
    no_shared = moe is not None and _setting(settings, moe.shared_count_key, 1) == 0
    for index in range(int(settings.num_hidden_layers)):
        kind = "moe" if index in with_experts else "dense"
        yield (
            index,
            architecture.memory.layer(index),
            tuple(
                linear
                for linear in architecture.linears
                if linear.layers in ("all", kind)
                and (linear.when is None or _setting(settings, linear.when) is not None)
                and (linear.unless is None or _setting(settings, linear.unless) is None)
                and not (no_shared and linear.part == "shared_experts")
            ),
        )


_NORM = re.compile(r"norm\d*$")


def parameter_part(architecture: Architecture, name: str, layers: int | None = None) -> Part:
    """Part of a parameter or buffer, by its name in memory or on disk.

    Args:
        architecture: The family's row.
        name: Full name, such as ``model.layers.3.mlp.experts.7.up_proj.weight``; quantisation companions
            (``..._blocks``, ``....weight_scale_inv``) count as their weight.
        layers: The number of decoder layers. Layers beyond it on disk (multi-token prediction) are "other".

    Returns:
        The part; "other" for tensors outside the text decoder, such as a vision tower.
    """
    for names in (architecture.memory, architecture.disk):
        if name == names.embedding:
            return "embedding"
        if name.startswith(names.final_norm + "."):
            return "norm"
        if name.startswith(names.head.removesuffix("weight")):
            return "head"
    for names in (architecture.memory, architecture.disk):
        match = re.match(re.escape(names.stem) + r"\.layers\.(\d+)\.(.+)$", name)
        if match:
            beyond = layers is not None and int(match[1]) >= layers
            return "other" if beyond else _layer_part(architecture, match[2])
    return "other"


def _layer_part(architecture: Architecture, name: str) -> Part:
    """The part of a parameter by its name within a decoder layer."""
    if any(_NORM.search(piece) for piece in name.split(".")):
        return "norm"
    moe = architecture.moe
    if moe is not None:
        for layout, router in ((moe.memory, moe.router), (moe.disk, moe.router_disk)):
            if name.startswith(layout.module + "."):
                return "experts"
            if name.startswith(router.module + ".") or name in router.names:
                return "router"
        if moe.shared and name.startswith(moe.shared + "."):
            return "shared_experts"
    if name.startswith("self_attn."):
        return "attention"
    mlps = {linear.name.rsplit(".", 1)[0] for linear in architecture.linears if linear.part == "mlp"}
    return "mlp" if any(name.startswith(module + ".") for module in mlps) else "other"


def _recurrent_layers(config: Config) -> bool:
    kinds = [_get(config, key) for key in ("layer_types", "layers_block_type", "block_types")]
    return any(
        isinstance(kind, str) and kind in _RECURRENT_LAYERS
        for found in kinds
        if isinstance(found, list | tuple)
        for kind in found
    )


def _get(config: Config, key: str, default: Any = None) -> Any:
    return config.get(key, default) if isinstance(config, Mapping) else getattr(config, key, default)


def _setting(settings: Any, key: str | None, default: Any = None) -> Any:
    """Return the value of ``key``, or the default if the key or the value is None."""
    value = getattr(settings, key, None) if key else None
    return default if value is None else value


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


def _first(settings: Any, keys: tuple[str, ...]) -> int:
    """Return the integer at the first key that the config has."""
    for key in keys:
        if getattr(settings, key, None) is not None:
            return _whole(getattr(settings, key), key)
    raise UnsupportedModelError(
        f"The config has none of the keys {', '.join(keys)}, which this family needs."
    )
