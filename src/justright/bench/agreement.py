"""Whether two greedy outputs agree, and whether a difference is a tie or a mistake.

Contenders sum in different orders, so where the two best logits lie within floating-point noise of each other,
either token is right, and everything behind it may differ. So a differing output is checked as a whole: the model
runs once over prompt and output, and each token must be the best one there, or be behind it by noise only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from justright.engine.sampler import is_near_tie

Logits = Callable[[Sequence[int], Sequence[int]], Tensor]
"""``(prompt_ids, output_ids) -> [output, vocab]``: the model's logits before each output token."""

Verdict = Literal["identical", "tie", "mismatch"]


@dataclass(frozen=True, slots=True)
class Agreement:
    """How an output compares with the reference.

    Attributes:
        verdict: identical; different from a tie on, and greedy throughout; or wrong.
        position: the first differing output token; None if there is none.
        gap: of the two best logits there, as recomputed.
        wrong_at: the first token that is not the best one by more than noise; None if there is none.
        shortfall: how far behind the best logit it is.
    """

    verdict: Verdict
    position: int | None = None
    gap: float | None = None
    wrong_at: int | None = None
    shortfall: float | None = None

    def __str__(self) -> str:
        if self.verdict == "identical":
            return "identical"
        if self.verdict == "tie":
            return f"tie at token {self.position} (gap {self.gap:.1e})"
        if self.wrong_at is None:
            return f"MISMATCH at token {self.position}"
        return f"MISMATCH at token {self.wrong_at} (logit {self.shortfall:.1e} too low)"


def compare(
    prompt_ids: Sequence[int], reference: Sequence[int], output: Sequence[int], logits: Logits
) -> Agreement:
    """Compare ``output`` with ``reference``, running the model only if they differ.

    Args:
        prompt_ids: what both go on from.
        reference: an output that is taken as greedy.
        output: the one in question.
        logits: recomputes the model's logits.
    """
    if len(reference) != len(output):
        return Agreement("mismatch", min(len(reference), len(output)))
    differing = (i for i, (a, b) in enumerate(zip(reference, output, strict=True)) if a != b)
    position = next(differing, None)
    if position is None:
        return Agreement("identical")
    # Both outputs are checked: the reference may be the wrong one.
    gap = 0.0
    for tokens in (output, reference):
        rows = logits(prompt_ids, tokens)
        best = rows.topk(2, dim=-1).values.tolist()
        gap = best[position][0] - best[position][1]
        for index, token in enumerate(tokens):
            value = float(rows[index, token])
            if not is_near_tie(best[index][0], value, rows.dtype):
                return Agreement("mismatch", position, gap, index, best[index][0] - value)
    return Agreement("tie", position, gap)
