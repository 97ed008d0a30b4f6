"""Token recycling: drafts the tokens that the verifier found likely after the same token before.

No model and no training: a table holds, for every token, the verifier's most likely next tokens of its last run
(rejected draft tokens included: their logits are discarded otherwise). Drafts are trees walked through that table.

Source: arXiv:2408.08696. Differs: the tree grows by the measured share of correct draft tokens of each rank, instead
of one fixed shape; and the table starts empty.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from justright.errors import UsageError
from justright.speculative.base import EMPTY_DRAFT, Draft, Drafter, check_number
from justright.speculative.tree import TreeShape, grow

if TYPE_CHECKING:
    from torch import Tensor

_FIRST_SHARES = (0.4, 0.12, 0.06, 0.04, 0.03, 0.02, 0.015, 0.01)
_RATE = 0.02
_NOTHING = -1e9


@dataclass(frozen=True, slots=True)
class RecyclingOptions:
    """Options of token recycling, validated once.

    Attributes:
        candidates: tokens kept after each token.
        nodes: the maximum number of nodes of a tree.
        depth: levels of a tree.
        min_prob: do not follow less probable paths.
    """

    candidates: int = 8
    nodes: int = 40
    depth: int = 6
    min_prob: float = 0.01

    def __post_init__(self) -> None:
        for name, high in (("candidates", len(_FIRST_SHARES)), ("nodes", 1024), ("depth", 64)):
            check_number(self, "token recycling", name, 1, high, whole=True)
        check_number(self, "token recycling", "min_prob", 0, 1)


class RecyclingDrafter(Drafter):
    """The table serves all requests, and outlives them.

    Args:
        options: see `RecyclingOptions`.
    """

    name = "recycling"

    def __init__(self, options: RecyclingOptions | None = None) -> None:
        self.options = options or RecyclingOptions()
        self.candidates = self.options.candidates
        """How many of the verifier's most likely tokens `recycle` needs."""
        self._table: dict[int, list[int]] = {}
        self._shares = list(_FIRST_SHARES[: self.candidates])
        self._last: dict[Hashable, int] = {}
        self._news: dict[Hashable, dict[int, list[int]]] = {}

    def start(self, request_id: Hashable, prompt_ids: Sequence[int]) -> None:
        """Begin a request."""
        if request_id in self._last:
            raise UsageError(f"token recycling: request {request_id!r} was started twice; stop it first")
        self._last[request_id] = prompt_ids[-1]

    def observe(self, request_id: Hashable, token_ids: Sequence[int], hidden: Tensor | None = None) -> None:
        """Record verified tokens, and the ranks that they had in the table."""
        self._must_be_active(request_id)
        before = self._last[request_id]
        for token in token_ids:
            row = self._table.get(before)
            if row is not None:
                for rank, guess in enumerate(row):
                    self._shares[rank] += _RATE * ((guess == token) - self._shares[rank])
            before = token
        self._last[request_id] = before
        self._table.update(self._news.pop(request_id, {}))

    def recycle(
        self, request_id: Hashable, token_ids: Sequence[int], candidates: Sequence[Sequence[int]]
    ) -> None:
        """Record the ``candidates`` that the verifier found most likely after each of ``token_ids``, accepted or not.

        They join the table after `observe` has the outcome: a rank is judged by the table that made the draft.
        """
        self._must_be_active(request_id)
        self._news.setdefault(request_id, {}).update(zip(token_ids, map(list, candidates), strict=True))

    def propose(self, request_id: Hashable, max_nodes: int) -> Draft:
        """Walk the table from the last token; empty if that token is new."""
        self._must_be_active(request_id)
        options = self.options
        self._frontier = [self._last[request_id]]
        if max_nodes < 1 or self._frontier[0] not in self._table:
            return EMPTY_DRAFT
        self._logs = torch.tensor(self._shares).clamp(1e-6, 1.0).log()
        return grow(
            self._expand,
            TreeShape(min(options.nodes, max_nodes), options.depth, options.candidates, options.min_prob),
        )

    def stop(self, request_id: Hashable) -> None:
        """Forget the request, not the table."""
        self._must_be_active(request_id)
        del self._last[request_id]
        self._table.update(self._news.pop(request_id, {}))

    def _expand(self, rows: Tensor | None, tokens: Tensor | None) -> tuple[Tensor, Tensor]:
        """See `justright.speculative.tree.Expand`; tokens that are not in the table have no children."""
        frontier = self._frontier if tokens is None else tokens.tolist()
        nothing = [0] * self.candidates
        ids = torch.tensor([self._table.get(token, nothing) for token in frontier])
        known = torch.tensor([token in self._table for token in frontier])
        logs = self._logs.expand(len(frontier), -1).masked_fill(~known[:, None], _NOTHING)
        order = logs.argsort(dim=-1, descending=True, stable=True)
        return logs.gather(1, order), ids.gather(1, order)

    def _must_be_active(self, request_id: Hashable) -> None:
        if request_id not in self._last:
            raise UsageError(f"token recycling: request {request_id!r} is not active; start it first")
