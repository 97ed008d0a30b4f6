"""An embedding whose table stays in quantised blocks, for a CPU."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from justright.kernels.quantised import Blocks


class QuantisedEmbedding(nn.Module):
    """Looks rows up in a table in blocks, and dequantises only these.

    Args:
        blocks: of the table ``[vocabulary, hidden_size]``.
        scale: of every row, one float32; None: 1.
    """

    def __init__(self, blocks: Blocks, scale: Tensor | None = None) -> None:
        super().__init__()
        self.blocks = blocks
        self.scale = scale
        self.num_embeddings, self.embedding_dim = len(blocks.data), blocks.columns

    def forward(self, token_ids: Tensor) -> Tensor:
        """``token_ids [...]`` to ``[..., hidden_size]``, float32."""
        rows = self.blocks.data[token_ids.reshape(-1)]
        found: Tensor = torch.ops.justright.dequantise(rows, self.blocks.columns, self.blocks.type)
        found = found.view(*token_ids.shape, self.blocks.columns)
        return found if self.scale is None else found * self.scale

    def extra_repr(self) -> str:
        """As `nn.Embedding`'s."""
        return f"{self.num_embeddings}, {self.embedding_dim}"
