"""What the tokens of a step may see: masks for torch's attention, and positions for the C++ kernel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from justright.architectures.schema import Window
from justright.kernels.fused import Sight


@dataclass(frozen=True, slots=True)
class SequenceInput:
    """The tokens of one sequence within a step.

    Attributes:
        slot: the sequence's row in the cache.
        start: first token within the flat step.
        positions: absolute position of each token, ``[tokens]``, int64.
        tree: ``[tokens, tokens]`` bool, row may see column (itself and its ancestors); None for a plain chain.
        certain: number of leading tokens that definitely belong to the sequence. The tokens after them (draft,
            [SPEC], padding) may be masked for other tokens, so `bounded_` makes their keys and values finite.
    """

    slot: int
    start: int
    positions: Tensor
    tree: Tensor | None = None
    certain: int = 0

    def __len__(self) -> int:
        return len(self.positions)


def sight_of(
    runs: Sequence[SequenceInput], lengths: Sequence[int], positions: Tensor, window: Window | None
) -> Sight:
    """What the rows of a step see.

    Args:
        runs: the sequences.
        lengths: cached tokens of each slot.
        positions: of all rows, ``[rows]``.
        window: as in `visible`.
    """
    longest = max(map(len, runs))
    counts, paths = [], torch.zeros(len(positions), longest, dtype=torch.int64)
    for run in runs:
        count = len(run)
        own = paths[run.start : run.start + count, :count]
        if run.tree is None:
            counts.append(torch.arange(1, count + 1))
            own[:] = torch.arange(count)
        else:  # parents come before their children, so ascending ancestors are ancestors by depth
            counts.append(run.tree.sum(1))
            own[:] = torch.argsort(~run.tree, dim=1, stable=True)
    first = torch.zeros_like(positions)
    if window is not None and window.kind == "sliding":
        first = (positions - window.size + 1).clamp(min=0)
    elif window is not None:
        first = positions // window.size * window.size
    shape = torch.tensor([[len(run), lengths[run.slot]] for run in runs])
    return Sight(shape, first, torch.cat(counts), paths)


def visible(run: SequenceInput, past: int, window: Window | None) -> tuple[int, Tensor | None]:
    """What the tokens of ``run`` may see, after ``past`` cached tokens of the same sequence.

    Cached token ``j`` has position ``j``. A sliding window of size w shows positions above ``p - w`` to a token at
    position ``p`` (itself included); a chunk of size c shows those from ``p // c * c`` on.

    Returns:
        ``(first, mask)`` as in `StepPlan.mask`.
    """
    count = len(run)
    positions = run.positions
    first = 0
    if window is not None:
        earliest = int(positions.min())
        size = window.size
        first = earliest - size + 1 if window.kind == "sliding" else earliest // size * size
        first = min(max(first, 0), past)
    if count == 1 and window is None:
        return 0, None
    tree = run.tree
    if tree is None:
        tree = torch.ones(count, count, dtype=torch.bool, device=positions.device).tril()
    mask = torch.ones(count, past - first + count, dtype=torch.bool, device=positions.device)
    mask[:, past - first :] = tree
    if window is not None:
        cached = torch.arange(first, past, device=positions.device)
        keys = torch.cat([cached, positions])[None, :]
        queries = positions[:, None]
        if window.kind == "sliding":
            mask &= keys > queries - window.size
        else:
            mask &= keys >= queries // window.size * window.size
    return first, None if bool(mask.all()) else mask


def stack_mask(mask: Tensor, groups: int, dtype: torch.dtype) -> Tensor:
    """The additive mask for the stacked queries of all heads that share a key head.

    Args:
        mask: ``[tokens, length]`` bool, True = visible.
        groups: query heads per key head.
        dtype: of the scores.

    Returns:
        ``[groups * tokens, length]``: 0 where visible, -inf elsewhere.
    """
    bias = torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, float("-inf"))
    return bias.repeat(groups, 1)
