"""A decoder layer as five calls of the C++ kernels, for models whose matrices are in quantised blocks.

A layer of transformers is some sixty operators, and dispatching them takes longer than a small model's products. The
five calls are: norm and q, k, v; rotary embedding, KV cache and attention; output and residual; norm, gate, up and
SwiGLU; down and residual. All of them give a row the same bits whatever rows run beside it, so a token that is
verified in a draft has the logits of plain decoding, bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers.activations import SiLUActivation

from justright.architectures.spec import ModelSpec
from justright.kernels.quantised import QuantisedLinear

FAMILIES = frozenset({"llama", "mistral", "qwen2", "qwen3"})
"""Families whose layers have this form: RMSNorm, rotary embedding of whole heads, SwiGLU."""
_HEAD_MULTIPLE = 16


@dataclass(frozen=True, slots=True)
class Sight:
    """The sequences of a step and what each of its rows sees, for one attention window.

    Attributes:
        runs: ``[sequences, 2]`` int64: rows in the step, and cached tokens.
        first: ``[rows]`` int64: the first position that a row sees.
        counts: ``[rows]`` int64: how many of its sequence's own rows it sees.
        paths: ``[rows, longest]`` int64: these rows, by depth, relative to the sequence's first.
    """

    runs: Tensor
    first: Tensor
    counts: Tensor
    paths: Tensor


class LayerPlan(Protocol):
    """What a fused layer needs of the engine's plan of a step."""

    @property
    def fused(self) -> bool:
        """Whether the step runs in fused layers; otherwise the layers run as transformers wrote them."""

    @property
    def adapted(self) -> bool:
        """Whether an adapter has hooks on the layers' modules."""

    def sight(self, layer: int) -> Sight:
        """What the rows see in a layer."""

    def rows_of_cache(
        self, layer: int, kv_heads: int, head_dim: int
    ) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        """Keys and values of each sequence in a layer, ``[kv_heads, capacity, head_dim]`` each."""


class RMSNorm(nn.Module):
    """``weight * x / rms(x)`` by the C++ kernel, the same bits for any number of rows.

    Args:
        weight: ``[size]`` float32.
        eps: added to the mean of squares.
    """

    def __init__(self, weight: Tensor, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight.detach(), requires_grad=False)
        self.variance_epsilon = eps

    def forward(self, x: Tensor) -> Tensor:
        """``x [..., size]`` to the same shape."""
        out: Tensor = torch.ops.justright.rms_norm(
            x.reshape(-1, x.shape[-1]), self.weight, self.variance_epsilon
        )
        return out.view(x.shape)


def fuse(model: nn.Module, spec: ModelSpec) -> bool:
    """Let a model's decoder layers run as fused calls where a plan says so, in place.

    Returns:
        Whether they do: the family has this form, and all matrices are in blocks.
    """
    names = spec.architecture.memory
    layers: list[Any] = [model.get_submodule(names.layer(index)) for index in range(spec.num_layers)]
    if spec.architecture.family not in FAMILIES or not all(map(_fits, layers)):
        return False
    rotary: Any = model.get_submodule(f"{names.stem}.rotary_emb")
    if 2 * len(rotary.inv_freq) != layers[0].self_attn.head_dim:  # rotates a part of a head
        return False
    for layer in layers:
        for name in ("input_layernorm", "post_attention_layernorm"):
            setattr(layer, name, _norm(getattr(layer, name)))
        layer.forward = partial(_forward, layer, _calls(layer), layer.forward)
    parent, _, leaf = names.final_norm.rpartition(".")
    norm = model.get_submodule(names.final_norm)
    setattr(model.get_submodule(parent), leaf, _norm(norm))
    return True


def _fits(layer: Any) -> bool:
    """Whether a layer's modules are those that `_forward` calls."""
    attention, mlp = layer.self_attn, layer.mlp
    matrices = (
        *(attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj),
        *(mlp.gate_proj, mlp.up_proj, mlp.down_proj),
    )
    return (
        all(type(matrix) is QuantisedLinear for matrix in matrices)
        and isinstance(mlp.act_fn, SiLUActivation | nn.SiLU)
        and attention.head_dim % _HEAD_MULTIPLE == 0
    )


def _norm(old: Any) -> RMSNorm:
    return RMSNorm(old.weight, old.variance_epsilon)


Call = Callable[..., Tensor]


@dataclass(frozen=True, slots=True)
class _Calls:
    """The five calls of a layer, with the arguments that do not change: looking them up takes time in every step."""

    qkv: Call
    attend: Call
    output: Call
    gate_up: Call
    down: Call
    layer: int
    kv_heads: int
    head_dim: int


def _calls(layer: Any) -> _Calls:
    attention, mlp = layer.self_attn, layer.mlp
    kv_heads = attention.k_proj.out_features // attention.head_dim
    return _Calls(
        _linear(attention.q_proj, attention.k_proj, attention.v_proj, norm=layer.input_layernorm),
        _attend(attention),
        _linear(attention.o_proj),
        _linear(mlp.gate_proj, mlp.up_proj, norm=layer.post_attention_layernorm),
        _linear(mlp.down_proj),
        attention.layer_idx,
        kv_heads,
        attention.head_dim,
    )


def _linear(*matrices: QuantisedLinear, norm: RMSNorm | None = None) -> Call:
    """A call of ``x``, the residual or None, and whether SwiGLU follows."""
    weights = [matrix.blocks.data for matrix in matrices]
    types = [matrix.blocks.type for matrix in matrices]
    bias: Tensor | None = None
    if any(matrix.bias is not None for matrix in matrices):
        bias = torch.cat([torch.zeros(m.out_features) if m.bias is None else m.bias for m in matrices])
    scale, eps = (None, 0.0) if norm is None else (norm.weight, norm.variance_epsilon)
    op = torch.ops.justright.linear.default

    def call(x: Tensor, residual: Tensor | None, swiglu: bool = False) -> Tensor:
        out: Tensor = op(x, weights, types, bias, scale, eps, residual, swiglu)
        return out

    return call


def _attend(attention: Any) -> Call:
    """A call of ``qkv [rows, (heads + 2 * kv_heads) * head_dim]``, rotary embedding, cache and what rows see."""
    norms: tuple[Tensor | None, Tensor | None, float] = (None, None, 0.0)
    if hasattr(attention, "q_norm"):
        norm = attention.q_norm
        norms = (norm.weight, attention.k_norm.weight, norm.variance_epsilon)
    op, scaling = torch.ops.justright.attend.default, attention.scaling

    def call(
        qkv: Tensor,
        rotary: tuple[Tensor, Tensor],
        cache: tuple[Sequence[Tensor], Sequence[Tensor]],
        sight: Sight,
    ) -> Tensor:
        keys, values = cache
        out: Tensor = op(
            *(qkv, rotary[0][0], rotary[1][0], *norms, keys, values),
            *(sight.runs, sight.first, sight.counts, sight.paths, scaling),
        )
        return out

    return call


def _forward(
    layer: Any,
    calls: _Calls,
    plain: Call,
    hidden_states: Tensor,
    *,
    position_embeddings: tuple[Tensor, Tensor],
    justright_plan: LayerPlan | None = None,
    **kwargs: Any,
) -> Tensor:
    """A layer's forward.

    Args:
        layer: the decoder layer.
        calls: its five calls.
        plain: its forward as transformers wrote it.
        hidden_states: ``[1, rows, hidden_size]``.
        position_embeddings: cosines and sines, ``[1, rows, head_dim]``.
        justright_plan: the engine's plan of the step; None where something else runs the model.
        kwargs: what else transformers passes.

    Returns:
        ``[1, rows, hidden_size]``.
    """
    plan, rotary = justright_plan, position_embeddings
    if plan is None or not plan.fused:
        return plain(hidden_states, position_embeddings=rotary, justright_plan=plan, **kwargs)
    x = hidden_states[0]
    cache = plan.rows_of_cache(calls.layer, calls.kv_heads, calls.head_dim)
    sight = plan.sight(calls.layer)
    if plan.adapted:
        return _adapted(layer, x, lambda qkv: calls.attend(qkv, rotary, cache, sight))[None]
    x = calls.output(calls.attend(calls.qkv(x, None), rotary, cache, sight), x)
    return calls.down(calls.gate_up(x, None, True), x)[None]


def _adapted(layer: Any, x: Tensor, attend: Call) -> Tensor:
    """The same through the modules, whose hooks add the adapter; rows without it keep their bits."""
    attention, mlp = layer.self_attn, layer.mlp
    inner = layer.input_layernorm(x)
    qkv = torch.cat([attention.q_proj(inner), attention.k_proj(inner), attention.v_proj(inner)], dim=-1)
    x = attention.o_proj(attend(qkv)) + x
    inner = layer.post_attention_layernorm(x)
    inner = torch.ops.justright.swiglu(torch.cat([mlp.gate_proj(inner), mlp.up_proj(inner)], dim=-1))
    out: Tensor = mlp.down_proj(inner) + x
    return out
