"""From what a client asks to the engine's requests; slow for long prompts, so not for the event loop."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from inspect import signature
from typing import Any, get_args

from jinja2 import Environment, TemplateError, meta
from transformers import PreTrainedTokenizerFast

from justright.engine.chat_modes import Reasoning
from justright.engine.generation import ModeParams
from justright.engine.llm import LLM
from justright.engine.request import Request
from justright.engine.sampler import TOKEN_CHOICE
from justright.errors import JustrightError, UsageError
from justright.reasoning.effort import DECIDING, FAST_EFFORTS, AskedEffort
from justright.serve.api_errors import ApiError, of_error
from justright.serve.constraint import Grammars
from justright.serve.protocol import AsJson, Asked, AsSchema, ChatRequest, CompletionRequest, Message
from justright.serve.server_settings import OPENAI, ServeSettings
from justright.serve.strict_schema import closed

_OPENAI_COMPLETION = 16
"""``max_tokens`` of a completion that does not say it, as OpenAI has it."""
_SWITCH = "enable_thinking"
_GENERATION = re.compile(r"\{%-?\s*(end)?generation\s*-?%\}")
"""transformers' own mark of what an assistant says, which changes no text."""
_OURS = frozenset(
    {"messages", "conversation", "self", "raise_exception", "strftime_now", "tools", "documents"}
)


class Asking:
    """Makes requests for one engine.

    Args:
        engine: only looked at.
        settings: what holds where a request says nothing.
    """

    def __init__(self, engine: LLM, settings: ServeSettings) -> None:
        assert engine.tokenizer is not None
        assert engine.modes is not None
        self.engine, self.settings = engine, settings
        self._tokenizer: PreTrainedTokenizerFast = engine.tokenizer
        self._modes = engine.modes
        adapter = engine.modes.adapter
        self._ends = engine.stop_token_ids | (frozenset() if adapter is None else adapter.end_tokens)
        vocab_size = engine.verifier.config.vocab_size
        self.grammars = Grammars(engine.tokenizer, vocab_size, self._ends)

    def chat(self, asked: ChatRequest) -> Iterator[list[Request]]:
        """The requests of a chat, one a choice; one list.

        Raises:
            ApiError: what cannot be done, and by which parameter.
        """
        self._check_model(asked)
        template = self._template_arguments(asked.chat_template_kwargs or {})
        thinking = thinking_of(asked, self.settings.thinking)
        if asked.effort is not None and not self._thinks and asked.effort not in FAST_EFFORTS | DECIDING:
            message = f"effort {asked.effort}: this model marks no thoughts, and has no switch: leave it out"
            raise ApiError(400, message, "reasoning_effort", "invalid_value")
        messages = [self._message(message) for message in asked.messages]
        params = self._params(asked)
        try:
            request = self.engine.conversation(
                messages,
                params,
                thinking=thinking,
                template=template,
                max_tokens=asked.limit or self.settings.max_tokens,
                stop=asked.stops,
                stop_in_reasoning=asked.stop_in_reasoning,
            )
        except JustrightError as error:
            raise of_error(error, _at_fault(asked, error)) from error
        except (TemplateError, TypeError, ValueError, AttributeError, KeyError, IndexError) as error:
            message = f"the model's chat template cannot write this conversation: {error}"
            raise ApiError(400, message, "messages", "invalid_value") from error
        name = "max_tokens" if asked.max_completion_tokens is None else "max_completion_tokens"
        self._check_limit(request, asked.limit, name)
        request.top_logprobs = asked.likeliest
        yield self._choices(request, asked)

    def completion(self, asked: CompletionRequest) -> Iterator[list[Request]]:
        """The requests of a completion, prompt by prompt: a list of its choices for each.

        Raises:
            ApiError: what cannot be done, and by which parameter.
        """
        self._check_model(asked)
        params = self._params(asked)
        for prompt in asked.prompts:
            try:
                request = self.engine.request(
                    prompt, params, max_tokens=asked.max_tokens or _OPENAI_COMPLETION, stop=asked.stops
                )
            except JustrightError as error:
                raise of_error(error, "prompt") from error
            self._check_limit(request, asked.max_tokens, "max_tokens")
            request.top_logprobs = asked.logprobs
            yield self._choices(request, asked)

    @cached_property
    def efforts(self) -> list[str]:
        """The efforts that this model can have."""
        return [effort for effort in get_args(AskedEffort) if self._can(effort)]

    def _can(self, effort: str) -> bool:
        scorer = self.settings.thinking.scorer if effort == "auto" else "probe"
        try:
            hidden_size = self.engine.verifier.config.hidden_size
            self._modes.check(Reasoning(None if effort == "xhigh" else effort, scorer=scorer), hidden_size)
        except UsageError:
            return False
        return self._modes.reasons

    @property
    def _thinks(self) -> bool:
        return self._modes.tags is not None or self._modes.adapter is not None

    def _check_model(self, asked: Asked) -> None:
        if asked.model != self.settings.model:
            message = f"there is no model {asked.model!r} here; there is {self.settings.model!r}"
            raise ApiError(404, message, "model", "model_not_found")

    def _params(self, asked: Asked) -> ModeParams:
        """How tokens are chosen in each mode: by the request, else the server, else the model's file, else OpenAI."""
        given = {name: value for name in TOKEN_CHOICE if (value := getattr(asked, name)) is not None}
        try:
            return self.engine.generation.params({**self.settings.sampling, **given}, OPENAI)
        except UsageError as error:
            raise of_error(error, error.about) from error

    def _choices(self, request: Request, asked: Asked) -> list[Request]:
        """A request for each choice; with a seed, the choices count up from it."""
        params = request.params
        seeds = [None if params.seed is None else params.seed + number for number in range(asked.choices)]
        return [request.again(replace(params, seed=seed), None) for seed in seeds]

    async def constrain(self, requests: Sequence[Request], asked: Asked) -> None:
        """Give each request what its answer has to keep.

        Raises:
            ApiError: a schema that cannot be kept.
        """
        wanted = asked.response_format
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
            if request.stop_token_ids:  # a grammar may end with any mode's end token
                request.stop_token_ids |= self._ends

    def _check_limit(self, request: Request, limit: int | None, name: str) -> None:
        """Refuse an answer that is longer than what the prompt leaves, rather than cut it."""
        if limit is not None and request.max_tokens < limit:
            context = self.engine.verifier.max_tokens
            raise ApiError(
                400,
                f"{name} is {limit}, and of the context's {context} tokens the prompt leaves {request.max_tokens}: "
                "ask for less, or shorten the prompt",
                name,
                "context_length_exceeded",
            )

    def _message(self, message: Message) -> dict[str, str]:
        """A message as chat templates take it: plain text, and developers are the system where none are known."""
        content = message.content
        if not isinstance(content, str):
            content = "".join(part.text for part in content or [])
        role = message.role
        if role == "developer" and "developer" not in str(self._tokenizer.chat_template):
            role = "system"
        if getattr(message, "tool_call_id", None) is not None and not self._reads("tool_call_id"):
            fault = "messages: this model's chat template has no place for tool_call_id: leave it out"
            raise ApiError(400, fault, "messages", "unsupported_parameter")
        names = ("name", "tool_call_id", "reasoning_content")
        more = {name: getattr(message, name, None) for name in names}
        return {"role": role, "content": content} | {k: v for k, v in more.items() if v is not None}

    def _reads(self, name: str) -> bool:
        """Whether a chat template reads what a message calls ``name``."""
        return any(re.search(rf"""\.{name}\b|['"]{name}['"]""", one) for one in self._templates)

    def _template_arguments(self, arguments: Mapping[str, Any]) -> Mapping[str, Any]:
        """Refuse what would be ignored, and what is not the client's to say."""
        for name, value in arguments.items():
            param = f"chat_template_kwargs.{name}"
            if name in _reserved():
                raise ApiError(400, f"{param} is not the client's to say", param, "unsupported_parameter")
            if name == _SWITCH and not isinstance(value, bool):
                raise ApiError(400, f"{param} is {value!r}; allowed: true, false", param, "invalid_value")
            if name not in self._variables and not (name == _SWITCH and self._modes.adapter is not None):
                takes = ", ".join(sorted(self._variables - _reserved())) or "none"
                message = f"this model's chat template takes no {name}; it takes: {takes}"
                raise ApiError(400, message, param, "unknown_parameter")
        return arguments

    @cached_property
    def _variables(self) -> frozenset[str]:
        """What the chat templates of both modes read."""
        return frozenset(name for template in self._templates for name in template_variables(template))

    @cached_property
    def _templates(self) -> list[str]:
        return self._modes.templates


def thinking_of(asked: ChatRequest, default: Reasoning) -> Reasoning:
    """How much to think: an explicit template argument before the request's effort before the server's default.

    Args:
        asked: by the client.
        default: where it says nothing.

    Raises:
        ApiError: a contradiction.
    """
    wanted = (asked.chat_template_kwargs or {}).get(_SWITCH)
    if wanted is None and asked.effort is None and asked.budget is None:
        return default
    effort = default.effort if asked.effort is None else asked.effort
    if wanted is False:
        effort = "none"
    elif effort == "xhigh":
        effort = None
    if (wanted is True and (effort in FAST_EFFORTS or effort in DECIDING)) or (
        asked.effort is None and asked.budget is not None and effort in FAST_EFFORTS
    ):
        effort = None
    budget = asked.budget
    if budget is None and effort is None and asked.effort is None:
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
        raise of_error(error, _at_fault(asked, error)) from error


def template_variables(template: str) -> set[str]:
    """What a chat template reads that somebody must give it."""
    environment = Environment(extensions=["jinja2.ext.loopcontrols"])
    source = _GENERATION.sub("", template)
    try:
        return set(meta.find_undeclared_variables(environment.parse(source)))
    except TemplateError:
        return {_SWITCH} if _SWITCH in template else set()


def _reserved() -> frozenset[str]:
    """What the code around a template says, or could be told to do."""
    options = set(signature(PreTrainedTokenizerFast.apply_chat_template).parameters)
    return _OURS | options | set(PreTrainedTokenizerFast.SPECIAL_TOKENS_ATTRIBUTES)


def _at_fault(asked: ChatRequest, error: JustrightError) -> str:
    """The parameter that an error of `LLM.conversation` is about, by the name that the client used."""
    about = error.about if isinstance(error, UsageError) else None
    if about == "budget":
        return "thinking_budget"
    if about == "effort":
        by_template = asked.effort is None and _SWITCH in (asked.chat_template_kwargs or {})
        return f"chat_template_kwargs.{_SWITCH}" if by_template else "reasoning_effort"
    return "messages"
