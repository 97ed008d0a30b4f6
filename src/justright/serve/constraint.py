"""Answers that are JSON, by llguidance: which tokens may come next, by a schema."""

from __future__ import annotations

import asyncio
import json
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import Any

import torch
from llguidance import LLMatcher, LLTokenizer
from llguidance.hf import from_tokenizer
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from justright.errors import UsageError
from justright.serve.schema_trial import Trial, compiled, first_line

MAX_SCHEMA = 2**17
"""Characters of a schema as JSON."""
CACHED = 2**18
"""Characters of all schemas whose compiled form, or fault, is kept."""
_ANY_OBJECT: Mapping[str, Any] = {"type": "object"}


class Grammars:
    """Makes constraints for one model; the schemas that were used last are kept, compiled or with their fault.

    A schema is compiled twice: first in a process of its own, which a limit of time ends, and the client if it leaves.
    That shows that the work is short and harmless; then a thread of this process does it.

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
        self._kept: OrderedDict[str, JsonConstraint | str] = OrderedDict()
        self._one = asyncio.Lock()
        self._thread = ThreadPoolExecutor(1, "justright-schema")
        self._trial = Trial()

    @cached_property
    def _tokens(self) -> LLTokenizer:
        """Takes a second with a large vocabulary."""
        return from_tokenizer(self._tokenizer, self._vocab_size, eos_token=self._stop)

    async def json(self, schema: Mapping[str, Any] | None = None) -> JsonConstraint:
        """A constraint to JSON of a schema; to any object without one. Cancelling it stops the work.

        Raises:
            UsageError: the schema is none, says what cannot be kept, or is too large.
        """
        text = json.dumps(_ANY_OBJECT if schema is None else schema)
        if len(text) > MAX_SCHEMA:
            raise UsageError(
                f"the JSON schema has {len(text)} characters; allowed: {MAX_SCHEMA}. Simplify it"
            )
        if not self._stop:
            raise UsageError("this model has no end token, so no answer of it can be JSON: ask for text")
        if text not in self._kept:
            async with self._one:
                if text not in self._kept:  # whoever was before may have wanted the same
                    self._keep(text, await self._compile(text))
        self._kept.move_to_end(text)
        found = self._kept[text]
        if isinstance(found, str):
            raise UsageError(f"the JSON schema cannot be kept: {found}")
        return found.copy()

    async def _compile(self, text: str) -> JsonConstraint | str:
        work = asyncio.get_running_loop().run_in_executor(self._thread, self._compile_now, text)
        try:
            return await work
        except asyncio.CancelledError:
            self._trial.stop()
            raise

    def _compile_now(self, text: str) -> JsonConstraint | str:
        """The constraint, or what is wrong with the schema."""
        fault = self._trial.run(text)
        if fault is None:
            try:
                return JsonConstraint(compiled(text, self._tokens), self._stop)
            except ValueError as error:
                fault = str(error)
        return fault

    def _keep(self, text: str, found: JsonConstraint | str) -> None:
        self._kept[text] = found
        while sum(map(len, self._kept)) > CACHED:
            self._kept.popitem(last=False)

    def close(self) -> None:
        """End the thread and the process."""
        self._thread.shutdown(wait=False, cancel_futures=True)
        self._trial.close()


class JsonConstraint:
    """Follows one answer; once it is whole, only end tokens may come.

    Args:
        matcher: at the beginning.
        stop: end tokens.

    Attributes:
        failure: why no token can follow; None while one can.
    """

    def __init__(self, matcher: LLMatcher, stop: Sequence[int]) -> None:
        self._matcher, self._stop = matcher, set(stop)
        self.failure: str | None = None

    @property
    def complete(self) -> bool:
        """Whether what was taken is JSON of the schema."""
        return bool(self._matcher.is_accepting())

    def mask(self, scores: Tensor) -> Tensor:
        """``[vocab]`` scores, with minus infinity where a token is not allowed next; as they are after a failure."""
        allowed = torch.frombuffer(bytearray(self._matcher.compute_logit_bias()), dtype=torch.uint8)
        allowed = allowed[: len(scores)].to(scores.device).bool()
        if self._failed() or not allowed.any():  # llguidance allows the end where nothing else can follow
            self.failure = self.failure or "no token can follow"
            return scores
        return scores.masked_fill(~allowed, float("-inf"))

    def take(self, token_id: int) -> None:
        """Note a chosen token."""
        if token_id not in self._stop and self.failure is None:
            self._matcher.consume_token(token_id)
            self._failed()

    def begin(self) -> None:
        """From the beginning: the answer was given up for another one."""
        self._matcher.reset()

    def copy(self) -> JsonConstraint:
        """One for another answer, as far as this one is."""
        return JsonConstraint(self._matcher.deep_copy(), sorted(self._stop))

    def _failed(self) -> bool:
        """Whether llguidance can go on no more; notes why."""
        if self.failure is None and self._matcher.is_error():
            self.failure = f"no token can follow ({first_line(self._matcher.get_error())})"
        return self.failure is not None
