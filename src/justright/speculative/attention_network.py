"""The attention drafter's network, similar to EAGLE: one decoder layer over all states of the context.

A baseline for the LSTM drafter: it reads the whole context at every step, keeps a KV cache of it, and was trained on
a few hundred positions.

Source: EAGLE, arXiv:2401.15077 (features and the next tokens in, the next features out). Differs: the same width as
the verifier, and a head that covers only the draft vocabulary.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from justright.kernels.cpu import has_bfloat16
from justright.kernels.product import Product
from justright.speculative.lstm_network import RmsNorm
from justright.speculative.store import check_draft_vocab, fill, read_config, read_tensors, write_drafter

_HEAD_DIM = 64
_THETA = 10_000.0


@dataclass(frozen=True, slots=True)
class AttentionConfig:
    """Shape of an attention drafter, and its verifier; fields shared with `LstmConfig` have the same meaning."""

    verifier: str
    hidden_size: int
    vocab_size: int
    draft_vocab: int = 0

    def __post_init__(self) -> None:
        check_draft_vocab(self.draft_vocab, self.vocab_size)

    @property
    def head_size(self) -> int:
        """Tokens that the head covers."""
        return self.draft_vocab or self.vocab_size


class AttentionModel(nn.Module):
    """One layer; the verifier's embedding and head are passed in and never saved.

    Args:
        config: the shape.
        embedding: ``[vocab, hidden_size]``.
        head: ``[vocab, hidden_size]``.
        vocab: ``[head_size]`` token ids of the head.
    """

    vocab: Tensor

    def __init__(
        self, config: AttentionConfig, embedding: Tensor, head: Tensor, vocab: Tensor | None
    ) -> None:
        super().__init__()
        self.config = config
        self.spec = None
        size = config.hidden_size
        known = torch.arange(config.head_size) if vocab is None else vocab.long()
        self.register_buffer("vocab", known, persistent=False)
        self.heads = next(n for n in range(max(1, size // _HEAD_DIM), 0, -1) if size % (2 * n) == 0)
        self.mix = nn.Linear(2 * size, size, bias=False)
        self.norm_in, self.norm_mlp, self.norm_out = RmsNorm(size), RmsNorm(size), RmsNorm(size)
        self.qkv = nn.Linear(size, 3 * size, bias=False)
        self.out = nn.Linear(size, size, bias=False)
        self.up, self.down = nn.Linear(size, 4 * size, bias=False), nn.Linear(2 * size, size, bias=False)
        self.embedding = embedding.detach()
        self.head_rows = head.detach()[known.to(head.device)].contiguous()
        self.packed_head: _Packed | None = None

    def enter(self, hidden: Tensor, token_ids: Tensor) -> Tensor:
        """Features ``[..., size]`` of states and the tokens after them."""
        vectors = F.normalize(F.embedding(token_ids, self.embedding).float(), dim=-1) * math.sqrt(
            self.config.hidden_size
        )
        scaled = hidden.float() * torch.rsqrt(hidden.float().pow(2).mean(-1, keepdim=True) + 1e-6)
        found: Tensor = self.mix(torch.cat([scaled, vectors], dim=-1))
        return found

    def project(self, x: Tensor, positions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Query, key, value ``[..., heads, rows, head]`` of features ``[..., rows, size]`` at ``positions``."""
        shape = (*x.shape[:-1], 3, self.heads, -1)
        q, k, v = (t.transpose(-3, -2) for t in self.qkv(self.norm_in(x)).view(shape).unbind(-3))
        return _rotate(q, positions), _rotate(k, positions), v

    def leave(self, x: Tensor, attended: Tensor) -> Tensor:
        """The layer's output: states in the verifier's space, ``[..., rows, size]``."""
        x = x + self.out(attended.transpose(-3, -2).flatten(-2))
        gate, up = self.up(self.norm_mlp(x)).chunk(2, dim=-1)
        found: Tensor = self.norm_out(x + self.down(F.silu(gate) * up))
        return found

    def logits(self, state: Tensor) -> Tensor:
        """``[..., head_size]``."""
        if self.packed_head is not None:
            packed: Tensor = self.packed_head(state)
            return packed
        return F.linear(state, self.head_rows.to(state.dtype))

    def pack(self) -> None:
        """Pack its products for speed, as the LSTM's; for drafting only: a packed model cannot be trained or saved."""
        half = self.head_rows.device.type != "cpu" or has_bfloat16()
        dtype = torch.bfloat16 if half else torch.float32
        for name in ("mix", "qkv", "out", "up", "down"):
            setattr(self, name, _Packed(self.get_parameter(f"{name}.weight"), dtype))
        self.packed_head = _Packed(self.head_rows, dtype)

    def forward(self, hidden: Tensor, token_ids: Tensor) -> Tensor:
        """States ``[batch, rows, size]`` of whole sequences ``[batch, rows]``; each row sees those before it."""
        x = self.enter(hidden, token_ids)
        q, k, v = self.project(x, torch.arange(x.shape[1], device=x.device))
        return self.leave(x, F.scaled_dot_product_attention(q, k, v, is_causal=True))

    def save(self, folder: Path, extra: dict[str, Any] | None = None) -> None:
        """Write it in the format of the LSTM drafters, with ``kind`` attention."""
        vocab = self.vocab if self.config.draft_vocab else None
        write_drafter(folder, "attention", self, asdict(self.config) | (extra or {}), vocab)

    @classmethod
    def load(cls, folder: Path, embedding: Tensor, head: Tensor) -> AttentionModel:
        """Read what `save` wrote.

        Raises:
            CheckpointError: files that are missing, damaged, or do not belong together.
        """
        config = read_config(folder, "attention", AttentionConfig)
        tensors, vocab = read_tensors(folder, config.draft_vocab, config.vocab_size)
        model = cls(config, embedding, head, vocab)
        fill(model, tensors, folder)
        return model


class _Packed(nn.Module):
    """A linear layer without bias for a few rows, on the LSTM drafter's `Product`."""

    def __init__(self, weight: Tensor, dtype: torch.dtype) -> None:
        super().__init__()
        self._product = Product(weight.detach(), dtype)

    def forward(self, x: Tensor) -> Tensor:
        """``x [..., in]`` to ``[..., out]``, float32."""
        found: Tensor = self._product(x.flatten(0, -2)).view(*x.shape[:-1], -1)
        return found


def _rotate(x: Tensor, positions: Tensor) -> Tensor:
    """Rotary embedding of ``x [..., rows, head]`` (Llama's halves)."""
    half = x.shape[-1] // 2
    rates = _THETA ** (-torch.arange(half, device=x.device) / half)
    angles = positions[:, None].float() * rates
    first, second = x.chunk(2, dim=-1)
    cos, sin = angles.cos(), angles.sin()
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1).to(x.dtype)
