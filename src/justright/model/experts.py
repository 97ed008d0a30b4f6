"""Access, remove and average routed experts in a decoder layer's state, for any layout."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from justright.architectures.schema import Moe
from justright.model.decoder_layer import State

if TYPE_CHECKING:
    from torch import Tensor


def expert_vector(state: State, moe: Moe, expert: int) -> Tensor:
    """One expert's concatenated weights and biases, ``[parameters of an expert]`` float32."""
    import torch

    layout, names = moe.memory, (*moe.memory.matrices, *moe.memory.biases)
    tensors = [state[n][expert] if layout.stacked else state[n.format(e=expert)] for n in names]
    return torch.cat([tensor.float().flatten() for tensor in tensors])


def keep_experts(state: State, moe: Moe, kept: Sequence[int]) -> None:
    """Keep only the experts ``kept`` in a layer's state, in that order, including the router's tensors.

    It replaces ``state`` tensor by tensor, so memory holds no second state. Nothing is rescaled.
    Source: arXiv:2409.06211, section 4 (the router of the kept experts).
    """
    import torch

    layout, router = moe.memory, moe.router
    index = torch.tensor(list(kept))
    if layout.stacked:
        for name in (*layout.matrices, *layout.biases):
            state[name] = state[name].index_select(0, index)
    else:
        names = (*layout.matrices, *layout.biases)
        count = len(state[moe.router.weight])
        experts = [{name: state.pop(name.format(e=expert)) for name in names} for expert in range(count)]
        for new, old in enumerate(kept):
            state.update({name.format(e=new): experts[old][name] for name in names})
    for name in router.per_expert:
        if name in state:
            axis = 0 if name == router.weight else state[name].ndim - 1
            state[name] = state[name].index_select(axis, index)


def replace_expert(state: State, moe: Moe, expert: int, members: Sequence[int]) -> None:
    """Make expert ``expert`` and its router row the average of ``members``, in place, each tensor in its dtype.

    It changes the tensors themselves.

    Source: arXiv:2409.06211, section 4.3 (selective reconstruction).
    """
    layout, router = moe.memory, moe.router
    for name in (*layout.matrices, *layout.biases):
        if layout.stacked:
            state[name][expert] = _mean([state[name][m] for m in members])
        else:
            state[name.format(e=expert)] = _mean([state[name.format(e=m)] for m in members])
    for name in router.per_expert:
        if name in state:
            tensor = state[name]
            if name == router.weight:
                tensor[expert] = _mean([tensor[m] for m in members])
            else:
                tensor[..., expert] = _mean([tensor[..., m] for m in members])


def _mean(tensors: Sequence[Tensor]) -> Tensor:
    total = sum(tensor.float() for tensor in tensors)
    assert not isinstance(total, int)
    return (total / len(tensors)).to(tensors[0].dtype)
