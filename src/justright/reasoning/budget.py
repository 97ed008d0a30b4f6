"""Where a thought begins and ends in a token stream, what may cut it short, and which mode each token runs in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from justright.errors import UsageError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

SLOW, FAST = 0.0, 1.0


@dataclass(frozen=True, slots=True)
class ThinkingTags:
    """How a model marks its thoughts.

    Attributes:
        open: text that begins one.
        close: text that ends one.
        closing: what is forced where a budget ends a thought; holds ``close``.
    """

    open: str = "<think>"
    close: str = "</think>"
    closing: str = "\n</think>\n"

    def __post_init__(self) -> None:
        if not (self.open and self.close) or self.close not in self.closing:
            raise UsageError(
                f"thinking tags {self.open!r}, {self.close!r}, closing {self.closing!r}: the closing text ends a "
                "thought, so it holds the closing tag"
            )

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerFast) -> ThinkingTags | None:
        """The usual tags, if the tokenizer or its chat template knows them."""
        tags = cls()
        template = tokenizer.chat_template
        known = isinstance(template, str) and tags.close in template
        return tags if known or tags.close in tokenizer.get_vocab() else None


@dataclass(frozen=True, slots=True)
class ModePlan:
    """How one request runs: factors of the switch (0 is slow, 1 is fast), and how long it may think.

    Attributes:
        factor: while it decodes, unless something below changes it.
        prefill: on its prompt; None: ``factor``. Another one lets keys and values of one mode be read in the other,
            which nothing but this option ever does.
        answer: from the end of the reasoning on; None: no change.
        switch_after: output tokens after which the factor becomes ``switch_to``, thought or not; None: never.
        switch_to: see above.
        budget: reasoning tokens of the whole request (tags not counted), after which the end is forced; None: no limit.
    """

    factor: float = SLOW
    prefill: float | None = None
    answer: float | None = None
    switch_after: int | None = None
    switch_to: float = FAST
    budget: int | None = None

    def __post_init__(self) -> None:
        for name in ("factor", "prefill", "answer", "switch_to"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise UsageError(f"switch factor {name} is {value}; allowed: 0 (slow) to 1 (fast)")
        for name in ("switch_after", "budget"):
            value = getattr(self, name)
            if value is not None and value < 0:
                raise UsageError(f"{name} is {value}; allowed: 0 or more tokens", about=name)

    @property
    def switches(self) -> bool:
        """Whether any token runs with an adapter."""
        later = self.answer or (self.switch_after is not None and self.switch_to)
        return bool(self.factor or self.prefill or later)


class ThoughtTracker:
    """Follows one request's output token by token: is it reasoning, which factor comes next, what must be forced.

    The budget counts every reasoning token of the request between the tags, however often reasoning was opened and by
    whom. Where it is used up, the closing text is forced; reasoning that the model opens again is closed at once.

    Args:
        plan: of the request.
        closing: tokens of the text that ends reasoning.
        thinking: whether the chat template has opened the reasoning in the prompt.

    Attributes:
        factor: of the switch, for the next token.
        thinking: whether the next token is reasoning.
        forced: tokens that come next whatever the model says.
        flags: for each token, whether it is reasoning (tags included), and its factor.
    """

    def __init__(self, plan: ModePlan, closing: Sequence[int] = (), *, thinking: bool = False) -> None:
        self.plan, self._closing = plan, closing
        self.factor, self.thinking = plan.factor, thinking
        self.forced: list[int] = list(closing) if thinking and plan.budget == 0 else []
        self.flags: list[tuple[bool, float]] = []
        self._counts: list[tuple[int, int]] = [(0, 0)]
        self._spent = 0

    def push(self, *, inside: bool) -> bool:
        """Note a chosen token.

        Args:
            inside: whether what comes after it is reasoning.

        Returns:
            Whether what follows needs a new forward (another factor, or forced tokens).
        """
        before, factor = self.thinking, self.factor
        self.thinking, changed = inside, False
        self._spent += before
        answer, budget = self.plan.answer, self.plan.budget
        if before and not inside and answer is not None and answer != factor:
            self.factor, changed = answer, True
        if inside and budget is not None and self._spent >= budget and not self.forced:
            self.forced, changed = list(self._closing), True
        reasoning = before or inside
        self.flags.append((reasoning, factor))
        if len(self.flags) == self.plan.switch_after:
            self.factor, changed = self.plan.switch_to, True
        thought, fast = self._counts[-1]
        self._counts.append((thought + reasoning, fast + (factor > 0)))
        return changed

    def reasoning_tokens(self, emitted: int) -> int:
        """How many of the first ``emitted`` tokens were reasoning, tags included."""
        return self._counts[emitted][0]

    def fast_tokens(self, emitted: int) -> int:
        """How many of the first ``emitted`` tokens came with the switch on."""
        return self._counts[emitted][1]


def closing_ids(tags: ThinkingTags, tokenizer: PreTrainedTokenizerFast) -> list[int]:
    """Tokens of the text that ends reasoning."""
    return list(tokenizer(tags.closing, add_special_tokens=False)["input_ids"])
