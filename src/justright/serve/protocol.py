"""Request bodies, after OpenAI's API; every parameter has an effect, allows only its neutral value, or is rejected.

Models are strict: no string for a number, no unknown names, no NaN.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, JsonValue, model_validator

from justright.reasoning.effort import AskedEffort
from justright.serve.api_errors import ApiError

MAX_CHOICES = 16
MAX_STOPS = 4
MAX_STOP_CHARACTERS = 256
MAX_TOP_LOGPROBS = 20
MAX_PROMPTS = 64


def _whole(value: Any) -> Any:
    """Convert a whole float: JSON has one kind of number, so 5.0 is an integer."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


Whole = Annotated[int, BeforeValidator(_whole)]
Zero = Annotated[float, Field(ge=0, le=0)]
Never = Annotated[list[Any], Field(max_length=0)]
Stop = Annotated[str, Field(min_length=1, max_length=MAX_STOP_CHARACTERS)]
Stops = Annotated[list[Stop], Field(max_length=MAX_STOPS)]
TokenIds = Annotated[list[Annotated[Whole, Field(ge=0)]], Field(min_length=1, fail_fast=True)]
Prompt = Annotated[str, Field(min_length=1)]
_SEVERAL = Field(min_length=1, max_length=MAX_PROMPTS)
Prompts = Annotated[list[Prompt], _SEVERAL]
V = TypeVar("V")


def agreed(values: Mapping[str, V | None]) -> V | None:
    """Return the value of a parameter that has several names.

    Raises:
        ApiError: two names have different values.
    """
    given = {name: value for name, value in values.items() if value is not None}
    if len(set(given.values())) > 1:
        words = " and ".join(f"{name} is {value}" for name, value in given.items())
        message = f"{words}: they mean the same, so send one of them"
        raise ApiError(400, message, next(iter(given)), "invalid_value")
    return next(iter(given.values()), None)


class Strict(BaseModel):
    """Base of all request models."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, frozen=True)


class TextPart(Strict):
    """A text part of a message."""

    type: Literal["text"]
    text: str


Parts = Annotated[list[TextPart], Field(fail_fast=True)]


class InputMessage(Strict):
    """A message to the model.

    ``name`` and ``tool_call_id`` go to the chat template unchanged; ``provider_specific_fields`` is a client's own note
    (LiteLLM's) and is ignored.
    """

    role: Literal["system", "developer", "user", "tool"]
    content: str | Parts
    name: str | None = None
    tool_call_id: str | None = None
    provider_specific_fields: dict[str, JsonValue] | None = None


class AssistantMessage(Strict):
    """A message from the model; empty fields that OpenAI's client adds to an answer may be sent back unchanged.

    ``name`` and ``reasoning_content`` go to the chat template unchanged; ``provider_specific_fields`` is ignored.
    """

    role: Literal["assistant"]
    content: str | Parts | None = None
    name: str | None = None
    reasoning_content: str | None = None
    provider_specific_fields: dict[str, JsonValue] | None = None
    refusal: None = None
    audio: None = None
    annotations: Never | None = None
    function_call: None = None
    tool_calls: Never | None = None


Message = Annotated[InputMessage | AssistantMessage, Field(discriminator="role")]


class StreamOptions(Strict):
    """Options of a stream."""

    include_usage: bool = False


class ReasoningFields(Strict):
    """How much to reason; ``max_tokens`` is the reasoning budget in tokens."""

    effort: AskedEffort | None = None
    max_tokens: Whole | None = Field(None, ge=0)


class Extras(Strict):
    """Extensions of justright: ``trace`` reports for each chunk how many tokens were drafted, and the token texts."""

    trace: bool = False


class JsonSchema(Strict):
    """A JSON schema that the answer follows; with ``strict`` its objects have only the properties that it names."""

    name: str
    schema_: dict[str, JsonValue] = Field(alias="schema")
    description: str | None = None
    strict: bool | None = None


class AsText(Strict):
    """Any text."""

    type: Literal["text"]


class AsJson(Strict):
    """Any JSON object."""

    type: Literal["json_object"]


class AsSchema(Strict):
    """JSON that follows a schema."""

    type: Literal["json_schema"]
    json_schema: JsonSchema


ResponseFormat = Annotated[AsText | AsJson | AsSchema, Field(discriminator="type")]


class CommonFields(Strict):
    """Fields that chats and completions share."""

    model: str
    n: Whole | None = Field(None, ge=1, le=MAX_CHOICES)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: Whole | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: Whole | None = Field(None, ge=0)
    min_p: float | None = Field(None, ge=0, le=1)
    repetition_penalty: float | None = Field(None, ge=0.01, le=10)
    seed: Whole | None = Field(None, ge=-(2**63), lt=2**63 - MAX_CHOICES)
    stop: Stop | Stops | None = None
    response_format: ResponseFormat | None = None
    justright: Extras | None = None
    user: str | None = Field(None, description="Ignored: the server stores nothing about users.")
    presence_penalty: Zero | None = None
    frequency_penalty: Zero | None = None
    logit_bias: Annotated[dict[str, float], Field(max_length=0)] | None = None

    @model_validator(mode="after")
    def _streams(self) -> CommonFields:
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options need stream: true")
        return self

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop strings."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def choices(self) -> int:
        """Number of answers to each prompt."""
        return self.n or 1

    @property
    def wants_usage(self) -> bool:
        """Whether a stream ends with its usage."""
        return self.stream_options is not None and self.stream_options.include_usage

    @property
    def wants_trace(self) -> bool:
        """Whether chunks report drafted tokens."""
        return self.justright is not None and self.justright.trace


class ChatRequest(CommonFields):
    """A conversation to continue."""

    messages: list[Message] = Field(min_length=1, fail_fast=True)
    max_completion_tokens: Whole | None = Field(None, ge=1)
    logprobs: bool | None = None
    top_logprobs: Whole | None = Field(None, ge=0, le=MAX_TOP_LOGPROBS)
    reasoning_effort: AskedEffort | None = None
    reasoning: ReasoningFields | None = None
    thinking_budget: Whole | None = Field(
        None,
        ge=0,
        description="Most reasoning tokens; then the end of reasoning is injected, and the answer begins.",
    )
    stop_in_reasoning: bool = Field(
        False, description="Whether `stop` also ends an answer within its reasoning."
    )
    chat_template_kwargs: dict[str, JsonValue] | None = None
    metadata: dict[str, str] | None = Field(None, description="Ignored: the server stores nothing.")
    safety_identifier: str | None = Field(None, description="Ignored.")
    prompt_cache_key: str | None = Field(None, description="Ignored: shared prefixes are always reused.")
    store: Literal[False] | None = None
    service_tier: Literal["auto", "default"] | None = None
    verbosity: Literal["medium"] | None = None
    modalities: list[Literal["text"]] | None = None
    tools: Never | None = None
    tool_choice: Literal["none", "auto"] | None = None
    parallel_tool_calls: bool | None = None
    functions: Never | None = None
    function_call: Literal["none", "auto"] | None = None
    audio: None = None
    prediction: None = None
    web_search_options: None = None

    @model_validator(mode="after")
    def _agrees(self) -> ChatRequest:
        _ = self.limit, self.effort, self.budget  # these check that the names of one parameter agree
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs: true")
        return self

    @property
    def limit(self) -> int | None:
        """Most tokens in the answer."""
        return agreed({"max_tokens": self.max_tokens, "max_completion_tokens": self.max_completion_tokens})

    @property
    def effort(self) -> str | None:
        """The reasoning effort, by name."""
        nested = None if self.reasoning is None else self.reasoning.effort
        return agreed({"reasoning_effort": self.reasoning_effort, "reasoning.effort": nested})

    @property
    def budget(self) -> int | None:
        """The reasoning budget, in tokens."""
        nested = None if self.reasoning is None else self.reasoning.max_tokens
        return agreed({"thinking_budget": self.thinking_budget, "reasoning.max_tokens": nested})

    @property
    def likeliest(self) -> int | None:
        """Number of most likely tokens to report at each position; None: no log-probabilities."""
        return (self.top_logprobs or 0) if self.logprobs else None


class CompletionRequest(CommonFields):
    """A text to continue."""

    prompt: Prompt | Prompts | TokenIds | Annotated[list[TokenIds], _SEVERAL]
    logprobs: Whole | None = Field(None, ge=0, le=MAX_TOP_LOGPROBS)
    echo: Literal[False] | None = None
    suffix: None = None
    best_of: Annotated[Whole, Field(ge=1, le=1)] | None = None

    @property
    def prompts(self) -> list[str] | list[list[int]]:
        """The prompts as a list."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if isinstance(self.prompt[0], int):
            return [self.prompt]
        return self.prompt
