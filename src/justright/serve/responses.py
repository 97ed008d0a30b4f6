"""What clients get, after OpenAI's API, for the OpenAPI document and for tests; `answers` writes it.

What is ours is under ``justright``.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

Finish = Literal["stop", "length"]


class Answered(BaseModel):
    """What all of it has in common."""

    model_config = ConfigDict(extra="forbid")


class ErrorDetail(Answered):
    """What is wrong."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(Answered):
    """An error, as OpenAI's API writes it."""

    error: ErrorDetail


class PromptDetails(Answered):
    """Of the tokens of a prompt."""

    cached_tokens: int


class CompletionDetails(Answered):
    """Of the tokens of answers."""

    reasoning_tokens: int


class Usage(Answered):
    """Tokens in and out; a prompt counts once, however many answers it gets."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails
    completion_tokens_details: CompletionDetails


class Decision(Answered):
    """Who decided how to think, and why."""

    mode: str
    by: str
    score: float | None
    threshold: float | None
    reason: str


class Told(Answered):
    """How an answer came about; ours.

    ``acceptance_length``: tokens a verification gave; ``drafted`` and ``accepted``: guessed tokens that were verified,
    and that stood; ``discarded_tokens``: of an answer that was given up for a slower one; ``tokens_saved``: against
    thinking always, where a calibration knows what that takes; ``ended_by``: end, stop, length or deadline.
    """

    mode: Literal["slow", "fast"]
    decision: Decision | None
    acceptance_length: float
    drafted: int
    accepted: int
    fast_tokens: int
    discarded_tokens: int
    tokens_saved: float | None
    near_ties: int
    prefill_s: float
    decode_s: float
    ended_by: Literal["end", "stop", "length", "deadline"]
    stop: str | None


class Trace(Answered):
    """The tokens of a chunk: how many, how many of them, from the first, were drafted, and the text of each."""

    tokens: int
    drafted: int
    texts: list[str]


class TopLogprob(Answered):
    """A token that might have come."""

    token: str
    logprob: float
    bytes: list[int]


class ChatLogprob(TopLogprob):
    """A token that came."""

    top_logprobs: list[TopLogprob]


class ChatLogprobs(Answered):
    """The answer's tokens; those of thoughts are left out."""

    content: list[ChatLogprob]
    refusal: None = None


class CompletionLogprobs(Answered):
    """The tokens of a completion."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


class ChatMessage(Answered):
    """The answer; the thought is apart from it, and tags are in neither."""

    role: Literal["assistant"]
    content: str
    reasoning_content: str | None = None
    refusal: None = None


class ChatChoice(Answered):
    """One answer."""

    index: int
    message: ChatMessage
    logprobs: ChatLogprobs | None
    finish_reason: Finish
    justright: Told


class ChatCompletion(Answered):
    """A chat's answer."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage


class CompletionChoice(Answered):
    """One completion."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: Finish
    justright: Told


class Completion(Answered):
    """What follows a prompt."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage


class ChatDelta(Answered):
    """What is new of an answer."""

    role: Literal["assistant"] | None = None
    content: str | None = None
    reasoning_content: str | None = None


class ChatChunkChoice(Answered):
    """What is new of one answer; the last chunk of it has ``finish_reason`` and how it came about."""

    index: int
    delta: ChatDelta
    logprobs: ChatLogprobs | None = None
    finish_reason: Finish | None
    justright: Told | Trace | None = None


class ChatChunk(Answered):
    """One event of a stream; with ``include_usage``, the last has no choices and the usage."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    choices: list[ChatChunkChoice]
    usage: Usage | None = None


class CompletionChunkChoice(Answered):
    """What is new of one completion."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None = None
    finish_reason: Finish | None
    justright: Told | Trace | None = None


class CompletionChunk(Answered):
    """One event of a stream."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChunkChoice]
    usage: Usage | None = None


class ModelTold(Answered):
    """What can be asked of a model: the most tokens of prompt and answer, and the efforts that it can have; ours."""

    context_length: int
    efforts: list[str]


class ModelCard(Answered):
    """A model that is served."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    justright: ModelTold


class ModelList(Answered):
    """The models that are served."""

    object: Literal["list"]
    data: list[ModelCard]


class Health(Answered):
    """Whether requests are taken."""

    status: Literal["ready", "draining", "failed"]
    running: int
    waiting: int
