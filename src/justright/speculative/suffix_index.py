"""The plain backend of suffix drafts: finds earlier occurrences of a text's suffixes, and what follows them.

For every suffix of the context that occurs in the indexed texts, the continuations are counted: the probability of a
draft token is the share of the suffix's occurrences that its path follows. The suffix whose draft has the largest sum
of probabilities wins. Texts are kept as arrays and searched when a draft is needed; there is no tree to maintain.

Source: SuffixDecoding, arXiv:2411.04975 (one index over each request's prompt and output, one over the outputs of
earlier requests; counts, scores, greedy trees). Differs from the compiled backend where continuations are equally
frequent: that one orders them by the history of its tree, this one takes the first in the text.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

END = -1
"""The separator token before, between and after the indexed texts."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of one draft.

    Attributes:
        max_tokens: the maximum number of nodes.
        factor: allow ``factor * match_len + offset`` nodes after a suffix of ``match_len`` tokens.
        offset: see ``factor``.
        min_token_prob: the minimum path probability of a node.
        tree: draft the most probable nodes as a tree; else follow the most frequent continuation as a chain.
    """

    max_tokens: int
    factor: float = 1.0
    offset: float = 0.0
    min_token_prob: float = 0.1
    tree: bool = False

    def nodes(self, match_len: int) -> int:
        """The maximum number of nodes after a suffix of ``match_len`` tokens."""
        return min(self.max_tokens, max(0, int(match_len * self.factor + self.offset + 1e-6)))


@dataclass(frozen=True, slots=True)
class SuffixMatch:
    """A draft: nodes in topological order, path probabilities, their sum, and the length of the matched suffix."""

    token_ids: tuple[int, ...] = ()
    parents: tuple[int, ...] = ()
    probs: tuple[float, ...] = ()
    score: float = 0.0
    match_len: int = 0


class SuffixIndex(Protocol):
    """A backend of the suffix drafter. The drafter validates request ids before its calls."""

    def start(self, request_id: Hashable, token_ids: NDArray[np.int32]) -> None:
        """Begin a request with its prompt, ``token_ids [length]``."""
        ...

    def extend(self, request_id: Hashable, token_ids: NDArray[np.int32]) -> None:
        """Append verified tokens of the request's output."""
        ...

    def speculate(self, request_id: Hashable, limits: Limits) -> SuffixMatch:
        """Draft what follows the request's text; an empty draft has ``match_len`` 0."""
        ...

    def stop(self, request_id: Hashable) -> None:
        """Forget the request's text; its output stays as long as it is remembered."""
        ...


class PythonIndex:
    """The plain backend.

    Args:
        max_depth: the maximum number of tokens of match and draft together.
        remember: number of outputs kept, also for the drafts of other requests; the oldest is dropped first.
    """

    def __init__(self, max_depth: int, remember: int = 0) -> None:
        self._max_depth = max_depth
        self._remember = remember
        self._texts: dict[Hashable, NDArray[np.int32]] = {}
        self._outputs: dict[Hashable, NDArray[np.int32]] = {}

    def start(self, request_id: Hashable, token_ids: NDArray[np.int32]) -> None:
        """Begin a request with its prompt, ``token_ids [length]``."""
        self._texts[request_id] = np.concatenate([[END], token_ids, [END]], dtype=np.int32)
        if self._remember:
            self._outputs.pop(request_id, None)
            if len(self._outputs) == self._remember:
                del self._outputs[next(iter(self._outputs))]
            self._outputs[request_id] = np.array([END], np.int32)

    def extend(self, request_id: Hashable, token_ids: NDArray[np.int32]) -> None:
        """Append verified tokens of the request's output."""
        for texts in (self._texts, self._outputs):
            if request_id in texts:
                texts[request_id] = np.concatenate([texts[request_id][:-1], token_ids, [END]], dtype=np.int32)

    def speculate(self, request_id: Hashable, limits: Limits) -> SuffixMatch:
        """Draft from the request's own text or from the remembered outputs, whichever scores higher."""
        own = self._texts[request_id]
        context = own[1:-1][-self._max_depth :].tolist()
        guess = best_draft(own, context, self._max_depth, limits)
        if not self._outputs:
            return guess
        others = np.concatenate([[END], *self._outputs.values()], dtype=np.int32)
        other = best_draft(others, context, self._max_depth, limits)
        return guess if guess.score >= other.score else other

    def stop(self, request_id: Hashable) -> None:
        """Forget the request's text; its output stays as long as it is remembered."""
        del self._texts[request_id]


def best_draft(
    texts: NDArray[np.int32], context: Sequence[int], max_depth: int, limits: Limits
) -> SuffixMatch:
    """The draft with the highest score among those after the suffixes of ``context``.

    The context as a whole is not looked up, only its proper suffixes.

    Args:
        texts: ``[length]``, the indexed texts, with `END` before, between and after them.
        context: the last tokens, at most ``max_depth``.
        max_depth: the maximum number of tokens of a suffix and its draft together.
        limits: of the draft.
    """
    matches: list[tuple[float, int, NDArray[np.intp]]] = []
    places = np.arange(1, len(texts))  # of the tokens after a suffix
    for length in range(1, len(context)):
        places = places[texts[places - length] == context[-length]]
        followed = np.count_nonzero(texts[places] != END)
        if not followed:
            break
        # No level of a draft scores more than the share of the occurrences that any token follows.
        levels = min(limits.nodes(length), max_depth - length)
        matches.append((levels * followed / len(places), length, places))
    best = SuffixMatch()
    tried: dict[int, int] = {}
    for bound, length, places in sorted(matches, key=lambda match: match[:2], reverse=True):
        if bound <= best.score:
            break
        # A suffix with the same occurrences as a longer one has at most the beginning of its draft.
        if tried.get(len(places), 0) < length:
            tried[len(places)] = length
            draft = _grow(texts, places, length, max_depth - length, limits)
            best = draft if draft.score > best.score else best
    return best


def _grow(
    texts: NDArray[np.int32], places: NDArray[np.intp], match_len: int, depth: int, limits: Limits
) -> SuffixMatch:
    """The most probable nodes after a suffix, which ``places`` follow, in at most ``depth`` levels."""
    token_ids: list[int] = []
    parents: list[int] = []
    probs: list[float] = []
    heap: list[tuple[float, int, int, int, int, NDArray[np.intp]]] = []
    offered = 0
    parent, level, places_after = -1, 0, places
    while True:
        for token, following in _continuations(texts, places_after) if level < depth else ():
            prob = len(following) / len(places)
            if prob < limits.min_token_prob:
                break
            heapq.heappush(heap, (-prob, offered, token, parent, level + 1, following))
            offered += 1
            if not limits.tree:
                break
        if not heap or len(token_ids) == limits.nodes(match_len):
            return SuffixMatch(tuple(token_ids), tuple(parents), tuple(probs), sum(probs), match_len)
        negative, _, token, parent, level, places_after = heapq.heappop(heap)
        token_ids.append(token)
        parents.append(parent)
        probs.append(-negative)
        parent = len(token_ids) - 1


def _continuations(
    texts: NDArray[np.int32], places: NDArray[np.intp]
) -> Iterator[tuple[int, NDArray[np.intp]]]:
    """The tokens at ``places``, most frequent first, each with the places after it."""
    tokens = texts[places]
    same = bool((tokens == tokens[0]).all())
    for token, _ in Counter(tokens[:1].tolist() if same else tokens.tolist()).most_common():
        if token != END:
            yield token, places[tokens == token] + 1
