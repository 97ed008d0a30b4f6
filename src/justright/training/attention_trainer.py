"""Training of the attention baseline, with the data and the loop of the LSTM.

Source: EAGLE, arXiv:2401.15077, section 4.2: smooth L1 loss on the next feature, cross-entropy on the next token.
Differs: features are normalised before they are compared, and both losses have the same weight.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from justright.kernels.cpu import has_bfloat16
from justright.training.held_out import Accuracy
from justright.training.shard import Shard
from justright.training.trainer import Training


class AttentionTraining(Training):
    """As `Training`, but a row of a batch is a whole sequence; each position attends to the earlier ones."""

    def evaluate(self) -> Accuracy:
        """Evaluate the next token on the held-out prompts, from the verifier's true states."""
        right = among = valid = 0.0
        self.model.eval()
        with torch.no_grad():
            for shard in self.data.shards(self.data.held_out_files):
                for rows in torch.split(torch.arange(len(shard.tokens)), 16):
                    states, exists = self._states(shard, rows)
                    best = self.model.logits(states).topk(4).indices.cpu()
                    guesses = self.model.vocab.cpu()[best]
                    teacher = shard.teacher_ids[rows, 1:, :1]
                    right += float(((guesses[..., :1] == teacher)[..., 0] & exists).sum())
                    among += float(((guesses == teacher).any(-1) & exists).sum())
                    valid += float(exists.sum())
        self.model.train()
        share = right / max(valid, 1.0)
        return Accuracy([share], [among / max(valid, 1.0)], 1 + share)

    def _plain_loss(self, step: int) -> tuple[Tensor, int]:
        shard = self._batch(step, self.setting.rows)
        rows = torch.arange(len(shard.tokens))
        half = self.device.type != "cpu" or has_bfloat16()
        with torch.autocast(self.device.type, torch.bfloat16, enabled=half):
            states, exists = self._states(shard, rows)
            logits = self.model.logits(states)
        ids, probs = (
            t[:, 1:].flatten(0, 1).to(self.device) for t in (shard.teacher_ids, shard.teacher_probs)
        )
        own = self._loss.step(logits.flatten(0, 1), ids, probs.float(), exists.flatten().to(self.device))
        target = _normalised(shard.hidden[:, 1:].to(self.device).float())
        apart = F.smooth_l1_loss(_normalised(states.float()), target, reduction="none").mean(-1)
        feature = apart[exists.to(self.device)].sum() / exists.sum().clamp_min(1).to(self.device)
        return own + feature, int(exists.sum())

    def _states(self, shard: Shard, rows: Tensor) -> tuple[Tensor, Tensor]:
        """States after outputs 0, 1, ... of the sequences, and a mask of those that another output follows."""
        states = self._wrapped(
            shard.hidden[rows, :-1].to(self.device), shard.tokens[rows, :-1].to(self.device)
        )
        exists = torch.arange(1, shard.tokens.shape[1])[None] < shard.lengths[rows, None]
        return states, exists


def _normalised(x: Tensor) -> Tensor:
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)
