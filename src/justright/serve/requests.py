"""Turns clients' requests into the engine's; slow for long prompts, so it does not belong on the event loop."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from inspect import signature
from typing import Any, get_args

from jinja2 import Environment, TemplateError, meta
from transformers import PreTrainedTokenizerFast

from justright.engine.chat_modes import Reasoning, opens_reasoning
from justright.engine.generation import ModeParams
from justright.engine.llm import LLM
from justright.engine.request import Request
from justright.engine.sampler import TOKEN_CHOICE
from justright.errors import JustrightError, UsageError
from justright.reasoning.budget import ThinkingTags
from justright.reasoning.effort import DECIDING, FAST_EFFORTS, AskedEffort
from justright.serve.api_errors import ApiError, of_error
from justright.serve.constraint import Grammars
from justright.serve.protocol import AsJson, AsSchema, ChatRequest, CommonFields, CompletionRequest, Message
from justright.serve.responses import ModelReasoning
from justright.serve.server_settings import OPENAI, ServeSettings
from justright.serve.strict_schema import closed
from justright.serve.upstream import SWITCH

_OPENAI_COMPLETION = 16
"""Default ``max_tokens`` of a completion, as in OpenAI's API."""
_GENERATION = re.compile(r"\{%-?\s*(end)?generation\s*-?%\}")
"""transformers' mark around the assistant's text; it changes no text."""
_RESERVED = frozenset(
    {"messages", "conversation", "self", "raise_exception", "strftime_now", "tools", "documents"}
)


class RequestReader:
    """Builds requests for one engine.

    Args:
        engine: the engine; it is only read.
        settings: defaults for what a request leaves open.
    """

    def __init__(self, engine: LLM, settings: ServeSettings) -> None:
        assert engine.tokenizer is not None
        assert engine.modes is not None
        self.engine, self.settings = engine, settings
        self._tokenizer: PreTrainedTokenizerFast = engine.tokenizer
        self._modes = engine.modes
        adapter = engine.modes.adapter
        self._end_tokens = engine.stop_token_ids | (frozenset() if adapter is None else adapter.end_tokens)
        vocab_size = engine.verifier.spec.vocab_size
        self.grammars = Grammars(engine.tokenizer, vocab_size, self._end_tokens)

    def chat(self, body: ChatRequest) -> Iterator[list[Request]]:
        """Yield one list: the requests of a chat, one for each choice.

        Raises:
            ApiError: a parameter cannot be honoured; it names the parameter.
        """
        self._check_model(body)
        template = self._template_arguments(body.chat_template_kwargs or {})
        thinking = thinking_of(body, self.settings.thinking)
        if body.effort is not None and not self._has_marks and body.effort not in FAST_EFFORTS | DECIDING:
            message = (
                f"effort {body.effort} changes nothing, as this model has no reasoning tags: leave it out"
            )
            raise ApiError(400, message, "reasoning_effort", "invalid_value")
        messages = [self._message(message) for message in body.messages]
        params = self._params(body)
        try:
            request = self.engine.conversation(
                messages,
                params,
                thinking=thinking,
                template=template,
                max_tokens=body.limit or self.settings.max_tokens,
                stop=body.stops,
                stop_in_reasoning=body.stop_in_reasoning,
            )
        except JustrightError as error:
            raise of_error(error, _parameter_of(body, error)) from error
        except (TemplateError, TypeError, ValueError, AttributeError, KeyError, IndexError) as error:
            message = f"the model's chat template cannot render this conversation: {error}"
            raise ApiError(400, message, "messages", "invalid_value") from error
        name = "max_tokens" if body.max_completion_tokens is None else "max_completion_tokens"
        self._check_limit(request, body.limit, name)
        request.top_logprobs = body.likeliest
        yield self._choices(request, body)

    def completion(self, body: CompletionRequest) -> Iterator[list[Request]]:
        """Yield the requests of a completion prompt by prompt: for each, a list with one request per choice.

        Raises:
            ApiError: a parameter cannot be honoured; it names the parameter.
        """
        self._check_model(body)
        params = self._params(body)
        for prompt in body.prompts:
            try:
                request = self.engine.request(
                    prompt, params, max_tokens=body.max_tokens or _OPENAI_COMPLETION, stop=body.stops
                )
            except JustrightError as error:
                raise of_error(error, "prompt") from error
            self._check_limit(request, body.max_tokens, "max_tokens")
            request.top_logprobs = body.logprobs
            yield self._choices(request, body)

    @cached_property
    def efforts(self) -> list[str]:
        """The efforts that this model supports."""
        return [effort for effort in get_args(AskedEffort) if self._supports(effort)]

    @cached_property
    def reasoning(self) -> ModelReasoning:
        """What is known about the model's reasoning, see `ModelDetails`."""
        if "none" in self.efforts:
            return "switchable"
        if not (self._has_marks or self._modes.reasons):
            return "never"
        try:
            message = {"role": "user", "content": "Hello"}
            opens = opens_reasoning(self._tokenizer, self._modes.tags or ThinkingTags(), [message])
        except (TemplateError, TypeError, ValueError):  # no template, or one that wants other messages
            return "unknown"
        return "always" if opens else "unknown"

    def _supports(self, effort: str) -> bool:
        scorer = self.settings.thinking.scorer if effort == "auto" else "probe"
        try:
            hidden_size = self.engine.verifier.spec.hidden_size
            self._modes.check(Reasoning(None if effort == "xhigh" else effort, scorer=scorer), hidden_size)
        except UsageError:
            return False
        return self._modes.reasons and (self._has_marks or effort in FAST_EFFORTS)

    @property
    def _has_marks(self) -> bool:
        """Whether the model can mark reasoning; whether it does is known from its answers alone."""
        return self._modes.tags is not None or self._modes.adapter is not None

    def _check_model(self, body: CommonFields) -> None:
        if body.model != self.settings.model:
            message = f"there is no model {body.model!r}; allowed: {self.settings.model!r}"
            raise ApiError(404, message, "model", "model_not_found")

    def _params(self, body: CommonFields) -> ModeParams:
        """Return each mode's sampling parameters: from the request, the server, the model's file or OpenAI."""
        given = {name: value for name in TOKEN_CHOICE if (value := getattr(body, name)) is not None}
        try:
            return self.engine.generation.params({**self.settings.sampling, **given}, OPENAI)
        except UsageError as error:
            raise of_error(error, error.about) from error

    def _choices(self, request: Request, body: CommonFields) -> list[Request]:
        """Copy the request for each choice; with a seed, each choice gets the next seed."""
        params = request.params
        seeds = [None if params.seed is None else params.seed + number for number in range(body.choices)]
        return [request.again(replace(params, seed=seed), None) for seed in seeds]

    async def constrain(self, requests: Sequence[Request], body: CommonFields) -> None:
        """Attach to each request the constraint on its answer.

        Raises:
            ApiError: the schema cannot be enforced.
        """
        wanted = body.response_format
        if not isinstance(wanted, AsJson | AsSchema):
            return
        try:
            schema = None
            if isinstance(wanted, AsSchema):
                schema = wanted.json_schema.schema_
                if wanted.json_schema.strict:
                    schema = closed(schema)
            constraint = await self.grammars.json(schema)
        except UsageError as error:
            raise of_error(error, "response_format") from error
        for request in requests:
            request.constraint = constraint.copy()
            if request.stop_token_ids:  # a grammar may end with the end token of any mode
                request.stop_token_ids |= self._end_tokens

    def _check_limit(self, request: Request, limit: int | None, name: str) -> None:
        """Raise an error if the answer's limit exceeds what the prompt leaves, rather than cut the answer."""
        if limit is not None and request.max_tokens < limit:
            context = self.engine.verifier.max_tokens
            raise ApiError(
                400,
                f"{name} is {limit}; allowed: at most {request.max_tokens}, which the prompt leaves of the context's "
                f"{context} tokens. Request fewer, or shorten the prompt",
                name,
                "context_length_exceeded",
            )

    def _message(self, message: Message) -> dict[str, str]:
        """Convert a message for chat templates: plain text, and ``developer`` as ``system`` where it is unknown."""
        content = message.content
        if not isinstance(content, str):
            content = "".join(part.text for part in content or [])
        role = message.role
        if role == "developer" and "developer" not in str(self._tokenizer.chat_template):
            role = "system"
        if getattr(message, "tool_call_id", None) is not None and not self._template_reads("tool_call_id"):
            fault = "messages: this model's chat template does not read tool_call_id: leave it out"
            raise ApiError(400, fault, "messages", "unsupported_parameter")
        names = ("name", "tool_call_id", "reasoning_content")
        more = {name: getattr(message, name, None) for name in names}
        return {"role": role, "content": content} | {k: v for k, v in more.items() if v is not None}

    def _template_reads(self, name: str) -> bool:
        """Whether a chat template reads the message field ``name``."""
        return any(re.search(rf"""\.{name}\b|['"]{name}['"]""", one) for one in self._templates)

    def _template_arguments(self, arguments: Mapping[str, Any]) -> Mapping[str, Any]:
        """Validate template arguments: raise an error for those that would be ignored or are reserved."""
        for name, value in arguments.items():
            param = f"chat_template_kwargs.{name}"
            if name in _reserved():
                raise ApiError(
                    400, f"{param} is reserved for the server: leave it out", param, "unsupported_parameter"
                )
            if name == SWITCH and not isinstance(value, bool):
                raise ApiError(400, f"{param} is {value!r}; allowed: true, false", param, "invalid_value")
            if name not in self._variables and not (name == SWITCH and self._modes.adapter is not None):
                takes = ", ".join(sorted(self._variables - _reserved())) or "none"
                message = f"this model's chat template does not read {name}; allowed: {takes}"
                raise ApiError(400, message, param, "unknown_parameter")
        return arguments

    @cached_property
    def _variables(self) -> frozenset[str]:
        """The variables that the chat templates of both modes read."""
        return frozenset(name for template in self._templates for name in template_variables(template))

    @cached_property
    def _templates(self) -> list[str]:
        return self._modes.templates


def thinking_of(body: ChatRequest, default: Reasoning) -> Reasoning:
    """Choose how much to reason; a template argument overrides the request's effort, which overrides the default.

    Args:
        body: the client's request.
        default: used where the request says nothing.

    Raises:
        ApiError: the request contradicts itself.
    """
    wanted = (body.chat_template_kwargs or {}).get(SWITCH)
    if wanted is None and body.effort is None and body.budget is None:
        return default
    effort = default.effort if body.effort is None else body.effort
    if wanted is False:
        effort = "none"
    elif effort == "xhigh":
        effort = None
    if (wanted is True and (effort in FAST_EFFORTS or effort in DECIDING)) or (
        body.effort is None and body.budget is not None and effort in FAST_EFFORTS
    ):
        effort = None
    budget = body.budget
    if budget is None and effort is None and body.effort is None:
        budget = default.budget
    try:
        return Reasoning(
            effort,
            budget,
            closing=default.closing if budget is not None or effort in ("low", "medium", "high") else None,
            scorer=default.scorer if effort == "auto" else "probe",
            threshold=default.threshold if effort == default.effort else None,
        )
    except UsageError as error:
        raise of_error(error, _parameter_of(body, error)) from error


def template_variables(template: str) -> set[str]:
    """Return the variables that a chat template reads and does not define."""
    environment = Environment(extensions=["jinja2.ext.loopcontrols"])
    source = _GENERATION.sub("", template)
    try:
        return set(meta.find_undeclared_variables(environment.parse(source)))
    except TemplateError:
        return {SWITCH} if SWITCH in template else set()


def _reserved() -> frozenset[str]:
    """Return the names that the code around a template sets, or that would change how it runs."""
    options = set(signature(PreTrainedTokenizerFast.apply_chat_template).parameters)
    return _RESERVED | options | set(PreTrainedTokenizerFast.SPECIAL_TOKENS_ATTRIBUTES)


def _parameter_of(body: ChatRequest, error: JustrightError) -> str:
    """Return the parameter, as the client named it, that an error of `LLM.conversation` is about."""
    about = error.about if isinstance(error, UsageError) else None
    if about == "budget":
        return "thinking_budget"
    if about == "effort":
        by_template = body.effort is None and SWITCH in (body.chat_template_kwargs or {})
        return f"chat_template_kwargs.{SWITCH}" if by_template else "reasoning_effort"
    return "messages"
