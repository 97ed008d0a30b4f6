"""Which sequences a step trains on: each once an epoch, in an order that follows from the seed alone.

The epochs form one endless row of sequences; a step takes the next ones of it, and each process its own part of them.
So any number of sequences, rows and processes goes together, and a run goes on from the number of its step.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import groupby

import torch
from torch import Tensor

from justright.training.self_generated import SelfGenerated
from justright.training.shard import Shard


@lru_cache(maxsize=4)
def epoch_order(sequences: int, batch: int, seed: int, epoch: int) -> tuple[tuple[int, int], ...]:
    """``(shard, row)`` of every sequence once: shards in a random order, and the rows of each in a random order.

    Args:
        sequences: in all.
        batch: sequences of a shard; the last has what is left.
        seed: of both orders.
        epoch: which.
    """
    shards = -(-sequences // batch)
    found: list[tuple[int, int]] = []
    for shard in _shuffled(shards, seed, epoch).tolist():
        size = min(batch, sequences - shard * batch)
        found += [(shard, row) for row in _shuffled(size, seed + 1, epoch * shards + shard).tolist()]
    return tuple(found)


class Batches:
    """Reads the sequences of a step from the training shards; those of the last step stay in memory.

    Args:
        data: complete.
        seed: of the order.
    """

    def __init__(self, data: SelfGenerated, seed: int) -> None:
        self.data = data
        self.seed = seed
        self._held: dict[int, Shard] = {}

    def take(self, first: int, count: int) -> Shard:
        """Sequences ``first``, ``first + 1``, ... of the endless row of epochs, ``count`` in all."""
        sequences, batch = self.data.setting.sequences, self.data.setting.batch
        places = [divmod(number, sequences) for number in range(first, first + count)]
        wanted = [epoch_order(sequences, batch, self.seed, epoch)[place] for epoch, place in places]
        files = self.data.training_files
        self._held = {n: self._held.get(n) or self.data.read(files[n]) for n, _ in wanted}
        parts = groupby(wanted, key=lambda one: one[0])
        return Shard.joined([self._held[n].take([row for _, row in rows]) for n, rows in parts])


def _shuffled(count: int, seed: int, turn: int) -> Tensor:
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed * 1_000_003 + turn))
