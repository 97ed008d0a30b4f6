"""Drafts from the text so far without a tree: look up where its endings occurred before, and what followed.

A suffix tree of depth ``d`` counts every string of up to ``d`` tokens that occurs in a text. To draft, each
ending of the context that occurs earlier is followed down the tree; the probability of a token is the share
of the occurrences that it follows, the probability of a node the product along its path, and the ending whose
draft has the largest sum of probabilities wins.

This module builds no tree. It keeps the text and looks up the occurrences of the endings when a draft is
wanted: starting on a prompt is a copy, and a draft touches only the strings that it needs. Counts are exact
by construction. The order among equally frequent continuations depends on the history of the counts; it is
replayed from the occurrences where, and only where, it decides.

Source: SuffixDecoding, arXiv:2411.04975 (counts, scores, greedy trees). Single precision and limits as in
arctic-inference 0.3.0, so that both backends give the same drafts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from justright.speculative.suffix_ties import Heap, Item, Rows, SiblingOrder

Tokens = list[int] | NDArray[np.int32]
"""The tokens at some rows, in the same form as these."""

FEW = 48
"""Up to this many rows, list comprehensions beat numpy's fixed costs."""

ROUNDING = 2.0**-23
"""More than single precision can add to a sum by rounding: for each addition, relative to the sum."""

NOTHING = -1
"""The token of the log's row 0, which stands for "no such row" (before the start, after the end)."""


@dataclass(frozen=True, slots=True)
class Limits:
    """How far one draft may go.

    Attributes:
        max_tokens: nodes at most.
        factor: and at most ``factor * match_len + offset`` nodes, for the ending of ``match_len`` tokens.
        offset: see ``factor``.
        min_token_prob: path probability below which nothing is drafted.
        tree: draft the most probable nodes as a tree; else follow the most frequent continuation as a chain.
    """

    max_tokens: int
    factor: float = 1.0
    offset: float = 0.0
    min_token_prob: float = 0.1
    tree: bool = False

    def nodes(self, longest: int) -> list[int]:
        """Nodes allowed behind matches of 0, 1, ... ``longest`` tokens (single precision, then truncated)."""
        lengths = np.arange(longest + 1, dtype=np.float32)
        reach = lengths * np.float32(self.factor) + np.float32(self.offset)
        whole = (reach.astype(np.float64) + 1e-6).astype(np.int64)
        return [int(count) for count in whole.clip(0, self.max_tokens)]


@dataclass(frozen=True, slots=True)
class Speculation:
    """A guess: nodes in topological order, path probabilities, and how long the matched ending was."""

    token_ids: tuple[int, ...] = ()
    parents: tuple[int, ...] = ()
    probs: tuple[float, ...] = ()
    score: float = 0.0
    match_len: int = 0


class SuffixLog:
    """Growing sequences of tokens, in the order in which the tokens came, and drafts from them.

    Row ``r`` holds the ``r``-th token that was appended, to any of them, with the rows of its neighbours in
    its sequence; an occurrence of a string is the row of its last token. Row 0 means "none".
    """

    def __init__(self, max_depth: int) -> None:
        self.max_depth = max_depth
        self._size = 1
        self._tokens = np.full(1, NOTHING, np.int32)
        self._before = np.zeros(1, np.intp)
        self._after = np.zeros(1, np.intp)
        self._ends: dict[int, int] = {}
        # Orders that still depend on removed sequences: string -> (rows that it already counts, order).
        self._orders: dict[tuple[int, ...], tuple[int, SiblingOrder]] = {}

    def append(self, sequence: int, token_ids: NDArray[np.int32]) -> None:
        """Append ``token_ids [length]`` to a sequence, which begins with its first token."""
        if not len(token_ids):
            return
        start, stop = self._size, self._size + len(token_ids)
        if stop > len(self._tokens):
            room = max(2 * len(self._tokens), stop) - len(self._tokens)
            self._tokens = np.concatenate([self._tokens, np.zeros(room, np.int32)])
            self._before = np.concatenate([self._before, np.zeros(room, np.intp)])
            self._after = np.concatenate([self._after, np.zeros(room, np.intp)])
        end = self._ends.get(sequence, 0)
        self._tokens[start:stop] = token_ids
        self._before[start:stop] = np.arange(start - 1, stop - 1)
        self._after[start:stop] = np.arange(start + 1, stop + 1)
        self._before[start], self._after[stop - 1] = end, 0
        if end:
            self._after[end] = start
        self._ends[sequence], self._size = stop - 1, stop

    def last(self, sequence: int, length: int) -> list[int]:
        """The last tokens of a sequence, at most ``length``."""
        return self._string(self._ends.get(sequence, 0), length)[::-1]

    def speculate(self, context: Sequence[int], limits: Limits) -> Speculation:
        """The best draft among those that follow the endings of ``context``; the longest ending wins ties.

        Endings are shorter than the context. Most need not be drafted. They are tried by the most that they
        could score: each level of a draft, as each node, is worth at most the share of the occurrences that
        are followed by anything. And where a shorter ending has the very occurrences of a longer one that was
        tried before it, its draft could only be the beginning of that one's.
        """
        matches = self._matches(context)
        nodes = limits.nodes(len(matches))
        bounds = [
            (min(nodes[length], self.max_depth - length) * followed / len(ends), length)
            for length, (ends, followed) in enumerate(matches, start=1)
        ]
        rounding = nodes[-1] * self.max_depth * ROUNDING
        walk = self._tree if limits.tree else self._chain
        tried: dict[int, int] = {}  # number of occurrences -> longest ending tried that has them
        best = Speculation()
        for bound, match_len in sorted(bounds, reverse=True):
            if bound + rounding < best.score:
                break
            ends = matches[match_len - 1][0]
            # With removed sequences about, the same occurrences may have come to different orders.
            if tried.get(len(ends), 0) > match_len and not self._orders:
                continue
            tried[len(ends)] = max(tried.get(len(ends), 0), match_len)
            draft = walk(ends, match_len, nodes[match_len], _single(limits.min_token_prob))
            if draft.token_ids and (draft.score, match_len) > (best.score, best.match_len):
                best = draft
        return best

    def _matches(self, context: Sequence[int]) -> list[tuple[Rows, int]]:
        """Where the endings of 1, 2, ... tokens occur, and how many of these occurrences a token follows.

        It ends with the last ending that is followed by anything.
        """
        matches: list[tuple[Rows, int]] = []
        if len(context) < 2:
            return matches
        ends: Rows = _few(np.flatnonzero(self._tokens[: self._size] == context[-1]))
        starts = ends
        tokens, before, after = self._tokens.item, self._before.item, self._after.item
        for token in reversed(context[:-1]):
            if isinstance(ends, list) and isinstance(starts, list):
                followed = len(ends) - list(map(after, ends)).count(0)
                if not followed:
                    break
                matches.append((ends, followed))
                starts = list(map(before, starts))
                kept = [place for place, row in enumerate(starts) if tokens(row) == token]
                if len(kept) < len(ends):
                    ends, starts = [ends[place] for place in kept], [starts[place] for place in kept]
            else:
                matches.append((ends, int(np.count_nonzero(self._after[ends]))))
                rows = self._before[starts]
                same = self._tokens[rows] == token
                ends, starts = _few(np.asarray(ends)[same]), _few(rows[same])
        return matches

    def _chain(self, ends: Rows, depth: int, limit: int, min_prob: float) -> Speculation:
        """Follow the most frequent continuation of a string of ``depth`` tokens for up to ``limit``."""
        token_ids: list[int] = []
        probs: list[float] = []
        prob, score = 1.0, 0.0
        while len(token_ids) < min(limit, self.max_depth - depth):
            rows, tokens = self._next(ends)
            token = _only(tokens)
            if token is None:
                token, count = self._first(rows, tokens, depth + len(token_ids), prob, min_prob)
                prob = _single(prob * _single(count / len(ends)))
                if not count or prob < min_prob:
                    break
                rows = _where(rows, tokens, token)
            token_ids.append(token)
            probs.append(prob)
            score = _single(score + prob)
            ends = rows
        parents = tuple(range(-1, len(token_ids) - 1))
        return Speculation(tuple(token_ids), parents, tuple(probs), score, depth)

    def _first(self, rows: Rows, tokens: Tokens, depth: int, prob: float, min_prob: float) -> tuple[int, int]:
        """The continuation that comes first, and its count (0: there is none)."""
        counts = _counts(tokens)
        if not counts:
            return NOTHING, 0
        most = max(counts.values())
        first = [token for token, count in counts.items() if count == most]
        if len(first) == 1 or _single(prob * _single(most / len(rows))) < min_prob:
            return first[0], most
        return self._order(rows, depth).ranked()[0], most

    def _tree(self, ends: Rows, depth: int, limit: int, min_prob: float) -> Speculation:
        """The up to ``limit`` most probable nodes below a string of ``depth`` tokens."""
        token_ids: list[int] = []
        parents: list[int] = []
        probs: list[float] = []
        score = 0.0
        heap = Heap()
        heap.push(Item(1.0, ends, depth, NOTHING, -1))
        while heap and len(token_ids) < limit:
            item = heap.pop()
            token, after = item.token, item.ends
            if token == NOTHING:
                if item.depth == self.max_depth:
                    continue
                rows, tokens = self._next(item.ends)
                only = _only(tokens)
                if only is None:
                    for child in self._children(item, rows, tokens, min_prob):
                        heap.push(child)
                    continue
                token, after = only, rows
            token_ids.append(token)
            parents.append(item.parent)
            probs.append(item.prob)
            score = _single(score + item.prob)
            heap.push(Item(item.prob, after, item.depth + 1, NOTHING, len(token_ids) - 1))
        return Speculation(tuple(token_ids), tuple(parents), tuple(probs), score, depth)

    def _children(self, item: Item, rows: Rows, tokens: Tokens, min_prob: float) -> Iterable[Item]:
        """The continuations of a string as items of the heap, most frequent first."""
        probable = [
            (token, count, prob)
            for token, count in _counts(tokens).items()
            if (prob := _single(_single(item.prob * count) / len(rows))) >= min_prob
        ]
        if len({count for _, count, _ in probable}) < len(probable):
            rank = {token: place for place, token in enumerate(self._order(rows, item.depth).ranked())}
            probable.sort(key=lambda child: rank[child[0]])
        else:
            probable.sort(key=lambda child: -child[1])
        for token, _, prob in probable:
            yield Item(prob, _where(rows, tokens, token), item.depth, token, item.parent)

    def _next(self, ends: Rows) -> tuple[Rows, Tokens]:
        """The rows behind ``ends`` and their tokens; row 0 and NOTHING at the end of a sequence."""
        if isinstance(ends, list):
            rows = list(map(self._after.item, ends))
            return rows, list(map(self._tokens.item, rows))
        array = self._after[ends]
        return array, self._tokens[array]

    def _string(self, end: int, length: int) -> list[int]:
        """The ``length`` tokens up to row ``end``, the last one first."""
        tokens: list[int] = []
        while end and len(tokens) < length:
            tokens.append(self._tokens.item(end))
            end = self._before.item(end)
        return tokens

    def _order(self, rows: Rows, depth: int) -> SiblingOrder:
        """Replay the order of a string's continuations; ``rows`` are all its continuations."""
        seen, order = 0, SiblingOrder()
        present = sorted(int(row) for row in rows if row)
        if self._orders:
            string = tuple(self._string(self._before.item(present[0]), depth))
            if string in self._orders:
                seen, kept = self._orders[string]
                order = kept.copy()
        for row in present:
            if row >= seen:
                order.add(self._tokens.item(row))
        return order

    def remove(self, sequence: int) -> None:
        """Forget a sequence; the orders that its counts helped to make stay, as they stay in a tree."""
        if sequence not in self._ends:
            return
        gone = np.zeros(self._size, np.bool_)
        row = self._ends.pop(sequence)
        while row:
            gone[row] = True
            row = self._before.item(row)
        self._keep_orders(gone)
        number = np.cumsum(~gone) - 1
        number[gone] = 0
        left = np.flatnonzero(~gone)
        upto = np.concatenate([[0], np.cumsum(~gone)])
        self._orders = {string: (int(upto[seen]), order) for string, (seen, order) in self._orders.items()}
        self._tokens = self._tokens[left]
        self._before, self._after = number[self._before[left]], number[self._after[left]]
        self._ends = {other: int(number[end]) for other, end in self._ends.items()}
        self._size = len(left)

    def _keep_orders(self, gone: NDArray[np.bool_]) -> None:
        """Store the orders that remain behind the strings of the sequence whose rows are ``gone``."""
        firsts = np.unique(self._tokens[: self._size][gone]).tolist()
        stack: list[tuple[tuple[int, ...], Rows]] = [
            ((token,), _few(np.flatnonzero(self._tokens[: self._size] == token))) for token in firsts
        ]
        while stack:
            string, ends = stack.pop()
            if len(ends) < 2 or len(string) >= self.max_depth:
                continue
            rows, tokens = self._next(ends)
            mine = [row for row in map(int, rows) if row and gone[row]]
            others = {self._tokens.item(row) for row in map(int, rows) if row and not gone[row]}
            kept = self._order(rows, len(string)) if len(others) > 1 else None
            self._orders.pop(string, None)
            if kept is not None:
                for row in sorted(mine):
                    kept.drop(self._tokens.item(row))
                self._orders[string] = (self._size, kept)
            stack += [
                ((token, *string), _where(rows, tokens, token)) for token in set(map(self._tokens.item, mine))
            ]


def _single(value: float) -> float:
    """Round to single precision, in which arctic-inference computes."""
    return float(np.float32(value))


def _few(rows: NDArray[np.intp]) -> Rows:
    return rows.tolist() if len(rows) <= FEW else rows


def _only(tokens: Tokens) -> int | None:
    """The token behind every occurrence; None if they differ or there is an occurrence with none."""
    token = int(tokens[0])
    same = tokens.count(token) if isinstance(tokens, list) else int((tokens == token).sum())
    return token if same == len(tokens) and token != NOTHING else None


def _counts(tokens: Tokens) -> Counter[int]:
    if not isinstance(tokens, list):
        live = tokens[tokens != NOTHING]
        if len(live) and (live == live[0]).all():
            return Counter({int(live[0]): len(live)})
        return Counter(live.tolist())
    counts = Counter(tokens)
    del counts[NOTHING]
    return counts


def _where(rows: Rows, tokens: Tokens, token: int) -> Rows:
    if isinstance(rows, list):
        return [row for row, other in zip(rows, tokens, strict=True) if other == token]
    return _few(rows[np.asarray(tokens) == token])
