"""Who thinks, where the request leaves it open: scored before it answers (`auto`), or judged after (`escalate`).

A route starts with the fast prompt. If the score says easy, decoding goes on at once: nothing was lost. If not, the
slow prompt is run instead; a prompt is short beside the thought that it saves or starts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Protocol

from justright.reasoning.budget import ModePlan

if TYPE_CHECKING:
    from torch import Tensor

    from justright.reasoning.scorers import Scorer


@dataclass(frozen=True, slots=True)
class Decision:
    """Why a request ran as it did; goes into its statistics.

    Attributes:
        mode: "slow" or "fast".
        by: the effort, or the scorer's name.
        score: what was compared; None where nothing was.
        threshold: with what.
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
        stop_token_ids: end tokens of the mode; None: as they are.
    """

    prompt_ids: Sequence[int]
    plan: ModePlan
    opened: bool = False
    stop_token_ids: frozenset[int] | None = None


class Route(Protocol):
    """What the decode loop asks for a request whose mode is open."""

    holds_output: bool
    """Whether nothing may be shown before the answer is whole."""

    def after_prefill(self, hidden: Tensor) -> tuple[Decision, Turn | None]:
        """The decision, and the turn to take instead of the one that was begun."""
        ...

    def after_answer(self, finish_reason: str, confidence: float) -> tuple[Decision, Turn | None]:
        """As above, once the answer is there; ``confidence`` is the least probability of a chosen token."""
        ...


@dataclass(slots=True)
class Auto:
    """Score the prompt, then take one mode.

    Attributes:
        scorer: who scores.
        prompt: as text.
        slow: the turn for hard prompts.
        threshold: instead of the scorer's own.
    """

    scorer: Scorer
    prompt: str
    slow: Turn
    threshold: float | None = None
    holds_output: bool = False

    def after_prefill(self, hidden: Tensor) -> tuple[Decision, Turn | None]:
        """Slow if the score is above the threshold."""
        score = float(self.scorer.score(self.prompt, hidden))
        threshold = self.scorer.threshold if self.threshold is None else self.threshold
        hard = score > threshold
        reason = f"{self.scorer.name} says {score:.3f}, {'above' if hard else 'at most'} {threshold:.3f}"
        return Decision("slow" if hard else "fast", self.scorer.name, score, threshold, reason), (
            self.slow if hard else None
        )

    def after_answer(self, finish_reason: str, confidence: float) -> tuple[Decision, Turn | None]:
        """Never asked: the mode is settled."""
        raise AssertionError("auto decides before the answer")


@dataclass(slots=True)
class Escalate:
    """Answer fast; think only if the answer was cut or its least certain token was too uncertain.

    Attributes:
        threshold: the least probability of a token that passes.
        slow: the turn for answers that do not.
    """

    threshold: float
    slow: Turn
    holds_output: bool = True

    def after_prefill(self, hidden: Tensor) -> tuple[Decision, Turn | None]:
        """Fast, for now."""
        return Decision("fast", "escalate", None, self.threshold, "fast first"), None

    def after_answer(self, finish_reason: str, confidence: float) -> tuple[Decision, Turn | None]:
        """Slow if the answer was cut or a token was unlikely."""
        cut = finish_reason == "length"
        low = confidence < self.threshold
        why = (
            "the fast answer was cut" if cut else f"its least certain token had probability {confidence:.3f}"
        )
        mode = "slow" if cut or low else "fast"
        decision = Decision(mode, "escalate", confidence, self.threshold, why)
        return decision, self.slow if cut or low else None
