"""The loss of a drafter: cross-entropy of its next tokens against the verifier's distribution, by draft step."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from justright.training.shard import Shard


@dataclass(frozen=True, slots=True)
class Prefixes:
    """Prefixes to draft from, flattened over sequences; ``n`` is the number of draft steps.

    Attributes:
        hidden: ``[rows, hidden_size]``: the verifier's state that predicted the first of ``tokens``.
        tokens: ``[rows, n]``: the token after that state, and the following ones.
        teacher_ids: ``[rows, n, 8]``: the verifier's most likely tokens after each of ``tokens``.
        teacher_probs: ``[rows, n, 8]``.
        targets: ``[rows, n]``: the sampled token after each of ``tokens``.
        valid: ``[rows, n]`` bool: whether the sequence is that long.
        sequence: ``[rows]``: row of the shard.
        position: ``[rows]``: number of output tokens before the first of ``tokens``.
    """

    hidden: Tensor
    tokens: Tensor
    teacher_ids: Tensor
    teacher_probs: Tensor
    targets: Tensor
    valid: Tensor
    sequence: Tensor
    position: Tensor

    def take(self, rows: Tensor) -> Prefixes:
        """The prefixes ``rows``."""
        return Prefixes(*(getattr(self, name)[rows] for name in self.__slots__))


def prefixes(shard: Shard, rows: Tensor, steps: int) -> Prefixes:
    """All prefixes of the sequences ``rows`` (indices) of a shard with at least one token to predict."""
    outputs = shard.tokens.shape[1]
    lengths = shard.lengths[rows]
    starts = torch.arange(outputs - 1)
    exists = starts[None, :] + 1 < lengths[:, None]
    sequence, position = exists.nonzero(as_tuple=True)
    ahead = position[:, None] + torch.arange(steps)[None, :]
    valid = ahead + 1 < lengths[sequence][:, None]
    own = rows[sequence]
    now, then = ahead.clamp(max=outputs - 1), (ahead + 1).clamp(max=outputs - 1)
    return Prefixes(
        shard.hidden[own, position].float(),
        shard.tokens[own[:, None], now],
        shard.teacher_ids[own[:, None], then],
        shard.teacher_probs[own[:, None], then].float(),
        shard.tokens[own[:, None], then],
        valid,
        own,
        position,
    )


class DraftLoss:
    """Cross-entropy within the draft vocabulary.

    The target of a step is the verifier's distribution, restricted to its most likely tokens and to the draft
    vocabulary; tokens outside it add no loss.

    Args:
        vocab: ``[head_size]`` token ids of the draft vocabulary.
        vocab_size: of the verifier.

    Source: arXiv:2510.07535, section 3. Differs: the paper's target is the sampled token; the distribution has the
    same expectation with less noise.
    """

    def __init__(self, vocab: Tensor, vocab_size: int) -> None:
        self.index = torch.full((vocab_size,), -1, dtype=torch.long, device=vocab.device)
        self.index[vocab] = torch.arange(len(vocab), device=vocab.device)

    def step(self, logits: Tensor, ids: Tensor, probs: Tensor, valid: Tensor) -> Tensor:
        """Loss of one step: the mean over valid rows.

        Args:
            logits: ``[rows, head_size]``.
            ids: ``[rows, 8]``, the verifier's tokens, most likely first.
            probs: ``[rows, 8]``.
            valid: ``[rows]`` bool.
        """
        places = self.index[ids]
        weight = probs * (places >= 0) * valid[:, None]
        logs = torch.log_softmax(logits.float(), dim=-1)
        return -(weight * logs.gather(1, places.clamp_min(0))).sum() / weight.sum().clamp_min(1e-6)
