"""Maps the effort that a client requests to the parameters of vLLM, SGLang or llama.cpp.

The gateway and vLLM's middleware share it. vLLM and SGLang select an adapter by model name, llama.cpp by a scale for
each adapter. Only requests are mapped, and only what decides the mode; the server validates the rest.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NamedTuple, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from justright.errors import UsageError
from justright.reasoning.effort import FAST_EFFORTS, SHARES, AskedEffort
from justright.reasoning.routing import RoutingDecision
from justright.reasoning.scorers import Heuristic, Scorer
from justright.serve.api_errors import ApiError, of_validation
from justright.serve.protocol import agreed

Kind = Literal["vllm", "sglang", "llama.cpp"]
KINDS: tuple[Kind, ...] = get_args(Kind)
EFFORTS = (*(effort for effort in get_args(AskedEffort) if effort != "escalate"), "max")
"""Efforts that a client may request; `escalate` needs the probabilities of a whole answer before showing any of it."""

CHAT, COMPLETION = "/v1/chat/completions", "/v1/completions"
SWITCH = "enable_thinking"
"""The chat template argument that turns reasoning off; it selects the mode in a template with two modes."""

M = TypeVar("M", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class Upstream:
    """A server that receives mapped requests.

    Attributes:
        kind: one of `KINDS`.
        model: name of its model, which clients request; slow.
        fast: adapter of the fast mode: its name, or its id for llama.cpp; None: the chat template alone.
        adapters: llama.cpp's ids of all adapters.
        budgets: whether it can end reasoning at a budget (vLLM with a reasoning config).
        has_fast: whether there is a fast mode: an adapter, or a template that turns reasoning off.
        reasons: whether the model may reason; if not, the efforts `none` and `minimal` change nothing.
        end_tokens: token ids that end a fast answer, besides those that the server knows (vLLM only).
    """

    kind: Kind
    model: str
    fast: str | int | None = None
    adapters: tuple[int, ...] = ()
    budgets: bool = False
    has_fast: bool = True
    reasons: bool = True
    end_tokens: tuple[int, ...] = ()

    @property
    def fast_model(self) -> str:
        """The model name that requests the fast mode."""
        if self.kind == "llama.cpp" or self.fast is None:
            return self.model
        # SGLang takes any name without a colon for the base model.
        return f"{self.model}:{self.fast}" if self.kind == "sglang" else str(self.fast)

    def modes_of(self, model: Any) -> tuple[str, ...]:
        """Return the modes of a requested model: both, only fast, or none if it is another model."""
        if self.kind == "llama.cpp" or model in (None, self.model):  # llama.cpp has one model
            return ("slow", "fast")
        return ("fast",) if model == self.fast_model else ()

    def summary(self) -> str:
        """Return a one-line description."""
        if not self.has_fast:
            why = (
                f"slow only: no adapter, and no {SWITCH} in its template" if self.reasons else "never reasons"
            )
            return f"{self.kind}: {self.model}, {why}"
        if self.fast is None:
            return f"{self.kind}: {self.model}, fast by its chat template: no adapter"
        fast = f"with adapter {self.fast}" if self.kind == "llama.cpp" else f"is {self.fast_model}"
        return f"{self.kind}: slow is {self.model}, fast {fast}"


@dataclass(frozen=True, slots=True)
class Policy:
    """Defaults for requests that leave the mode open, and the scorer for `auto`.

    Attributes:
        effort: one of `EFFORTS`; None: the model's own default.
        scorer: scores prompts without hidden states.
        threshold: replaces the scorer's own threshold.
    """

    effort: str | None = None
    scorer: Scorer | None = None
    threshold: float | None = None

    def __post_init__(self) -> None:
        if self.effort is not None and self.effort not in EFFORTS:
            raise UsageError(f"the default effort is {self.effort!r}; allowed: {', '.join(EFFORTS)}")

    def decide(self, prompt: str) -> RoutingDecision:
        """Choose slow if ``prompt`` scores above the threshold."""
        scorer = self.scorer or Heuristic()
        threshold = scorer.threshold if self.threshold is None else self.threshold
        score = float(scorer.score(prompt, None))
        hard = score > threshold
        reason = f"{scorer.name} score {score:.3f}, {'above' if hard else 'at most'} {threshold:.3f}"
        return RoutingDecision("slow" if hard else "fast", scorer.name, score, threshold, reason)


class UpstreamRequest(NamedTuple):
    """A body for the server, with the mode and its reason; None: the request is for another model."""

    body: dict[str, Any]
    decision: RoutingDecision | None = None


def mapped(path: str, content: bytes, upstream: Upstream, policy: Policy) -> tuple[bytes, dict[str, str]]:
    """Return the body to send and the response headers; a body that is not a JSON object passes to the server's check.

    Args:
        path: `CHAT` or `COMPLETION`.
        content: the client's body.
        upstream: the server.
        policy: defaults for what the request leaves open.

    Raises:
        ApiError: see `chat` and `completion`.
    """
    try:
        body = json.loads(content)
    except (ValueError, RecursionError):  # UnicodeDecodeError is a ValueError
        return content, {}
    if not isinstance(body, dict):
        return content, {}
    sent, decision = chat(body, upstream, policy) if path == CHAT else completion(body, upstream)
    if decision is None:
        return content, {}
    headers = {"X-Justright-Mode": decision.mode, "X-Justright-Reason": decision.reason}
    return json.dumps(sent).encode(), headers


def chat(body: Mapping[str, Any], upstream: Upstream, policy: Policy) -> UpstreamRequest:
    """Map a chat request; a template argument overrides the effort, which overrides the default.

    Args:
        body: the client's body.
        upstream: the server.
        policy: defaults for what the request leaves open.

    Raises:
        ApiError: an effort is unknown or unavailable, or arguments have a wrong type or contradict each other.
    """
    requested = _read(_Chat, body)
    nested, template_kwargs = (
        requested.reasoning or _Reasoning(),
        requested.chat_template_kwargs or _Template(),
    )
    thinks = template_kwargs.enable_thinking
    effort = agreed({"reasoning_effort": requested.reasoning_effort, "reasoning.effort": nested.effort})
    budget = agreed(
        {
            "thinking_budget": requested.thinking_budget,
            "reasoning.max_tokens": nested.max_tokens,
            "thinking_token_budget": requested.thinking_token_budget,
        }
    )
    if effort == "escalate":
        message = "effort escalate needs the whole fast answer first, as only the embedded engine has it: request auto"
        raise ApiError(400, message, "reasoning_effort", "unsupported_value")
    modes = upstream.modes_of(body.get("model"))
    if "slow" not in modes and (effort == "auto" or (modes and (effort in SLOW_EFFORTS or thinks))):
        message = (
            f"the model {body['model']!r} has one mode: request {upstream.model!r}, or leave the effort out"
        )
        raise ApiError(400, message, "model", "invalid_value")
    if not modes:
        return UpstreamRequest(dict(body))
    decision = _decision(body, effort, budget, thinks, policy) if "slow" in modes else _BY_NAME
    if decision.mode == "fast" and budget is not None and decision.by in ("effort", "template", "model"):
        message = f"{decision.reason}, which does not reason: leave the budget out"
        raise ApiError(400, message, "thinking_budget", "invalid_value")
    by_score = decision.score is not None
    if not upstream.has_fast and (by_score or (decision.mode == "fast" and upstream.reasons)):
        message = (
            f"{upstream.model} is served without a switch, so it has one mode only: leave the effort out "
            f"({decision.reason})"
        )
        raise ApiError(400, message, "reasoning_effort", "unsupported_value")
    sent = _without_auto(body)
    if decision.mode == "slow":
        sent |= _budget(body, effort, budget, upstream)
    elif upstream.has_fast:
        template = dict(sent.get("chat_template_kwargs") or {})
        if template.get(SWITCH) is None:
            template[SWITCH] = False
        sent["chat_template_kwargs"] = template
    return UpstreamRequest(_addressed(sent, decision.mode, upstream), decision)


def completion(body: Mapping[str, Any], upstream: Upstream) -> UpstreamRequest:
    """Map a plain completion: slow unless it names the fast model.

    Raises:
        ApiError: the request has an effort or a budget, which only chats may have.
    """
    for name in ("reasoning_effort", "reasoning", "thinking_budget"):
        if body.get(name) is not None:
            message = f"{name} is for chats: leave it out, or use {CHAT}"
            raise ApiError(400, message, name, "unsupported_parameter")
    modes = upstream.modes_of(body.get("model"))
    if not modes:
        return UpstreamRequest(dict(body))
    decision = _decided("slow", "default", "a plain completion") if "slow" in modes else _BY_NAME
    return UpstreamRequest(_addressed(dict(body), decision.mode, upstream), decision)


SLOW_EFFORTS = frozenset(EFFORTS) - FAST_EFFORTS - {"auto"}


def _decided(mode: str, by: str, reason: str) -> RoutingDecision:
    return RoutingDecision(mode, by, None, None, reason)


_BY_NAME = _decided("fast", "model", "the requested model is the fast mode")


class _Lenient(BaseModel):
    """The fields that decide the mode; the server validates everything else."""

    model_config = ConfigDict(strict=True)


_Effort = Literal[AskedEffort, "max"]
_Tokens = Annotated[int, Field(ge=0)]


class _Reasoning(_Lenient):
    effort: _Effort | None = None
    max_tokens: _Tokens | None = None


class _Template(_Lenient):
    enable_thinking: bool | None = None


class _Chat(_Lenient):
    reasoning_effort: _Effort | None = None
    reasoning: _Reasoning | None = None
    thinking_budget: _Tokens | None = None
    thinking_token_budget: _Tokens | None = None
    chat_template_kwargs: _Template | None = None


class _Scale(_Lenient):
    model_config = ConfigDict(strict=True, extra="forbid")
    id: int
    scale: float


class _Scales(_Lenient):
    lora: list[_Scale] | None = None


def _read(kind: type[M], body: Mapping[str, Any]) -> M:
    try:
        return kind.model_validate(dict(body))
    except ValidationError as error:
        raise of_validation(error, body) from error


def _decision(
    body: Mapping[str, Any], effort: str | None, budget: int | None, thinks: bool | None, policy: Policy
) -> RoutingDecision:
    """Choose the mode by the template argument, the effort, the budget or the default."""
    if thinks is not None:
        return _decided("slow" if thinks else "fast", "template", f"{SWITCH} is {str(thinks).lower()}")
    if effort is None and budget is not None:
        return _decided("slow", "budget", f"a budget of {budget} reasoning tokens")
    by, wanted = ("default", policy.effort) if effort is None else ("effort", effort)
    if wanted == "auto":
        return policy.decide(_last_question(body))
    reason = "the model's own behaviour" if wanted is None else f"effort {wanted}"
    return _decided("fast" if wanted in FAST_EFFORTS else "slow", by, reason)


def _without_auto(body: Mapping[str, Any]) -> dict[str, Any]:
    """Remove the effort `auto`, which no server knows; other efforts stay, since templates may read them."""
    sent = dict(body)
    if sent.get("reasoning_effort") == "auto":
        del sent["reasoning_effort"]
    if (nested := dict(sent.get("reasoning") or {})).get("effort") == "auto":
        del nested["effort"], sent["reasoning"]
        sent |= {"reasoning": nested} if nested else {}
    return sent


def _budget(
    body: Mapping[str, Any], effort: str | None, budget: int | None, upstream: Upstream
) -> dict[str, Any]:
    """Return the reasoning budget in the server's parameters.

    Raises:
        ApiError: the server has no parameter for it.
    """
    if budget is not None and upstream.kind != "vllm":
        message = f"the {upstream.kind} server of this gateway has no reasoning budget: request an effort"
        raise ApiError(400, message, "thinking_budget", "unsupported_parameter")
    if budget is None and upstream.budgets and effort is not None and effort in SHARES:
        limit = body.get("max_completion_tokens") or body.get("max_tokens")
        if isinstance(limit, int) and limit > 0:
            budget = max(1, int(SHARES[effort] * limit))
    return {} if budget is None else {"thinking_token_budget": budget}


def _addressed(sent: dict[str, Any], mode: str, upstream: Upstream) -> dict[str, Any]:
    """Set the mode's model and end tokens, or llama.cpp's scale of every adapter; the client's scales win.

    Without explicit zeros, llama.cpp reuses KV cache entries that another adapter computed.
    """
    if upstream.kind == "llama.cpp":
        fast = upstream.fast if mode == "fast" else None
        scales = {number: float(number == fast) for number in upstream.adapters}
        scales |= {one.id: one.scale for one in _read(_Scales, sent).lora or ()}
        return sent | {"lora": [{"id": number, "scale": scale} for number, scale in scales.items()]}
    sent["model"] = upstream.fast_model if mode == "fast" else upstream.model
    given, ends = sent.get("stop_token_ids") or [], upstream.end_tokens if mode == "fast" else ()
    if ends and isinstance(given, list) and sent.get("ignore_eos") is not True:
        sent["stop_token_ids"] = [*given, *(token for token in ends if token not in given)]
    return sent


def _last_question(body: Mapping[str, Any]) -> str:
    """Return the text of the last user message."""

    def objects(value: Any) -> list[Mapping[str, Any]]:
        return [one for one in value if isinstance(one, Mapping)] if isinstance(value, list) else []

    users = [one for one in objects(body.get("messages")) if one.get("role") == "user"]
    content = users[-1].get("content") if users else ""
    parts = [part.get("text") for part in objects(content)] or [content]
    return "".join(part for part in parts if isinstance(part, str))
