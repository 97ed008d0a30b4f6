"""JSON answers by llguidance: which tokens a schema allows next."""

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
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from justright.errors import UsageError
from justright.serve.schema_trial import SchemaTrial, compiled, first_line

MAX_SCHEMA = 2**17
"""Most characters of a schema as JSON."""
CACHED = 2**18
"""Most characters of all schemas whose compiled form, or error, is cached."""
_ANY_OBJECT: Mapping[str, Any] = {"type": "object"}


class Grammars:
    """Builds constraints for one model; caches the most recently used schemas, compiled or with their error.

    A schema is compiled twice: first in a separate process, which ends at a time limit or when the client disconnects.
    If that shows the work to be short and harmless, a thread of this process repeats it.

    Args:
        tokenizer: the model's tokenizer.
        vocab_size: size of its logits.
        stop_token_ids: its end tokens.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerFast, vocab_size: int, stop_token_ids: frozenset[int]
    ) -> None:
        self._tokenizer, self._vocab_size = tokenizer, vocab_size
        self._stop = sorted(stop_token_ids)
        self._cache: OrderedDict[str, JsonConstraint | str] = OrderedDict()
        self._lock = asyncio.Lock()
        self._thread = ThreadPoolExecutor(1, "justright-schema")
        self._trial = SchemaTrial()

    @cached_property
    def _tokens(self) -> LLTokenizer:
        """The vocabulary for llguidance; takes a second if it is large."""
        return LLTokenizer(without_marks(self._tokenizer), n_vocab=self._vocab_size, eos_token=self._stop)

    async def json(self, schema: Mapping[str, Any] | None = None) -> JsonConstraint:
        """Return a constraint to JSON of a schema, or to any object without one. Cancellation stops the work.

        Raises:
            UsageError: the schema is invalid, cannot be enforced, or is too large.
        """
        text = json.dumps(_ANY_OBJECT if schema is None else schema)
        if len(text) > MAX_SCHEMA:
            raise UsageError(
                f"the JSON schema has {len(text)} characters; allowed: {MAX_SCHEMA}. Simplify it"
            )
        if not self._stop:
            raise UsageError("this model has no end token, so its answers cannot be JSON: request text")
        if text not in self._cache:
            async with self._lock:
                if text not in self._cache:  # another request may have compiled it by now
                    self._store(text, await self._compile(text))
        self._cache.move_to_end(text)
        found = self._cache[text]
        if isinstance(found, str):
            raise UsageError(f"the JSON schema cannot be enforced: {found}")
        return found.copy()

    async def _compile(self, text: str) -> JsonConstraint | str:
        work = asyncio.get_running_loop().run_in_executor(self._thread, self._compile_now, text)
        try:
            return await work
        except asyncio.CancelledError:
            self._trial.stop()
            raise

    def _compile_now(self, text: str) -> JsonConstraint | str:
        """Return the constraint, or the schema's error."""
        fault = self._trial.run(text)
        if fault is None:
            try:
                return JsonConstraint(compiled(text, self._tokens), self._stop)
            except ValueError as error:
                fault = str(error)
        return fault

    def _store(self, text: str, found: JsonConstraint | str) -> None:
        self._cache[text] = found
        while sum(map(len, self._cache)) > CACHED:
            self._cache.popitem(last=False)

    def close(self) -> None:
        """Shut down the thread and the process."""
        self._thread.shutdown(wait=False, cancel_futures=True)
        self._trial.close()


class JsonConstraint:
    """Constrains one answer; once the answer is complete, only end tokens are allowed.

    Args:
        matcher: a matcher in its initial state.
        stop: end tokens.

    Attributes:
        failure: why no token can follow; None while one can.
    """

    def __init__(self, matcher: LLMatcher, stop: Sequence[int]) -> None:
        self._matcher, self._stop = matcher, set(stop)
        self.failure: str | None = None

    @property
    def complete(self) -> bool:
        """Whether the tokens taken so far are complete JSON of the schema."""
        return bool(self._matcher.is_accepting())

    def mask(self, scores: Tensor) -> Tensor:
        """Set the ``[vocab]`` scores of tokens not allowed next to minus infinity; unchanged after a failure."""
        allowed = torch.frombuffer(bytearray(self._matcher.compute_logit_bias()), dtype=torch.uint8)
        allowed = allowed[: len(scores)].to(scores.device).bool()
        if self._failed() or not allowed.any():  # llguidance allows the end where nothing else can follow
            self.failure = self.failure or "no token can follow"
            return scores
        return scores.masked_fill(~allowed, float("-inf"))

    def take(self, token_id: int) -> None:
        """Advance by a chosen token."""
        if token_id not in self._stop and self.failure is None:
            self._matcher.consume_token(token_id)
            self._failed()

    def begin(self) -> None:
        """Restart, as the answer was discarded for another one."""
        self._matcher.reset()

    def copy(self) -> JsonConstraint:
        """Return a copy in the same state, for another answer."""
        return JsonConstraint(self._matcher.deep_copy(), sorted(self._stop))

    def _failed(self) -> bool:
        """Whether llguidance cannot continue; records the reason."""
        if self.failure is None and self._matcher.is_error():
            self.failure = f"no token can follow ({first_line(self._matcher.get_error())})"
        return self.failure is not None


def without_marks(tokenizer: PreTrainedTokenizerFast) -> str:
    """Return the tokenizer as JSON, in which no text becomes a mark, such as ``<think>`` or an end token.

    llguidance splits the text that a schema forces with the tokenizer, and treats added tokens between angle brackets
    as special ones, which no JSON may hold: without this a constant ``"</think>"`` could not be written. Each mark
    keeps its id, and gets a text that begins with a character that JSON never holds.
    """
    found: dict[str, Any] = json.loads(tokenizer.backend_tokenizer.to_str())
    found["truncation"] = found["padding"] = None
    vocabulary = found["model"].get("vocab")
    for added in found["added_tokens"]:
        text = added["content"]
        if added["special"] or (text.startswith("<") and text.endswith(">")):
            added["content"] = f"\0{text}"
            if isinstance(vocabulary, dict) and text in vocabulary:  # of BPE
                vocabulary[added["content"]] = vocabulary.pop(text)
            elif isinstance(vocabulary, list):  # of Unigram: pieces by id, with their scores
                for piece in vocabulary[added["id"] : added["id"] + 1]:
                    piece[0] = added["content"]
    return json.dumps(found)
