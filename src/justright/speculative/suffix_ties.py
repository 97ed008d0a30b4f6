"""What a suffix tree adds to counts: an order among equals, which depends on how the counts came about.

Source: the behaviour of arctic-inference 0.3.0 (its C++ suffix tree, built with libstdc++), described here in
our own words and tested equal. No draft is better for it; but both backends give the same one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Rows = list[int] | NDArray[np.intp]
"""Row numbers of a log: a plain list while there are few of them, an array when there are many."""


class SiblingOrder:
    """The continuations of one string, most frequent first, in the order that a suffix tree keeps them in.

    A token that gains an occurrence leaves the group of its count for the next higher group: to the front of
    it if it stood at the front of its own, else to the back. A new token goes to the back of the group of
    ones. A token that loses an occurrence goes to the front of the next lower group.
    """

    def __init__(self) -> None:
        self._counts: dict[int, int] = {}
        self._groups: dict[int, list[int]] = {}

    def add(self, token: int) -> None:
        """One more occurrence of ``token``."""
        count = self._counts.get(token, 0)
        first = count > 0 and self._leave(token, count)
        self._counts[token] = count + 1
        group = self._groups.setdefault(count + 1, [])
        group.insert(0 if first else len(group), token)

    def drop(self, token: int) -> None:
        """One occurrence of ``token`` less."""
        count = self._counts.pop(token)
        self._leave(token, count)
        if count > 1:
            self._counts[token] = count - 1
            self._groups.setdefault(count - 1, []).insert(0, token)

    def _leave(self, token: int, count: int) -> bool:
        group = self._groups[count]
        place = group.index(token)
        del group[place]
        if not group:
            del self._groups[count]
        return place == 0

    def ranked(self) -> list[int]:
        """All continuations, most frequent first."""
        return [token for count in sorted(self._groups, reverse=True) for token in self._groups[count]]

    def copy(self) -> SiblingOrder:
        """An independent copy."""
        twin = SiblingOrder()
        twin._counts = dict(self._counts)
        twin._groups = {count: list(group) for count, group in self._groups.items()}
        return twin


@dataclass(frozen=True, slots=True)
class Item:
    """A place in the tree: a string's occurrences, and the token to draft there (-1: see what follows)."""

    prob: float
    ends: Rows
    depth: int
    token: int
    parent: int


class Heap:
    """A binary max-heap on ``prob`` that pops equal items in the order of libstdc++'s ``priority_queue``.

    ``heapq`` would pop them in another order, and a draft would hold other nodes than arctic-inference's.
    """

    def __init__(self) -> None:
        self._items: list[Item] = []

    def __len__(self) -> int:
        return len(self._items)

    def push(self, item: Item) -> None:
        """Add an item."""
        self._items.append(item)
        self._rise(len(self._items) - 1, item)

    def pop(self) -> Item:
        """Take an item of the largest probability."""
        items = self._items
        top, item = items[0], items.pop()
        if not items:
            return top
        hole = 0
        while (right := 2 * hole + 2) < len(items):
            child = right - 1 if items[right].prob < items[right - 1].prob else right
            items[hole] = items[child]
            hole = child
        if right == len(items):
            items[hole] = items[right - 1]
            hole = right - 1
        self._rise(hole, item)
        return top

    def _rise(self, hole: int, item: Item) -> None:
        items = self._items
        while hole and items[(hole - 1) // 2].prob < item.prob:
            items[hole] = items[(hole - 1) // 2]
            hole = (hole - 1) // 2
        items[hole] = item
