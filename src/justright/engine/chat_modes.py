"""Builds a request from a conversation and an effort: chat template, plan, and the choice of the mode."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerFast

from justright.adapter.adapter import Adapter
from justright.engine.detokenizer import tokens_within
from justright.engine.request import Request
from justright.errors import UsageError
from justright.reasoning.budget import FAST, SLOW, ModePlan, ThinkingTags, closing_ids
from justright.reasoning.effort import DECIDING, FAST_EFFORTS, SHARES, check_effort
from justright.reasoning.routing import Auto, Escalate, Route, RoutingDecision, Turn
from justright.reasoning.scorers import PROBE, Heuristic, Probe, Scorer

ESCALATE_BELOW = 0.5
"""The default confidence (probability of the least certain token) below which a fast answer is discarded."""


_SWITCH = "enable_thinking"
"""The chat template argument that disables reasoning."""


@dataclass(frozen=True, slots=True)
class Reasoning:
    """How much a request may reason, and what decides it.

    Attributes:
        effort: one of `justright.reasoning.effort.EFFORTS`; None keeps the model's own behaviour.
        budget: reasoning tokens, instead of the effort's share; the closing text is injected when it is used up.
        factor: the adapter scale, instead of the effort's 0 or 1 (soft switching).
        closing: text injected when the budget ends the reasoning, instead of the model's; it may begin the answer
            ("\\n</think>\\nThe answer is"), which a model that goes on reasoning in its answer needs.
        scorer: the scorer for ``auto``: "probe", "heuristic", or a custom one.
        threshold: of the scorer, or of ``escalate``, instead of its own.
    """

    effort: str | None = None
    budget: int | None = None
    factor: float | None = None
    closing: str | None = None
    scorer: str | Scorer = "probe"
    threshold: float | None = None

    def __post_init__(self) -> None:
        if self.effort is not None:
            check_effort(self.effort)
        if self.factor is not None and self.effort is not None:
            raise UsageError(
                "give an effort or an adapter scale (factor), not both: the effort sets the scale"
            )
        if self.budget is not None and self.effort in FAST_EFFORTS:
            raise UsageError(f"effort {self.effort} does not reason: leave out the budget", about="budget")
        if self.scorer != "probe" and self.effort != "auto":
            raise UsageError("a scorer works with effort auto only: leave it out")
        if self.threshold is not None and self.effort not in DECIDING:
            raise UsageError("a threshold works with efforts auto and escalate only: leave it out")
        if isinstance(self.scorer, str) and self.scorer not in ("probe", "heuristic"):
            raise UsageError(
                f"scorer {self.scorer!r}; allowed: probe, heuristic, or an object with a score method"
            )
        self.plan(1)  # validates the numbers

    def plan(self, max_tokens: int) -> ModePlan:
        """The plan for ``max_tokens`` tokens, reasoning included; the slow one if the effort decides later."""
        if self.effort in FAST_EFFORTS:
            return ModePlan(FAST)
        budget, share = self.budget, SHARES.get(self.effort or "")
        if budget is None and share is not None:
            budget = max(1, int(share * max_tokens))
        return ModePlan(SLOW if self.factor is None else self.factor, budget)


class RequestBuilder:
    """Builds requests in a model's slow and fast modes.

    Args:
        tokenizer: with the slow model's chat template.
        adapter: the adapter of the fast mode; without one, a fast mode exists only if the template can disable
            reasoning.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, adapter: Adapter | None) -> None:
        self.tokenizer, self.adapter = tokenizer, adapter
        self.tags = ThinkingTags.of(tokenizer)
        self._slow_tokens = None if adapter is None else _mean_slow_tokens(adapter)
        self._probe: Probe | None = None
        if adapter is not None and "thinking" in adapter.settings:
            self.tags = ThinkingTags(**adapter.settings["thinking"])

    def request(
        self,
        messages: Sequence[Mapping[str, str]],
        thinking: Reasoning,
        template: Mapping[str, Any],
        settle: Callable[..., Request],
        hidden_size: int,
        limit: int | None = None,
    ) -> Request:
        """The request for a conversation; ``settle(prompt, fast=...)`` validates a prompt and builds a request.

        ``limit``: the maximum number of prompt tokens, as in `tokens_within`.

        Raises:
            UsageError: the model has no fast mode, or no reasoning to limit.
        """
        effort = thinking.effort
        self.check(thinking, hidden_size)
        if effort not in DECIDING:
            fast = effort in FAST_EFFORTS or (thinking.factor or SLOW) >= FAST
            request = self._settled(messages, template, thinking, settle, fast=fast, limit=limit)
            plan = thinking.plan(request.max_tokens)
            if self.adapter is None and fast:
                plan = replace(plan, factor=SLOW)  # the template alone disables the reasoning
            self._end_as(request, fast=fast)
            return self._planned(request, plan, thinking)
        slow = self._settled(messages, template, thinking, settle, fast=False, limit=limit)
        fast_request = self._settled(messages, template, thinking, settle, fast=True, limit=limit)
        slow = self._planned(slow, thinking.plan(slow.max_tokens), thinking)
        turn = Turn(slow.prompt_ids, slow.plan, slow.opened, slow.stop_token_ids)
        fast_request.slow_params = slow.params
        self._end_as(fast_request, fast=True)
        fast_request.max_tokens = min(slow.max_tokens, fast_request.max_tokens)
        fast_request.plan, fast_request.tags = ModePlan(FAST, budget=thinking.budget), slow.tags
        fast_request.stats.expected_slow_tokens = slow.stats.expected_slow_tokens
        fast_request.route = self._route(thinking, messages, turn, hidden_size)
        return fast_request

    def prompt(
        self,
        messages: Sequence[Mapping[str, str]],
        template: Mapping[str, Any] | None = None,
        *,
        fast: bool,
        limit: int | None = None,
    ) -> list[int]:
        """Tokens of a conversation by the mode's template; ``limit`` as in `tokens_within`."""
        return chat_tokens(self.tokenizer, messages, limit, **self._arguments(template, fast=fast))

    def _arguments(self, template: Mapping[str, Any] | None, *, fast: bool) -> dict[str, Any]:
        """The chat template's arguments in a mode."""
        arguments = dict(template or {})
        if fast and self.adapter is not None and self.adapter.template is not None:
            for name, value in {
                "chat_template": self.adapter.template,
                **self.adapter.special_tokens,
            }.items():
                arguments.setdefault(name, value)
        elif fast and self._has_off_switch:
            arguments.setdefault(_SWITCH, False)
        return arguments

    def _end_as(self, request: Request, *, fast: bool) -> None:
        """Set the mode's end tokens as the request's stop tokens."""
        ends = frozenset[int]() if self.adapter is None else self.adapter.end_tokens
        if fast and ends and request.stop_token_ids:  # a request without stop tokens must not stop
            request.stop_token_ids = ends

    def check(self, thinking: Reasoning, hidden_size: int) -> None:
        """Validate the options against this model and its adapter.

        Raises:
            UsageError: the model has no fast mode, no reasoning to limit, or no scorer.
        """
        wants_fast = thinking.effort in FAST_EFFORTS
        if self.adapter is None and thinking.effort in DECIDING:
            raise UsageError(
                f"effort {thinking.effort} needs a switch, and this model has none: give --switch ADAPTER",
                about="effort",
            )
        if self.adapter is None and wants_fast and self.reasons and not self._has_off_switch:
            raise UsageError(
                f"effort {thinking.effort} needs a switch or a chat template with {_SWITCH}, and this model has "
                "neither: give --switch ADAPTER",
                about="effort",
            )
        if self.adapter is None and thinking.factor:
            raise UsageError(
                "an adapter scale (factor) needs a switch: give --switch ADAPTER", about="factor"
            )
        if thinking.closing is not None and thinking.plan(1).budget is None:
            raise UsageError("a closing text needs a reasoning budget: give a budget, or leave it out")
        if self.tags is not None:
            self._tags(thinking)  # raises for a closing text without the tag
        if self.tags is None and thinking.budget is not None:
            message = "this model has no reasoning tags (<think>), so reasoning cannot be limited: leave out the budget"
            raise UsageError(message, about="budget")
        if thinking.effort == "auto":
            self._scorer(thinking, hidden_size)

    def by_template_alone(self, thinking: Reasoning) -> bool:
        """Whether only the chat template asks for fast mode, which a model may ignore."""
        return self.adapter is None and self.reasons and thinking.effort in FAST_EFFORTS

    @property
    def templates(self) -> list[str]:
        """The chat templates of both modes."""
        both = [self.tokenizer.chat_template, None if self.adapter is None else self.adapter.template]
        return [one for one in both if isinstance(one, str)]

    @property
    def reasons(self) -> bool:
        """Whether the model reasons: it has an adapter, or its template has the tags, an effort or a switch.

        Tags in the vocabulary prove nothing: a model without reasoning may share its vocabulary with one that
        reasons.
        """
        tags = self.tags or ThinkingTags()
        marks = (tags.open, tags.close, _SWITCH, "reasoning_effort")
        known = any(mark in template for template in self.templates for mark in marks)
        return self.adapter is not None or known

    @property
    def _has_off_switch(self) -> bool:
        template = self.tokenizer.chat_template
        return isinstance(template, str) and _SWITCH in template

    def _settled(
        self,
        messages: Sequence[Mapping[str, str]],
        template: Mapping[str, Any],
        thinking: Reasoning,
        settle: Callable[..., Request],
        *,
        fast: bool,
        limit: int | None,
    ) -> Request:
        """The request in one mode; a budget of 0 closes in the prompt the reasoning that the template opened."""
        prompt = self.prompt(messages, template, fast=fast, limit=limit)
        opened = self.tags is not None and opens_reasoning(
            self.tokenizer, self.tags, messages, **self._arguments(template, fast=fast)
        )
        if opened and thinking.budget == 0:
            prompt, opened = [*prompt, *closing_ids(self._tags(thinking), self.tokenizer)], False
        request = settle(prompt, fast=fast)
        request.opened = opened
        return request

    def _tags(self, thinking: Reasoning) -> ThinkingTags:
        assert self.tags is not None
        return self.tags if thinking.closing is None else replace(self.tags, closing=thinking.closing)

    def _planned(self, request: Request, plan: ModePlan, thinking: Reasoning) -> Request:
        """The request with its plan, and the expected cost of always reasoning."""
        request.plan, effort = plan, thinking.effort
        if self.tags is not None:
            request.tags = self._tags(thinking)
        if self.adapter is not None:
            request.stats.expected_slow_tokens = self._slow_tokens
        limit = "" if plan.budget is None else f", at most {plan.budget} reasoning tokens"
        if effort is not None:
            mode = "fast" if effort in FAST_EFFORTS else "slow"
            alone = mode == "fast" and self.adapter is None
            how = limit
            if alone:
                by_template = " by the chat template only, without a switch"
                how = by_template if self.reasons else ", and this model never reasons"
            request.stats.decision = RoutingDecision(mode, "effort", None, None, f"effort {effort}{how}")
        elif thinking.budget is not None:
            request.stats.decision = RoutingDecision("slow", "budget", None, None, f"a budget{limit}")
        return request

    def _route(
        self, thinking: Reasoning, messages: Sequence[Mapping[str, str]], slow: Turn, hidden_size: int
    ) -> Route:
        assert self.adapter is not None
        if thinking.effort == "escalate":
            threshold = thinking.threshold
            return Escalate(self._escalate_below(hidden_size) if threshold is None else threshold, slow)
        prompt = next((m["content"] for m in reversed(messages) if m.get("role") == "user"), "")
        return Auto(self._scorer(thinking, hidden_size), prompt, slow, threshold=thinking.threshold)

    def _scorer(self, thinking: Reasoning, hidden_size: int) -> Scorer:
        if not isinstance(thinking.scorer, str):
            return thinking.scorer
        return Heuristic() if thinking.scorer == "heuristic" else self._read_probe(hidden_size)

    def _read_probe(self, hidden_size: int) -> Probe:
        """The adapter's probe, read once."""
        assert self.adapter is not None
        if self._probe is None:
            self._probe = Probe.read(self.adapter.path, hidden_size)
        return self._probe

    def _escalate_below(self, hidden_size: int) -> float:
        """The confidence below which to answer again, as calibrated by `justright switch calibrate`."""
        try:
            about = self._read_probe(hidden_size).about
        except UsageError:
            return ESCALATE_BELOW
        return float(about.get("escalate", {}).get("threshold", ESCALATE_BELOW))


def _mean_slow_tokens(adapter: Adapter) -> float | None:
    """Mean tokens of an answer with reasoning, as measured by `justright switch calibrate`."""
    file = adapter.path / PROBE
    if not file.is_file():
        return None
    try:
        return float(json.loads(file.read_text(encoding="utf-8"))["about"]["always"]["slow"]["tokens"])
    except (KeyError, TypeError, ValueError):
        return None  # the code that needs the probe reports the fault


def chat_tokens(
    tokenizer: PreTrainedTokenizerFast,
    messages: Sequence[Mapping[str, str]],
    limit: int | None = None,
    /,
    **template: Any,
) -> list[int]:
    """Tokens of a conversation by the model's chat template, ready for the assistant's turn.

    Args:
        tokenizer: the model's.
        messages: OpenAI-style ``{"role": ..., "content": ...}``.
        limit: as in `tokens_within`.
        template: further arguments of the template.

    Raises:
        UsageError: no template, a conversation that the template rejects, or malformed messages.
        ResourceError: the conversation has more tokens than ``limit``.
    """
    if isinstance(messages, str) or not all(isinstance(m, Mapping) for m in messages):
        raise UsageError(
            'a conversation is a list of {"role": ..., "content": ...}: give such a list, or a plain prompt to '
            "generate()"
        )
    if tokenizer.chat_template is None:
        raise UsageError("this model has no chat template: give a plain prompt (--raw)")
    try:
        text = tokenizer.apply_chat_template(
            [dict(m) for m in messages], tokenize=False, add_generation_prompt=True, **template
        )
    except TemplateError as error:
        raise UsageError(f"the model's chat template rejects this conversation: {error}") from error
    return tokens_within(tokenizer, text, limit, add_special_tokens=False)


def opens_reasoning(
    tokenizer: PreTrainedTokenizerFast,
    tags: ThinkingTags,
    messages: Sequence[Mapping[str, str]],
    **template: Any,
) -> bool:
    """Whether the chat template leaves reasoning open at the prompt's end; tags in messages do not count."""
    tail = template_tail(tokenizer, messages, **template)
    return tail.rfind(tags.open) > tail.rfind(tags.close)


def template_tail(
    tokenizer: PreTrainedTokenizerFast, messages: Sequence[Mapping[str, str]], **template: Any
) -> str:
    """The text that the chat template itself writes after the last message.

    A marker after every message locates it; if the marker changes the template's output, the text is what the
    generation prompt adds.
    """

    def written(mark: str = "", *, generation: bool = True) -> str:
        turns = [_marked(m, mark) for m in messages]
        found = tokenizer.apply_chat_template(
            turns, tokenize=False, add_generation_prompt=generation, **template
        )
        return str(found)

    whole, mark = written(), "end-of-message"
    while mark in whole:
        mark += "+"
    _, found, tail = written(mark).rpartition(mark)
    if found and whole.endswith(tail):
        return tail
    without = written(generation=False)
    same = next((i for i, (a, b) in enumerate(zip(whole, without, strict=False)) if a != b), len(without))
    return whole[same:]


def _marked(message: Mapping[str, str], mark: str) -> dict[str, str]:
    content = message.get("content")
    return dict(message) | ({"content": content + mark} if isinstance(content, str) else {})
