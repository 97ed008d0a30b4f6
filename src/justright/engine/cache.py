"""The key/value cache: one row (slot) per sequence, rewound by setting a length, compacted in place."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from justright.errors import ResourceError

_GROWTH_TOKENS = 1024
STATIC_SLACK = 128


class KVCache:
    """Keys and values of every layer for ``slots`` sequences.

    Life cycle: ``reserve`` room for new tokens, the attention function writes them with ``write`` during the
    forward, then ``keep`` makes the accepted ones part of the sequence and forgets the rest. Only ``keep``,
    ``rewind``, ``clear`` and ``move`` change ``lengths``. Entries at or behind a row's length are garbage.

    Layers are allocated at their first write, since only the model knows the shapes: ``[slots, kv_heads,
    capacity, head_dim]``; heads and head sizes may differ between layers and between keys and values.

    Args:
        num_layers: decoder layers.
        slots: rows; the largest batch.
        max_tokens: the most tokens that a row may ever hold (the model's context).
        static: allocate ``max_tokens`` at once, and room for one padded step, so that shapes and addresses
            never change (CUDA graphs); otherwise capacity grows in steps of 1,024 tokens or a quarter, whichever
            is more.
        trimmed: a static cache is attended to as far as it is in use, in steps of 64 tokens: less to read, where
            shapes may change.

    Raises:
        ResourceError: ``reserve`` beyond ``max_tokens``, or no memory for it.
    """

    def __init__(
        self, num_layers: int, slots: int, max_tokens: int, *, static: bool = False, trimmed: bool = False
    ) -> None:
        self.slots = slots
        self.max_tokens = max_tokens
        self.static = static
        self.trimmed = trimmed
        self.capacity = max_tokens + STATIC_SLACK if static else 0
        self.lengths = [0] * slots
        self._keys: list[Tensor | None] = [None] * num_layers
        self._values: list[Tensor | None] = [None] * num_layers

    @property
    def nbytes(self) -> int:
        """Bytes allocated (on a CPU, pages that were never written take no memory)."""
        return sum(t.nbytes for t in (*self._keys, *self._values) if t is not None)

    @torch.inference_mode()
    def reserve(self, slot: int, count: int) -> None:
        """Make room for ``count`` tokens behind row ``slot``'s length, growing all layers when needed."""
        needed = self.lengths[slot] + count
        if needed > self.max_tokens:
            raise ResourceError(
                f"the cache holds at most {self.max_tokens} tokens a sequence; {needed} are needed: "
                "shorten the prompt, ask for fewer tokens, or use a smaller draft tree"
            )
        if needed <= self.capacity:
            return
        grown = max(needed, self.capacity + max(_GROWTH_TOKENS, self.capacity // 4))
        capacity = min(grown, self.max_tokens)
        for tensors in (self._keys, self._values):
            for layer, old in enumerate(tensors):
                if old is not None:
                    tensors[layer] = self._grown(old, capacity)
        # Last, so that a cache that found no memory half-way stays usable: a layer too large does no harm.
        self.capacity = capacity

    def layer(self, index: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Key and value storage of a layer, ``[slots, kv_heads, capacity, head_dim]``, allocated if need be.

        ``key`` and ``value``, ``[..., kv_heads, tokens, head_dim]``, show shape, dtype and device.
        """
        keys, values = self._keys[index], self._values[index]
        if keys is None or values is None:
            keys = self._keys[index] = self._allocate(key, self.capacity)
            values = self._values[index] = self._allocate(value, self.capacity)
        return keys, values

    def write(self, index: int, slot: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Put new tokens behind row ``slot``'s length; they count only once ``keep`` says so.

        Args:
            index: the layer.
            slot: the row.
            key: ``[kv_heads, tokens, head_dim]``.
            value: ``[kv_heads, tokens, value_head_dim]``.

        Returns:
            Views of the row's keys and values up to and with the new tokens.
        """
        keys, values = self.layer(index, key, value)
        start = self.lengths[slot]
        stop = start + key.shape[-2]
        keys[slot, :, start:stop] = key
        values[slot, :, start:stop] = value
        return keys[slot, :, :stop], values[slot, :, :stop]

    def write_static(self, index: int, at: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """As `write` for the first rows at once, with shapes that do not depend on lengths.

        Args:
            index: the layer.
            at: ``[rows, tokens]`` int64, where each token goes.
            key: ``[rows, kv_heads, tokens, head_dim]``.
            value: ``[rows, kv_heads, tokens, value_head_dim]``.

        Returns:
            Views of the rows' whole keys and values, ``[rows, kv_heads, capacity, ...]``.
        """
        rows = slice(0, len(at))
        found = tuple(tensor[rows] for tensor in self.layer(index, key, value))
        for tensor, new in zip(found, (key, value), strict=True):
            tensor.scatter_(2, at[:, None, :, None].expand_as(new), new)
        return found[0], found[1]

    @torch.inference_mode()
    def keep(self, slot: int, path: Sequence[int]) -> None:
        """Accept the new tokens at ``path`` (ascending offsets behind the length) and forget all others."""
        start = self.lengths[slot]
        if any(offset != i for i, offset in enumerate(path)):
            first = next(i for i, offset in enumerate(path) if offset != i)
            source = torch.tensor([start + offset for offset in path[first:]])
            for tensor in (*self._keys, *self._values):
                if tensor is not None:
                    row = tensor[slot]
                    row[:, start + first : start + len(path)] = row.index_select(1, source.to(row.device))
        self.lengths[slot] = start + len(path)

    @torch.inference_mode()
    def fill(self, slot: int, count: int) -> None:
        """Make row ``slot`` hold ``count`` tokens of zeros, in memory that is really there (for measurements)."""
        self.reserve(slot, count)
        for tensor in (*self._keys, *self._values):
            if tensor is not None:
                tensor[slot, :, :count] = 0
        self.lengths[slot] = count

    def rewind(self, slot: int, length: int) -> None:
        """Cut row ``slot`` to its first ``length`` tokens."""
        assert 0 <= length <= self.lengths[slot]
        self.lengths[slot] = length

    def clear(self, slot: int) -> None:
        """Empty row ``slot``."""
        self.lengths[slot] = 0

    @torch.inference_mode()
    def move(self, source: int, target: int) -> None:
        """Copy row ``source`` over row ``target`` and empty ``source``, so that live rows stay together."""
        if source == target:
            return
        length = self.lengths[source]
        for tensor in (*self._keys, *self._values):
            if tensor is not None:
                tensor[target, :, :length] = tensor[source, :, :length]
        self.lengths[target] = length
        self.lengths[source] = 0

    def _allocate(self, like: Tensor, capacity: int) -> Tensor:
        shape = (self.slots, like.shape[-3], capacity, like.shape[-1])
        # A static cache is attended to as a whole, so what was never written must be finite.
        make: Callable[..., Tensor] = torch.zeros if self.static else torch.empty
        try:
            return make(shape, dtype=like.dtype, device=like.device)
        except (torch.OutOfMemoryError, RuntimeError) as error:
            size = torch.Size(shape).numel() * like.element_size() / 2**20
            raise ResourceError(
                f"no memory for {size:.0f} MiB of key/value cache a layer: use a smaller batch or context"
            ) from error

    def _grown(self, old: Tensor, capacity: int) -> Tensor:
        new = self._allocate(old, capacity)
        for slot, length in enumerate(self.lengths):
            new[slot, :, :length] = old[slot, :, :length]
        return new
