"""Routed experts in a decoder layer's state, whatever their layout: as matrices, as vectors, and fewer of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from justright.models.decoder_layers import State
from justright.models.layout import Moe

if TYPE_CHECKING:
    from torch import Tensor


def expert_count(state: State, moe: Moe) -> int:
    """How many experts a layer's state holds."""
    return int(state[moe.router.weight].shape[0])


def expert_tensors(state: State, moe: Moe, expert: int) -> Iterator[Tensor]:
    """Views of expert ``expert``'s weights and biases, as they lie in ``state``."""
    layout = moe.memory
    for name in (*layout.matrices, *layout.biases):
        yield state[name][expert] if layout.stacked else state[name.format(e=expert)]


def expert_vectors(state: State, moe: Moe) -> Tensor:
    """Every expert's weights and biases in one row, ``[num_experts, parameters of an expert]`` float32."""
    import torch

    return torch.stack(
        [
            torch.cat([tensor.float().flatten() for tensor in expert_tensors(state, moe, expert)])
            for expert in range(expert_count(state, moe))
        ]
    )


def keep_experts(state: State, moe: Moe, kept: Sequence[int]) -> State:
    """The layer's state with the experts ``kept`` only, in that order; router and its extras cut alike.

    Nothing is rescaled. Source: arXiv:2409.06211, section 4 (the router of the kept experts).
    """
    import torch

    layout, router = moe.memory, moe.router
    out = dict(state)
    index = torch.tensor(list(kept))
    if layout.stacked:
        for name in (*layout.matrices, *layout.biases):
            out[name] = state[name].index_select(0, index)
    else:
        names = (*layout.matrices, *layout.biases)
        for expert in range(expert_count(state, moe)):
            for name in names:
                del out[name.format(e=expert)]
        for new, old in enumerate(kept):
            for name in names:
                out[name.format(e=new)] = state[name.format(e=old)]
    for name in router.per_expert:
        if name in state:
            axis = 0 if name == router.weight else state[name].ndim - 1
            out[name] = state[name].index_select(axis, index)
    return out


def replace_expert(state: State, moe: Moe, expert: int, members: Sequence[int]) -> None:
    """Make expert ``expert`` and its router row the average of ``members``, in place, each tensor in its dtype.

    Source: arXiv:2409.06211, section 4.3 (selective reconstruction).
    """
    layout, router = moe.memory, moe.router
    for name in (*layout.matrices, *layout.biases):
        if layout.stacked:
            tensor = state[name] = state[name].clone()
            tensor[expert] = _mean([state[name][m] for m in members])
        else:
            state[name.format(e=expert)] = _mean([state[name.format(e=m)] for m in members])
    for name in router.per_expert:
        if name in state:
            tensor = state[name] = state[name].clone()
            if name == router.weight:
                tensor[expert] = _mean([tensor[m] for m in members])
            else:
                tensor[..., expert] = _mean([tensor[..., m] for m in members])


def _mean(tensors: Sequence[Tensor]) -> Tensor:
    total = sum(tensor.float() for tensor in tensors)
    assert not isinstance(total, int)
    return (total / len(tensors)).to(tensors[0].dtype)
