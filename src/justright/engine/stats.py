"""What one request cost and what speculation bought it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from justright.reasoning.routing import Decision


@dataclass(slots=True)
class RequestStats:
    """Counts and wall-clock seconds of one request; in a batch, a shared step counts in full for each member.

    Attributes:
        prompt_tokens: tokens of the prompt.
        reused_tokens: of those, the ones that were in the cache already.
        output_tokens: tokens emitted, the end token included.
        reasoning_tokens: of those, the thought's, its tags included.
        fast_tokens: of those, the ones that came with the switch on.
        forced_tokens: of those, the ones that a thinking budget put there.
        discarded_tokens: of an answer that was given up for a slower one (not among ``output_tokens``).
        expected_slow_tokens: mean tokens of an answer that is thought about, by calibration; None: nobody measured.
        decision: who decided how to think, and why; None where nobody did.
        prefill_s: running the prompt; gives the first token.
        decode_s: all after it.
        draft_s: of ``decode_s``: guessing, and learning from what was accepted.
        verify_s: of ``decode_s``: the model's forwards.
        verifications: forwards after the prefill, plain ones included.
        forced_steps: of those, the ones in which every token was forced.
        plain_steps: of those, the ones without a draft.
        drafted: guessed tokens that were verified.
        accepted: guessed tokens that were emitted.
        near_ties: tokens chosen by a margin within floating-point noise.
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
    decision: Decision | None = None
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
        """Tokens emitted that were no thought."""
        return self.output_tokens - self.reasoning_tokens

    @property
    def tokens_saved(self) -> float | None:
        """Against thinking always: what that takes on average, less what this request took in all; may be negative."""
        if self.expected_slow_tokens is None:
            return None
        return self.expected_slow_tokens - self.output_tokens - self.discarded_tokens

    @property
    def step_tokens(self) -> list[int]:
        """Tokens that each of ``steps`` gave: accepted + 1, or accepted where a guess ended the answer."""
        begins = [position for position, *_ in self.steps]
        ends = [*begins, self.output_tokens][1:]
        # Positions begin anew after an answer that was given up; a step that failed gave nothing.
        return [
            (end if end > begin else max(self.discarded_tokens, begin)) - begin
            for begin, end in zip(begins, ends, strict=True)
        ]

    @property
    def acceptance_length(self) -> float:
        """Tokens that the model chose per verification: accepted + 1, on average; 1 for plain decoding.

        Forced tokens are nobody's guess, and neither they nor the steps that hold nothing else count.
        """
        steps = self.verifications - self.forced_steps
        return (self._decoded - self.forced_tokens) / steps if steps else 1.0

    @property
    def decode_tokens_per_s(self) -> float:
        """Tokens after the first, per second of decoding; those of an answer that was given up count too."""
        return self._decoded / self.decode_s if self.decode_s > 0 else 0.0

    @property
    def _decoded(self) -> int:
        """Tokens that came out of steps: all but the first of every attempt."""
        return self.output_tokens - 1 + max(self.discarded_tokens - 1, 0)

    @property
    def prefill_tokens_per_s(self) -> float:
        """Prompt tokens that were run, per second of prefill."""
        return (self.prompt_tokens - self.reused_tokens) / self.prefill_s if self.prefill_s > 0 else 0.0

    def to_dict(self) -> dict[str, Any]:
        """All of it, derived figures included, for JSON."""
        return asdict(self) | {
            "answer_tokens": self.answer_tokens,
            "tokens_saved": self.tokens_saved,
            "acceptance_length": self.acceptance_length,
            "decode_tokens_per_s": self.decode_tokens_per_s,
            "prefill_tokens_per_s": self.prefill_tokens_per_s,
        }


def totals(stats: Sequence[RequestStats]) -> dict[str, Any]:
    """What several requests took together: tokens by kind, share of the fast mode, decisions, tokens saved.

    ``tokens_saved`` counts the requests that know what thinking would have cost; None if none does.
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
