"""Few queries against many keys on a CPU: splits the keys so that every thread has a part (arXiv:2311.01282, 2.2).

The library's kernel gives a thread one key head at a time. A model with 3 key heads leaves one of 2 threads idle for
a third of the time, and 13 of 16 all the time. Splitting the keys into equal parts occupies all threads; the parts'
results are merged by their sums of exponentials.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

_LEAST_KEYS = 512  # per part; below this, merging costs more than the idle threads


def count_parts(kv_heads: int, length: int, device: torch.device) -> int:
    """Number of parts for ``length`` keys of ``kv_heads`` heads; 1 = no split."""
    if device.type != "cpu":
        return 1
    threads = torch.get_num_threads()
    return max(1, min(threads // math.gcd(threads, kv_heads), length // _LEAST_KEYS))


def split_bias(bias: Tensor | None, rows: int, length: int, parts: int, dtype: torch.dtype) -> Tensor | None:
    """The bias for `attend_split`, from the one over all keys.

    All parts have the same length and begin ``length // parts`` apart, so each but the last extends into the next by
    the remainder; the bias masks that overlap.

    Args:
        bias: ``[rows, length]``, added to the scores; None adds nothing.
        rows: queries.
        length: keys.
        parts: by `count_parts`.
        dtype: of the scores.

    Returns:
        ``[parts, 1, rows, length // parts + length % parts]``, or None if there is nothing to add.
    """
    step, rest = divmod(length, parts)
    if bias is None and not rest:
        return None
    if bias is None:
        out = torch.zeros(parts, 1, rows, step + rest, dtype=dtype)
    else:
        shape = (parts, 1, rows, step + rest)
        out = (
            bias.contiguous()
            .as_strided(shape, (step, 0, length, 1))
            .clone(memory_format=torch.contiguous_format)
        )
    if rest:
        out[:-1, :, :, step:] = float("-inf")
    return out


def attend_split(
    query: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None, parts: int, scaling: float | None
) -> Tensor:
    """Attention with the keys in ``parts``; every query must see a key in every part.

    Args:
        query: ``[kv_heads, rows, head_dim]``.
        keys: ``[kv_heads, length, head_dim]``, a view with any strides.
        values: ``[kv_heads, length, value_head_dim]``.
        bias: by `split_bias`.
        parts: by `count_parts`.
        scaling: factor on the scores; ``head_dim ** -0.5`` if None.

    Returns:
        ``[kv_heads, rows, value_head_dim]``.
    """
    out, sums = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        query.expand(parts, *query.shape),
        _overlapping(keys, parts),
        _overlapping(values, parts),
        attn_mask=bias,
        scale=scaling,
    )
    weights = torch.softmax(sums.to(out.dtype), dim=0)
    merged: Tensor = (out * weights[..., None]).sum(0)
    return merged


def _overlapping(x: Tensor, parts: int) -> Tensor:
    """``[heads, length, dim]`` as ``[parts, heads, length // parts + length % parts, dim]``, without a copy."""
    heads, length, dim = x.shape
    step, rest = divmod(length, parts)
    strides = (step * x.stride(1), *x.stride())
    return x.as_strided((parts, heads, step + rest, dim), strides, x.storage_offset())
