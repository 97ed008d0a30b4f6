"""A decoder layer as five calls of the C++ kernels, for models whose matrices are in quantised blocks.

A layer of transformers is some sixty operators, and dispatching them takes longer than a small model's products. The
five calls are: norm and q, k, v; rotary embedding, KV cache and attention; output and residual; norm, gate, up and
SwiGLU; down and residual. All of them give a row the same bits whatever rows run beside it, so a token that is
verified in a draft has the logits of plain decoding, bit for bit.
"""

from __future__ import annotations

from collections.abc import Sequence
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


class Plan(Protocol):
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
            old = getattr(layer, name)
            setattr(layer, name, RMSNorm(old.weight, old.variance_epsilon))
        layer.forward = partial(_forward, layer, layer.forward)
    parent, _, leaf = names.final_norm.rpartition(".")
    norm: Any = model.get_submodule(names.final_norm)
    setattr(model.get_submodule(parent), leaf, RMSNorm(norm.weight, norm.variance_epsilon))
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


def _forward(
    layer: Any,
    plain: Any,
    hidden_states: Tensor,
    *,
    position_embeddings: tuple[Tensor, Tensor],
    justright_plan: Plan | None = None,
    **kwargs: Any,
) -> Tensor:
    """A layer's forward; ``plain`` is transformers' own.

    Args:
        layer: the decoder layer.
        plain: its forward as transformers wrote it.
        hidden_states: ``[1, rows, hidden_size]``.
        position_embeddings: cosines and sines, ``[1, rows, head_dim]``.
        justright_plan: the engine's plan of the step.
        kwargs: what else transformers passes.

    Returns:
        ``[1, rows, hidden_size]``.
    """
    plan = justright_plan
    if plan is None or not plan.fused:
        out: Tensor = plain(
            hidden_states, position_embeddings=position_embeddings, justright_plan=plan, **kwargs
        )
        return out
    run = _adapted if plan.adapted else _fused
    return run(layer, hidden_states[0], position_embeddings, plan)[None]


def _fused(layer: Any, x: Tensor, rotary: tuple[Tensor, Tensor], plan: Plan) -> Tensor:
    attention, mlp = layer.self_attn, layer.mlp
    qkv = _linear(x, (attention.q_proj, attention.k_proj, attention.v_proj), norm=layer.input_layernorm)
    x = _linear(_attend(attention, qkv, rotary, plan), (attention.o_proj,), residual=x)
    norm = layer.post_attention_layernorm
    inner = _linear(x, (mlp.gate_proj, mlp.up_proj), norm=norm, swiglu=True)
    return _linear(inner, (mlp.down_proj,), residual=x)


def _adapted(layer: Any, x: Tensor, rotary: tuple[Tensor, Tensor], plan: Plan) -> Tensor:
    """The same through the modules, whose hooks add the adapter; rows without it keep their bits."""
    attention, mlp = layer.self_attn, layer.mlp
    inner = layer.input_layernorm(x)
    qkv = torch.cat([attention.q_proj(inner), attention.k_proj(inner), attention.v_proj(inner)], dim=-1)
    x = attention.o_proj(_attend(attention, qkv, rotary, plan)) + x
    inner = layer.post_attention_layernorm(x)
    inner = torch.ops.justright.swiglu(torch.cat([mlp.gate_proj(inner), mlp.up_proj(inner)], dim=-1))
    out: Tensor = mlp.down_proj(inner) + x
    return out


def _linear(
    x: Tensor,
    matrices: Sequence[QuantisedLinear],
    *,
    norm: RMSNorm | None = None,
    residual: Tensor | None = None,
    swiglu: bool = False,
) -> Tensor:
    weights = [matrix.blocks.data for matrix in matrices]
    types = [matrix.blocks.type for matrix in matrices]
    bias = _bias(matrices)
    scale, eps = (None, 0.0) if norm is None else (norm.weight, norm.variance_epsilon)
    out: Tensor = torch.ops.justright.linear(x, weights, types, bias, scale, eps, residual, swiglu)
    return out


def _bias(matrices: Sequence[QuantisedLinear]) -> Tensor | None:
    """The biases side by side; without any, None."""
    if all(matrix.bias is None for matrix in matrices):
        return None
    return torch.cat([torch.zeros(m.out_features) if m.bias is None else m.bias for m in matrices])


def _attend(attention: Any, qkv: Tensor, rotary: tuple[Tensor, Tensor], plan: Plan) -> Tensor:
    """Attention of a layer's ``qkv [rows, (heads + 2 * kv_heads) * head_dim]``: ``[rows, heads * head_dim]``."""
    layer, size = attention.layer_idx, attention.head_dim
    keys, values = plan.rows_of_cache(layer, attention.k_proj.out_features // size, size)
    sight = plan.sight(layer)
    q_norm, k_norm = getattr(attention, "q_norm", None), getattr(attention, "k_norm", None)
    out: Tensor = torch.ops.justright.attend(
        qkv,
        rotary[0][0],
        rotary[1][0],
        None if q_norm is None else q_norm.weight,
        None if k_norm is None else k_norm.weight,
        0.0 if q_norm is None else q_norm.variance_epsilon,
        keys,
        values,
        sight.runs,
        sight.first,
        sight.counts,
        sight.paths,
        attention.scaling,
    )
    return out
