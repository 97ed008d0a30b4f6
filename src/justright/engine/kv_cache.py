"""The KV cache: one row (slot) per sequence, rolled back by setting a length, compacted in place."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from justright.errors import ResourceError, is_out_of_memory

_GROWTH_TOKENS = 1024
STATIC_SLACK = 128


class KVCache:
    """Keys and values of every layer for ``slots`` sequences.

    Life cycle: ``reserve`` makes room for new tokens, the attention function writes them with ``write``
    during the forward pass, then ``keep`` makes the accepted ones part of the sequence and discards the rest.
    Only ``keep``, ``copy``, ``rewind``, ``clear``, ``release`` and ``swap`` change ``lengths``. Entries at or
    after a row's length are garbage.

    Layers are allocated at their first write, since only the model knows the shapes; heads and head sizes may differ
    between layers and between keys and values. A growing cache has one tensor ``[kv_heads, capacity, head_dim]`` per
    row, as long as that row needs; a static one has a single ``[slots, kv_heads, capacity, head_dim]``.

    Args:
        num_layers: decoder layers.
        slots: rows; the maximum batch size.
        max_tokens: the maximum number of tokens in a row (the model's context).
        static: allocate ``max_tokens`` and one padded step at once, so that shapes and addresses never change (CUDA
            graphs); otherwise a row grows by 1,024 tokens or a quarter, whichever is more.
        trimmed: attention covers only the part of a static cache that is in use, in steps of 64 tokens: it reads
            less, but shapes may change.

    Raises:
        ResourceError: ``reserve`` beyond ``max_tokens``, or out of memory.
    """

    def __init__(
        self, num_layers: int, slots: int, max_tokens: int, *, static: bool = False, trimmed: bool = False
    ) -> None:
        self.slots = slots
        self.max_tokens = max_tokens
        self.static = static
        self.trimmed = trimmed
        self.capacities = [max_tokens + STATIC_SLACK if static else 0] * slots
        self.lengths = [0] * slots
        # Per layer: a list of rows, or one tensor whose first dimension is the row.
        self._keys: list[Tensor | list[Tensor] | None] = [None] * num_layers
        self._values: list[Tensor | list[Tensor] | None] = [None] * num_layers

    @property
    def nbytes(self) -> int:
        """Bytes allocated (on a CPU, pages that were never written take no memory)."""
        stores = [s for s in (*self._keys, *self._values) if s is not None]
        return sum(s.nbytes if isinstance(s, Tensor) else sum(row.nbytes for row in s) for s in stores)

    @torch.inference_mode()
    def reserve(self, slot: int, count: int) -> None:
        """Make room for ``count`` tokens after row ``slot``'s length; the row grows in all layers when needed."""
        needed = self.lengths[slot] + count
        if needed > self.max_tokens:
            raise ResourceError(
                f"the KV cache holds at most {self.max_tokens} tokens per sequence, and {needed} are needed: "
                "shorten the prompt, lower max_tokens, or use a smaller draft tree"
            )
        old = self.capacities[slot]
        if needed <= old:
            return
        self._set_capacity(slot, min(max(needed, old + max(_GROWTH_TOKENS, old // 4)), self.max_tokens))

    @torch.inference_mode()
    def fit(self, slot: int, capacity: int) -> None:
        """Set row ``slot``'s capacity exactly (the capacity of a static cache is fixed)."""
        assert self.lengths[slot] <= capacity <= self.max_tokens
        if not self.static and capacity != self.capacities[slot]:
            self._set_capacity(slot, capacity)

    def _set_capacity(self, slot: int, capacity: int) -> None:
        # The smaller of the old and the new capacity until all layers are done: the cache stays usable if
        # memory runs out.
        self.capacities[slot] = min(self.capacities[slot], capacity)
        for stores in (self._keys, self._values):
            for store in stores:
                if store is not None:
                    assert isinstance(store, list)
                    store[slot] = _resized(store[slot], self.lengths[slot], capacity)
        self.capacities[slot] = capacity

    def layer(
        self, index: int, key: Tensor, value: Tensor
    ) -> tuple[Tensor | list[Tensor], Tensor | list[Tensor]]:
        """Key and value storage of a layer, by row, allocated if needed.

        ``key`` and ``value``, ``[..., kv_heads, tokens, head_dim]``, supply shape, dtype and device.
        """
        keys, values = self._keys[index], self._values[index]
        if keys is None or values is None:
            keys = self._keys[index] = self._store(key)
            values = self._values[index] = self._store(value)
        return keys, values

    def write(self, index: int, slot: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Write new tokens after row ``slot``'s length; they join the sequence only with ``keep``.

        Args:
            index: the layer.
            slot: the row.
            key: ``[kv_heads, tokens, head_dim]``.
            value: ``[kv_heads, tokens, value_head_dim]``.

        Returns:
            Views of the row's keys and values up to and including the new tokens.
        """
        start = self.lengths[slot]
        stop = start + key.shape[-2]
        keys, values = (store[slot] for store in self.layer(index, key, value))
        keys[:, start:stop] = key
        values[:, start:stop] = value
        return keys[:, :stop], values[:, :stop]

    def write_static(self, index: int, at: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """`write` for the first rows at once, with shapes that do not depend on lengths.

        Args:
            index: the layer.
            at: ``[rows, tokens]`` int64, the cache position of each token.
            key: ``[rows, kv_heads, tokens, head_dim]``.
            value: ``[rows, kv_heads, tokens, value_head_dim]``.

        Returns:
            Views of the rows' whole keys and values, ``[rows, kv_heads, capacity, ...]``.
        """
        found = []
        for store, new in zip(self.layer(index, key, value), (key, value), strict=True):
            assert isinstance(store, Tensor)
            rows = store[: len(at)]
            rows.scatter_(2, at[:, None, :, None].expand_as(new), new)
            found.append(rows)
        return found[0], found[1]

    @torch.inference_mode()
    def keep(self, slot: int, path: Sequence[int]) -> None:
        """Accept the new tokens at ``path`` (ascending offsets from the length) and discard all others."""
        start = self.lengths[slot]
        if any(offset != i for i, offset in enumerate(path)):
            first = next(i for i, offset in enumerate(path) if offset != i)
            source = torch.tensor([start + offset for offset in path[first:]])
            for row in self._row(slot):
                row[:, start + first : start + len(path)] = row.index_select(1, source.to(row.device))
        self.lengths[slot] = start + len(path)

    @torch.inference_mode()
    def fill(self, slot: int, count: int) -> None:
        """Fill row ``slot`` with ``count`` tokens of zeros, in physical memory (for measurements)."""
        self.reserve(slot, count)
        for row in self._row(slot):
            row[:, :count] = 0
        self.lengths[slot] = count

    @torch.inference_mode()
    def copy(self, source: int, target: int, count: int) -> None:
        """Replace row ``target`` by the first ``count`` tokens of row ``source``."""
        assert source != target
        assert 0 <= count <= self.lengths[source]
        self.rewind(target, 0)
        self.reserve(target, count)
        for old, new in zip(self._row(source), self._row(target), strict=True):
            new[:, :count] = old[:, :count]
        self.lengths[target] = count

    @torch.inference_mode()
    def rewind(self, slot: int, length: int) -> None:
        """Truncate row ``slot`` to its first ``length`` tokens."""
        assert 0 <= length <= self.lengths[slot]
        if self.static:  # attention reads all of it, so dropped entries must not stay NaN
            for row in self._row(slot):
                row[:, length : self.lengths[slot]] = 0
        self.lengths[slot] = length

    def clear(self, slot: int) -> None:
        """Empty row ``slot``; the next sequence uses its memory."""
        self.rewind(slot, 0)

    def release(self, slot: int) -> None:
        """Empty row ``slot`` and free its memory (a static cache never frees any)."""
        self.rewind(slot, 0)
        self.fit(slot, 0)

    @torch.inference_mode()
    def swap(self, one: int, other: int) -> None:
        """Exchange two rows, which keeps live rows together; only a static cache copies data."""
        if one == other:
            return
        used = max(self.lengths[one], self.lengths[other])
        for store in (*self._keys, *self._values):
            if isinstance(store, Tensor):
                store[[one, other], :, :used] = store[[other, one], :, :used]
            elif store is not None:
                store[one], store[other] = store[other], store[one]
        for numbers in (self.lengths, self.capacities):
            numbers[one], numbers[other] = numbers[other], numbers[one]

    def _row(self, slot: int) -> list[Tensor]:
        """Keys and values of one sequence, ``[kv_heads, capacity, head_dim]`` each."""
        return [store[slot] for store in (*self._keys, *self._values) if store is not None]

    def _store(self, like: Tensor) -> Tensor | list[Tensor]:
        heads, size = like.shape[-3], like.shape[-1]
        if self.static:
            # Attention reads all of a static cache, so entries that were never written must be finite (see `rewind`).
            return _allocate(torch.zeros, (self.slots, heads, self.capacities[0], size), like)
        return [_allocate(torch.empty, (heads, capacity, size), like) for capacity in self.capacities]


def _resized(old: Tensor, length: int, capacity: int) -> Tensor:
    new = _allocate(torch.empty, (old.shape[0], capacity, old.shape[2]), old)
    new[:, :length] = old[:, :length]
    return new


def _allocate(make: Callable[..., Tensor], shape: tuple[int, ...], like: Tensor) -> Tensor:
    try:
        return make(shape, dtype=like.dtype, device=like.device)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        size = torch.Size(shape).numel() * like.element_size() / 2**20
        raise ResourceError(
            f"not enough memory for {size:.0f} MiB of KV cache in a layer: use a smaller batch or context"
        ) from error
