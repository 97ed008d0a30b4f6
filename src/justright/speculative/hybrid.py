"""Hybrid drafts: a suffix draft where its score is high, else the LSTM's.

Source: HOWL, arXiv:2510.07535, section 3: a suffix draft without [SPEC] if its score exceeds a threshold, else a tree
of the LSTM. Differs, unless an option fixes the threshold: the threshold is the LSTM's own recent success in this
request, the outcome of earlier suffix drafts corrects the score, and a suffix draft below the threshold is offered
as an alternative to the LSTM's, for the engine to take where its few rows pay more.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from justright.errors import UsageError
from justright.speculative.base import Draft
from justright.speculative.lstm_drafter import LstmDrafter, LstmOptions
from justright.speculative.suffix import SuffixDrafter, SuffixOptions

_FIRST = 1.0
_MEMORY = 0.8
_MOST_TRUST = 2.0


@dataclass(frozen=True, slots=True)
class HybridOptions(LstmOptions):
    """Options of the hybrid drafter: the LSTM's, and these.

    Attributes:
        threshold: expected accepted tokens above which a suffix draft is taken; None: the recent mean of accepted
            tokens of the LSTM's drafts.
        max_depth: of suffix drafts, as in `SuffixOptions`.
        min_token_prob: of suffix drafts.
        backend: of suffix drafts.
        remember: of suffix drafts.
    """

    threshold: float | None = None
    max_depth: int = 64
    min_token_prob: float = 0.1
    backend: str = "auto"
    remember: int = 0

    def __post_init__(self) -> None:
        LstmOptions.__post_init__(self)
        if self.threshold is not None and not (
            isinstance(self.threshold, int | float) and 0 <= self.threshold < float("inf")
        ):
            raise UsageError(f"hybrid drafts: threshold is {self.threshold!r}; allowed: 0 or more")
        self.suffix()

    def suffix(self) -> SuffixOptions:
        """The options of the suffix drafter."""
        return SuffixOptions(
            backend=self.backend,  # type: ignore[arg-type]  # checked there
            max_depth=self.max_depth,
            min_token_prob=self.min_token_prob,
            remember=self.remember,
        )


class HybridDrafter(LstmDrafter):
    """The LSTM drafter, with suffix drafts where their score is higher.

    Args:
        options: see `HybridOptions`.
    """

    name = "hybrid"
    options_type = HybridOptions

    def __init__(self, options: HybridOptions | None = None) -> None:
        super().__init__(options)
        self.suffix = SuffixDrafter(self.options.suffix())
        self.recent: dict[Hashable, float] = {}
        """Per request: recent mean of accepted tokens of the LSTM's drafts."""
        self.trust: dict[Hashable, float] = {}
        """Per request: ratio of accepted tokens of suffix drafts to their scores; text seen once before has a
        score of half the tokens that it gains."""

    def start(self, request_id: Hashable, prompt_ids: Sequence[int]) -> None:
        """Begin a request whose prompt is ``prompt_ids``."""
        super().start(request_id, prompt_ids)
        self.suffix.start(request_id, prompt_ids)
        self.recent[request_id] = _FIRST
        self.trust[request_id] = 1.0

    def observe(self, request_id: Hashable, token_ids: Sequence[int], hidden: Tensor | None = None) -> None:
        """Record verified tokens."""
        super().observe(request_id, token_ids, hidden)
        self.suffix.observe(request_id, token_ids)

    def verified(self, request_id: Hashable, draft: Draft, accepted: int) -> None:
        """Record that ``accepted`` tokens of ``draft``, a verified draft of this drafter, were accepted."""
        if draft.source == self.kind:
            self.recent[request_id] = _MEMORY * self.recent[request_id] + (1 - _MEMORY) * accepted
        elif draft.score > 0:
            ratio = min(accepted / draft.score, _MOST_TRUST)
            self.trust[request_id] = _MEMORY * self.trust[request_id] + (1 - _MEMORY) * ratio

    def propose(self, request_id: Hashable, max_nodes: int) -> Draft:
        """A suffix draft if its score exceeds the threshold, else an LSTM draft; the other one is the alternative."""
        guess = self.propose_cheaply(request_id, max_nodes)
        fixed = self.options.threshold
        if fixed is None:
            better = guess.score * self.trust[request_id] > self.recent[request_id]
        else:
            better = guess.score > fixed
        if len(guess) and better:
            return guess
        draft = super().propose(request_id, max_nodes)
        if not len(draft):
            return guess
        both = len(guess) and fixed is None and draft.proposal is None
        return replace(draft, instead=guess) if both else draft

    def propose_cheaply(self, request_id: Hashable, max_nodes: int) -> Draft:
        """A suffix draft, whose cost is negligible."""
        return replace(self.suffix.propose(request_id, max_nodes), source=self.suffix.name)

    def stop(self, request_id: Hashable) -> None:
        """Forget the request."""
        super().stop(request_id)
        self.suffix.stop(request_id)
        self.recent.pop(request_id, None)
        self.trust.pop(request_id, None)
