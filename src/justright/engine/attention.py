"""Attention over the engine's KV cache, which transformers' models call instead of their own.

The engine runs every model without a transformers cache and with this function as its attention (transformers'
``AttentionInterface``, a public extension point). All tokens of a step lie in one flat row; a `StepPlan` maps each
run of tokens to its sequence and states what each token may see. The function writes the new keys and values into
the cache and attends each run to its own sequence, so sequences of any length share a batch without padding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from justright.architectures.schema import Window
from justright.engine.kv_cache import KVCache
from justright.engine.visibility import SequenceInput, sight_of, stack_mask, visible
from justright.kernels.fused import Sight
from justright.kernels.split_attention import attend_split, count_parts, split_bias

ATTENTION_NAME = "justright"
_GROUPED_QUERIES = 64
_STATIC_STEP = 64


@dataclass(slots=True)
class StepPlan:
    """The inputs of the attention function for one forward pass.

    Attributes:
        cache: receives the new keys and values.
        runs: the sequences, in the order of the flat step; they cover it without gaps.
        windows: the attention window of each decoder layer; None for full attention.
        positions: of all tokens of the step, ``[tokens]``.
        index_scaled: the architecture table's flag, see `rescale_by_position`.
        static: run i belongs to slot i and all runs have the same length: attend to the whole cache at once,
            with shapes that do not depend on the sequences' lengths.
        fused: the step runs in fused layers, see `justright.kernels.fused`.
        adapted: some rows have an adapter.
    """

    cache: KVCache
    runs: Sequence[SequenceInput]
    windows: Sequence[Window | None]
    positions: Tensor
    index_scaled: bool = False
    static: bool = False
    fused: bool = False
    adapted: bool = False
    _sights: dict[Window | None, Sight] = field(default_factory=dict)
    _masks: dict[tuple[int, Window | None], tuple[int, Tensor | None]] = field(default_factory=dict)
    _biases: dict[tuple[int, Window | None, int, bool], tuple[int, Tensor | None]] = field(
        default_factory=dict
    )
    _static_masks: dict[Window | None, Tensor] = field(default_factory=dict)
    _static_at: Tensor | None = None

    def sight(self, layer: int) -> Sight:
        """What the step's rows see in a fused layer, built once per step and window."""
        window = self.windows[layer]
        if window not in self._sights:
            self._sights[window] = sight_of(self.runs, self.cache.lengths, self.positions, window)
        return self._sights[window]

    def rows_of_cache(self, layer: int, kv_heads: int, head_dim: int) -> tuple[list[Tensor], list[Tensor]]:
        """Keys and values of each run's sequence in a layer, ``[kv_heads, capacity, head_dim]`` each."""
        like = torch.empty(kv_heads, 0, head_dim)
        keys, values = self.cache.layer(layer, like, like)
        return [keys[run.slot] for run in self.runs], [values[run.slot] for run in self.runs]

    def mask(self, index: int, window: Window | None) -> tuple[int, Tensor | None]:
        """First visible cache entry of run ``index`` and its mask from there, built once per step.

        Returns:
            ``(first, mask)``: ``mask [tokens, past + tokens - first]`` bool, True = visible; None when all of
            it is visible.
        """
        key = (index, window)
        if key not in self._masks:
            run = self.runs[index]
            self._masks[key] = visible(run, self.cache.lengths[run.slot], window)
        return self._masks[key]

    def bias(
        self, index: int, window: Window | None, query: Tensor, keys: Tensor, values: Tensor
    ) -> tuple[int, Tensor | None]:
        """Number of parts of run ``index``'s keys, and its additive mask for `attend_few`, built once per step.

        Args:
            index: the run.
            window: the layer's.
            query: ``[heads, tokens, head_dim]``; only shape and dtype matter.
            keys: ``[kv_heads, length, head_dim]``.
            values: ``[kv_heads, length, value_head_dim]``.
        """
        kv_heads, length, _ = keys.shape
        # The library's kernel needs equal head sizes of keys and values. A window may hide a whole part from a query;
        # without one, all hidden tokens are in the step itself, which is shorter than a part.
        whole = window is not None or values.shape[-1] != keys.shape[-1]
        key = (index, window, kv_heads, whole)
        if key not in self._biases:
            _, mask = self.mask(index, window)
            groups = len(query) // kv_heads
            parts = 1 if whole else count_parts(kv_heads, length, keys.device)
            bias = None if mask is None else stack_mask(mask, groups, query.dtype)
            if parts > 1:
                bias = split_bias(bias, groups * query.shape[1], length, parts, query.dtype)
            self._biases[key] = (parts, bias)
        return self._biases[key]

    def static_mask(self, window: Window | None) -> Tensor:
        """Masks of all runs over the whole cache, ``[runs, 1, tokens, length]`` bool, built once per step.

        ``length`` is the capacity; for a trimmed cache, the part in use.
        """
        if window not in self._static_masks:
            count = len(self.runs[0])
            device = self.positions.device
            length = self.cache.capacities[0]
            if self.cache.trimmed:
                used = max(self.cache.lengths[run.slot] for run in self.runs) + count
                length = min(length, -(-used // _STATIC_STEP) * _STATIC_STEP)
            full = torch.zeros(len(self.runs), 1, count, length, dtype=torch.bool, device=device)
            for index, run in enumerate(self.runs):
                first, mask = self.mask(index, window)
                span = slice(first, self.cache.lengths[run.slot] + count)
                full[index, 0, :, span] = True if mask is None else mask
            self._static_masks[window] = full
        return self._static_masks[window]

    def static_at(self) -> Tensor:
        """Cache positions of each run's tokens, ``[runs, tokens]`` int64."""
        if self._static_at is None:
            starts = torch.tensor([self.cache.lengths[run.slot] for run in self.runs])
            at = starts[:, None] + torch.arange(len(self.runs[0]))
            self._static_at = at.to(self.positions.device)
        return self._static_at


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    justright_plan: StepPlan,
    scaling: float | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Write the step's keys and values into the cache and attend (the signature is transformers').

    Args:
        module: the attention module; ``layer_idx`` names its layer.
        query: ``[1, heads, tokens, head_dim]``.
        key: ``[1, kv_heads, tokens, head_dim]``.
        value: ``[1, kv_heads, tokens, value_head_dim]``.
        attention_mask: unused; the plan holds the masks.
        justright_plan: passed through the model's forward.
        scaling: factor on the scores; ``head_dim ** -0.5`` if None.
        softcap: scores become ``softcap * tanh(scores / softcap)`` (gemma2).
        s_aux: ``[heads]`` attention sinks (gpt-oss).

    Returns:
        ``[1, tokens, heads, value_head_dim]`` and None for the weights.
    """
    layer = int(module.layer_idx)  # type: ignore[arg-type]
    plan = justright_plan
    window = plan.windows[layer]
    if plan.index_scaled:
        query = rescale_by_position(module, query, plan.positions)
    if plan.static:
        return _attention_static(plan, layer, query, key, value, scaling, softcap, s_aux), None
    outputs = []
    for index, run in enumerate(plan.runs):
        span = slice(run.start, run.start + len(run))
        keys, values = plan.cache.write(layer, run.slot, key[0, :, span], value[0, :, span])
        if run.certain < len(run) > 1:  # a single token is never masked
            for stored in (keys, values):
                bounded_(stored[:, run.certain - len(run) :])
        first, mask = plan.mask(index, window)
        if first:
            keys, values = keys[:, first:], values[:, first:]
        part = query[0, :, span]
        if len(run) > _GROUPED_QUERIES or softcap is not None or s_aux is not None:
            outputs.append(attend(part, keys, values, mask, scaling, softcap, s_aux))
        else:
            parts, bias = plan.bias(index, window, part, keys, values)
            outputs.append(attend_few(part, keys, values, bias, parts, scaling))
    out = outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=1)
    return out.transpose(0, 1)[None], None


def _attention_static(
    plan: StepPlan,
    layer: int,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scaling: float | None,
    softcap: float | None,
    sinks: Tensor | None,
) -> Tensor:
    """`attention` for a static plan; returns ``[1, tokens, heads, value_head_dim]``."""
    rows = len(plan.runs)

    def by_row(x: Tensor) -> Tensor:  # [1, heads, rows * tokens, dim] -> [rows, heads, tokens, dim]
        heads, tokens, dim = x.shape[1:]
        return x.view(heads, rows, tokens // rows, dim).transpose(0, 1)

    new = (bounded_(by_row(x).clone()) for x in (key, value))
    keys, values = plan.cache.write_static(layer, plan.static_at(), *new)
    mask = plan.static_mask(plan.windows[layer])
    span = mask.shape[-1]
    keys, values = keys[:, :, :span], values[:, :, :span]
    query = by_row(query)
    if softcap is not None or sinks is not None:
        parts = [
            attend_reference(query[i], keys[i], values[i], mask[i, 0], scaling, softcap, sinks)
            for i in range(rows)
        ]
        out = torch.stack(parts)
    else:
        out = F.scaled_dot_product_attention(
            query, keys, values, attn_mask=mask, scale=scaling, enable_gqa=True
        )
    return out.transpose(1, 2).flatten(0, 1)[None]


def bounded_(x: Tensor) -> Tensor:
    """Replace the NaN and infinite values of ``x`` by 0, in place, and return ``x``.

    A masked key has weight 0, but 0 * NaN is NaN: a mask hides only finite keys and values. A row that is not finite
    itself still has NaN logits, so a sequence that continues after it ends with an error.
    """
    return x.nan_to_num_(nan=0.0, posinf=0.0, neginf=0.0)


def rescale_by_position(module: Any, query: Tensor, positions: Tensor) -> Tensor:
    """Rescale queries by the token's position instead of its index in the step, which the model used.

    Llama 4's layers without rotary embedding scale queries by ``log1p(floor((p + 1) / floor_scale)) * scale +
    1``, where p counts from the length of a transformers cache, which the engine does not use.

    Args:
        module: the attention module.
        query: ``[1, heads, tokens, head_dim]``.
        positions: ``[tokens]``.
    """
    if not getattr(module, "attn_temperature_tuning", False) or module.use_rope:
        return query

    def scale(p: Tensor) -> Tensor:
        scaled: Tensor = torch.log1p(torch.floor((p.float() + 1.0) / module.floor_scale)) * module.attn_scale
        return scaled + 1.0

    index = torch.arange(len(positions), device=positions.device)
    ratio: Tensor = scale(positions) / scale(index)
    return (query * ratio[None, None, :, None]).to(query.dtype)


def attend(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    mask: Tensor | None,
    scaling: float | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """Attention of one sequence, grouped-query heads included.

    Args:
        query: ``[heads, tokens, head_dim]``.
        keys: ``[kv_heads, length, head_dim]``.
        values: ``[kv_heads, length, value_head_dim]``.
        mask: ``[tokens, length]`` bool, or None.
        scaling: as in `attention`.
        softcap: as in `attention`.
        sinks: as ``s_aux`` in `attention`.

    Returns:
        ``[heads, tokens, value_head_dim]``.
    """
    if softcap is not None or sinks is not None:
        return attend_reference(query, keys, values, mask, scaling, softcap, sinks)
    heads, tokens, head_dim = query.shape
    kv_heads = keys.shape[0]
    groups = heads // kv_heads
    if tokens <= _GROUPED_QUERIES:
        bias = None if mask is None else stack_mask(mask, groups, query.dtype)
        return attend_few(query, keys, values, bias, 1, scaling)
    shape = (kv_heads, groups, -1, -1)
    out = F.scaled_dot_product_attention(
        query.reshape(kv_heads, groups, tokens, head_dim),
        keys[:, None].expand(shape),
        values[:, None].expand(shape),
        attn_mask=mask,
        scale=scaling,
    )
    return out.reshape(heads, tokens, -1)


def attend_few(
    query: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None, parts: int, scaling: float | None
) -> Tensor:
    """`attend` for few tokens: stacks the queries that share a key head, so that each key is read once.

    Args:
        query: ``[heads, tokens, head_dim]``.
        keys: ``[kv_heads, length, head_dim]``.
        values: ``[kv_heads, length, value_head_dim]``.
        bias: by `StepPlan.bias`: stacked, and split if ``parts`` is more than 1.
        parts: number of parts into which the keys are split.
        scaling: as in `attention`.

    Returns:
        ``[heads, tokens, value_head_dim]``.
    """
    heads, tokens, head_dim = query.shape
    stacked = query.reshape(keys.shape[0], -1, head_dim)
    if parts > 1:
        out = attend_split(stacked, keys, values, bias, parts, scaling)
    else:
        out = F.scaled_dot_product_attention(
            stacked[None], keys[None], values[None], attn_mask=bias, scale=scaling
        )
    return out.reshape(heads, tokens, -1)


def attend_reference(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    mask: Tensor | None,
    scaling: float | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """The reference implementation of `attend`; the only path for soft caps and sinks."""
    heads, tokens, head_dim = query.shape
    kv_heads = keys.shape[0]
    scale = head_dim**-0.5 if scaling is None else scaling
    scores = query.reshape(kv_heads, -1, head_dim) @ keys.transpose(1, 2) * scale
    scores = scores.reshape(heads, tokens, -1)
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    if mask is not None:
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    if sinks is not None:
        scores = torch.cat([scores, sinks.to(scores.dtype)[:, None, None].expand(heads, tokens, 1)], dim=-1)
    weights = torch.softmax(scores, dim=-1, dtype=torch.float32).to(values.dtype)
    if sinks is not None:
        weights = weights[..., :-1]
    return (weights.reshape(kv_heads, -1, weights.shape[-1]) @ values).reshape(heads, tokens, -1)
