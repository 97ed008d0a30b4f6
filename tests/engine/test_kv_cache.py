"""The KV cache equals a plain list after any sequence of writes, cuts, moves and growth."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from justright.engine import kv_cache as cache_module
from justright.engine.kv_cache import STATIC_SLACK, KVCache
from justright.errors import ResourceError

SLOTS, LAYERS, MAX_TOKENS = 3, 2, 40
KEY_DIMS, VALUE_DIMS = (4, 6), (3, 5)  # sizes may differ between layers and between keys and values
KV_HEADS = (2, 1)


def entries(values: list[int], layer: int, dims: tuple[int, ...]) -> Tensor:
    """Entries ``[kv_heads, tokens, dim]`` that repeat each token's value in all heads and dimensions."""
    flat = torch.tensor(values, dtype=torch.float32)
    return flat[None, :, None].expand(KV_HEADS[layer], len(values), dims[layer]).contiguous()


@torch.inference_mode()
def write(cache: KVCache, slot: int, values: list[int], *, static: bool = False) -> None:
    """Write as a forward pass does: reserve, then write each layer."""
    cache.reserve(slot, len(values))
    for layer in range(LAYERS):
        key, value = entries(values, layer, KEY_DIMS), entries(values, layer, VALUE_DIMS)
        if not static:
            cache.write(layer, slot, key, value)
            continue
        at = torch.zeros(slot + 1, len(values), dtype=torch.int64)
        for row in range(slot + 1):  # earlier rows are also written, after their lengths
            at[row] = cache.lengths[row] + torch.arange(len(values))
        rows = (slot + 1, *[-1] * key.ndim)
        cache.write_static(layer, at, key.expand(rows), value.expand(rows))


def content(cache: KVCache, slot: int) -> list[list[int]]:
    """The sequence in each layer's keys and values."""
    found = []
    for layer in range(LAYERS):
        key, value = entries([0], layer, KEY_DIMS), entries([0], layer, VALUE_DIMS)
        for tensor in cache.layer(layer, key, value):
            row = tensor[slot][:, : cache.lengths[slot]]
            assert (row == row[:1, :, :1]).all(), "heads and dimensions stay together"
            found.append(row[0, :, 0].tolist())
    return found


@pytest.mark.parametrize("static", [False, True], ids=["grow", "static"])
@given(data=st.data())
def test_any_history_equals_a_list(static: bool, data: st.DataObject) -> None:
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(cache_module, "_GROWTH_TOKENS", 4)
        cache = KVCache(LAYERS, SLOTS, MAX_TOKENS, static=static)
        model: list[list[int]] = [[] for _ in range(SLOTS)]
        number = 0
        addresses = None
        for _ in range(data.draw(st.integers(1, 12))):
            slot = data.draw(st.integers(0, SLOTS - 1))
            match data.draw(
                st.sampled_from(["step", "step", "step", "rewind", "clear", "release", "fit", "swap", "copy"])
            ):
                case "step":
                    count = data.draw(st.integers(1, 9))
                    if len(model[slot]) + count > MAX_TOKENS:
                        with pytest.raises(ResourceError, match="at most 40 tokens"):
                            cache.reserve(slot, count)
                        continue
                    values = list(range(number + 1, number + count + 1))
                    number += count
                    write(cache, slot, values, static=static)
                    path = sorted(data.draw(st.sets(st.integers(0, count - 1))))
                    cache.keep(slot, path)
                    model[slot] += [values[offset] for offset in path]
                case "rewind":
                    length = data.draw(st.integers(0, len(model[slot])))
                    cache.rewind(slot, length)
                    model[slot] = model[slot][:length]
                case "clear":
                    cache.clear(slot)
                    model[slot] = []
                case "release":
                    cache.release(slot)
                    model[slot] = []
                    assert static or cache.capacities[slot] == 0
                case "fit":
                    capacity = data.draw(st.integers(len(model[slot]), MAX_TOKENS))
                    cache.fit(slot, capacity)
                    assert static or cache.capacities[slot] == capacity
                case "copy":
                    source = data.draw(st.sampled_from([row for row in range(SLOTS) if row != slot]))
                    count = data.draw(st.integers(0, len(model[source])))
                    cache.copy(source, slot, count)
                    model[slot] = model[source][:count]
                case "swap":
                    other = data.draw(st.integers(0, SLOTS - 1))
                    cache.swap(slot, other)
                    model[slot], model[other] = model[other], model[slot]
            assert cache.lengths == [len(row) for row in model]
            for row in range(SLOTS):
                assert content(cache, row) == [model[row]] * (2 * LAYERS)
            if static:
                now = [store.data_ptr() for store in (*cache._keys, *cache._values)]
                assert addresses in (None, now), "static means that addresses never change"
                assert cache.capacities == [MAX_TOKENS + STATIC_SLACK] * SLOTS
                addresses = now
            else:
                assert all(n <= c <= MAX_TOKENS for n, c in zip(cache.lengths, cache.capacities, strict=True))


@torch.inference_mode()
def test_write_returns_the_row_with_the_new_tokens() -> None:
    cache = KVCache(LAYERS, SLOTS, MAX_TOKENS)
    write(cache, 1, [5, 6])
    cache.keep(1, [0, 1])
    cache.reserve(1, 1)
    keys, values = cache.write(0, 1, entries([7], 0, KEY_DIMS), entries([7], 0, VALUE_DIMS))
    assert keys.shape == (2, 3, 4)
    assert values.shape == (2, 3, 3)
    assert keys[0, :, 0].tolist() == values[1, :, 2].tolist() == [5, 6, 7]
    assert cache.lengths[1] == 2, "not kept yet"


@torch.inference_mode()
def test_static_views_have_one_shape_whatever_the_lengths() -> None:
    cache = KVCache(1, SLOTS, MAX_TOKENS, static=True)
    shapes = set()
    for _ in range(3):
        at = torch.tensor([[cache.lengths[0], cache.lengths[0] + 1]])
        keys, values = cache.write_static(0, at, torch.ones(1, 2, 2, 4), torch.ones(1, 2, 2, 3))
        shapes.add((keys.shape, values.shape))
        cache.keep(0, [0])
    assert shapes == {((1, 2, MAX_TOKENS + STATIC_SLACK, 4), (1, 2, MAX_TOKENS + STATIC_SLACK, 3))}


def test_static_storage_is_finite_from_the_start() -> None:
    """A masked key counts with weight zero, and zero times NaN is NaN."""
    cache = KVCache(1, 1, MAX_TOKENS, static=True)
    keys, values = cache.layer(0, torch.ones(1, 1, 4), torch.ones(1, 1, 4))
    assert torch.isfinite(keys).all()
    assert torch.isfinite(values).all()


def test_growth_is_by_a_quarter_or_1024_and_ends_at_the_most() -> None:
    cache = KVCache(1, 1, 10_000)
    capacities = []
    while not capacities or cache.capacities[0] < 10_000:
        cache.reserve(0, cache.capacities[0] + 1)
        capacities.append(cache.capacities[0])
    assert capacities == [1024, 2048, 3072, 4096, 5120, 6400, 8000, 10_000]


def test_nothing_is_allocated_before_the_first_write() -> None:
    cache = KVCache(LAYERS, SLOTS, MAX_TOKENS, static=True)
    assert cache.nbytes == 0
    write(cache, 0, [1])
    tokens = SLOTS * (MAX_TOKENS + STATIC_SLACK)
    per_token = sum(h * (k + v) for h, k, v in zip(KV_HEADS, KEY_DIMS, VALUE_DIMS, strict=True))
    assert cache.nbytes == 4 * tokens * per_token


def test_no_memory_is_an_error_that_leaves_the_cache_usable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_module, "_GROWTH_TOKENS", 4)
    cache = KVCache(LAYERS, 1, MAX_TOKENS)
    write(cache, 0, [1, 2, 3])
    cache.keep(0, [0, 1, 2])
    empty, calls = torch.empty, iter(range(100))

    def failing(*args: object, **options: object) -> Tensor:
        if next(calls) == 2:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return empty(*args, **options)  # type: ignore[call-overload,no-any-return]

    monkeypatch.setattr(torch, "empty", failing)
    with pytest.raises(ResourceError, match="not enough memory for"):
        cache.reserve(0, 5)
    assert content(cache, 0) == [[1, 2, 3]] * (2 * LAYERS)
    write(cache, 0, [4, 5, 6, 7, 8])  # this time the capacity suffices
    cache.keep(0, [1, 3])
    assert content(cache, 0) == [[1, 2, 3, 5, 7]] * (2 * LAYERS)


@torch.inference_mode()
def test_a_row_takes_only_what_it_needs() -> None:
    """With long and short sequences side by side, memory follows each one's tokens, and is freed."""
    cache = KVCache(LAYERS, SLOTS, 100_000)
    per_token = 4 * sum(h * (k + v) for h, k, v in zip(KV_HEADS, KEY_DIMS, VALUE_DIMS, strict=True))
    for slot, count in ((0, 5000), (1, 10)):
        write(cache, slot, [1] * count)
        cache.keep(slot, range(count))
    assert cache.capacities == [5000, 1024, 0]
    assert cache.nbytes == per_token * 6024
    cache.release(0)
    assert cache.nbytes == per_token * 1024
    assert content(cache, 1) == [[1] * 10] * (2 * LAYERS)


@pytest.mark.parametrize(
    ("error", "found"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), ResourceError),
        (
            RuntimeError("... DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"),
            ResourceError,
        ),
        (MemoryError(), ResourceError),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), RuntimeError),
        (RuntimeError("CUDA error: no CUDA-capable device is detected"), RuntimeError),
    ],
)
def test_only_a_lack_of_memory_is_called_one(
    monkeypatch: pytest.MonkeyPatch, error: Exception, found: type[Exception]
) -> None:
    def failing(*_: object, **__: object) -> Tensor:
        raise error

    cache = KVCache(LAYERS, SLOTS, MAX_TOKENS)
    monkeypatch.setattr(torch, "empty", failing)
    with pytest.raises(found) as caught:
        write(cache, 0, [1, 2])
    monkeypatch.undo()
    assert type(caught.value) is found


def test_memory_that_no_machine_has() -> None:
    """torch's own allocator fails for 2**50 tokens."""
    cache = KVCache(1, 1, 2**50)
    cache.layer(0, torch.zeros(1, 1, 4), torch.zeros(1, 1, 4))
    with pytest.raises(ResourceError, match="not enough memory for"):
        cache.reserve(0, 2**50)
