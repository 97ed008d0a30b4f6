"""What a user gets back from `LLM`: immutable outputs, whole or in chunks."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, field

from justright.engine.request import Emission, FinishReason, Request
from justright.engine.sampler import TokenLogprob
from justright.engine.stats import RequestStats
from justright.reasoning.parser import ThoughtText


@dataclass(frozen=True, slots=True, kw_only=True)
class Output:
    """The whole output of one prompt or conversation.

    Attributes:
        prompt: as text, chat template included; None without a tokenizer.
        prompt_token_ids: the prompt's tokens.
        text: the generated content, without reasoning and up to a stop string.
        reasoning: the generated reasoning, without its tags; None if there is none.
        token_ids: all generated tokens, reasoning and end token included.
        finish_reason: "stop" (end token or stop string) or "length" (``max_tokens`` or the end of the context).
        logprobs: of ``token_ids``, if `SamplingParams.logprobs` asks for them.
        stats: counts and seconds; a copy of its own. It does not count when outputs are compared.
    """

    prompt: str | None
    prompt_token_ids: tuple[int, ...]
    text: str
    reasoning: str | None
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    logprobs: tuple[TokenLogprob, ...] | None
    stats: RequestStats = field(compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputChunk:
    """What one step adds to an output; the chunks of a stream join to the `Output` that `LLM.generate` returns.

    Attributes:
        text: new content (maybe none).
        reasoning: new reasoning (maybe none).
        token_ids: new tokens.
        finish_reason: set on the last chunk.
        logprobs: of ``token_ids``, if `SamplingParams.logprobs` asks for them.
    """

    text: str
    reasoning: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason | None
    logprobs: tuple[TokenLogprob, ...] | None


class OutputBuilder:
    """Collects the chunks of one request."""

    def __init__(self, request: Request) -> None:
        self._request = request
        self._splitter: ThoughtText | None = None
        self._text: list[str] = []
        self._reasoning: list[str] = []

    def push(self, emission: Emission) -> OutputChunk:
        """The chunk of an emission of this request."""
        request = self._request
        if self._splitter is None:  # only now, because a route may have changed the prompt
            may_open = request.constraint is None
            self._splitter = ThoughtText(request.tags, thinking=request.opened, may_open=may_open)
        parts = self._splitter.push(emission.text)
        if emission.finish_reason is not None:
            parts += self._splitter.finish()
        text = "".join(part.text for part in parts if not part.thought)
        reasoning = "".join(part.text for part in parts if part.thought)
        self._text.append(text)
        self._reasoning.append(reasoning)
        return OutputChunk(
            text=text,
            reasoning=reasoning,
            token_ids=tuple(emission.token_ids),
            finish_reason=emission.finish_reason,
            logprobs=None if request.top_logprobs is None else emission.logprobs,
        )

    def output(self, prompt: str | None) -> Output:
        """The whole output, once the request has ended."""
        request = self._request
        assert request.finish_reason is not None
        return Output(
            prompt=prompt,
            prompt_token_ids=tuple(request.prompt_ids),
            text="".join(self._text),
            reasoning="".join(self._reasoning) or None,
            token_ids=tuple(request.token_ids),
            finish_reason=request.finish_reason,
            logprobs=None if request.top_logprobs is None else tuple(request.logprobs),
            stats=deepcopy(request.stats),
        )
