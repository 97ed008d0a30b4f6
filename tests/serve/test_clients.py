"""The official client against a real server: every accepted parameter has an effect."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from client_suite import FORM, SUITE, Subject, interleaved_prompts_are_never_mixed
from justright.engine.chat_modes import Reasoning
from justright.engine.llm import LLM
from justright.engine.sampler import SamplingParams
from justright.reasoning.parser import answer_of
from serve_helpers import MODEL, Running, running
from tiny import save_tiny, tokenizer_with

HELLO: list[Any] = [{"role": "user", "content": "Hello there"}]
GREEDY = SamplingParams()


def ask(server: Running, **options: Any) -> Any:
    options = {"model": MODEL, "messages": HELLO, "temperature": 0, "max_completion_tokens": 12} | options
    return server.openai().chat.completions.create(**options)


def said(answer: Any) -> str:
    return str(answer.choices[0].message.content)


def alone(server: Running, messages: list[Any], max_tokens: int = 12, **options: Any) -> Any:
    """The model's own output, without drafts."""
    assert server.reference is not None
    request = server.reference.conversation(messages, GREEDY, max_tokens=max_tokens, **options)
    server.reference.generate_requests([request])
    return request


def continued(server: Running, prompt: str) -> str:
    assert server.reference is not None
    return server.reference.generate_request(prompt, GREEDY, max_tokens=16).text


def test_a_chat_is_the_engines_answer(plain: Running) -> None:
    answer = ask(plain)
    request = alone(plain, HELLO)
    assert said(answer) == request.text
    assert answer.object == "chat.completion"
    assert answer.model == MODEL
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.prompt_tokens == len(request.prompt_ids)
    assert answer.usage.completion_tokens == 12
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 12
    assert answer.usage.completion_tokens_details.reasoning_tokens == 0
    assert answer.usage.prompt_tokens_details.cached_tokens >= 0
    assert answer.choices[0].justright["ended_by"] == "length"


def test_a_stream_is_the_same_answer(plain: Running) -> None:
    whole = ask(plain, max_completion_tokens=30)
    chunks = list(
        ask(
            plain,
            max_completion_tokens=30,
            stream=True,
            stream_options={"include_usage": True},
            extra_body={"justright": {"trace": True}},
        )
    )
    assert chunks[0].choices[0].delta.role == "assistant"
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == said(whole)
    assert chunks[-2].choices[0].finish_reason == "length"
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == 30
    traces = [c.choices[0].justright for c in chunks[:-2] if getattr(c.choices[0], "justright", None)]
    assert sum(trace["tokens"] for trace in traces) == 30
    told = chunks[-2].choices[0].justright
    assert sum(trace["drafted"] for trace in traces) == told["accepted"]
    assert len({c.id for c in chunks}) == 1
    without = list(ask(plain, stream=True))
    assert all(c.usage is None and c.choices for c in without)


@pytest.fixture(scope="module")
def subject(thinking: Running) -> Subject:
    assert thinking.reference is not None
    return Subject(thinking.address, thinking.openai(), thinking.reference)


@pytest.mark.parametrize(
    "check",
    [check for check in SUITE if check is not interleaved_prompts_are_never_mixed],
    ids=lambda check: check.__name__,
)
def test_the_suite_of_every_server(subject: Subject, check: Callable[[Subject], None]) -> None:
    """All of it but one check, which a test below does more of."""
    check(subject)


def test_completions(plain: Running) -> None:
    create = plain.openai().completions.create
    expected = continued(plain, "the quick")
    one = create(model=MODEL, prompt="the quick", temperature=0)
    assert one.choices[0].text == expected
    assert one.usage is not None
    assert one.usage.completion_tokens == 16, "OpenAI's default"
    streamed = create(model=MODEL, prompt="the quick", temperature=0, stream=True)
    assert "".join(c.choices[0].text for c in streamed) == expected
    ids = plain.engine.encode("the quick")
    for prompt in (["the quick", "lazy"], [ids, plain.engine.encode("lazy")]):
        two = create(model=MODEL, prompt=prompt, temperature=0, n=2)
        assert [c.index for c in two.choices] == [0, 1, 2, 3]
        assert two.choices[0].text == two.choices[1].text == expected
        assert two.choices[2].text == continued(plain, "lazy")
    told = (
        create(model=MODEL, prompt="the quick", temperature=0, logprobs=2, max_tokens=4).choices[0].logprobs
    )
    assert told is not None
    assert told.tokens is not None
    assert told.top_logprobs is not None
    assert len(told.tokens) == 4
    assert all(len(top) == 2 and max(top.values()) <= 0 for top in told.top_logprobs)
    assert told.text_offset == sorted(told.text_offset or [])


def test_sampling(plain: Running) -> None:
    greedy, long = said(ask(plain)), {"max_completion_tokens": 40}
    hot = {"temperature": 1.5, "seed": 1}
    assert said(ask(plain, **hot)) == said(ask(plain, **hot)) != greedy
    assert said(ask(plain, **hot | {"seed": 2})) != said(ask(plain, **hot))
    assert said(ask(plain, **hot, extra_body={"top_k": 1})) == greedy
    assert said(ask(plain, **hot, top_p=1e-6)) == greedy
    assert said(ask(plain, **hot, extra_body={"min_p": 1.0})) == greedy
    penalty = said(ask(plain, **long, extra_body={"repetition_penalty": 3.0}))
    assert penalty != said(ask(plain, **long))
    default = {"model": MODEL, "messages": HELLO, "max_tokens": 12, "seed": 3}
    create = plain.openai().chat.completions.create
    assert said(create(**default)) == said(create(**default, temperature=1.0)), "OpenAI's default"
    assert said(create(**default)) != greedy


def test_lengths_stops_and_choices(plain: Running) -> None:
    text = said(ask(plain))
    assert said(ask(plain, max_completion_tokens=None, max_tokens=12)) == text
    stop = text[4:6]
    at = text.find(stop)
    for stops in (stop, ["never there", stop]):
        cut = ask(plain, stop=stops)
        assert said(cut) == text[:at]
        assert cut.choices[0].finish_reason == "stop"
        assert (cut.choices[0].justright["stop"], cut.choices[0].justright["ended_by"]) == (stop, "stop")
        streamed = ask(plain, stop=stops, stream=True)
        assert "".join(c.choices[0].delta.content or "" for c in streamed) == text[:at]
    three = ask(plain, n=3, temperature=1.5, seed=5)
    texts = [choice.message.content for choice in three.choices]
    assert texts == [said(ask(plain, temperature=1.5, seed=5 + n)) for n in range(3)]
    assert len(set(texts)) == 3
    assert three.usage.completion_tokens == 36
    assert three.usage.prompt_tokens == ask(plain).usage.prompt_tokens
    streamed = list(ask(plain, n=3, temperature=1.5, seed=5, stream=True))
    for index in range(3):
        own = [c.choices[0].delta.content or "" for c in streamed if c.choices[0].index == index]
        assert "".join(own) == texts[index]


def test_logprobs(plain: Running) -> None:
    content = ask(plain, logprobs=True, top_logprobs=3).choices[0].logprobs.content
    assert len(content) == 12
    for token in content:
        values = [top.logprob for top in token.top_logprobs]
        assert len(values) == 3
        assert values == sorted(values, reverse=True)
        assert token.logprob == values[0], "greedy takes the likeliest"
        assert bytes(token.bytes).decode(errors="replace") == token.token
    assert ask(plain, logprobs=True).choices[0].logprobs.content[0].top_logprobs == []
    chunks = ask(plain, logprobs=True, top_logprobs=3, stream=True)
    streamed = [t for c in chunks if c.choices[0].logprobs for t in c.choices[0].logprobs.content]
    assert streamed == content


@pytest.mark.parametrize("temperature", [0, 1.5])
def test_json(plain: Running, temperature: float) -> None:
    for n in range(3):
        answer = ask(plain, temperature=temperature, seed=n, response_format=FORM, max_completion_tokens=200)
        assert answer.choices[0].finish_reason == "stop"
        found = json.loads(said(answer))
        assert set(found) == {"size", "kind"}
        assert found["kind"] in ("a", "bc")
    begun = said(ask(plain, temperature=temperature, response_format={"type": "json_object"}))
    assert begun.startswith("{")
    assert said(ask(plain, response_format={"type": "text"})) == said(ask(plain))


def test_json_has_one_kind_of_number(plain: Running) -> None:
    body = {"model": MODEL, "prompt": [9.0, 10], "max_tokens": 3.0, "temperature": 0, "seed": 1.0, "n": 1.0}
    answer = plain.client.post("/v1/completions", json=body)
    assert answer.json()["usage"]["completion_tokens"] == 3


def test_messages_of_every_kind(plain: Running) -> None:
    parts = [
        {"role": "user", "content": [{"type": "text", "text": "Hello "}, {"type": "text", "text": "there"}]}
    ]
    assert said(ask(plain, messages=parts)) == said(ask(plain))
    system = [{"role": "system", "content": "Be short."}, *HELLO]
    developer = [{"role": "developer", "content": "Be short."}, *HELLO]
    assert said(ask(plain, messages=developer)) == said(ask(plain, messages=system))
    before = ask(plain)
    again = [*HELLO, before.choices[0].message, {"role": "user", "content": "And?"}]
    assert ask(plain, messages=again).usage.prompt_tokens > before.usage.prompt_tokens
    assert ask(plain, messages=again).usage.prompt_tokens_details.cached_tokens > 0


def test_what_has_no_meaning_is_taken(plain: Running) -> None:
    same = ask(
        plain,
        user="me",
        metadata={"a": "b"},
        presence_penalty=0,
        frequency_penalty=0,
        logit_bias={},
        tools=[],
        tool_choice="none",
        store=False,
        service_tier="auto",
        modalities=["text"],
        verbosity="medium",
        parallel_tool_calls=True,
    )
    assert said(same) == said(ask(plain))


def test_models(plain: Running, thinking: Running) -> None:
    client = plain.openai()
    assert [model.id for model in client.models.list()] == [MODEL]
    assert client.models.retrieve(MODEL).owned_by == "justright"
    never = {"context_length": 512, "efforts": [], "reasoning": "never"}
    assert client.models.retrieve(MODEL).justright == never  # type: ignore[attr-defined]
    about = thinking.openai().models.retrieve(MODEL).justright  # type: ignore[attr-defined]
    assert about["efforts"] == ["none", "minimal", "low", "medium", "high", "escalate", "xhigh"]
    assert about["reasoning"] == "switchable"


def test_thoughts_are_apart(thinking: Running) -> None:
    for options in ({}, {"thinking_budget": 5}, {"thinking_budget": 0}, {"reasoning": {"max_tokens": 5}}):
        budget = options.get(
            "thinking_budget", options.get("reasoning", {"max_tokens": None}).get("max_tokens")
        )  # type: ignore[union-attr]
        answer = ask(thinking, max_completion_tokens=30, extra_body=options)
        request = alone(thinking, HELLO, 30, thinking=Reasoning(budget=budget))
        message = answer.choices[0].message
        assert message.content == answer_of(request.text, request.tags, thinking=budget != 0)
        assert answer.usage.completion_tokens_details.reasoning_tokens == request.stats.reasoning_tokens
        assert "think>" not in message.content + (getattr(message, "reasoning_content", None) or "")
        assert bool(getattr(message, "reasoning_content", None)) == (budget != 0)
        chunks = list(ask(thinking, max_completion_tokens=30, extra_body=options, stream=True))
        deltas = [c.choices[0].delta for c in chunks]
        assert "".join(d.content or "" for d in deltas) == message.content
        reasoning = "".join(getattr(d, "reasoning_content", None) or "" for d in deltas)
        assert reasoning == (getattr(message, "reasoning_content", None) or "")
    told = ask(thinking, max_completion_tokens=30, logprobs=True, extra_body={"thinking_budget": 5})
    tokens = [bytes(token.bytes) for token in told.choices[0].logprobs.content]
    text = b"".join(tokens).decode(errors="replace")
    assert text.removesuffix("\ufffd") == said(told).removesuffix("\ufffd"), "a last character may be cut"


def test_a_stop_text_ends_content_and_on_request_reasoning(thinking: Running) -> None:
    whole = ask(thinking, max_completion_tokens=30)
    reasoning = whole.choices[0].message.reasoning_content
    stop = reasoning[3:5]
    assert ask(thinking, max_completion_tokens=30, stop=stop).choices[0].message == whole.choices[0].message
    told = {"max_completion_tokens": 30, "stop": stop, "extra_body": {"stop_in_reasoning": True}}
    cut = ask(thinking, **told).choices[0]
    assert cut.message.reasoning_content == reasoning.partition(stop)[0].rstrip()
    assert (cut.finish_reason, cut.message.content) == ("stop", "")
    deltas = [chunk.choices[0].delta for chunk in ask(thinking, stream=True, **told)]
    streamed = "".join(getattr(d, "reasoning_content", None) or "" for d in deltas)
    assert streamed == cut.message.reasoning_content


def test_a_users_tag_does_not_free_the_json(thinking: Running) -> None:
    """In fast mode the template opens no reasoning: the whole answer is JSON, whatever message and schema contain."""
    schema = {"type": "object", "properties": {"a": {"const": "x</think>y"}}, "required": ["a"]}
    form = {
        "type": "json_schema",
        "json_schema": {"name": "f", "schema": schema | {"additionalProperties": False}},
    }
    answer = ask(
        thinking,
        messages=[{"role": "user", "content": "What does the <think> tag mean? <think>"}],
        reasoning_effort="none",
        response_format=form,
        max_completion_tokens=60,
    )
    assert json.loads(answer.choices[0].message.content) == {"a": "x</think>y"}
    assert getattr(answer.choices[0].message, "reasoning_content", None) is None


def test_efforts(thinking: Running) -> None:
    fast = alone(thinking, HELLO, thinking=Reasoning("none"))
    for options in (
        {"reasoning_effort": "none"},
        {"reasoning_effort": "minimal"},
        {"reasoning": {"effort": "none"}},
        {"chat_template_kwargs": {"enable_thinking": False}},
        {"reasoning_effort": "high", "chat_template_kwargs": {"enable_thinking": False}},
    ):
        answer = ask(thinking, extra_body=options)
        assert said(answer) == fast.text
        assert answer.choices[0].justright["mode"] == "fast"
        assert answer.choices[0].justright["fast_tokens"] == 12
        assert answer.choices[0].justright["decision"]["by"] == "effort"
    low = ask(thinking, max_completion_tokens=40, extra_body={"reasoning_effort": "low"})
    request = alone(thinking, HELLO, 40, thinking=Reasoning("low"))
    assert request.plan.budget == 8
    assert low.usage.completion_tokens_details.reasoning_tokens == request.stats.reasoning_tokens
    assert low.choices[0].justright["mode"] == "slow"
    both = {"reasoning_effort": "none", "chat_template_kwargs": {"enable_thinking": True}}
    assert ask(thinking, extra_body=both).choices[0].justright["mode"] == "slow"
    escalated = ask(thinking, extra_body={"reasoning_effort": "escalate"})
    assert escalated.choices[0].justright["decision"]["by"] == "escalate"
    assert escalated.choices[0].justright["discarded_tokens"] == 12, (
        "the fast answer was truncated, so the slow mode answered"
    )
    slow = alone(thinking, HELLO)
    assert said(escalated) == answer_of(slow.text, slow.tags, thinking=True)
    assert escalated.choices[0].message.reasoning_content == slow.text.strip()
    chunks = list(ask(thinking, extra_body={"reasoning_effort": "escalate"}, stream=True))
    thought = [getattr(c.choices[0].delta, "reasoning_content", None) or "" for c in chunks]
    assert "".join(thought) == slow.text.strip()
    hint = {"chat_template_kwargs": {"hint": "Careful!"}}
    assert ask(thinking, extra_body=hint).usage.prompt_tokens > ask(thinking).usage.prompt_tokens


def test_a_thought_is_free_and_the_answer_is_json(thinking: Running) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"enum": ["yes", "no"]}}}
    answer = ask(thinking, max_completion_tokens=60, response_format=form, extra_body={"thinking_budget": 6})
    assert json.loads(said(answer)) in ("yes", "no")
    assert answer.usage.completion_tokens_details.reasoning_tokens >= 6
    again = {"thinking_budget": 6, "reasoning_effort": "escalate"}
    answer = ask(thinking, max_completion_tokens=60, response_format=form, extra_body=again)
    assert answer.choices[0].justright["discarded_tokens"] > 0, "a fast answer was discarded"
    assert json.loads(said(answer)) in ("yes", "no"), "and the grammar restarted"


def test_interleaved_prompts_are_never_mixed(plain: Running, thinking: Running) -> None:
    """More clients than slots, all lengths and modes at once; each answer equals the engine's for a single request."""
    jobs: list[tuple[Running, list[Any], int, dict[str, Any]]] = []
    for n in range(9):
        messages = [{"role": "user", "content": f"number {n} " * (1 + n % 5)}]
        jobs.append((plain, messages, 5 + 3 * (n % 7), {}))
        effort = ("none", "low", "medium")[n % 3]
        jobs.append((thinking, messages, 6 + 2 * (n % 5), {"reasoning_effort": effort}))

    def run(job: tuple[Running, list[Any], int, dict[str, Any]]) -> str:
        server, messages, tokens, extra = job
        options = {"messages": messages, "max_completion_tokens": tokens, "extra_body": extra}
        if tokens % 2:
            return said(ask(server, **options))
        return "".join(c.choices[0].delta.content or "" for c in ask(server, **options, stream=True))

    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(run, jobs))
    for (server, messages, tokens, extra), answer in zip(jobs, answers, strict=True):
        effort = extra.get("reasoning_effort")
        request = alone(server, messages, tokens, thinking=Reasoning(effort))
        thinks = effort in ("low", "medium")
        assert answer == answer_of(request.text, request.tags, thinking=thinks)
    assert plain.scheduler.snapshot().running == thinking.scheduler.snapshot().running == 0


@pytest.mark.parametrize("chat", [True, False])
def test_logprobs_leave_out_a_stop_string_s_tokens(plain: Running, chat: bool) -> None:
    """Of the tokens without a stop string, exactly those whose bytes the content needs."""

    def answer(stop: str | None = None, *, stream: bool = False) -> tuple[str, list[str]]:
        """The text, and the texts of its tokens."""
        options: dict[str, Any] = {"model": MODEL, "temperature": 0, "stop": stop, "stream": stream}
        if chat:
            found = plain.openai().chat.completions.create(
                **options, messages=HELLO, max_completion_tokens=24, logprobs=True
            )
        else:
            found = plain.openai().completions.create(**options, prompt="Hello", max_tokens=24, logprobs=1)
        choices = [c for part in (found if stream else [found]) for c in part.choices]
        texts = [(c.delta if stream else c.message).content if chat else c.text for c in choices]
        told = [c.logprobs for c in choices if c.logprobs is not None]
        tokens = [t for one in told for t in ([x.token for x in one.content] if chat else one.tokens)]
        return "".join(one or "" for one in texts), tokens

    text, tokens = answer()
    assert len(tokens) == 24
    seen = set()
    for length in (1, 3):
        for begin in range(length, len(text) - length, 5):
            stop = text[begin : begin + length]
            if "\ufffd" in stop:
                continue  # invalid bytes may be split into any tokens
            content, told = answer(stop)
            assert answer(stop, stream=True) == (content, told)
            count = next(n for n in range(25) if data(tokens[:n]).startswith(content))
            assert told == tokens[:count], (stop, content)
            seen.add(count)
    assert len(seen) > 2


def data(tokens: list[str]) -> str:
    """The text of tokens; their labels may be bytes."""
    raw = [
        bytes(int(code, 16) for code in re.findall(r"\\x(..)", one))
        if one.startswith("bytes:")
        else one.encode()
        for one in tokens
    ]
    return b"".join(raw).decode(errors="replace")


def test_a_vocabulary_with_tags_is_no_reasoning(tmp_path: Path) -> None:
    """A model may share the vocabulary of a reasoning model; its chat template shows that it does not reason."""
    template = "{% for m in messages %}{{ m['content'] }}{% endfor %}>"
    tokenizer = tokenizer_with(template, "<think>", "</think>")
    path = save_tiny("llama", tmp_path / "model", vocab_size=len(tokenizer))
    tokenizer.save_pretrained(path)
    with running(LLM(str(path))) as server:
        [model] = server.openai().models.list().data
        known = {"efforts": [], "reasoning": "unknown"}
        assert known.items() <= model.justright.items()  # type: ignore[attr-defined]
        answer = ask(server, reasoning_effort="low", extra_body={"thinking_budget": 3})
        details = answer.usage.completion_tokens_details
        assert details.reasoning_tokens == 0, "it is accepted, and the answer shows that it had no effect"
        for effort in ("none", "minimal"):
            assert said(ask(server, reasoning_effort=effort)) == said(ask(server))
