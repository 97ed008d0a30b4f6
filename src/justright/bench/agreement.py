"""Compare two greedy outputs: identical, different after a tie, or wrong.

Contenders sum in different orders. If the two best logits differ by no more than floating-point noise, either token is
right, and everything after it may differ. So a differing output is checked as a whole: the model runs once over prompt
and output, and every token must have the best logit, within noise.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from justright.engine.sampler import is_near_tie

Logits = Callable[[Sequence[int], Sequence[int]], Tensor]
"""``(prompt_ids, output_ids) -> [output, vocab]``: the logits that predict each output token."""

Verdict = Literal["identical", "tie", "mismatch"]


@dataclass(frozen=True, slots=True)
class Agreement:
    """How an output compares with the reference.

    Attributes:
        verdict: identical; tie: different after a tie, but greedy throughout; mismatch: wrong.
        position: index of the first different token; None if there is none.
        gap: difference of the two best logits at that token, recomputed.
        wrong_at: index of the first token whose logit is lower than the best by more than noise; None if there is none.
        shortfall: difference of that token's logit from the best.
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
    """Compare ``output`` with ``reference``; the model runs only if they differ.

    Args:
        prompt_ids: prompt of both.
        reference: an output assumed to be greedy.
        output: the output to check.
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
