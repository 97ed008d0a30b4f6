"""The cost of one request, and the benefit of speculation for it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from justright.reasoning.routing import RoutingDecision


@dataclass(slots=True)
class RequestStats:
    """Counts and wall-clock seconds of one request; in a batch, a shared step counts in full for each member.

    Attributes:
        prompt_tokens: tokens of the prompt.
        reused_tokens: of those, the ones already in the cache.
        output_tokens: tokens emitted, the end token included.
        reasoning_tokens: of those, reasoning, its tags included.
        fast_tokens: of those, the ones emitted with the adapter active.
        forced_tokens: of those, the ones injected by a reasoning budget.
        discarded_tokens: tokens of an answer that was discarded for a slower one (not among ``output_tokens``).
        expected_slow_tokens: mean tokens of an answer with reasoning, by calibration; None if not measured.
        decision: what decided the mode, and why; None if nothing did.
        prefill_s: running the prompt; gives the first token.
        decode_s: all after it.
        draft_s: of ``decode_s``: drafting, and learning from accepted tokens.
        verify_s: of ``decode_s``: the model's forwards.
        verifications: forwards after the prefill, plain ones included.
        forced_steps: of those, the ones in which every token was injected.
        plain_steps: of those, the ones without a draft.
        drafted: draft tokens that were verified.
        accepted: draft tokens that were emitted.
        near_ties: tokens that won by a margin within floating-point noise.
        steps: per verification: output position at its start, tokens drafted, tokens accepted.
    """

    prompt_tokens: int = 0
    reused_tokens: int = 0
    output_tokens: int = 0
    reasoning_tokens: int = 0
    fast_tokens: int = 0
    forced_tokens: int = 0
    discarded_tokens: int = 0
    expected_slow_tokens: float | None = None
    decision: RoutingDecision | None = None
    prefill_s: float = 0.0
    decode_s: float = 0.0
    draft_s: float = 0.0
    verify_s: float = 0.0
    verifications: int = 0
    forced_steps: int = 0
    plain_steps: int = 0
    drafted: int = 0
    accepted: int = 0
    near_ties: int = 0
    steps: list[tuple[int, int, int]] = field(default_factory=list)

    @property
    def answer_tokens(self) -> int:
        """Tokens emitted outside reasoning."""
        return self.output_tokens - self.reasoning_tokens

    @property
    def tokens_saved(self) -> float | None:
        """The mean tokens of always reasoning less this request's tokens in all; may be negative."""
        if self.expected_slow_tokens is None:
            return None
        return self.expected_slow_tokens - self.output_tokens - self.discarded_tokens

    @property
    def step_tokens(self) -> list[int]:
        """Output tokens of each of ``steps``: accepted + 1, or accepted where a draft token ended the answer."""
        begins = [position for position, *_ in self.steps]
        ends = [*begins, self.output_tokens][1:]
        # Positions restart after a discarded answer; a failed step gave no tokens.
        return [
            (end if end > begin else max(self.discarded_tokens, begin)) - begin
            for begin, end in zip(begins, ends, strict=True)
        ]

    @property
    def acceptance_length(self) -> float:
        """Mean tokens that the model chose per verification: accepted + 1; 1 for plain decoding.

        Injected tokens are not draft tokens: neither they nor the steps that hold nothing else count.
        """
        steps = self.verifications - self.forced_steps
        return (self._decoded - self.forced_tokens) / steps if steps else 1.0

    @property
    def decode_tokens_per_s(self) -> float:
        """Decode throughput: tokens after the first per second of decoding, those of a discarded answer included."""
        return self._decoded / self.decode_s if self.decode_s > 0 else 0.0

    @property
    def _decoded(self) -> int:
        """Tokens produced by steps: all but the first of every attempt."""
        return self.output_tokens - 1 + max(self.discarded_tokens - 1, 0)

    @property
    def prefill_tokens_per_s(self) -> float:
        """Prefill throughput: prompt tokens run per second of prefill."""
        return (self.prompt_tokens - self.reused_tokens) / self.prefill_s if self.prefill_s > 0 else 0.0

    def to_dict(self) -> dict[str, Any]:
        """All fields and derived figures, for JSON."""
        return asdict(self) | {
            "answer_tokens": self.answer_tokens,
            "tokens_saved": self.tokens_saved,
            "acceptance_length": self.acceptance_length,
            "decode_tokens_per_s": self.decode_tokens_per_s,
            "prefill_tokens_per_s": self.prefill_tokens_per_s,
        }


def totals(stats: Sequence[RequestStats]) -> dict[str, Any]:
    """Totals of several requests: tokens by kind, share of the fast mode, decisions, tokens saved.

    ``tokens_saved`` counts the requests whose expected slow tokens are known; None if there are none.
    """
    saved = [one.tokens_saved for one in stats if one.tokens_saved is not None]
    output = sum(one.output_tokens for one in stats)
    decisions = Counter(
        f"{one.decision.mode} by {one.decision.by}" for one in stats if one.decision is not None
    )
    return {
        "requests": len(stats),
        "output_tokens": output,
        "reasoning_tokens": sum(one.reasoning_tokens for one in stats),
        "answer_tokens": sum(one.answer_tokens for one in stats),
        "discarded_tokens": sum(one.discarded_tokens for one in stats),
        "fast_share": sum(one.fast_tokens for one in stats) / output if output else 0.0,
        "decisions": dict(decisions),
        "tokens_saved": sum(saved) if saved else None,
    }
