"""Read a model's config once, into a frozen `ModelSpec`.

The table's rows are data (:mod:`justright.architectures.table`); a `ModelSpec` is a row applied to one config. Only
this module normalises config keys; no other code reads ``model_type``.

A config is a transformers config object, or the dictionary of a ``config.json``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, Self

from justright.architectures import derive
from justright.architectures.schema import Architecture, LinearModule, Part, Window
from justright.architectures.table import FAMILIES, RECURRENT
from justright.errors import CheckpointError, UnsupportedModelError

Config = Any  # a transformers config object, or the dictionary of a config.json

_RECURRENT_LAYERS = frozenset(
    ["linear_attention", "mamba", "mamba2", "conv", "recurrent", "hybrid", "hybrid_sliding"]
)  # entries of `layer_types` and of its older names that mean a recurrent state


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """What one model is: its config, parsed and validated once.

    `Checkpoint.spec` gives it for files, `of` for a config in memory. All fields are computed together, so that a
    config that contradicts itself fails before any work, with one message in every command. The table's row alone
    comes from `architecture_of`, which does not import transformers.

    Attributes:
        architecture: The family's row of the table.
        num_layers: Decoder layers that run (extra prediction layers on disk are not counted).
        hidden_size: Width of the hidden states.
        vocab_size: Rows of the embedding.
        tied: Whether the head is the embedding.
        context: Number of positions that the model was trained for: ``max_position_embeddings``, or
            ``original_max_position_embeddings * factor`` of a YaRN scaling where that is larger (users often add YaRN
            to a config without raising the first). Other scalings are not multiplied, since most checkpoints with
            them already state the scaled length.
        usable_context: The longest sequence that the engine runs: `context`, or less with LongRoPE ("longrope") and
            dynamic NTK ("dynamic") scaling. With these, a forward whose largest position reaches a certain length
            rotates *every* token differently, so that keys cached from shorter forwards are no longer valid.
        windows: Each layer's attention reach; None means that it sees everything before it. It follows the mask that
            the family's modelling code builds, because only the mask has an effect: some families pass
            ``sliding_window`` to the attention function of layers that do not slide (olmoe), or pass nothing to
            layers that do (qwen2_moe).
        experts: Routed experts of each layer; 0 for a layer without.
        experts_per_token: Routed experts per token (top-k); 0 for a dense model.
        expert_groups: Group-limited routing: (number of expert groups, groups per token); (1, 1) if routing has no
            groups. Consecutive experts form a group.
        linears: Every plain linear matrix of the decoder layers (without routed experts and router), in layer order.
        fused_groups: Groups of module paths that receive the same input tensor, in layer order. The members of a
            group may be computed as one product; concatenate the outputs in the given order.
        cached_values: Elements per token in the engine's KV cache, over all layers.

    Source: ``dynamic_rope_update`` of transformers' ``modeling_rope_utils.py`` (`usable_context`); ``generate``
    recomputes the cache of phi3 at this point (``Phi3ForCausalLM.prepare_inputs_for_generation``).
    """

    architecture: Architecture
    num_layers: int
    hidden_size: int
    vocab_size: int
    tied: bool
    context: int
    usable_context: int
    windows: tuple[Window | None, ...]
    experts: tuple[int, ...]
    experts_per_token: int
    expert_groups: tuple[int, int]
    linears: tuple[LinearModule, ...]
    fused_groups: tuple[tuple[str, ...], ...]
    cached_values: int

    @classmethod
    def of(cls, config: Config) -> Self:
        """Parse a config.

        Args:
            config: A transformers config, or the dictionary of a ``config.json``.

        Raises:
            UnsupportedModelError: See `architecture_of`; a layer type is unknown, or a window has no size.
            CheckpointError: A value is invalid.
        """
        row = architecture_of(config)
        filled = _with_defaults(row, config)
        settings = filled.text_config if row.nested else filled
        layers = derive.number(settings, "num_hidden_layers", 1)
        experts = derive.experts(row.moe, settings, layers, _get(config, derive.EXPERTS_BY_LAYER))
        linears, fused = derive.linears(row, settings, experts)
        moe = row.moe if any(experts) else None
        context = derive.context(settings)
        return cls(
            architecture=row,
            num_layers=layers,
            hidden_size=derive.number(settings, "hidden_size", 1),
            vocab_size=derive.number(settings, "vocab_size", 1),
            tied=bool(getattr(filled, "tie_word_embeddings", False)),
            context=context,
            usable_context=min(context, derive.rope_switch_length(settings) or context),
            windows=derive.windows(row, settings, layers),
            experts=experts,
            experts_per_token=0 if moe is None else derive.first(settings, moe.top_k_keys),
            expert_groups=derive.expert_groups(moe, settings),
            linears=linears,
            fused_groups=fused,
            cached_values=layers * derive.cached_values(settings, linears),
        )

    @property
    def moe_layers(self) -> tuple[int, ...]:
        """The indices of the layers that have routed experts; empty for a dense model."""
        return tuple(index for index, count in enumerate(self.experts) if count)

    @property
    def num_experts(self) -> int:
        """Routed experts in each MoE layer, the most if layers differ; 0 for a dense model."""
        return max(self.experts)

    @property
    def is_uneven(self) -> bool:
        """Whether some layers have fewer experts than others, so that stock loaders cannot read the checkpoint."""
        return len({count for count in self.experts if count}) > 1

    def part(self, name: str) -> Part:
        """Part of a parameter or buffer, by its name in memory or on disk: see `Architecture.part`."""
        return self.architecture.part(name, self.num_layers)


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


def decoder_settings(config: Config) -> Any:
    """The decoder's own settings as an object, with the family's defaults filled in.

    This is for comparing all settings of two models; `ModelSpec` has those that the code asks for.

    Raises:
        UnsupportedModelError: See :func:`architecture_of`.
        CheckpointError: transformers rejects the values.
    """
    row = architecture_of(config)
    filled = _with_defaults(row, config)
    return filled.text_config if row.nested else filled


def _with_defaults(row: Architecture, config: Config) -> Any:
    """A config as an object, with the family's defaults filled in."""
    if not isinstance(config, Mapping):
        return config
    if not row.stock:
        return SimpleNamespace(**config)
    from transformers import AutoConfig

    values = {key: value for key, value in config.items() if key != "model_type"}
    try:
        return AutoConfig.for_model(row.family, **values)
    except Exception as error:  # its validators raise many types
        raise CheckpointError(f"The config of this {row.family} model is invalid: {error}") from error


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
