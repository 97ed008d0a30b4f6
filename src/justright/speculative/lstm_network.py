"""The LSTM drafter's network: a recurrent drafter that starts from the verifier's last state alone.

It has no attention and no cache, so its cost and its accuracy do not depend on the length of the context.

Source: OWL, arXiv:2510.07535, section 3; the equations are those of the public LSTM speculators of its lineage.
Differs: the embedding and the head may be the verifier's own, through learned projections, so that a drafter for a
small verifier stays small; and the head may cover only a part of the vocabulary (as FR-Spec, arXiv:2502.14856).
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from justright.errors import UsageError
from justright.speculative.store import check_draft_vocab, fill, read_config, read_tensors, write_drafter

_EPSILON = 1e-6

Cell = Literal["lstm", "rnn"]
WeightSource = Literal["shared", "own"]


@dataclass(frozen=True, slots=True)
class LstmConfig:
    """Shape of a drafter, and its verifier.

    Attributes:
        verifier: identity of the verifier's weights (`justright.checkpoint.fingerprint`).
        hidden_size: of the verifier.
        vocab_size: of the verifier.
        width: d, of the drafter's state.
        steps: n, how many tokens ahead it was trained to predict.
        cell: "lstm", or "rnn": without cell state and gates, for comparison.
        embedding: "shared": the verifier's, through a learned projection; "own".
        head: "shared": the verifier's, after a learned projection; "own".
        draft_vocab: tokens that the head covers; ``vocab_size`` for all.
        spec: whether a [SPEC] embedding was trained with it.
    """

    verifier: str
    hidden_size: int
    vocab_size: int
    width: int
    steps: int = 5
    cell: Cell = "lstm"
    embedding: WeightSource = "shared"
    head: WeightSource = "shared"
    draft_vocab: int = 0
    spec: bool = False

    def __post_init__(self) -> None:
        for name in ("hidden_size", "vocab_size", "width", "steps"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise UsageError(f"drafter: {name} is {value!r}; allowed: a whole number of 1 or more")
        for name, allowed in (
            ("cell", ("lstm", "rnn")),
            ("embedding", ("shared", "own")),
            ("head", ("shared", "own")),
        ):
            if getattr(self, name) not in allowed:
                raise UsageError(f"drafter: {name} is {getattr(self, name)!r}; allowed: {', '.join(allowed)}")
        check_draft_vocab(self.draft_vocab, self.vocab_size)

    @property
    def head_size(self) -> int:
        """Tokens that the head covers."""
        return self.draft_vocab or self.vocab_size

    @property
    def embedding_scale(self) -> float:
        """a: the weight of the embedding relative to a state of unit variance; ``2^(-1/(2n))`` is the state's share."""
        state = 2 ** (-0.5 / self.steps)
        return math.sqrt((1 - state**2) * self.width / 2) / state


class LstmModel(nn.Module):
    """The network; the verifier's embedding and head are passed in where they are shared, never saved.

    Args:
        config: the shape.
        embedding: the verifier's input embedding ``[vocab, hidden_size]``; kept frozen. Its rows are scaled to unit
            length on input.
        head: the verifier's output matrix ``[vocab, hidden_size]``; only the rows of the draft vocabulary are kept.
        vocab: ``[head_size]`` int64 token ids that the head covers, ascending; all of them by default.

    Raises:
        UsageError: a matrix whose shape differs from the config's.
    """

    vocab: Tensor
    shared_embedding: Tensor | None
    shared_head: Tensor | None

    def __init__(
        self, config: LstmConfig, embedding: Tensor, head: Tensor, vocab: Tensor | None = None
    ) -> None:
        super().__init__()
        shape = (config.vocab_size, config.hidden_size)
        for name, matrix in (("embedding", embedding), ("head", head)):
            if tuple(matrix.shape) != shape:
                raise UsageError(
                    f"the drafter needs a model with vocabulary {shape[0]} and hidden size {shape[1]}; this model's "
                    f"{name} is {list(matrix.shape)}: use the model that the drafter was trained for"
                )
        self.config = config
        hidden, d = config.hidden_size, config.width
        gates = 4 * d if config.cell == "lstm" else d
        if vocab is None:
            vocab = torch.arange(config.head_size)
        self.register_buffer("vocab", vocab.long(), persistent=False)
        self.first = nn.Linear(hidden, gates, bias=False)
        self.later = nn.Linear(d, gates, bias=False)
        self.norm_cell = RmsNorm(d)
        self.norm_state = RmsNorm(d)
        self.spec = nn.Parameter(torch.zeros(hidden)) if config.spec else None
        if config.embedding == "own":
            self.embedding: nn.Module = nn.Embedding(config.vocab_size, d)
            self.shared_embedding = None
        else:
            self.embedding = nn.Linear(hidden, gates, bias=False)
            self.shared_embedding = embedding.detach()
        if config.head == "own":
            self.head = nn.Linear(d, config.head_size, bias=False)
            self.shared_head = None
        else:
            self.head = nn.Linear(d, hidden, bias=False)
            rows = head.detach() if len(vocab) == len(head) else head.detach()[vocab.to(head.device)]
            self.shared_head = rows.contiguous()
        self._initialise()

    def start(self, hidden: Tensor) -> Tensor:
        """The first state ``h [..., hidden_size]`` from the verifier's: normalised, and divided by sqrt(2)."""
        mean = hidden.float().pow(2).mean(-1, keepdim=True)
        scaled: Tensor = hidden.float() * torch.rsqrt(mean + _EPSILON) / math.sqrt(2)
        return scaled.to(self.first.weight.dtype)

    def embed(self, token_ids: Tensor) -> Tensor:
        """The gates' input from tokens ``[...]``: ``[..., 4d]``, including the scale a."""
        if self.shared_embedding is None:
            rows: Tensor = self.embedding(token_ids)
            return self.config.embedding_scale * rows.repeat(
                *[1] * token_ids.ndim, self.first.out_features // self.config.width
            )
        vectors = F.normalize(F.embedding(token_ids, self.shared_embedding).float(), dim=-1)
        found: Tensor = self.embedding(vectors.to(self.first.weight.dtype))
        return found

    def advance(self, state: Tensor, cell: Tensor | None, token_ids: Tensor) -> tuple[Tensor, Tensor]:
        """One step: ``state [..., hidden_size or d]``, ``cell [..., d]`` (None: the first step), tokens ``[...]``.

        Returns:
            The new state and cell, ``[..., d]`` each.
        """
        projected = (self.first if cell is None else self.later)(state)
        return self.gate(projected + self.embed(token_ids), cell)

    def gate(self, sums: Tensor, cell: Tensor | None) -> tuple[Tensor, Tensor]:
        """The new state and cell, from the gates' sums ``[..., 4d]`` and the cell."""
        if self.config.cell == "rnn":
            state = F.gelu(self.norm_state(sums))
            return state, state
        forget, enter, leave, new = sums.chunk(4, dim=-1)
        fresh = F.gelu(self.norm_cell(new)) * torch.sigmoid(enter)
        cell = fresh if cell is None else cell * torch.sigmoid(forget) + fresh
        return F.gelu(self.norm_state(cell)) * torch.sigmoid(leave), cell

    def logits(self, state: Tensor) -> Tensor:
        """``[..., head_size]`` of states ``[..., d]``."""
        out: Tensor = self.head(state)
        return out if self.shared_head is None else F.linear(out, self.shared_head.to(out.dtype))

    def forward(self, hidden: Tensor, token_ids: Tensor) -> list[Tensor]:
        """`unroll`."""
        return self.unroll(hidden, token_ids)

    def unroll(self, hidden: Tensor, token_ids: Tensor) -> list[Tensor]:
        """Logits of all steps along known tokens (training, and the reference for drafting).

        Args:
            hidden: ``[rows, hidden_size]``, the verifier's states.
            token_ids: ``[rows, steps]``: the token after each state, and those that follow it.

        Returns:
            Per step ``[rows, head_size]``.
        """
        state, cell = self.start(hidden), None
        found = []
        for step in range(token_ids.shape[1]):
            state, cell = self.advance(state, cell, token_ids[:, step])
            found.append(self.logits(state))
        return found

    def _initialise(self) -> None:
        d = self.config.width
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=1 / math.sqrt(module.in_features))
            elif isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=1 / math.sqrt(d))
        if self.shared_embedding is not None:
            # Rows of unit length: the product has the variance that scale a gives to an embedding of the
            # drafter's own.
            nn.init.normal_(self.embedding.weight, std=self.config.embedding_scale / math.sqrt(d))  # type: ignore[arg-type]

    def save(
        self, folder: Path, extra: dict[str, Any] | None = None, dtype: torch.dtype = torch.bfloat16
    ) -> None:
        """Write ``model.safetensors`` (in ``dtype``; the vocabulary as int32) and ``config.json`` into ``folder``."""
        vocab = self.vocab if self.config.draft_vocab else None
        write_drafter(folder, "lstm", self, asdict(self.config) | (extra or {}), vocab, dtype)

    @classmethod
    def load(cls, folder: Path, embedding: Tensor, head: Tensor) -> LstmModel:
        """Read what `save` wrote, in float32, on the CPU.

        Raises:
            CheckpointError: files that are missing or damaged, or tensors that do not match the config.
            UsageError: the verifier's matrices differ in shape from those the drafter was trained with.
        """
        config = read_config(folder, "lstm", LstmConfig)
        tensors, vocab = read_tensors(folder, config.draft_vocab, config.vocab_size)
        model = cls(config, embedding, head, vocab)
        fill(model, tensors, folder)
        return model


class RmsNorm(nn.Module):
    """``x / rms(x) * scale + bias`` over the last dimension, in float32."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(size))
        self.bias = nn.Parameter(torch.zeros(size))

    def forward(self, x: Tensor) -> Tensor:
        """``x [..., size]``."""
        wide = x.float()
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + _EPSILON)
        return (wide * self.scale + self.bias).to(x.dtype)
