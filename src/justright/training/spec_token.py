"""[SPEC]'s states with gradients: one pass over the texts, one over the [SPEC] tokens after all prefixes.

Each [SPEC] attends to its prefix and itself, and no text token attends to a [SPEC]. So the keys and values of the texts
do not depend on it, and gradients flow through the [SPEC] rows only. Only the embedding learns; the verifier is frozen.

Source: arXiv:2510.07535, section 3 (the [SPEC] token). Differs: the texts run first, without gradients, which halves
the work; the mask is the same.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel

from justright.adapter.apply import AppliedSwitch
from justright.architectures.schema import Window
from justright.architectures.spec import ModelSpec
from justright.engine.attention import rescale_by_position
from justright.engine.loading import decoder_of
from justright.training.loss import Prefixes
from justright.training.shard import Shard

ATTENTION_NAME = "justright-spec"


@dataclass(slots=True)
class _Pass:
    """State of one pass, for `attention`.

    Attributes:
        windows: per layer.
        index_scaled: see `rescale_by_position`.
        positions: ``[batch, rows]``, of the current pass.
        seen: ``[batch, rows]``: number of text tokens that each [SPEC] attends to; None in the pass over the texts.
        kept: per layer, the texts' keys and values.
    """

    windows: list[Window | None]
    index_scaled: bool
    positions: Tensor
    seen: Tensor | None = None
    kept: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)


def spec_states(
    model: PreTrainedModel,
    embedding: Tensor,
    token_ids: Tensor,
    seen: Tensor,
    switch: AppliedSwitch | None = None,
    factor: float = 0.0,
) -> Tensor:
    """States, after the final norm, of a [SPEC] after each of the given prefixes.

    Args:
        model: frozen, with the attention implementation ``ATTENTION_NAME``.
        embedding: ``[hidden_size]``, [SPEC]'s.
        token_ids: ``[batch, length]``, padded at the end.
        seen: ``[batch, rows]`` int64: lengths of the prefixes, 1 to ``length``.
        switch: the model's; then ``batch`` is 1.
        factor: adapter scale.

    Returns:
        ``[batch, rows, hidden_size]``, with gradients to ``embedding``.
    """
    batch, length = token_ids.shape
    spec = ModelSpec.of(model.config)
    positions = torch.arange(length, device=token_ids.device).expand(batch, length)
    state = _Pass(list(spec.windows), spec.architecture.index_scaled, positions)
    decoder = decoder_of(model)

    def switched(tokens: int) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext() if switch is None else switch.rows([factor] * tokens)

    with torch.no_grad(), switched(length):
        decoder(input_ids=token_ids, position_ids=positions, use_cache=False, justright_spec=state)
    state.positions, state.seen = seen, seen  # a prefix of n tokens ends at n - 1
    rows = embedding.to(model.dtype).expand(batch, seen.shape[1], -1)
    with switched(seen.shape[1]):
        out: Tensor = decoder(
            inputs_embeds=rows, position_ids=seen, use_cache=False, justright_spec=state
        ).last_hidden_state
    return out


def states_after(
    verifier: PreTrainedModel,
    embedding: Tensor,
    shard: Shard,
    batch: Prefixes,
    device: torch.device,
    switch: AppliedSwitch | None = None,
) -> Tensor:
    """[SPEC]'s states for the prefixes of a batch, ``[rows, hidden_size]``, with gradients to ``embedding``."""
    if not len(batch.tokens):
        return embedding.to(verifier.dtype).expand(0, -1)
    texts, seen = [], []
    for one in _in_order(batch.sequence):
        prompt = int(shard.prompt_lengths[one])
        texts.append(torch.cat([shard.prompts[one, :prompt], shard.tokens[one]]).to(device))
        seen.append((batch.position[batch.sequence == one] + prompt).to(device))
    if switch is not None:
        factors = shard.factors[_in_order(batch.sequence)].tolist()
        found = [
            spec_states(verifier, embedding, text[None], rows[None], switch, factor)[0]
            for text, rows, factor in zip(texts, seen, factors, strict=True)
        ]
        return torch.cat(found)
    ids = torch.nn.utils.rnn.pad_sequence(texts, batch_first=True)
    padded = torch.nn.utils.rnn.pad_sequence(seen, batch_first=True, padding_value=1)
    states = spec_states(verifier, embedding, ids, padded)
    return torch.cat([row[: len(own)] for row, own in zip(states, seen, strict=True)])


def _in_order(sequence: Tensor) -> list[int]:
    """The distinct sequences of the rows, in the order of the rows."""
    return list(dict.fromkeys(sequence.tolist()))


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    justright_spec: _Pass,
    scaling: float | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention of both passes (the signature is transformers'; shapes ``[batch, heads, rows, head_dim]``)."""
    layer = int(module.layer_idx)  # type: ignore[arg-type]
    state, window = justright_spec, justright_spec.windows[layer]
    if state.index_scaled:
        query = torch.cat(
            [rescale_by_position(module, q[None], p) for q, p in zip(query, state.positions, strict=True)]
        )
    groups = query.shape[1] // key.shape[1]
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if state.seen is None:
        state.kept[layer] = key, value
        keys, values, own = key, value, None
        here = state.positions[:, :, None]
        visible = state.positions[:, None, :] <= here
    else:
        keys, values = state.kept[layer]
        own = _cap((query * key.repeat_interleave(groups, 1)).sum(-1, keepdim=True) * scale, softcap)
        here = state.positions[:, :, None]
        visible = torch.arange(keys.shape[2], device=keys.device)[None, None] < here
    places = torch.arange(keys.shape[2], device=keys.device)[None, None]
    if window is not None and window.kind == "sliding":
        visible = visible & (places > here - window.size)
    elif window is not None:
        visible = visible & (places >= here // window.size * window.size)
    scores = _cap(query @ keys.repeat_interleave(groups, 1).transpose(2, 3) * scale, softcap)
    scores = scores.masked_fill(~visible[:, None], float("-inf"))
    extra = [] if own is None else [own]
    if s_aux is not None:
        extra.append(s_aux.to(scores.dtype)[None, :, None, None].expand(*scores.shape[:3], 1))
    weights = torch.softmax(torch.cat([scores, *extra], dim=-1), dim=-1, dtype=torch.float32).to(value.dtype)
    length = keys.shape[2]
    out = weights[..., :length] @ values.repeat_interleave(groups, 1)
    if own is not None:
        out = out + weights[..., length : length + 1] * value.repeat_interleave(groups, 1)
    return out.transpose(1, 2), None


def _cap(scores: Tensor, softcap: float | None) -> Tensor:
    return scores if softcap is None else softcap * torch.tanh(scores / softcap)


AttentionInterface.register(ATTENTION_NAME, attention)
