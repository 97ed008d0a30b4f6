"""How much to speculate: as much as pays, by measured cost and by the record of this request's drafts.

A drafter's own estimate is uncertain. This module calibrates it by the outcome of earlier drafts of the same
request, verified or not: a skipped draft is compared with the tokens that plain decoding then emits. So a request
that has stopped speculating notices at no cost when its drafts improve again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median_low

import numpy as np

from justright.engine.step_cost import StepCost
from justright.speculative.base import Draft

_MARGIN = 1.05
_MEMORY = 0.8
_PRIOR = 0.7
_BINS = 8
_MAX_SHADOWS = 4
_TIMES = 7
_FREE_S = 0.0005
_PATIENCE = 3
_LONGEST_REST = 16
"""A drafter that takes less than `_FREE_S` per proposal drafts at every step; a slower one pauses, after `_PATIENCE`
skipped proposals, for 1, 2, 4, ... up to `_LONGEST_REST` steps."""


@dataclass(slots=True)
class DraftRecord:
    """One request's record of its drafts.

    ``reliability[source, b]`` is the recent ratio of accepted to expected tokens for drafts of that source proposed
    with 2**b to 2**(b+1)-1 nodes, an exponential average that starts at ``_PRIOR``. ``draft_s[source]`` is the median
    time of the last seven proposals, so that an interrupted one has no effect. Only its methods mutate it.

    A drafter whose proposals are skipped again and again pauses for a while, because proposing takes time too.
    """

    reliability: dict[tuple[str, int], float] = field(default_factory=dict)
    draft_s: dict[str, float] = field(default_factory=dict)
    _times: dict[str, deque[float]] = field(default_factory=dict)
    _shadows: list[_Shadow] = field(default_factory=list)
    _aside: int = 0
    _lost: str = ""
    _rest: int = 0

    def expected(self, draft: Draft) -> np.ndarray:
        """Expected accepted tokens if the first 1, 2, ... nodes of ``draft`` are verified: ``[nodes]``."""
        probs = np.asarray(draft.probs, dtype=np.float64) * self.reliability.get(_kind(draft), _PRIOR)
        return np.cumsum(np.minimum(probs, 1.0))

    def verified(self, draft: Draft, used: int, accepted: int) -> None:
        """Record that ``used`` leading nodes of the proposed ``draft`` were verified and ``accepted`` accepted."""
        if draft.source == self._lost:
            self._aside = 0
        self._learn(_kind(draft), accepted, draft.first(used).score)

    def set_aside(self, draft: Draft) -> None:
        """Record that ``draft`` is not verified, to check later whether it would have been right."""
        if self.draft_s.get(draft.source, 0.0) > _FREE_S:
            self._lost = draft.source
            self._aside += 1
            if self._aside >= _PATIENCE:
                self._rest = min(2 ** (self._aside - _PATIENCE), _LONGEST_REST)
        if len(draft) and len(self._shadows) < _MAX_SHADOWS:
            self._shadows.append(_Shadow(draft))

    def rests(self) -> bool:
        """Whether the drafter pauses in this step (or makes only proposals that cost nothing)."""
        if self._rest:
            self._rest -= 1
            return True
        return False

    def drafted(self, draft: Draft, seconds: float) -> None:
        """Record that proposing ``draft`` took ``seconds``."""
        times = self._times.setdefault(draft.source, deque(maxlen=_TIMES))
        times.append(seconds)
        self.draft_s[draft.source] = median_low(times)

    def emitted(self, token_ids: Sequence[int]) -> None:
        """Compare emitted tokens with the drafts skipped before."""
        going = []
        for shadow in self._shadows:
            if shadow.follow(token_ids):
                going.append(shadow)
            else:
                self._learn(_kind(shadow.draft), shadow.accepted, shadow.draft.score)
        self._shadows = going

    def _learn(self, kind: tuple[str, int], accepted: float, expected: float) -> None:
        # A drafter may underestimate: a suffix seen once before and once now has probability 1/2 per token.
        ratio = min(accepted / max(expected, 1e-6), 2.0)
        self.reliability[kind] = _MEMORY * self.reliability.get(kind, _PRIOR) + (1 - _MEMORY) * ratio


@dataclass(slots=True)
class _Shadow:
    """A draft that was not verified, compared with the tokens emitted instead."""

    draft: Draft
    node: int = -1
    accepted: int = 0

    def follow(self, token_ids: Sequence[int]) -> bool:
        """Advance along the draft; False once it has ended or diverged."""
        for token in token_ids:
            pairs = enumerate(zip(self.draft.token_ids, self.draft.parents, strict=True))
            child = next((i for i, (t, parent) in pairs if parent == self.node and t == token), None)
            if child is None:
                return False
            self.node = child
            self.accepted += 1
        return self.node in self.draft.parents


def preferred(draft: Draft, record: DraftRecord, past: int, cost: StepCost, batch: int = 1) -> Draft:
    """Of a draft and its alternative, the one with more expected tokens per second.

    Each is cut at its best size, in a step of ``batch`` sequences whose others decode without a draft.
    """

    def rate(one: Draft) -> float:
        rows = batch + np.cumsum(_rows(one))
        seconds = cost.curve(past, int(rows[-1]))[rows - 1] + record.draft_s.get(one.source, 0.0)
        return float(np.max((batch + record.expected(one)) / seconds))

    if draft.instead is None or not len(draft.instead):
        return draft
    return max((draft, draft.instead), key=rate) if len(draft) else draft.instead


def choose(
    drafts: Sequence[Draft], records: Sequence[DraftRecord], pasts: Sequence[int], cost: StepCost
) -> list[Draft]:
    """Cut the drafts of one step to maximise expected tokens per second; to nothing if none pays.

    Nodes of all sequences compete by calibrated probability for a place in the step. Cutting a draft keeps its
    first nodes. Speculation must beat the plain step by 5% to be worth its risk.

    Sampled drafts are verified in full: dropping a node because of what was drawn would change the distribution
    of the output. Their drafter must limit itself before it draws.

    Args:
        drafts: one per sequence, possibly empty.
        records: the sequences' records.
        pasts: cached tokens of each sequence.
        cost: the measured cost of a step.

    Returns:
        The drafts to verify, cut.
    """
    if not any(len(draft) and draft.proposal is None for draft in drafts):
        return list(drafts)
    gains = [record.expected(draft) for record, draft in zip(records, drafts, strict=True)]
    batch = len(drafts)
    fixed = [index for index, draft in enumerate(drafts) if draft.proposal is not None]
    free = [index for index, draft in enumerate(drafts) if draft.proposal is None]
    values = [np.diff(gains[index], prepend=0.0) for index in free]
    owners = np.repeat(free, [len(drafts[index]) for index in free]).astype(np.int64)
    # A node is never taken before an earlier node of its draft: stable order over running minima.
    ranked = np.concatenate([np.minimum.accumulate(value) for value in values])
    order = np.argsort(-ranked, kind="stable")
    # Rows of the step when the first 0, 1, ... of them are taken; [SPEC] follows the root and every node.
    least = sum(draft.rows() if draft.proposal is not None else 1 for draft in drafts)
    more = np.concatenate([_rows(drafts[index]) for index in free])[order]
    rows = least + np.concatenate([[0], np.cumsum(more)])
    certain = batch + sum(float(gains[index][-1]) for index in fixed if len(drafts[index]))
    past = int(sum(pasts) / batch)
    seconds = cost.curve(past, int(rows[-1]))[rows - 1]
    # Without drafts there would be no drafting time in the long run either.
    seconds[1:] += sum(record.draft_s.get(d.source, 0.0) for record, d in zip(records, drafts, strict=True))
    rates = (certain + np.concatenate([[0.0], np.cumsum(np.concatenate(values)[order])])) / seconds
    best = int(np.argmax(rates))
    if rates[best] < _MARGIN * rates[0]:
        best = 0
    counts = np.bincount(owners[order[:best]], minlength=batch)
    counts[fixed] = [len(drafts[index]) for index in fixed]
    return [draft.first(int(count)) for draft, count in zip(drafts, counts, strict=True)]


def _rows(draft: Draft) -> np.ndarray:
    """Rows that each node of a draft adds to a step, ``[nodes]``."""
    found = np.full(len(draft), 2 if draft.spec else 1)
    if draft.spec:
        found[:1] += 1
    return found


def _kind(draft: Draft) -> tuple[str, int]:
    return draft.source, min(max(len(draft), 1).bit_length() - 1, _BINS - 1)
