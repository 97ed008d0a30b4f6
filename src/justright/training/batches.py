"""Which sequences a step trains on: each once per epoch, in an order that depends only on the seed.

The epochs form one endless list of sequences. A step takes the next ones, and each process its own share of them. Any
numbers of sequences, rows and processes can be combined, and a run resumes from its step number alone.
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
    """``(shard, row)`` of every sequence once: shards in random order, and the rows of each in random order.

    Args:
        sequences: total number.
        batch: sequences per shard; the last shard may have fewer.
        seed: of both orders.
        epoch: number of the epoch.
    """
    shards = -(-sequences // batch)
    found: list[tuple[int, int]] = []
    for shard in _shuffled(shards, seed, epoch).tolist():
        size = min(batch, sequences - shard * batch)
        found += [(shard, row) for row in _shuffled(size, seed + 1, epoch * shards + shard).tolist()]
    return tuple(found)


class Batches:
    """Reads the sequences of a step from the (complete) training shards; keeps the last step's shards in memory."""

    def __init__(self, data: SelfGenerated, seed: int) -> None:
        self.data = data
        self.seed = seed
        self._held: dict[int, Shard] = {}

    def take(self, first: int, count: int) -> Shard:
        """``count`` sequences of the endless list of epochs, from number ``first`` on."""
        sequences, batch = self.data.setting.sequences, self.data.setting.batch
        places = [divmod(number, sequences) for number in range(first, first + count)]
        wanted = [epoch_order(sequences, batch, self.seed, epoch)[place] for epoch, place in places]
        files = self.data.training_files
        self._held = {n: self._held.get(n) or self.data.read(files[n]) for n, _ in wanted}
        parts = groupby(wanted, key=lambda one: one[0])
        return Shard.joined([self._held[n].take([row for _, row in rows]) for n, rows in parts])


def _shuffled(count: int, seed: int, turn: int) -> Tensor:
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed * 1_000_003 + turn))
