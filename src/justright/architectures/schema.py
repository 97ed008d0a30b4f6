"""Row types of the architecture table: the facts that justright needs about a model family.

:mod:`justright.architectures.table` defines the rows, :mod:`justright.architectures.spec` applies them to a config.
Names are relative to a decoder layer (``self_attn.q_proj``) unless they say otherwise.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Literal

Part = Literal[
    "embedding", "attention", "mlp", "experts", "shared_experts", "router", "norm", "head", "other"
]
LayerKind = Literal["all", "dense", "moe"]
Reach = Literal["full", "every_layer", "layer_types"]

_NORM = re.compile(r"norm\d*$")


@dataclass(frozen=True, slots=True)
class Linear:
    """A plain ``nn.Linear`` of a decoder layer.

    Attributes:
        name: Module path, the same in memory and on disk.
        part: What it is counted as.
        layers: The kind of layers that have it.
        when: Only there if this config key is set (not null).
        unless: Only there if this config key is not set.
    """

    name: str
    part: Part
    layers: LayerKind = "all"
    when: str | None = None
    unless: str | None = None


@dataclass(frozen=True, slots=True)
class LinearModule:
    """One linear matrix of a model: its module path in memory, its layer and its part."""

    name: str
    layer: int
    part: Part


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
class ExpertLayout:
    """How the routed experts' tensors are laid out, in memory or on disk.

    Attributes:
        gate, up, down: Tensor names; ``{e}`` stands for the expert where they are stored one by one.
            ``gate == up`` means one tensor holds both.
        stacked: One tensor for all experts, axis 0 is the expert.
        transposed: A matrix is [in, out]; otherwise [out, in].
        interleaved: In a tensor that holds both, gate and up alternate (even outputs are the gate);
            otherwise all of the gate comes first.
        gate_bias, up_bias, down_bias: Bias names, if any; ``gate_bias == up_bias`` as above.
        packed: Suffixes of the tensors that replace each matrix in a quantised checkpoint of the family
            (always [out, in / block, bytes]).
    """

    gate: str
    up: str
    down: str
    stacked: bool
    transposed: bool = False
    interleaved: bool = False
    gate_bias: str | None = None
    up_bias: str | None = None
    down_bias: str | None = None
    packed: tuple[str, ...] = ()

    @property
    def fused(self) -> bool:
        """Whether one tensor holds gate and up."""
        return self.gate == self.up

    @property
    def module(self) -> str:
        """Module path that holds all experts: ``mlp.experts``."""
        return self.down.split(".experts.", 1)[0] + ".experts"

    @property
    def matrices(self) -> tuple[str, ...]:
        """Unique weight names, with ``{e}`` unreplaced."""
        return tuple(dict.fromkeys((self.gate, self.up, self.down)))

    @property
    def biases(self) -> tuple[str, ...]:
        """Unique bias names."""
        return tuple(dict.fromkeys(b for b in (self.gate_bias, self.up_bias, self.down_bias) if b))


@dataclass(frozen=True, slots=True)
class Router:
    """The router's tensors, in memory or on disk.

    Attributes:
        weight: [num_experts, hidden_size].
        bias: Added to the logits, [num_experts].
        correction_bias: Added to the scores for the choice only; the last axis is the expert
            ([num_experts], or [1, num_experts] for ernie4_5_moe). A buffer in some families.
        others: Tensors without an expert axis, such as the gate of a shared expert.
    """

    weight: str
    bias: str | None = None
    correction_bias: str | None = None
    others: tuple[str, ...] = ()

    @property
    def module(self) -> str:
        """Module path of the router: ``mlp.gate``."""
        return self.weight.rsplit(".", 1)[0]

    @property
    def per_expert(self) -> tuple[str, ...]:
        """Names of the tensors that have an expert axis: the first of the weight, the last of the others."""
        return tuple(n for n in (self.weight, self.bias, self.correction_bias) if n)

    @property
    def names(self) -> tuple[str, ...]:
        """Every tensor of the router."""
        return self.per_expert + self.others


@dataclass(frozen=True, slots=True)
class LayerRule:
    """Which layers have experts, as config keys: ``only`` lists them; otherwise layer ``i`` has experts if
    ``(i + 1) % step == 0``, ``start <= i <= end`` and ``i`` is not in ``skip``. A key that is None, or
    missing from the config, does not restrict.
    """

    step: str | None = None
    start: str | None = None
    end: str | None = None
    skip: str | None = None
    only: str | None = None


@dataclass(frozen=True, slots=True)
class Moe:
    """The mixture-of-experts side of a family.

    Attributes:
        memory, disk: Layout of the routed experts.
        router, router_disk: The router's tensors.
        shared: Module path of the shared expert(s), if the family has any.
        shared_count_key: Config key that counts them, where one exists; 0 means none.
        count_keys: All config keys that may count the routed experts.
        top_k_keys: Likewise for the number of experts per token.
        group_keys: (number of groups, groups chosen) of group-limited routing.
        layers: Which layers have experts.
        chosen_output: Index of the chosen experts [tokens, top_k] in the router module's output; None
            if it must be computed from the logits.
    """

    memory: ExpertLayout
    disk: ExpertLayout
    router: Router
    router_disk: Router
    count_keys: tuple[str, ...]
    top_k_keys: tuple[str, ...] = ("num_experts_per_tok",)
    group_keys: tuple[str, str] | None = None
    shared: str | None = None
    shared_count_key: str | None = None
    layers: LayerRule = field(default_factory=LayerRule)
    chosen_output: int | None = 2


@dataclass(frozen=True, slots=True)
class Names:
    """Names of the outer tensors, in memory or on disk, from the root of the checkpoint or the causal LM."""

    stem: str = "model"
    head: str = "lm_head.weight"

    @property
    def embedding(self) -> str:
        """The input embedding [vocab_size, hidden_size]."""
        return f"{self.stem}.embed_tokens.weight"

    @property
    def final_norm(self) -> str:
        """The module path of the norm before the head."""
        return f"{self.stem}.norm"

    def layer(self, index: int) -> str:
        """The prefix of decoder layer ``index``: ``model.layers.3``."""
        return f"{self.stem}.layers.{index}"


@dataclass(frozen=True, slots=True)
class Architecture:
    """Facts about a family; one row of the table.

    Attributes:
        family: The config's ``model_type``.
        linears: The plain linear matrices of a layer (routed experts apart).
        fused: Groups that read the same input, so one product can compute them. A group applies only if
            all of its members exist.
        reach: How far attention looks back: "full"; "every_layer" slides if ``sliding_window`` is set;
            "layer_types" says it per layer.
        moe: The experts, or None for a dense family.
        memory, disk: Names of the outer tensors.
        nested: The decoder's settings are in ``text_config``.
        stock: transformers has a class for it. Otherwise it can be inspected and pruned, not run.
        index_scaled: Some layers scale queries by the *cache's* token count and ignore ``position_ids``.
    """

    family: str
    linears: tuple[Linear, ...]
    fused: tuple[tuple[str, ...], ...]
    reach: Reach = "full"
    moe: Moe | None = None
    memory: Names = field(default_factory=Names)
    disk: Names = field(default_factory=Names)
    nested: bool = False
    stock: bool = True
    index_scaled: bool = False

    def part(self, name: str, layers: int | None = None) -> Part:
        """Part of a parameter or buffer, by its name in memory or on disk.

        Args:
            name: Full name, such as ``model.layers.3.mlp.experts.7.up_proj.weight``; quantisation companions
                (``..._blocks``, ``....weight_scale_inv``) count as their weight.
            layers: The number of decoder layers. Layers beyond it on disk (multi-token prediction) are "other".

        Returns:
            The part; "other" for tensors outside the text decoder, such as a vision tower.
        """
        for names in (self.memory, self.disk):
            if name == names.embedding:
                return "embedding"
            if name.startswith(names.final_norm + "."):
                return "norm"
            if name.startswith(names.head.removesuffix("weight")):
                return "head"
        for names in (self.memory, self.disk):
            match = re.match(re.escape(names.stem) + r"\.layers\.(\d+)\.(.+)$", name)
            if match:
                beyond = layers is not None and int(match[1]) >= layers
                return "other" if beyond else self._layer_part(match[2])
        return "other"

    def _layer_part(self, name: str) -> Part:
        """The part of a parameter by its name within a decoder layer."""
        if any(_NORM.search(piece) for piece in name.split(".")):
            return "norm"
        moe = self.moe
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
        mlps = {linear.name.rsplit(".", 1)[0] for linear in self.linears if linear.part == "mlp"}
        return "mlp" if any(name.startswith(module + ".") for module in mlps) else "other"
