"""A batch of sequences that the verifier generated, with its hidden states, and its file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from justright.files import save_tensors


@dataclass(frozen=True, slots=True)
class Shard:
    """Sequences of one batch; position ``j`` counts output tokens.

    Attributes:
        prompts: ``[sequences, prompt]`` int64, padded with zeros at the end.
        prompt_lengths: ``[sequences]`` int64.
        tokens: ``[sequences, outputs]`` int64, sampled.
        lengths: ``[sequences]`` int64: outputs up to and including the end token; later ones have no meaning.
        hidden: ``[sequences, outputs, hidden_size]`` bfloat16: the state, after the final norm, that predicted
            token ``j``.
        teacher_ids: ``[sequences, outputs, 8]`` int64, the most likely tokens at ``j``.
        teacher_probs: ``[sequences, outputs, 8]`` float16, their probabilities at the sampling temperature.
        factors: ``[sequences]`` float32, adapter scales.
    """

    prompts: Tensor
    prompt_lengths: Tensor
    tokens: Tensor
    lengths: Tensor
    hidden: Tensor
    teacher_ids: Tensor
    teacher_probs: Tensor
    factors: Tensor

    @classmethod
    def read(cls, file: Path) -> Shard:
        """Read a file of `write`."""
        found = load_file(file)
        whole = {name: t.long() if t.dtype == torch.int32 else t for name, t in found.items()}
        return cls(**whole)

    def take(self, rows: Sequence[int] | slice) -> Shard:
        """The sequences ``rows``."""
        return Shard(*(getattr(self, name)[rows] for name in self.__slots__))

    @classmethod
    def joined(cls, parts: Sequence[Shard]) -> Shard:
        """Concatenate shards of one setting."""
        if len(parts) == 1:
            return parts[0]
        width = max(part.prompts.shape[1] for part in parts)
        prompts = [F.pad(part.prompts, (0, width - part.prompts.shape[1])) for part in parts]
        rest = [torch.cat([getattr(part, name) for part in parts]) for name in cls.__slots__[1:]]
        return cls(torch.cat(prompts), *rest)

    def write(self, file: Path) -> None:
        """Write the file, whole or not at all; token ids as int32."""
        whole = {name: getattr(self, name) for name in self.__slots__}
        save_tensors({name: t.int() if t.dtype == torch.int64 else t for name, t in whole.items()}, file)
