"""A batch of sequences that the verifier wrote, with its states, and the file that holds it."""

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
    """Sequences of one batch; positions ``j`` count output tokens.

    Attributes:
        prompts: ``[sequences, prompt]`` int64, padded with zeros at the end.
        prompt_lengths: ``[sequences]`` int64.
        tokens: ``[sequences, outputs]`` int64, what was sampled.
        lengths: ``[sequences]`` int64: outputs up to the end token and with it; what follows means nothing.
        hidden: ``[sequences, outputs, hidden_size]`` bfloat16: the state, after the final norm, that predicted
            token ``j``.
        teacher_ids: ``[sequences, outputs, 8]`` int64, the most likely tokens at ``j``.
        teacher_probs: ``[sequences, outputs, 8]`` float16, their probabilities at the sampling temperature.
        factors: ``[sequences]`` float32, of the switch.
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
        """What `write` wrote."""
        found = load_file(file)
        whole = {name: t.long() if t.dtype == torch.int32 else t for name, t in found.items()}
        return cls(**whole)

    def take(self, rows: Sequence[int] | slice) -> Shard:
        """Some of the sequences."""
        return Shard(*(getattr(self, name)[rows] for name in self.__slots__))

    @classmethod
    def joined(cls, parts: Sequence[Shard]) -> Shard:
        """The sequences of several shards of one setting, one after the other."""
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
