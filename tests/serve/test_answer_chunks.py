"""Pure functions: the split of reasoning and answer, token texts, error messages, reasoning fields."""

from __future__ import annotations

import json
import random
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from justright.engine.chat_modes import Reasoning
from justright.engine.request import Emission, Request
from justright.errors import UsageError
from justright.reasoning.budget import ThinkingTags
from justright.reasoning.parser import ThoughtText, answer_of
from justright.serve.answer_chunks import Answer, CompletionWriter, Writer, usage_of
from justright.serve.api_errors import ApiError
from justright.serve.app import parse
from justright.serve.metrics import context_class
from justright.serve.protocol import ChatRequest, CompletionRequest
from justright.serve.requests import template_variables, thinking_of
from justright.serve.responses import ChatChunk, ChatCompletion, Completion, CompletionChunk
from justright.serve.server_settings import ServeSettings, served_name
from justright.serve.token_text import TokenTexts
from tiny import tiny_tokenizer

TAGS = ThinkingTags()
TEXTS = TokenTexts(tiny_tokenizer())


def split(pieces: list[str], *, thinking: bool) -> tuple[str, str]:
    text = ThoughtText(TAGS, thinking=thinking)
    parts = [part for piece in pieces for part in text.push(piece)] + text.finish()
    assert all(part.text for part in parts)
    return "".join(p.text for p in parts if p.thought), "".join(p.text for p in parts if not p.thought)


@pytest.mark.parametrize(
    ("text", "thinking", "thought", "answer"),
    [
        ("so\n</think>\n\n4", True, "so", "4"),
        ("\nso</think>4", True, "so", "4"),
        ("<think>so</think>4", False, "so", "4"),
        ("4 <think>no</think> 5", False, "", "4 <think>no</think> 5"),
        (" \n<think>so</think>4 </think> 5", False, "so", "4 </think> 5"),
        ("</think>4", False, "", "</think>4"),
        ("  4 < 5 </ ", False, "", "  4 < 5 </ "),
        ("cut < /think", True, "cut < /think", ""),
        ("cut </thin", True, "cut </thin", ""),
        ("a</think>b\n</think>\nc", True, "a", "b\n</think>\nc"),
        ("<think>a <think> b</think> <think>c</think>d", False, "a <think> bc", "d"),
        ("\n<think>a</think>d", True, "a", "d"),
        ("  <thi", False, "", "  <thi"),
        ("<think></think>4", False, "", "4"),
        ("", True, "", ""),
    ],
)
def test_thoughts_are_apart_however_text_falls(text: str, thinking: bool, thought: str, answer: str) -> None:
    assert split([text], thinking=thinking) == (thought, answer)
    assert split(list(text), thinking=thinking) == (thought, answer)
    assert answer_of(text, TAGS, thinking=thinking) == answer
    rng = random.Random(0)
    for _ in range(20):
        cuts = sorted(rng.randrange(len(text) + 1) for _ in range(3))
        pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
        assert split(pieces, thinking=thinking) == (thought, answer)


@given(
    st.lists(st.sampled_from(["<", "think>", "</think>", "<think>", " ", "\n", "a", "</"]), max_size=12),
    st.booleans(),
)
@settings(max_examples=200)
def test_any_text_is_split_as_by_hand(pieces: list[str], thinking: bool) -> None:
    text = "".join(pieces)
    reasoning, begun = "", thinking
    while begun or re.match(r"\s*<think>", text):
        block, closed, text = re.sub(r"^(\s*<think>)*", "", text).partition("</think>")
        reasoning, begun = reasoning + block.strip(), False
        if not closed:
            break
    marked = thinking or bool(reasoning) or len(text) < len("".join(pieces))
    assert split(pieces, thinking=thinking) == (reasoning, text.lstrip() if marked else text)


@given(st.lists(st.sampled_from(["<", "think>", "</think>", "<think>", " ", "a"]), max_size=9), st.booleans())
@settings(max_examples=100)
def test_content_that_may_not_open_reasoning_is_whole(pieces: list[str], opened: bool) -> None:
    """Constrained JSON whose strings contain tags is unchanged after the template's own reasoning."""
    found = ThoughtText(TAGS, thinking=opened, may_open=False)
    parts = [part for piece in pieces for part in found.push(piece)] + found.finish()
    content = "".join(part.text for part in parts if not part.thought)
    text = "".join(pieces)
    assert content == (text.partition("</think>")[2].lstrip() if opened else text)


def test_without_tags_text_is_as_it_came() -> None:
    text = ThoughtText(None)
    assert [part.text for part in text.push(" <think> ")] == [" <think> "]
    assert text.finish() == []


def test_tokens_have_bytes_and_texts() -> None:
    tokenizer = TEXTS.tokenizer
    for text in ("the quick\n", "naïve €"):
        ids = tokenizer(text)["input_ids"]
        assert b"".join(TEXTS.data(token) for token in ids).decode() == text
    assert TEXTS.text(1) == "<s>"
    assert TEXTS.data(5_000) == b""
    [*_, last] = tokenizer("€")["input_ids"]
    assert TEXTS.label(last) == "bytes:\\xac"


def test_chunks_and_whole_answers_say_the_same() -> None:
    for kind, chunk_model, whole_model in (
        (Writer, ChatChunk, ChatCompletion),
        (CompletionWriter, CompletionChunk, Completion),
    ):
        request = Request([5, 6, 7], tags=TAGS)
        answer = Answer(request, TEXTS, apart=kind is Writer)
        writer = kind("id", 1, "m", TEXTS, usage=True, trace=True)
        chunks = writer.first(0)
        pieces = ["<thi", "nk>so", "</think>", "4", "2"]
        for number, piece in enumerate(pieces):
            last = number == len(pieces) - 1
            request.token_ids.append(9)
            request.stats.output_tokens += 1
            if last:
                request.finish_reason = "stop"
            delta = answer.take(Emission(request, [9], piece, 0, "stop" if last else None))
            chunks += writer.chunks(0, answer, delta)
        chunks += writer.last([answer])
        for chunk in chunks:
            chunk_model.model_validate_json(json.dumps(chunk))
        whole = whole_model.model_validate_json(json.dumps(writer.answer([answer]))).model_dump()
        choices = [choice for chunk in chunks for choice in chunk["choices"]]
        if kind is Writer:
            assert "".join(c["delta"].get("content") or "" for c in choices) == "42"
            assert whole["choices"][0]["message"]["content"] == "42"
            assert whole["choices"][0]["message"]["reasoning_content"] == "so"
        else:
            assert "".join(c["text"] for c in choices) == whole["choices"][0]["text"] == "".join(pieces)
        assert sum((c.get("justright") or {}).get("tokens", 0) for c in choices) == 5
        assert [c["finish_reason"] for c in choices][-1] == "stop"
        assert chunks[-1]["usage"] == whole["usage"] == usage_of([answer], 1)


def chat(**fields: object) -> ChatRequest:
    body = {"model": "m", "messages": [{"role": "user", "content": "a"}]} | fields
    return parse(json.dumps(body).encode(), ChatRequest)


def test_template_argument_before_effort_before_default() -> None:
    on, off = {"enable_thinking": True}, {"enable_thinking": False}
    low = Reasoning("low")
    assert thinking_of(chat(), low) == low
    assert thinking_of(chat(reasoning_effort="none"), low).effort == "none"
    assert thinking_of(chat(reasoning={"effort": "high"}), low).effort == "high"
    assert thinking_of(chat(reasoning_effort="xhigh"), low) == Reasoning()
    assert thinking_of(chat(reasoning_effort="high", chat_template_kwargs=off), low).effort == "none"
    assert thinking_of(chat(reasoning_effort="none", chat_template_kwargs=on), low).effort is None
    assert thinking_of(chat(reasoning_effort="high", chat_template_kwargs=on), low).effort == "high"
    assert thinking_of(chat(chat_template_kwargs=on), Reasoning("auto")).effort is None
    assert thinking_of(chat(thinking_budget=7), low) == Reasoning("low", 7)
    assert thinking_of(chat(reasoning={"max_tokens": 7}), Reasoning("none")) == Reasoning(None, 7)
    closing = "</think>So "
    assert thinking_of(chat(thinking_budget=7), Reasoning("low", closing=closing)).closing == closing
    assert (
        thinking_of(chat(reasoning_effort="auto"), Reasoning("auto", scorer="heuristic")).scorer
        == "heuristic"
    )
    with pytest.raises(ApiError) as caught:
        thinking_of(chat(reasoning_effort="none", thinking_budget=7), low)
    assert caught.value.param == "thinking_budget"


def test_templates_are_read_for_what_they_take() -> None:
    template = (
        "{% generation %}{{ messages }}{%- endgeneration -%}{% if tone %}{{ enable_thinking }}{% endif %}"
    )
    assert template_variables(template) == {"messages", "tone", "enable_thinking"}
    assert template_variables("{% if %}") == set()


def test_prompts_of_every_kind() -> None:
    def prompts(prompt: object) -> object:
        return parse(json.dumps({"model": "m", "prompt": prompt}).encode(), CompletionRequest).prompts

    assert prompts("a") == ["a"]
    assert prompts(["a", "b"]) == ["a", "b"]
    assert prompts([1, 2]) == [[1, 2]]
    assert prompts([[1], [2]]) == [[1], [2]]


def test_settings_are_checked() -> None:
    for wrong in ({"max_tokens": 0}, {"deadline_s": 0.0}, {"api_keys": ("",)}, {"max_body_bytes": 0}):
        with pytest.raises(UsageError, match=r"allowed|empty"):
            ServeSettings("m", **wrong)  # type: ignore[arg-type]
    assert served_name("./models/mine/") == "mine"
    assert served_name("org/name") == "org/name"
    assert [context_class(n) for n in (1, 1024, 1025, 10**6)] == ["1024", "1024", "2048", "inf"]


def refusal(body: bytes, kind: type[ChatRequest]) -> ApiError | None:
    try:
        parse(body, kind)
    except ApiError as error:
        return error
    return None


@pytest.mark.parametrize(
    ("fields", "others"),
    [
        ({"messages": [{}]}, 5),  # the body, its model, its messages, that list, and the message
        ({"messages": [{"role": "user", "content": ""}]}, 7),
        ({"messages": [], "nonsense": {"a": [[[]]]}}, 10),
    ],
)
def test_a_body_of_too_many_values_is_refused_before_it_is_looked_at(fields: Any, others: int) -> None:
    """Each empty object in a list adds one level; texts and numbers add none."""

    def code(count: int) -> str | None:
        body = {"model": "m", **fields, "messages": fields["messages"] + [{}] * count + ["text", 5] * 20_000}
        error = refusal(json.dumps(body).encode(), ChatRequest)
        assert error is not None
        return error.code

    assert code(2**15 - others) != "too_many_values"
    assert code(2**15 - others + 1) == "too_many_values"


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        (ChatRequest, {"messages": [{}] * 1000}),
        (ChatRequest, {"messages": [{"role": "user", "content": [{}] * 1000}]}),
        (CompletionRequest, {"prompt": [-1] * 1000}),
    ],
)
def test_the_first_fault_of_a_list_is_enough(kind: type[ChatRequest], fields: Any) -> None:
    with pytest.raises(ValidationError) as caught:
        kind.model_validate_json(json.dumps({"model": "m"} | fields))
    assert caught.value.error_count() < 10


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
        max_leaves=8,
    ),
    st.sampled_from([ChatRequest, CompletionRequest]),
    st.sampled_from([*ChatRequest.model_fields, "prompt", "nonsense"]),
)
@settings(max_examples=300)
def test_any_json_is_parsed_or_refused(value: object, kind: type[ChatRequest], name: str) -> None:
    good = {"model": "m", "messages": [{"role": "user", "content": "a"}], "prompt": "a"}
    good.pop("prompt" if kind is ChatRequest else "messages")
    for body in (value, good | {name: value}):
        error = refusal(json.dumps(body).encode(), kind)
        if error is not None:
            assert error.status == 400
            assert error.message
            json.dumps(error.to_dict())


@given(st.binary(max_size=60))
@settings(max_examples=200)
def test_any_bytes_are_refused(body: bytes) -> None:
    with pytest.raises(ApiError):
        parse(body, ChatRequest)
