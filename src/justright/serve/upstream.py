"""From what a client asks to what a server that runs already understands: effort and `auto` as a choice of adapter.

vLLM and SGLang take an adapter by the name of a model, llama.cpp by a scale for each adapter. Nothing else of a request
changes: what such a server does not know, it refuses or ignores as it always does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from justright.errors import UsageError
from justright.reasoning.effort import FAST_EFFORTS, SHARES, AskedEffort
from justright.reasoning.routing import Decision
from justright.reasoning.scorers import Heuristic, Scorer
from justright.serve.api_errors import ApiError

Kind = Literal["vllm", "sglang", "llama.cpp"]
KINDS: tuple[Kind, ...] = get_args(Kind)
EFFORTS = (*(effort for effort in get_args(AskedEffort) if effort != "escalate"), "max")
"""What a client may ask for; `escalate` needs the probabilities of a whole answer before any of it is shown."""

SWITCH = "enable_thinking"
"""The argument of chat templates that leaves a thought out; in a template of two modes it chooses one."""


@dataclass(frozen=True, slots=True)
class Upstream:
    """A server that runs already.

    Attributes:
        kind: whose it is.
        model: the name of its model, which clients ask for; slow.
        fast: the adapter of the fast mode: its name, for llama.cpp its id; None: the chat template alone.
        adapters: llama.cpp's ids of all adapters.
        budgets: whether it was set up to end thoughts (vLLM with a reasoning config).
        has_fast: whether there is a fast mode: an adapter, or a template that leaves thoughts out.
    """

    kind: Kind
    model: str
    fast: str | int | None = None
    adapters: tuple[int, ...] = ()
    budgets: bool = False
    has_fast: bool = True

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise UsageError(f"a server of the kind {self.kind!r}; allowed: {', '.join(KINDS)}")
        if self.kind == "llama.cpp" and self.fast is not None and self.fast not in self.adapters:
            there = ", ".join(map(str, self.adapters)) or "none"
            raise UsageError(f"the server has no adapter {self.fast!r}; it has: {there}")

    @property
    def fast_model(self) -> str:
        """By what name the fast mode is asked for."""
        if self.kind == "llama.cpp" or self.fast is None:
            return self.model
        # SGLang takes a name without a colon for that of the base model, whatever it is.
        return f"{self.model}:{self.fast}" if self.kind == "sglang" else str(self.fast)

    def told(self) -> str:
        """In a line."""
        if not self.has_fast:
            return f"{self.kind}: {self.model}, without an adapter and a template that knows no {SWITCH}: slow only"
        if self.fast is None:
            return f"{self.kind}: {self.model}, without an adapter: fast by its chat template alone"
        fast = f"with adapter {self.fast}" if self.kind == "llama.cpp" else f"is {self.fast_model}"
        return f"{self.kind}: slow is {self.model}, fast {fast}"


@dataclass(frozen=True, slots=True)
class Policy:
    """What holds where a request says nothing, and who decides for `auto`.

    Attributes:
        effort: of `EFFORTS`; None: as the model does by itself.
        scorer: of prompts; one that needs no hidden state.
        threshold: instead of the scorer's own.
    """

    effort: str | None = None
    scorer: Scorer | None = None
    threshold: float | None = None

    def __post_init__(self) -> None:
        if self.effort is not None and self.effort not in EFFORTS:
            raise UsageError(f"effort {self.effort!r} by default; allowed: {', '.join(EFFORTS)}")

    def decide(self, prompt: str) -> Decision:
        """Slow if ``prompt`` scores above the threshold."""
        scorer = self.scorer or Heuristic()
        threshold = scorer.threshold if self.threshold is None else self.threshold
        score = float(scorer.score(prompt, None))
        hard = score > threshold
        reason = f"{scorer.name} says {score:.3f}, {'above' if hard else 'at most'} {threshold:.3f}"
        return Decision("slow" if hard else "fast", scorer.name, score, threshold, reason)


@dataclass(frozen=True, slots=True)
class Mapped:
    """A request for the server, and why.

    Attributes:
        body: to send.
        decision: of the mode; None: the request is for another model, and went through as it was.
    """

    body: dict[str, Any] = field(default_factory=dict)
    decision: Decision | None = None

    @property
    def headers(self) -> dict[str, str]:
        """For the answer: who answers, and why."""
        if self.decision is None:
            return {}
        return {"X-Justright-Mode": self.decision.mode, "X-Justright-Reason": self.decision.reason}


def chat(body: Mapping[str, Any], upstream: Upstream, policy: Policy) -> Mapped:
    """A chat request for ``upstream``: an explicit template argument before the effort before the default.

    Args:
        body: as the client sent it.
        upstream: where it goes.
        policy: where it says nothing.

    Raises:
        ApiError: an effort that is none or cannot be had, arguments of a wrong type or that contradict each other.
    """
    effort, budget = _effort(body), _budget(body)
    if not _ours(body, upstream):
        if effort == "auto":
            message = f"effort auto is for the model {upstream.model!r}: {body['model']!r} has one mode"
            raise ApiError(400, message, "reasoning_effort", "invalid_value")
        return Mapped(dict(body))
    decision = _decision(body, effort, budget, policy)
    if decision.mode == "fast" and budget is not None and decision.by in ("effort", "template"):
        message = f"{decision.reason}, which does not think: leave the budget out"
        raise ApiError(400, message, "thinking_budget", "invalid_value")
    if not upstream.has_fast and (decision.mode == "fast" or decision.score is not None):
        message = f"{decision.reason}, and {upstream.model} has one mode: it was served without a switch"
        raise ApiError(400, message, "reasoning_effort", "unsupported_value")
    sent = _without_auto(body)
    template = dict(sent.get("chat_template_kwargs") or {})
    if decision.mode == "fast":
        template.setdefault(SWITCH, False)
    if template:
        sent["chat_template_kwargs"] = template
    if decision.mode == "slow":
        sent |= _thought(body, effort, budget, upstream)
    return Mapped(_placed(sent, decision.mode, upstream), decision)


def completion(body: Mapping[str, Any], upstream: Upstream) -> Mapped:
    """A plain completion for ``upstream``: slow, as nothing says how a text without a template is to be thought about.

    Raises:
        ApiError: an effort or a budget, which are for chats.
    """
    for name in ("reasoning_effort", "reasoning", "thinking_budget"):
        if body.get(name) is not None:
            message = f"{name} is for chats: leave it out, or use /v1/chat/completions"
            raise ApiError(400, message, name, "unsupported_parameter")
    _refuse_extras(body)
    if not _ours(body, upstream):
        return Mapped(dict(body))
    decision = Decision("slow", "default", None, None, "a plain completion")
    return Mapped(_placed(dict(body), "slow", upstream), decision)


def _ours(body: Mapping[str, Any], upstream: Upstream) -> bool:
    """Whether a request is for the model that has two modes; a server of one model (llama.cpp) has no other."""
    return upstream.kind == "llama.cpp" or body.get("model") in (None, upstream.model)


def _decision(body: Mapping[str, Any], effort: str | None, budget: int | None, policy: Policy) -> Decision:
    """Who says which mode: the template argument, the effort, the budget, the default."""
    switch = _template(body).get(SWITCH)
    if switch is not None:
        mode = "slow" if switch else "fast"
        return Decision(mode, "template", None, None, f"{SWITCH} is {str(switch).lower()}")
    by = "effort" if effort is not None else "default"
    if effort is None and budget is not None:
        return Decision("slow", "budget", None, None, f"a budget of {budget} tokens of thought")
    wanted = policy.effort if effort is None else effort
    if wanted == "auto":
        return policy.decide(_last_question(body))
    mode = "fast" if wanted in FAST_EFFORTS else "slow"
    return Decision(
        mode, by, None, None, "as the model does by itself" if wanted is None else f"effort {wanted}"
    )


def _effort(body: Mapping[str, Any]) -> str | None:
    """What the client asks for, under either name."""
    _refuse_extras(body)
    reasoning = body.get("reasoning")
    if reasoning is not None and not isinstance(reasoning, Mapping):
        raise ApiError(
            400, f"reasoning is {_shown(reasoning)}; allowed: an object", "reasoning", "invalid_value"
        )
    found = {
        "reasoning_effort": body.get("reasoning_effort"),
        "reasoning.effort": (reasoning or {}).get("effort"),
    }
    given = {name: value for name, value in found.items() if value is not None}
    for name, value in given.items():
        if value == "escalate":
            message = (
                "effort escalate needs the whole fast answer and its probabilities before anything is shown, which "
                "only the embedded engine has (justright serve): ask for auto"
            )
            raise ApiError(400, message, name, "unsupported_value")
        if not isinstance(value, str) or value not in EFFORTS:
            message = f"{name} is {_shown(value)}; allowed: {', '.join(EFFORTS)}"
            raise ApiError(400, message, name, "invalid_value")
    _agree(given)
    return next(iter(given.values()), None)


def _budget(body: Mapping[str, Any]) -> int | None:
    """Tokens of thought, under any of its names."""
    reasoning = body.get("reasoning") or {}
    found = {
        "thinking_budget": body.get("thinking_budget"),
        "reasoning.max_tokens": reasoning.get("max_tokens"),
        "thinking_token_budget": body.get("thinking_token_budget"),
    }
    given = {name: value for name, value in found.items() if value is not None}
    for name, value in given.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            message = f"{name} is {_shown(value)}; allowed: a whole number from 0"
            raise ApiError(400, message, name, "invalid_value")
    _agree(given)
    return next(iter(given.values()), None)


def _agree(given: Mapping[str, Any]) -> None:
    """Refuse two names of one thing with two values."""
    if len(set(given.values())) > 1:
        words = " and ".join(f"{name} is {value}" for name, value in given.items())
        raise ApiError(
            400, f"{words}: they mean the same, give one of them", next(iter(given)), "invalid_value"
        )


def _template(body: Mapping[str, Any]) -> Mapping[str, Any]:
    """The template's arguments, checked as far as they decide anything."""
    arguments = body.get("chat_template_kwargs")
    if arguments is None:
        return {}
    if not isinstance(arguments, Mapping):
        message = f"chat_template_kwargs is {_shown(arguments)}; allowed: an object"
        raise ApiError(400, message, "chat_template_kwargs", "invalid_value")
    if not isinstance(arguments.get(SWITCH), bool | None):
        param = f"chat_template_kwargs.{SWITCH}"
        message = f"{param} is {_shown(arguments[SWITCH])}; allowed: true, false"
        raise ApiError(400, message, param, "invalid_value")
    return arguments


def _refuse_extras(body: Mapping[str, Any]) -> None:
    if body.get("justright") is not None:
        message = "justright (trace) is for the embedded engine: another engine does not tell what it drafted"
        raise ApiError(400, message, "justright", "unsupported_parameter")


def _without_auto(body: Mapping[str, Any]) -> dict[str, Any]:
    """A body without the effort `auto`, which no server knows; other efforts stay: templates may read them."""
    sent = dict(body)
    if sent.get("reasoning_effort") == "auto":
        del sent["reasoning_effort"]
    reasoning = sent.get("reasoning")
    if reasoning and reasoning.get("effort") == "auto":
        sent["reasoning"] = {name: value for name, value in reasoning.items() if name != "effort"}
        if not sent["reasoning"]:
            del sent["reasoning"]
    return sent


def _thought(
    body: Mapping[str, Any], effort: str | None, budget: int | None, upstream: Upstream
) -> dict[str, Any]:
    """How long a slow answer may think, in the server's words.

    Raises:
        ApiError: the server has no words for it.
    """
    if budget is None and upstream.budgets and effort is not None and effort in SHARES:
        limit = body.get("max_completion_tokens") or body.get("max_tokens")
        if isinstance(limit, int) and limit > 0:
            return {"thinking_token_budget": max(1, int(SHARES[effort] * limit))}
    if budget is None:
        return {}
    if upstream.kind != "vllm":
        message = (
            f"the {upstream.kind} server behind this gateway knows no budget of thought: ask for an effort"
        )
        raise ApiError(400, message, "thinking_budget", "unsupported_parameter")
    return {"thinking_token_budget": budget}


def _placed(sent: dict[str, Any], mode: str, upstream: Upstream) -> dict[str, Any]:
    """A body addressed to the mode's model, or with a scale for every adapter.

    Without the zeros llama.cpp would go on from keys and values that another adapter made.
    """
    if upstream.kind != "llama.cpp":
        return sent | {"model": upstream.fast_model if mode == "fast" else upstream.model}
    scales = {
        number: 1.0 if mode == "fast" and number == upstream.fast else 0.0 for number in upstream.adapters
    }
    for entry in _scales(sent.get("lora")):
        scales[entry["id"]] = entry["scale"]
    return sent | {"lora": [{"id": number, "scale": scale} for number, scale in scales.items()]}


def _scales(lora: Any) -> Sequence[Mapping[str, Any]]:
    """The client's own scales, which stand.

    Raises:
        ApiError: they are none.
    """
    if lora is None:
        return []
    good = isinstance(lora, list) and all(
        isinstance(entry, Mapping)
        and set(entry) == {"id", "scale"}
        and isinstance(entry["id"], int)
        and isinstance(entry["scale"], int | float)
        for entry in lora
    )
    if not good:
        message = 'lora is a list of {"id": NUMBER, "scale": NUMBER}'
        raise ApiError(400, message, "lora", "invalid_value")
    return list(lora)


def _last_question(body: Mapping[str, Any]) -> str:
    """What the user said last, as text."""
    messages = body.get("messages")
    asked = [m for m in messages if isinstance(m, Mapping)] if isinstance(messages, list) else []
    content = next((m.get("content") for m in reversed(asked) if m.get("role") == "user"), "")
    if isinstance(content, list):
        parts = [part.get("text") for part in content if isinstance(part, Mapping)]
        return "".join(part for part in parts if isinstance(part, str))
    return content if isinstance(content, str) else ""


def _shown(value: Any) -> str:
    """A value for a message, cut where it is long."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
