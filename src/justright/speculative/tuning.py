"""The best tree size on this machine: accepted tokens of each shape on held-out text, against its cost.

The gain of a shape belongs to the drafter (measured once, in training, and stored in its config); its cost belongs to
the machine (a verification's by `justright.engine.step_cost`, a draft step's by a few trials).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from justright.speculative.tree import TreeShape

WIDTHS = (1, 2, 4, 10)
DEPTH = 8
NODES = 60
_LEVELS, _TRIALS = 3, 5


@dataclass(frozen=True, slots=True)
class TreeTable:
    """Accepted tokens by shape.

    Attributes:
        accepted: per width (``WIDTHS``): ``[depth][nodes]``, the mean number of accepted tokens of trees cut to that
            many levels and nodes.
    """

    accepted: dict[int, np.ndarray]

    def among(self, *, max_nodes: int, nodes: int | None, depth: int | None, top_k: int | None) -> TreeTable:
        """The part of the table within the limits; of widths, the given one or the nearest that was measured."""
        widths = list(self.accepted)
        if top_k is not None:
            widths = [min(widths, key=lambda width: abs(width - top_k))]
        most = max(1, min(max_nodes, NODES))
        levels, columns = _only(depth, DEPTH), _only(nodes, most)
        masked = {}
        for width in widths:
            table = np.full((DEPTH, NODES), -1.0)
            table[levels, columns] = self.accepted[width][levels, columns]
            masked[width] = table
        return TreeTable(masked)

    @classmethod
    def of(cls, hits: Mapping[int, Sequence[Sequence[tuple[int, int]]]]) -> TreeTable:
        """From ``{width: [for each prefix, (level, index) of every node on the right path]}``; both count from 0."""
        tables = {}
        for width, trees in hits.items():
            table = np.zeros((DEPTH, NODES))
            for tree in trees:
                for level, index in tree:
                    table[level:, index:] += 1
            tables[width] = table / max(len(trees), 1)
        return cls(tables)

    def to_dict(self) -> dict[str, list[list[float]]]:
        """For JSON."""
        return {str(width): np.round(table, 4).tolist() for width, table in self.accepted.items()}

    @classmethod
    def from_dict(cls, data: Any) -> TreeTable | None:
        """What `to_dict` returned; None for anything else."""
        try:
            tables = {int(width): np.asarray(table, dtype=np.float64) for width, table in data.items()}
        except (AttributeError, TypeError, ValueError):
            return None
        if not tables or any(
            table.shape != (DEPTH, NODES) or not np.isfinite(table).all() for table in tables.values()
        ):
            return None
        return cls(tables)


def _only(given: int | None, most: int) -> slice:
    """Index of ``given`` alone, or of 1 to ``most``."""
    return slice(0, most) if given is None else slice(min(given, most) - 1, min(given, most))


def measure_drafting(grow: Callable[[TreeShape], object]) -> Callable[[int, int], float]:
    """Time ``grow``; return the seconds of drafting by ``(width, depth)``: measured at the narrowest and the widest."""

    def level_s(width: int) -> float:
        begin = time.perf_counter()
        grow(TreeShape(NODES, _LEVELS, width))
        return (time.perf_counter() - begin) / _LEVELS

    one, many = (min(level_s(width) for _ in range(_TRIALS)) for width in (1, WIDTHS[-1]))
    return lambda width, depth: depth * (one + max(many - one, 0.0) * (width - 1) / (WIDTHS[-1] - 1))


def best_shape(
    table: TreeTable,
    verify_s: Callable[[int], float],
    draft_s: Callable[[int, int], float],
    *,
    spec: bool,
    min_prob: float,
) -> tuple[TreeShape, float]:
    """The shape with the highest throughput.

    Args:
        table: of the drafter.
        verify_s: seconds of a verification, by its rows.
        draft_s: seconds to draft, by ``(width, depth)``.
        spec: a [SPEC] follows every node: twice the rows.
        min_prob: of the shape.

    Returns:
        The shape, and its throughput relative to plain decoding.
    """
    plain = verify_s(1)
    best, found = 0.0, TreeShape(1, 1, 1, min_prob)
    for width, accepted in table.accepted.items():
        for depth in range(1, DEPTH + 1):
            drafting = draft_s(width, depth)
            for nodes in range(1, NODES + 1):
                rows = (nodes + 1) * 2 if spec else nodes + 1
                rate = (1 + accepted[depth - 1, nodes - 1]) / (drafting + verify_s(rows)) * plain
                if rate > best * 1.001:  # of equal rates, the smallest shape
                    best, found = float(rate), TreeShape(nodes, depth, width, min_prob)
    return found, best
