"""Checks with the official OpenAI client that both servers must pass: the embedded engine's and vLLM's.

Each check takes a `Subject`, whose model reasons, has a switch, and is served as `MODEL`. Features of only one server
have their own tests: `escalate`, `trace` and coloured drafts for the engine; replicas and plugins for vLLM.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
from openai import AsyncOpenAI, BadRequestError, NotFoundError, OpenAI

from justright.engine.chat_modes import Reasoning
from justright.engine.llm import LLM
from justright.engine.request import Request
from justright.reasoning.parser import ThoughtText
from serve_helpers import MODEL

QUESTIONS = ("Hi", "Name three rivers", "the quick brown fox", "abc def", "1 + 2", "lazy dog")
FAST: dict[str, Any] = {"reasoning_effort": "none"}
SCHEMA = {
    "type": "object",
    "properties": {"size": {"type": "integer", "maximum": 99}, "kind": {"enum": ["a", "bc"]}},
    "required": ["size", "kind"],
    "additionalProperties": False,
}
FORM = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA, "strict": True}}


@dataclass
class Subject:
    """A running server, and the same model on our engine for expected outputs.

    Attributes:
        address: Address of the server.
        client: Client of the server.
        reference: The model on our engine.
        shown: Special tokens that the server shows in texts and our engine does not.
        vllm: Whether answers are vLLM's own: without justright's fields, and under the name of the mode's model.
    """

    address: str
    client: OpenAI
    reference: LLM
    shown: tuple[str, ...] = ()
    vllm: bool = False

    def model(self, effort: str) -> str:
        """The model name in the answer."""
        return f"{MODEL}-fast" if self.vllm and effort == "none" else MODEL

    def reasoning(self, said: Any) -> str | None:
        """The reasoning of a message or a delta."""
        return getattr(said, "reasoning" if self.vllm else "reasoning_content", None)

    def ask(self, question: str = "Hi", **options: Any) -> Any:
        asked = {"model": MODEL, "messages": chat(question), "temperature": 0, "max_completion_tokens": 16}
        return self.client.chat.completions.create(**(asked | options))

    def said(self, answer: Any, index: int = 0) -> tuple[str, str]:
        """Reasoning and answer of a choice."""
        message = answer.choices[index].message
        return self.clean(self.reasoning(message)), self.clean(message.content)

    def streamed(self, chunks: list[Any], index: int = 0) -> tuple[str, str]:
        """Reasoning and answer of a streamed choice."""
        choices = [one for chunk in chunks for one in chunk.choices if one.index == index]
        thought = "".join(self.reasoning(one.delta) or "" for one in choices)
        return self.clean(thought), self.clean("".join(one.delta.content or "" for one in choices))

    def clean(self, text: str | None) -> str:
        for token in self.shown:
            text = (text or "").replace(token, "")
        return (text or "").strip()

    def alone(
        self, question: str, effort: str | None = None, max_tokens: int = 16, **options: Any
    ) -> Request:
        thinking = Reasoning(effort, options.pop("budget", None))
        request = self.reference.conversation(
            chat(question), thinking=thinking, max_tokens=max_tokens, **options
        )
        self.reference.generate_requests([request])
        return request

    def expected(self, question: str, effort: str | None = None, **options: Any) -> tuple[str, str]:
        """Reasoning and answer of the reference model."""
        request = self.alone(question, effort, **options)
        assert request.tags is not None
        assert self.reference.tokenizer is not None
        split = ThoughtText(request.tags, thinking=request.opened)
        parts = [*split.push(request.text), *split.finish()]
        thought, answer = ("".join(p.text for p in parts if p.thought is which) for which in (True, False))
        return self.clean(thought), self.clean(answer)


def chat(question: str) -> list[Any]:
    return [{"role": "user", "content": question}]


def answers_are_the_engines(subject: Subject) -> None:
    for question in QUESTIONS:
        for effort in ("none", "xhigh"):
            answer = subject.ask(question, reasoning_effort=effort)
            known = effort if effort == "none" else None
            request = subject.alone(question, known)
            assert subject.said(answer) == subject.expected(question, known)
            assert (answer.object, answer.model) == ("chat.completion", subject.model(effort))
            assert answer.choices[0].finish_reason == "length"
            assert answer.usage.prompt_tokens == len(request.prompt_ids)
            assert answer.usage.completion_tokens == len(request.token_ids) == 16
            if subject.vllm:
                continue
            details = answer.usage.completion_tokens_details
            assert details.reasoning_tokens == request.stats.reasoning_tokens
            assert answer.usage.prompt_tokens_details.cached_tokens >= 0
            told = answer.choices[0].justright
            assert (told["mode"], told["ended_by"]) == ("fast" if known else "slow", "length")
            assert known is None or told["decision"]["by"] == "effort"


def a_stream_is_the_same_answer(subject: Subject) -> None:
    for effort in ("none", "xhigh"):
        whole = subject.ask(reasoning_effort=effort)
        chunks = list(
            subject.ask(reasoning_effort=effort, stream=True, stream_options={"include_usage": True})
        )
        assert chunks[0].choices[0].delta.role == "assistant"
        assert subject.streamed(chunks) == subject.said(whole)
        ends = [chunk for chunk in chunks if chunk.choices and chunk.choices[0].finish_reason]
        assert [end.choices[0].finish_reason for end in ends] == ["length"]
        assert subject.vllm or ends[0].choices[0].justright["ended_by"] == "length"
        assert chunks[-1].choices == []
        assert chunks[-1].usage.completion_tokens == 16
        details = chunks[-1].usage.completion_tokens_details
        whole_details = whole.usage.completion_tokens_details
        assert subject.vllm or details.reasoning_tokens == whole_details.reasoning_tokens
        assert len({chunk.id for chunk in chunks}) == 1
        assert {chunk.model for chunk in chunks} == {subject.model(effort)}
        without = list(subject.ask(reasoning_effort=effort, stream=True))
        assert all(chunk.usage is None and chunk.choices for chunk in without)


def the_async_client(subject: Subject) -> None:
    async def both() -> tuple[str, str]:
        async with AsyncOpenAI(base_url=f"{subject.address}/v1", api_key="none", max_retries=0) as client:
            options: dict[str, Any] = {"model": MODEL, "messages": chat("Hi"), "temperature": 0} | FAST
            whole = await client.chat.completions.create(**options, max_tokens=12)
            stream = await client.chat.completions.create(**options, max_tokens=12, stream=True)
            text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
            return subject.said(whole)[1], subject.clean(text)

    whole, streamed = asyncio.run(both())
    assert whole == streamed == subject.expected("Hi", "none", max_tokens=12)[1]


def completions(subject: Subject) -> None:
    create = subject.client.completions.create
    expected = {p: subject.reference.generate_request(p, max_tokens=8).text for p in ("the quick", "lazy")}
    options: dict[str, Any] = {"model": MODEL, "temperature": 0, "max_tokens": 8}
    one = create(prompt="the quick", **options)
    assert one.choices[0].text == expected["the quick"]
    assert one.usage is not None
    assert one.usage.completion_tokens == 8
    streamed = create(prompt="the quick", stream=True, **options)
    assert "".join(chunk.choices[0].text for chunk in streamed) == expected["the quick"]
    ids = [subject.reference.encode(prompt) for prompt in expected]
    for prompt in (list(expected), ids):
        two = create(prompt=prompt, **options)
        assert [choice.index for choice in two.choices] == [0, 1]
        assert [choice.text for choice in two.choices] == list(expected.values())
    told = create(prompt="the quick", logprobs=2, **options).choices[0].logprobs
    assert told is not None
    assert told.tokens is not None
    assert told.top_logprobs is not None
    assert len(told.tokens) == 8
    assert all(len(top) == 2 and max(top.values()) <= 0 for top in told.top_logprobs)


def sampling(subject: Subject) -> None:
    def text(**options: Any) -> str:
        return subject.said(subject.ask(**FAST, **options))[1]

    greedy, hot = text(), {"temperature": 1.5, "seed": 1}
    assert text(**hot) == text(**hot) != greedy
    assert text(**hot | {"seed": 2}) != text(**hot)
    assert text(**hot, extra_body={"top_k": 1}) == greedy
    assert text(**hot, top_p=1e-6) == greedy
    assert text(**hot, extra_body={"min_p": 1.0}) == greedy
    long: dict[str, Any] = {"max_completion_tokens": 40}
    assert text(**long, extra_body={"repetition_penalty": 3.0}) != text(**long)


def lengths_stops_and_choices(subject: Subject) -> None:
    text = subject.said(subject.ask(**FAST))[1]
    assert subject.said(subject.ask(**FAST, max_completion_tokens=None, max_tokens=16))[1] == text
    stop = text[4:6]
    for stops in (stop, ["never there", stop]):
        cut = subject.ask(**FAST, stop=stops)
        assert subject.said(cut)[1] == text[: text.find(stop)].strip()
        assert cut.choices[0].finish_reason == "stop"
        if subject.vllm:
            assert cut.choices[0].stop_reason == stop
        else:
            told = cut.choices[0].justright
            assert (told["stop"], told["ended_by"]) == (stop, "stop")
        chunks = list(subject.ask(**FAST, stop=stops, stream=True))
        assert subject.streamed(chunks)[1] == text[: text.find(stop)].strip()
    three = subject.ask(**FAST, n=3, temperature=1.5, seed=5)
    texts = [subject.said(three, index)[1] for index in range(3)]
    assert len(set(texts)) == 3
    assert 16 < three.usage.completion_tokens <= 48, "one may end early at an end token"
    assert three.usage.prompt_tokens == subject.ask(**FAST).usage.prompt_tokens
    chunks = list(subject.ask(**FAST, n=3, temperature=1.5, seed=5, stream=True))
    assert {choice.index for chunk in chunks for choice in chunk.choices} == {0, 1, 2}


def log_probabilities(subject: Subject) -> None:
    content = subject.ask(**FAST, logprobs=True, top_logprobs=3).choices[0].logprobs.content
    assert len(content) == 16
    for token in content:
        values = [top.logprob for top in token.top_logprobs]
        assert len(values) == 3
        assert values == sorted(values, reverse=True)
        assert token.logprob == values[0], "greedy decoding takes the most likely token"
    chunks = list(subject.ask(**FAST, logprobs=True, top_logprobs=3, stream=True))
    told = [choice.logprobs for chunk in chunks for choice in chunk.choices if choice.logprobs]
    assert [token.token for one in told for token in one.content or []] == [token.token for token in content]
    if subject.vllm:  # its log-probabilities include the reasoning tokens
        return
    thought = subject.ask(logprobs=True, max_completion_tokens=40, extra_body={"thinking_budget": 5})
    hidden = thought.usage.completion_tokens_details.reasoning_tokens
    assert 0 < len(thought.choices[0].logprobs.content) <= thought.usage.completion_tokens - hidden


def json_of_a_schema(subject: Subject) -> None:
    answer = subject.ask(**FAST, response_format=FORM, max_completion_tokens=200)
    assert answer.choices[0].finish_reason == "stop"
    found = json.loads(subject.said(answer)[1])
    assert set(found) == {"size", "kind"}
    assert found["kind"] in ("a", "bc")
    assert subject.said(subject.ask(**FAST, response_format={"type": "json_object"}))[1].startswith("{")


def reasoning_is_separate(subject: Subject) -> None:
    for budget in (None, 5):
        body = {} if budget is None else {"thinking_budget": budget}
        answer = subject.ask(max_completion_tokens=40, extra_body=body)
        request = subject.alone("Hi", max_tokens=40, budget=budget)
        thought, said = subject.said(answer)
        assert thought
        assert said or budget is None
        assert (thought, said) == subject.expected("Hi", max_tokens=40, budget=budget)
        details = answer.usage.completion_tokens_details
        assert subject.vllm or details.reasoning_tokens == request.stats.reasoning_tokens
        assert "think>" not in thought + said
        chunks = list(subject.ask(max_completion_tokens=40, extra_body=body, stream=True))
        assert subject.streamed(chunks) == (thought, said)
    other = subject.ask(max_completion_tokens=40, extra_body={"reasoning": {"max_tokens": 5}})
    assert subject.said(other) == subject.expected("Hi", max_tokens=40, budget=5)


def efforts_and_their_precedence(subject: Subject) -> None:
    fast = subject.expected("Hi", "none")
    for options in (
        {"reasoning_effort": "minimal"},
        {"reasoning": {"effort": "none"}},
        {"chat_template_kwargs": {"enable_thinking": False}},
        {"reasoning_effort": "high", "chat_template_kwargs": {"enable_thinking": False}},
    ):
        answer = subject.ask(extra_body=options)
        assert subject.said(answer) == fast
        assert answer.model == subject.model("none")
        assert subject.vllm or answer.choices[0].justright["mode"] == "fast"
    for effort in ("low", "medium", "high"):
        answer = subject.ask(reasoning_effort=effort)
        assert subject.said(answer) == subject.expected("Hi", effort)
    both = {"reasoning_effort": "none", "chat_template_kwargs": {"enable_thinking": True}}
    answer = subject.ask(extra_body=both)
    assert answer.model == MODEL
    assert subject.vllm or answer.choices[0].justright["mode"] == "slow"
    hint = {"chat_template_kwargs": {"hint": "Careful!"}}
    assert subject.ask(extra_body=hint).usage.prompt_tokens > subject.ask().usage.prompt_tokens


def invalid_requests_fail(subject: Subject) -> None:
    for options, param in (
        ({"extra_body": {"nonsense": 1}}, "nonsense"),
        ({"extra_body": {"reasoning": {"depth": 1}}}, "reasoning.depth"),
        ({"reasoning_effort": "huge"}, "reasoning_effort"),
        ({"temperature": -1}, "temperature"),
        ({"store": True}, "store"),
        ({"reasoning_effort": "none", "extra_body": {"thinking_budget": 5}}, "thinking_budget"),
    ):
        if subject.vllm and param in ("nonsense", "reasoning.depth", "store"):
            continue  # vLLM ignores unknown fields
        with pytest.raises(BadRequestError) as refused:
            subject.ask(**options)
        assert str(refused.value.param).removeprefix("body.") == param, options
    with pytest.raises(BadRequestError):
        subject.ask(max_completion_tokens=10**6)
    with pytest.raises(NotFoundError):
        subject.ask(model="other")
    headers = {"content-type": "application/json"}
    for content in (b"{", b"[]", b"\xff", b""):
        address = f"{subject.address}/v1/chat/completions"
        answer = httpx.post(address, content=content, headers=headers, timeout=60)
        assert 400 <= answer.status_code < 500
        if not subject.vllm:  # vLLM answers a body that is no JSON object in a form of its own
            assert {"message", "type", "param", "code"} <= set(answer.json()["error"])
    assert subject.said(subject.ask(**FAST)) == subject.expected("Hi", "none")


def fields_without_effect_are_accepted(subject: Subject) -> None:
    same = subject.ask(**FAST, user="me", metadata={"a": "b"}, presence_penalty=0, logit_bias={}, store=False)
    assert subject.said(same) == subject.expected("Hi", "none")


def conversations_continue(subject: Subject) -> None:
    parts = [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}]
    before = subject.ask(**FAST, messages=parts)
    assert subject.said(before) == subject.expected("Hi", "none")
    again = [*chat("Hi"), before.choices[0].message, {"role": "user", "content": "And?"}]
    assert subject.ask(**FAST, messages=again).usage.prompt_tokens > before.usage.prompt_tokens


def interleaved_prompts_are_never_mixed(subject: Subject) -> None:
    async def all_of_them() -> list[Any]:
        async with AsyncOpenAI(base_url=f"{subject.address}/v1", api_key="none", max_retries=0) as client:
            options: dict[str, Any] = {"model": MODEL, "temperature": 0, "max_completion_tokens": 16}
            create = client.chat.completions.create
            asked = [(q, e) for _ in range(3) for q in QUESTIONS for e in ("none", "xhigh")]
            return await asyncio.gather(
                *(create(messages=chat(q), reasoning_effort=e, **options) for q, e in asked)  # type: ignore[call-overload]
            )

    wanted = [subject.expected(q, e) for _ in range(3) for q in QUESTIONS for e in ("none", None)]
    assert [subject.said(answer) for answer in asyncio.run(all_of_them())] == wanted


def the_model_is_listed(subject: Subject) -> None:
    assert MODEL in [card.id for card in subject.client.models.list()]


SUITE: tuple[Callable[[Subject], None], ...] = (
    answers_are_the_engines,
    a_stream_is_the_same_answer,
    the_async_client,
    completions,
    sampling,
    lengths_stops_and_choices,
    log_probabilities,
    json_of_a_schema,
    reasoning_is_separate,
    efforts_and_their_precedence,
    invalid_requests_fail,
    fields_without_effect_are_accepted,
    conversations_continue,
    interleaved_prompts_are_never_mixed,
    the_model_is_listed,
)
