"""Where suffix drafts come from: the interface of a backend, and the plain one, which needs no compiler.

Source: SuffixDecoding, arXiv:2411.04975: one structure over each request's prompt and output, one over the
outputs of earlier requests; the better-scoring of the two drafts is used.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from justright.speculative.suffix_log import Limits, Speculation, SuffixLog


class SuffixIndex(Protocol):
    """What a backend of the suffix drafter does; ids of requests are checked by the drafter, not here."""

    def start(self, request_id: Hashable, token_ids: NDArray[np.int32]) -> None:
        """Begin a request with its prompt, ``token_ids [length]``."""
        ...

    def extend(self, request_id: Hashable, token_ids: NDArray[np.int32]) -> None:
        """Append verified tokens of the request's output."""
        ...

    def speculate(self, request_id: Hashable, limits: Limits) -> Speculation:
        """Guess what follows the request's text; an empty guess has ``match_len`` 0."""
        ...

    def stop(self, request_id: Hashable) -> None:
        """Forget the request's text; its output stays as long as it is remembered."""
        ...


class PythonIndex:
    """The plain backend: one log per request, one for the remembered outputs.

    Args:
        max_depth: strings of up to this many tokens are counted.
        remember: outputs kept, also for the drafts of other requests; the oldest goes first. 0: none.
    """

    def __init__(self, max_depth: int, remember: int = 0) -> None:
        self._max_depth = max_depth
        self._remember = remember
        self._texts: dict[Hashable, SuffixLog] = {}
        self._outputs = SuffixLog(max_depth)
        self._slots: dict[Hashable, int] = {}
        self._next_slot = 0

    def start(self, request_id: Hashable, token_ids: NDArray[np.int32]) -> None:
        """Begin a request with its prompt, ``token_ids [length]``."""
        self._texts[request_id] = SuffixLog(self._max_depth)
        self._texts[request_id].append(0, token_ids)
        if not self._remember:
            return
        if request_id in self._slots:
            self._outputs.remove(self._slots.pop(request_id))
        elif len(self._slots) == self._remember:
            self._outputs.remove(self._slots.pop(next(iter(self._slots))))
        self._slots[request_id] = self._next_slot
        self._next_slot += 1

    def extend(self, request_id: Hashable, token_ids: NDArray[np.int32]) -> None:
        """Append verified tokens of the request's output."""
        self._texts[request_id].append(0, token_ids)
        if request_id in self._slots:
            self._outputs.append(self._slots[request_id], token_ids)

    def speculate(self, request_id: Hashable, limits: Limits) -> Speculation:
        """Guess from the request's own text or from the remembered outputs, whichever scores more."""
        text = self._texts[request_id]
        context = text.last(0, self._max_depth)
        own = text.speculate(context, limits)
        if not self._remember:
            return own
        other = self._outputs.speculate(context, limits)
        return own if own.score >= other.score else other

    def stop(self, request_id: Hashable) -> None:
        """Forget the request's text; its output stays as long as it is remembered."""
        del self._texts[request_id]
