"""Chooses the mode of requests that leave it open: by a score of the prompt (`auto`), or by the answer (`escalate`).

A route starts with the fast prompt. If the score says easy, decoding continues at once, at no cost. If not, the
slow prompt runs instead; a prompt is short compared with the reasoning that it saves or starts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Protocol

from justright.reasoning.budget import ModePlan

if TYPE_CHECKING:
    from torch import Tensor

    from justright.reasoning.scorers import Scorer


BY_OUTPUT = "output"
"""What decides the mode if a model reasons that its chat template had asked not to."""


@dataclass(frozen=True, slots=True)
class RoutingDecision:
    """Why a request ran in its mode; part of its statistics.

    Attributes:
        mode: "slow" or "fast".
        by: "effort", "budget", the scorer's name, or `BY_OUTPUT`.
        score: the score that was compared; None if there was none.
        threshold: the threshold it was compared with.
        reason: in words.
    """

    mode: str
    by: str
    score: float | None
    threshold: float | None
    reason: str

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Turn:
    """One way to run a request.

    Attributes:
        prompt_ids: the prompt, by the mode's own template.
        plan: of the mode.
        opened: whether the template has opened the reasoning in the prompt.
        stop_token_ids: end tokens of the mode; None: unchanged.
    """

    prompt_ids: Sequence[int]
    plan: ModePlan
    opened: bool = False
    stop_token_ids: frozenset[int] | None = None


class Route(Protocol):
    """The decode loop's interface to a request whose mode is open."""

    holds_output: bool
    """Whether no output may be shown before the answer is complete."""

    def after_prefill(self, hidden: Tensor) -> tuple[RoutingDecision, Turn | None]:
        """The decision, and the turn that replaces the current one, if any."""
        ...

    def after_answer(self, finish_reason: str, confidence: float) -> tuple[RoutingDecision, Turn | None]:
        """As `after_prefill`, at the end of the answer; ``confidence`` is the least probability of a chosen token."""
        ...


@dataclass(slots=True)
class Auto:
    """Scores the prompt, then chooses a mode.

    Attributes:
        scorer: scores the prompt.
        prompt: as text.
        slow: the turn for hard prompts.
        threshold: instead of the scorer's own.
    """

    scorer: Scorer
    prompt: str
    slow: Turn
    threshold: float | None = None
    holds_output: bool = False

    def after_prefill(self, hidden: Tensor) -> tuple[RoutingDecision, Turn | None]:
        """Slow if the score is above the threshold."""
        score = float(self.scorer.score(self.prompt, hidden))
        threshold = self.scorer.threshold if self.threshold is None else self.threshold
        hard = score > threshold
        reason = f"{self.scorer.name} score {score:.3f}, {'above' if hard else 'at most'} {threshold:.3f}"
        return RoutingDecision("slow" if hard else "fast", self.scorer.name, score, threshold, reason), (
            self.slow if hard else None
        )

    def after_answer(self, finish_reason: str, confidence: float) -> tuple[RoutingDecision, Turn | None]:
        """Never called: the mode is already decided."""
        raise AssertionError("auto decides before the answer")


@dataclass(slots=True)
class Escalate:
    """Answers fast; reasons only if the answer was truncated or its least certain token was too uncertain.

    Attributes:
        threshold: the least probability of a token that passes.
        slow: the turn for answers that do not pass.
    """

    threshold: float
    slow: Turn
    holds_output: bool = True

    def after_prefill(self, hidden: Tensor) -> tuple[RoutingDecision, Turn | None]:
        """Fast at first."""
        return RoutingDecision("fast", "escalate", None, self.threshold, "fast mode first"), None

    def after_answer(self, finish_reason: str, confidence: float) -> tuple[RoutingDecision, Turn | None]:
        """Slow if the answer was truncated or a token was unlikely."""
        cut = finish_reason == "length"
        low = confidence < self.threshold
        why = (
            "the fast answer was truncated"
            if cut
            else f"its least certain token had probability {confidence:.3f}"
        )
        mode = "slow" if cut or low else "fast"
        decision = RoutingDecision(mode, "escalate", confidence, self.threshold, why)
        return decision, self.slow if cut or low else None
