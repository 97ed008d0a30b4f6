"""A model's reasoning tags, a request's plan, and the text that a budget injects into its output."""

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
    """How a model marks its reasoning.

    Attributes:
        open: text that begins reasoning.
        close: text that ends reasoning.
        closing: text injected when a budget ends the reasoning; contains ``close``.
    """

    open: str = "<think>"
    close: str = "</think>"
    closing: str = "\n</think>\n"

    def __post_init__(self) -> None:
        if not (self.open and self.close) or self.close not in self.closing:
            raise UsageError(
                f"reasoning tags {self.open!r}, {self.close!r}, closing text {self.closing!r}; allowed: tags that are "
                "not empty, and a closing text that contains the closing tag"
            )

    def thought_of(self, text: str) -> str:
        """The reasoning of an output, up to its first closing tag; empty without tags, or with nothing in them."""
        before, closed, _ = text.partition(self.close)
        _, opened, inside = before.partition(self.open)
        return (inside if opened else before if closed else "").strip()

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerFast) -> ThinkingTags | None:
        """The usual tags, if the tokenizer or its chat template contains them."""
        tags = cls()
        template = tokenizer.chat_template
        known = isinstance(template, str) and tags.close in template
        return tags if known or tags.close in tokenizer.get_vocab() else None


@dataclass(frozen=True, slots=True)
class ModePlan:
    """How to run one request, from its prompt to its last token.

    Attributes:
        factor: the adapter scale: 0 is slow, 1 is fast, between is soft.
        budget: reasoning tokens of the whole request (without tags), after which the end is injected; None: no limit.

    Raises:
        UsageError: a factor outside 0 to 1, or a negative budget.
    """

    factor: float = SLOW
    budget: int | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.factor <= 1:
            raise UsageError(f"the adapter scale (factor) is {self.factor}; allowed: 0 (slow) to 1 (fast)")
        if self.budget is not None and self.budget < 0:
            raise UsageError(f"budget is {self.budget}; allowed: 0 or more tokens", about="budget")


class ReasoningTracker:
    """Follows one request's output token by token: which tokens are reasoning, and which are injected.

    The budget counts every reasoning token of the request between the tags, however often the template or the
    model opens reasoning. When it is used up, the closing text is injected; reasoning that the model reopens
    is closed at once.

    Args:
        budget: of the request's `ModePlan`.
        closing: tokens of the text that ends reasoning.
        thinking: whether the chat template has opened the reasoning in the prompt.

    Attributes:
        thinking: whether the next token is reasoning.
        forced: the next tokens, injected whatever the model predicts.
        flags: for each token, whether it is reasoning (tags included).
    """

    def __init__(self, budget: int | None, closing: Sequence[int] = (), *, thinking: bool = False) -> None:
        self._budget, self._closing = budget, closing
        self.thinking = thinking
        self.forced: list[int] = list(closing) if thinking and budget == 0 else []
        self.flags: list[bool] = []
        self._counts = [0]
        self._spent = 0

    def push(self, *, inside: bool) -> bool:
        """Record a chosen token.

        Args:
            inside: whether the text after it is reasoning.

        Returns:
            Whether injected tokens follow it.
        """
        before, self.thinking = self.thinking, inside
        self._spent += before
        cut = inside and self._budget is not None and self._spent >= self._budget and not self.forced
        if cut:
            self.forced = list(self._closing)
        self.flags.append(before or inside)
        self._counts.append(self._counts[-1] + self.flags[-1])
        return cut

    def reasoning_tokens(self, emitted: int) -> int:
        """How many of the first ``emitted`` tokens are reasoning, tags included."""
        return self._counts[emitted]


def closing_ids(tags: ThinkingTags, tokenizer: PreTrainedTokenizerFast) -> list[int]:
    """Tokens of the text that ends reasoning."""
    return list(tokenizer(tags.closing, add_special_tokens=False)["input_ids"])
