"""Suffix drafts: predict that the text continues as it did after earlier occurrences of its last tokens.

No model, no training, no state on the device. It makes copying cheap: quoting a document, editing code, repeating
a form. Where nothing repeats it drafts nothing, at negligible cost.

Source: SuffixDecoding, arXiv:2411.04975; its score is the switch of HOWL's hybrid decoding, arXiv:2510.07535,
which uses chain drafts (the default here).
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from justright.errors import MissingExtraError, UsageError, install_command
from justright.speculative.base import EMPTY_DRAFT, Draft, Drafter, check_number
from justright.speculative.suffix_index import Limits, PythonIndex, SuffixIndex, SuffixMatch

if TYPE_CHECKING:
    from torch import Tensor

BACKENDS = ("auto", "arctic", "python")

MAX_DEPTH = 1024
MAX_REACH = 10_000.0
"""Bounds of options; values beyond them make drafts slower, not better."""


@dataclass(frozen=True, slots=True)
class SuffixOptions:
    """Options of the suffix drafter, validated once.

    Attributes:
        backend: ``arctic`` (arctic-inference's tree in C++), ``python`` (no extra needed), or ``auto``: the
            first if it is installed. They differ only in the order of equally frequent continuations.
        tree: draft a tree of the most probable continuations; else the most probable chain.
        max_depth: tokens of the longest string looked up, match and draft together; 2 to 1,024.
        max_spec_factor: draft at most ``max_spec_factor * match_len + max_spec_offset`` tokens; 0 to 10,000.
        max_spec_offset: see ``max_spec_factor``; -10,000 to 10,000.
        min_token_prob: draft no token whose estimated path probability is lower; 0 to 1.
        remember: number of latest outputs to draft from, those of active requests included (so that 2 is the least
            that reaches another request's). 0: none, and a request's drafts do not depend on other requests.
    """

    backend: Literal["auto", "arctic", "python"] = "auto"
    tree: bool = False
    max_depth: int = 64
    max_spec_factor: float = 1.0
    max_spec_offset: float = 0.0
    min_token_prob: float = 0.1
    remember: int = 0

    def __post_init__(self) -> None:
        if self.backend not in BACKENDS:
            raise UsageError(f"suffix drafts: backend is {self.backend!r}; allowed: {', '.join(BACKENDS)}")
        if not isinstance(self.tree, bool):
            raise UsageError(f"suffix drafts: tree is {self.tree!r}; allowed: true, false")
        for name, low, high in (("max_depth", 2, MAX_DEPTH), ("remember", 0, 2**31 - 1)):
            check_number(self, "suffix drafts", name, low, high, whole=True)
        check_number(self, "suffix drafts", "max_spec_factor", 0, MAX_REACH)
        check_number(self, "suffix drafts", "max_spec_offset", -MAX_REACH, MAX_REACH)
        check_number(self, "suffix drafts", "min_token_prob", 0, 1)


class SuffixDrafter(Drafter):
    """Drafts from the request's own prompt and output, and optionally from earlier outputs.

    Drafts are deterministic (``proposal`` is None); ``probs`` are the share of earlier occurrences that continued in
    the same way.

    Args:
        options: see ``SuffixOptions``.

    Raises:
        MissingExtraError: ``backend="arctic"`` without arctic-inference.
    """

    name = "suffix"

    def __init__(self, options: SuffixOptions | None = None) -> None:
        self.options = options or SuffixOptions()
        self.backend, self._index = _open_index(self.options)
        self._active: set[Hashable] = set()

    def start(self, request_id: Hashable, prompt_ids: Sequence[int]) -> None:
        """Begin a request whose prompt is ``prompt_ids``.

        Raises:
            UsageError: the request is already active, or a token id is out of range.
        """
        if request_id in self._active:
            raise UsageError(f"suffix drafts: request {request_id!r} was started twice; stop it first")
        self._index.start(request_id, _as_ids(prompt_ids))
        self._active.add(request_id)

    def observe(self, request_id: Hashable, token_ids: Sequence[int], hidden: Tensor | None = None) -> None:
        """Record newly verified tokens; ignores ``hidden``.

        Raises:
            UsageError: the request is not active, or a token id is out of range.
        """
        self._must_be_active(request_id)
        self._index.extend(request_id, _as_ids(token_ids))

    def propose(self, request_id: Hashable, max_nodes: int) -> Draft:
        """Draft the continuation of all observed tokens; empty if nothing matches.

        Raises:
            UsageError: the request is not active.
        """
        self._must_be_active(request_id)
        if max_nodes < 1:
            return EMPTY_DRAFT
        options = self.options
        limits = Limits(
            # Only trees can be longer than this, and a tree this large is useless.
            max_tokens=min(max_nodes, 2**20),
            factor=options.max_spec_factor,
            offset=options.max_spec_offset,
            min_token_prob=options.min_token_prob,
            tree=options.tree,
        )
        guess = self._index.speculate(request_id, limits)
        if not guess.token_ids:
            return EMPTY_DRAFT
        return Draft(guess.token_ids, guess.parents, guess.probs)

    def stop(self, request_id: Hashable) -> None:
        """Forget the request; its output stays as long as ``remember`` allows.

        Raises:
            UsageError: the request is not active.
        """
        self._must_be_active(request_id)
        self._active.remove(request_id)
        self._index.stop(request_id)

    def _must_be_active(self, request_id: Hashable) -> None:
        if request_id not in self._active:
            raise UsageError(f"suffix drafts: request {request_id!r} is not active; start it first")


class ArcticIndex:
    """The compiled backend: arctic-inference's suffix tree (Apache-2.0).

    Args:
        max_depth: strings of up to this many tokens are counted.
        remember: number of outputs kept, also for the drafts of other requests; the oldest is dropped first. 0: none.

    Raises:
        ImportError: arctic-inference is not installed.
    """

    def __init__(self, max_depth: int, remember: int = 0) -> None:
        from arctic_inference.suffix_decoding import SuffixDecodingCache

        self._max_depth = max_depth
        self._cache: Any = SuffixDecodingCache(max_tree_depth=max_depth, max_cached_requests=remember)
        self._contexts: dict[Hashable, NDArray[np.int32]] = {}

    def start(self, request_id: Hashable, token_ids: NDArray[np.int32]) -> None:
        """Begin a request with its prompt, ``token_ids [length]``."""
        self._cache.start_request(request_id, token_ids)
        self._contexts[request_id] = token_ids[-self._max_depth :].copy()

    def extend(self, request_id: Hashable, token_ids: NDArray[np.int32]) -> None:
        """Append verified tokens of the request's output."""
        self._cache.add_active_response(request_id, token_ids)
        context = np.concatenate([self._contexts[request_id], token_ids])
        self._contexts[request_id] = context[-self._max_depth :]

    def speculate(self, request_id: Hashable, limits: Limits) -> SuffixMatch:
        """Draft from the request's own text or from the remembered outputs, whichever scores higher."""
        guess = self._cache.speculate(
            request_id,
            self._contexts[request_id],
            max_spec_tokens=limits.max_tokens,
            max_spec_factor=limits.factor,
            max_spec_offset=limits.offset,
            min_token_prob=limits.min_token_prob,
            use_tree_spec=limits.tree,
        )
        if not guess.token_ids:
            return SuffixMatch()
        return SuffixMatch(
            tuple(guess.token_ids), tuple(guess.parents), tuple(guess.probs), guess.score, guess.match_len
        )

    def stop(self, request_id: Hashable) -> None:
        """Forget the request's text; its output stays as long as it is remembered."""
        self._cache.stop_request(request_id)
        del self._contexts[request_id]


def _open_index(options: SuffixOptions) -> tuple[str, SuffixIndex]:
    if options.backend != "python":
        try:
            return "arctic", ArcticIndex(options.max_depth, options.remember)
        except ImportError as error:
            if options.backend == "arctic":
                raise MissingExtraError(
                    "suffix drafts: backend 'arctic' needs arctic-inference, which cannot be imported"
                    f" ({error}); {install_command('suffix')} (built from source, it needs a C++ compiler). Or take"
                    " backend 'python': it drafts as well, more slowly."
                ) from error
    return "python", PythonIndex(options.max_depth, options.remember)


def _as_ids(token_ids: Sequence[int]) -> NDArray[np.int32]:
    ids = np.asarray(token_ids)
    if ids.size and (ids.ndim != 1 or ids.dtype.kind not in "iu" or ids.min() < 0 or ids.max() > 2**31 - 1):
        raise UsageError(
            "suffix drafts: invalid token ids; allowed: a flat sequence of integers from 0 to 2147483647"
        )
    return np.ascontiguousarray(ids, dtype=np.int32)
