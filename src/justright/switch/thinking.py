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
        answer: from the end of the thought on; None: no change.
        switch_after: output tokens after which the factor becomes ``switch_to``, thought or not; None: never.
        switch_to: see above.
        budget: tokens of thought, after which its end is forced; None: no limit.
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
    """Follows one request's output token by token: is it a thought, which factor comes next, what must be forced.

    Args:
        plan: of the request.
        tags: of the model.
        tokenizer: of the model.
        prompt_ids: a chat template may have begun the thought.
    """

    def __init__(
        self,
        plan: ModePlan,
        tags: ThinkingTags,
        tokenizer: PreTrainedTokenizerFast,
        prompt_ids: Sequence[int],
    ) -> None:
        self.plan, self.tags, self._tokenizer = plan, tags, tokenizer
        self.factor = plan.factor
        self.thinking = begins_thinking(tags, tokenizer, prompt_ids)
        self.forced: list[int] = []
        self.flags: list[tuple[bool, float]] = []
        self._counts: list[tuple[int, int]] = [(0, 0)]
        self._thought = 0
        self._tail = ""

    def push(self, token_id: int) -> bool:
        """Note a chosen token; True if what follows needs a new forward (another factor, or forced tokens)."""
        self.flags.append((self.thinking, self.factor))
        self._tail += self._tokenizer.decode([token_id], skip_special_tokens=False)
        changed = self._end_of_thought() if self.thinking else self._begin_of_thought()
        if len(self.flags) == self.plan.switch_after:
            self.factor, changed = self.plan.switch_to, True
        thinking, factor = self.flags[-1]
        thought, fast = self._counts[-1]
        self._counts.append((thought + thinking, fast + (factor > 0)))
        keep = max(len(self.tags.open), len(self.tags.close))
        self._tail = self._tail[-keep:]
        return changed

    def reasoning_tokens(self, emitted: int) -> int:
        """How many of the first ``emitted`` tokens were thought, tags included."""
        return self._counts[emitted][0]

    def fast_tokens(self, emitted: int) -> int:
        """How many of the first ``emitted`` tokens came with the switch on."""
        return self._counts[emitted][1]

    def _end_of_thought(self) -> bool:
        self._thought += 1
        if self.tags.close in self._tail:
            self.thinking, self._tail = False, ""
            if self.plan.answer is not None and self.plan.answer != self.factor:
                self.factor = self.plan.answer
                return True
        elif self._thought == self.plan.budget:
            self.forced = closing_ids(self.tags, self._tokenizer)
            return True
        return False

    def _begin_of_thought(self) -> bool:
        if self.tags.open in self._tail:
            self.thinking, self._tail = True, ""
            self.flags[-1] = (True, self.flags[-1][1])
        return False


def begins_thinking(
    tags: ThinkingTags, tokenizer: PreTrainedTokenizerFast, prompt_ids: Sequence[int]
) -> bool:
    """Whether a prompt ends inside a thought that it has opened itself."""
    end = tokenizer.decode(list(prompt_ids[-16:]), skip_special_tokens=False)
    return bool(end.rfind(tags.open) > end.rfind(tags.close))


def closing_ids(tags: ThinkingTags, tokenizer: PreTrainedTokenizerFast) -> list[int]:
    """Tokens that end a thought."""
    return list(tokenizer(tags.closing, add_special_tokens=False)["input_ids"])
