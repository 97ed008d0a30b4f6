"""The measured cost of verifying n tokens, which decides whether speculative decoding can pay."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from justright.engine.model_runner import Verifier

SIZES = (1, 2, 4, 8, 16, 32, 64)


def verify_cost(
    verifier: Verifier, contexts: Sequence[int], sizes: Sequence[int] = SIZES, repeats: int = 7
) -> dict[str, Any]:
    """Median milliseconds of a step of each size after each number of cached tokens.

    Rounds are interleaved over the sizes, after one warm-up each.

    Args:
        verifier: its slot 0 is cleared.
        contexts: numbers of cached tokens.
        sizes: tokens of the step.
        repeats: timings per figure.

    Returns:
        ``{"sizes": [...], "contexts": [...], "ms": [[...], ...]}``, one row per context.
    """
    verifier.clear(0)
    rows = []
    kept = [context for context in contexts if context + max(sizes) <= verifier.max_tokens]
    for context in kept:
        times: dict[int, list[float]] = {size: [] for size in sizes}
        for size in sizes:
            verifier.time_step(size, context)
        for _ in range(repeats):
            for size in sizes:
                times[size].append(verifier.time_step(size, context))
        rows.append([1000 * statistics.median(times[size]) for size in sizes])
    return {"sizes": list(sizes), "contexts": kept, "ms": rows}
