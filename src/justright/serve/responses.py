"""Response bodies, after OpenAI's API, for the OpenAPI document and for tests; `answer_chunks` writes them.

Extensions of justright are under ``justright``.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

Finish = Literal["stop", "length"]


class ResponseModel(BaseModel):
    """Base of all response models."""

    model_config = ConfigDict(extra="forbid")


class ErrorDetail(ResponseModel):
    """The details of an error."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(ResponseModel):
    """An error in OpenAI's format."""

    error: ErrorDetail


class PromptDetails(ResponseModel):
    """Details on prompt tokens."""

    cached_tokens: int


class CompletionDetails(ResponseModel):
    """Details on answer tokens."""

    reasoning_tokens: int


class Usage(ResponseModel):
    """Input and output tokens; a prompt counts once, however many answers it gets."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails
    completion_tokens_details: CompletionDetails


class Decision(ResponseModel):
    """Who chose the mode, and why."""

    mode: str
    by: str
    score: float | None
    threshold: float | None
    reason: str


class ResponseDetails(ResponseModel):
    """How an answer came about; an extension of justright.

    ``acceptance_length``: tokens per verification; ``drafted`` and ``accepted``: draft tokens verified, and accepted;
    ``discarded_tokens``: tokens of an answer that was discarded for a slower one; ``tokens_saved``: compared with
    always reasoning, if a calibration knows that cost; ``ended_by``: end, stop, length or deadline.
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


class Trace(ResponseModel):
    """The tokens of a chunk: their number, how many of them, from the first, were drafted, and the text of each."""

    tokens: int
    drafted: int
    texts: list[str]


class TopLogprob(ResponseModel):
    """A candidate token."""

    token: str
    logprob: float
    bytes: list[int]


class ChatLogprob(TopLogprob):
    """A generated token."""

    top_logprobs: list[TopLogprob]


class ChatLogprobs(ResponseModel):
    """The answer's tokens, without those of the reasoning."""

    content: list[ChatLogprob]
    refusal: None = None


class CompletionLogprobs(ResponseModel):
    """The tokens of a completion."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


class ChatMessage(ResponseModel):
    """The answer; the reasoning is a separate field, and neither contains tags."""

    role: Literal["assistant"]
    content: str
    reasoning_content: str | None = None
    refusal: None = None


class ChatChoice(ResponseModel):
    """One answer."""

    index: int
    message: ChatMessage
    logprobs: ChatLogprobs | None
    finish_reason: Finish
    justright: ResponseDetails


class ChatCompletion(ResponseModel):
    """The answer to a chat."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage


class CompletionChoice(ResponseModel):
    """One completion."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: Finish
    justright: ResponseDetails


class Completion(ResponseModel):
    """The continuation of a prompt."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage


class ChatDelta(ResponseModel):
    """The new part of an answer."""

    role: Literal["assistant"] | None = None
    content: str | None = None
    reasoning_content: str | None = None


class ChatChunkChoice(ResponseModel):
    """The new part of one answer; its last chunk has ``finish_reason`` and how the answer came about."""

    index: int
    delta: ChatDelta
    logprobs: ChatLogprobs | None = None
    finish_reason: Finish | None
    justright: ResponseDetails | Trace | None = None


class ChatChunk(ResponseModel):
    """One event of a stream; with ``include_usage``, the last event has the usage and no choices."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    choices: list[ChatChunkChoice]
    usage: Usage | None = None


class CompletionChunkChoice(ResponseModel):
    """The new part of one completion."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None = None
    finish_reason: Finish | None
    justright: ResponseDetails | Trace | None = None


class CompletionChunk(ResponseModel):
    """One event of a stream."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChunkChoice]
    usage: Usage | None = None


ModelReasoning = Literal["switchable", "always", "never", "unknown"]


class ModelDetails(ResponseModel):
    """What a model can do; an extension of justright.

    ``context_length``: most tokens of prompt and answer; ``efforts``: the efforts that change an answer; ``reasoning``:
    ``switchable``, each request chooses; ``always``, the chat template opens it; ``never``, the model has no marks for
    it; ``unknown``, the model has marks for it, and only its answers show whether it uses them.
    """

    context_length: int
    efforts: list[str]
    reasoning: ModelReasoning


class ModelCard(ResponseModel):
    """A served model."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    justright: ModelDetails


class ModelList(ResponseModel):
    """The served models."""

    object: Literal["list"]
    data: list[ModelCard]


class Health(ResponseModel):
    """Whether the server accepts requests."""

    status: Literal["ready", "draining", "failed"]
    running: int
    waiting: int
