"""Answers that are JSON, by llguidance: which tokens may come next, by a schema."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from llguidance import LLMatcher, LLTokenizer
from llguidance.hf import from_tokenizer
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from justright.errors import UsageError

if TYPE_CHECKING:
    from llguidance._lib import JsonCompileOptions

_SPACED: JsonCompileOptions = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""JSON on one line, as models write it; with free white space, a weak model writes nothing else."""
_ANY_OBJECT: Mapping[str, Any] = {"type": "object"}


class Grammars:
    """Makes constraints for one model.

    Args:
        tokenizer: of the model.
        vocab_size: of its logits.
        stop_token_ids: its end tokens.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerFast, vocab_size: int, stop_token_ids: frozenset[int]
    ) -> None:
        self._tokenizer, self._vocab_size = tokenizer, vocab_size
        self._stop = sorted(stop_token_ids)

    @cached_property
    def _tokens(self) -> LLTokenizer:
        """Takes a second with a large vocabulary."""
        return from_tokenizer(self._tokenizer, self._vocab_size, eos_token=self._stop or None)

    def json(self, schema: Mapping[str, Any] | None = None) -> JsonConstraint:
        """A constraint to JSON of a schema; to any object without one.

        Raises:
            UsageError: the schema is none, or says what cannot be kept.
        """
        try:
            grammar = LLMatcher.grammar_from_json_schema(
                json.dumps(_ANY_OBJECT if schema is None else schema), overrides=_SPACED
            )
        except (ValueError, RecursionError) as error:
            raise UsageError(f"the JSON schema cannot be kept: {error}") from error
        matcher = LLMatcher(self._tokens, grammar, log_level=0)
        if matcher.is_error():
            raise UsageError(f"the JSON schema cannot be kept: {matcher.get_error().strip()}")
        return JsonConstraint(matcher, self._stop)


class JsonConstraint:
    """Follows one answer; once it is whole, only end tokens may come.

    Args:
        matcher: at the beginning.
        stop: end tokens.
    """

    def __init__(self, matcher: LLMatcher, stop: Sequence[int]) -> None:
        self._matcher, self._stop = matcher, set(stop)

    def mask(self, scores: Tensor) -> Tensor:
        """``[vocab]`` scores, with minus infinity where a token is not allowed next."""
        allowed = torch.frombuffer(bytearray(self._matcher.compute_logit_bias()), dtype=torch.uint8)
        allowed = allowed.to(scores.device).bool()
        return scores.masked_fill(~allowed[: len(scores)], float("-inf"))

    def take(self, token_id: int) -> None:
        """Note a chosen token."""
        if token_id not in self._stop:
            self._matcher.consume_token(token_id)

    def begin(self) -> None:
        """From the beginning: the answer was given up for another one."""
        self._matcher.reset()

    def copy(self) -> JsonConstraint:
        """One for another answer, as far as this one is."""
        return JsonConstraint(self._matcher.deep_copy(), sorted(self._stop))
