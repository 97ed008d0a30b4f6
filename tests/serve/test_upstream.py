"""Translation of requests for other servers: no field is lost, and precedence is kept."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from justright.errors import UsageError
from justright.reasoning.effort import FAST_EFFORTS
from justright.reasoning.scorers import Callback
from justright.serve.api_errors import ApiError
from justright.serve.discover import UpstreamOptions, upstream_of
from justright.serve.upstream import EFFORTS, Policy, Upstream, chat, completion

VLLM = Upstream("vllm", "base", "quick")
SGLANG = Upstream("sglang", "base", "quick")
LLAMA = Upstream("llama.cpp", "base", 1, (0, 1, 2))
BARE = Upstream("vllm", "base")
UPSTREAMS = (VLLM, SGLANG, LLAMA, BARE)
EASY = [{"role": "user", "content": "Hi"}]
HARD = [{"role": "user", "content": "Why is 3 + 4 * 5 - 6 / 7 + 8 * 9 - 10 + 11 = 12 then?"}]

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
DECIDING = {
    "model", "lora", "messages", "reasoning_effort", "reasoning", "thinking_budget", "thinking_token_budget",
    "chat_template_kwargs", "stop_token_ids", "ignore_eos",
}  # fmt: skip
others = st.dictionaries(st.text().filter(lambda name: name not in DECIDING), values, max_size=4)
efforts = st.sampled_from((None, *EFFORTS))


@given(
    upstream=st.sampled_from(UPSTREAMS),
    other=others,
    effort=efforts,
    nested=st.booleans(),
    switch=st.sampled_from((None, True, False)),
    default=efforts,
)
def test_nothing_that_was_sent_is_lost_and_the_first_word_holds(
    upstream: Upstream,
    other: dict[str, Any],
    effort: str | None,
    nested: bool,
    switch: bool | None,
    default: str | None,
) -> None:
    body: dict[str, Any] = other | {"model": "base", "messages": EASY, "chat_template_kwargs": {"hint": 1}}
    if effort is not None:
        body |= {"reasoning": {"effort": effort, "summary": "x"}} if nested else {"reasoning_effort": effort}
    if switch is not None:
        body["chat_template_kwargs"]["enable_thinking"] = switch
    before = repr(body)
    found = chat(body, upstream, Policy(default))
    assert repr(body) == before

    first = effort or default
    wanted = (
        (not switch) if switch is not None else first in FAST_EFFORTS or first == "auto"
    )  # an easy prompt
    assert found.decision is not None
    assert found.decision.mode == ("fast" if wanted else "slow")
    said = (
        "template"
        if switch is not None
        else "heuristic"
        if first == "auto"
        else "effort"
        if effort
        else "default"
    )
    assert found.decision.by == said

    sent = found.body
    for name in other:
        assert sent[name] == other[name]
    assert sent["messages"] == EASY
    assert sent["chat_template_kwargs"]["hint"] == 1
    assert sent["chat_template_kwargs"].get("enable_thinking") == (
        False if wanted and switch is None else switch
    )
    assert sent.get("reasoning_effort") != "auto"
    if nested and effort is not None:
        assert sent["reasoning"] == {"summary": "x"} | ({} if effort == "auto" else {"effort": effort})
    elif effort is not None and effort != "auto":
        assert sent["reasoning_effort"] == effort
    if upstream.kind == "llama.cpp":
        assert sent["lora"] == [
            {"id": n, "scale": float(wanted and n == upstream.fast)} for n in upstream.adapters
        ]
        assert sent["model"] == "base"
    else:
        assert sent["model"] == (upstream.fast_model if wanted else "base")
        assert "lora" not in sent


def test_each_server_gets_its_own_parameters() -> None:
    fast = {"messages": EASY, "reasoning_effort": "none"}
    assert chat(fast, VLLM, Policy()).body["model"] == "quick"
    assert chat(fast, SGLANG, Policy()).body["model"] == "base:quick"
    assert chat(fast, BARE, Policy()).body["model"] == "base"
    assert [one["scale"] for one in chat(fast, LLAMA, Policy()).body["lora"]] == [0.0, 1.0, 0.0]


def test_a_model_of_one_mode_has_no_fast_one() -> None:
    with pytest.raises(ApiError, match="has one mode"):
        chat(
            {"messages": EASY, "reasoning_effort": "none"}, Upstream("vllm", "base", has_fast=False), Policy()
        )


def test_auto_follows_the_last_question() -> None:
    def mode(messages: Any, policy: Policy | None = None) -> str:
        found = chat({"messages": messages, "reasoning_effort": "auto"}, VLLM, policy or Policy()).decision
        assert found is not None
        return found.mode

    assert (mode(EASY), mode(HARD), mode([*HARD, *EASY])) == ("fast", "slow", "fast")
    assert mode([*HARD, {"role": "assistant", "content": "12"}]) == "slow"
    assert (
        mode([{"role": "user", "content": [{"type": "text", "text": HARD[0]["content"]}, {"type": "x"}]}])
        == "slow"
    )
    assert mode(HARD, Policy(threshold=1.0)) == "fast"
    assert mode(EASY, Policy(scorer=Callback(lambda prompt, _: float(prompt == "Hi")))) == "slow"
    assert [mode(odd) for odd in (None, "text", [], [3], [{"role": "user"}])] == ["fast"] * 5


def test_another_model_goes_through_as_it_was() -> None:
    body = {"model": "other", "messages": EASY, "reasoning_effort": "none"}
    found = chat(body, VLLM, Policy("auto"))
    assert (found.body, found.decision) == (body, None)
    assert completion({"model": "other", "prompt": "a"}, VLLM).body == {"model": "other", "prompt": "a"}
    assert chat(body, LLAMA, Policy()).decision is not None  # a server of one model has no other model
    with pytest.raises(ApiError, match="has one mode"):
        chat(body | {"reasoning_effort": "auto"}, VLLM, Policy())


def test_a_request_that_names_the_fast_model_is_fast() -> None:
    found = chat({"model": "quick", "messages": EASY}, VLLM, Policy("high"))
    assert found.body == {
        "model": "quick", "messages": EASY, "chat_template_kwargs": {"enable_thinking": False}
    }  # fmt: skip
    by_name = (
        found,
        chat({"model": "base:quick", "messages": EASY}, SGLANG, Policy()),
        completion({"model": "quick", "prompt": "a"}, VLLM),
    )
    assert [one.decision.mode for one in by_name if one.decision] == ["fast"] * 3
    for more in ({"reasoning_effort": "high"}, {"chat_template_kwargs": {"enable_thinking": True}}):
        with pytest.raises(ApiError, match="has one mode"):
            chat({"model": "quick", "messages": EASY, **more}, VLLM, Policy())
    with pytest.raises(ApiError, match="leave the budget out"):
        chat({"model": "quick", "messages": EASY, "thinking_budget": 3}, VLLM, Policy())


def test_fast_requests_end_at_the_fast_models_end_tokens() -> None:
    ending = Upstream("vllm", "base", "quick", end_tokens=(7, 9))

    def ends(effort: str, **asked: Any) -> Any:
        return chat({"messages": EASY, "reasoning_effort": effort, **asked}, ending, Policy()).body.get(
            "stop_token_ids"
        )

    assert ends("none") == [7, 9]
    assert ends("none", stop_token_ids=[9, 3]) == [9, 3, 7]
    assert ends("high") is None
    assert ends("high", stop_token_ids=[3]) == [3]
    assert ends("none", ignore_eos=True) is None  # requests without any end
    assert ends("none", stop_token_ids="all") == "all"  # vLLM returns the error
    assert completion({"model": "quick", "prompt": "a"}, ending).body["stop_token_ids"] == [7, 9]
    assert "stop_token_ids" not in completion({"prompt": "a"}, ending).body


def test_completions_are_slow_and_know_no_effort() -> None:
    assert completion({"prompt": "a"}, VLLM).body == {"prompt": "a", "model": "base"}
    assert [one["scale"] for one in completion({"prompt": "a"}, LLAMA).body["lora"]] == [0.0, 0.0, 0.0]
    with pytest.raises(ApiError, match="for chats") as refused:
        completion({"prompt": "a", "reasoning_effort": "none"}, VLLM)
    assert refused.value.param == "reasoning_effort"


def test_a_clients_own_scales_stand() -> None:
    body = {"messages": EASY, "lora": [{"id": 2, "scale": 0.5}], "reasoning_effort": "none"}
    assert [one["scale"] for one in chat(body, LLAMA, Policy()).body["lora"]] == [0.0, 1.0, 0.5]
    for wrong in ("all", [1], [{"id": 1}], [{"id": "1", "scale": 1}]):
        with pytest.raises(ApiError) as refused:
            chat({"messages": EASY, "lora": wrong}, LLAMA, Policy())
        assert str(refused.value.param).startswith("lora")


def test_budgets_are_sent_to_servers_that_support_them() -> None:
    def sent(upstream: Upstream, **asked: Any) -> Any:
        return chat({"messages": EASY, **asked}, upstream, Policy("none")).body.get("thinking_token_budget")

    ready = Upstream("vllm", "base", "quick", budgets=True)
    assert sent(VLLM, thinking_budget=7) == 7
    assert sent(VLLM, reasoning={"max_tokens": 8}) == 8
    assert sent(VLLM, reasoning_effort="high", max_tokens=100) is None  # no sign that it can
    assert sent(ready, reasoning_effort="high", max_tokens=100) == 80
    assert sent(ready, reasoning_effort="low", max_completion_tokens=1) == 1
    assert sent(ready, reasoning_effort="high") is None
    for upstream in (SGLANG, LLAMA):
        with pytest.raises(ApiError, match="has no reasoning budget"):
            sent(upstream, thinking_budget=7)
    with pytest.raises(ApiError, match="does not reason: leave the budget out"):
        sent(VLLM, thinking_budget=7, reasoning_effort="none")


@pytest.mark.parametrize(
    ("asked", "param"),
    [
        ({"reasoning_effort": "escalate"}, "reasoning_effort"),
        ({"reasoning_effort": "huge"}, "reasoning_effort"),
        ({"reasoning_effort": 3}, "reasoning_effort"),
        ({"reasoning_effort": ["none"]}, "reasoning_effort"),
        ({"reasoning": "none"}, "reasoning"),
        ({"reasoning": {"effort": "huge"}}, "reasoning.effort"),
        ({"reasoning": {"effort": "low"}, "reasoning_effort": "high"}, "reasoning_effort"),
        ({"reasoning": {"max_tokens": 1}, "thinking_budget": 2}, "thinking_budget"),
        ({"thinking_budget": -1}, "thinking_budget"),
        ({"thinking_budget": True}, "thinking_budget"),
        ({"chat_template_kwargs": 3}, "chat_template_kwargs"),
        ({"chat_template_kwargs": {"enable_thinking": "no"}}, "chat_template_kwargs.enable_thinking"),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(asked: dict[str, Any], param: str) -> None:
    with pytest.raises(ApiError) as refused:
        chat({"messages": EASY, **asked}, VLLM, Policy())
    assert (refused.value.status, refused.value.param) == (400, param)


def test_an_error_about_text_without_a_utf8_form_can_be_sent() -> None:
    answer = ApiError(400, "the model is \ud800", "model").to_response()
    assert (answer.status_code, answer.headers["content-type"]) == (400, "application/json")
    assert json.loads(answer.body)["error"]["message"] == "the model is \ud800"


@given(
    body=st.dictionaries(st.sampled_from(sorted(DECIDING)), values, max_size=5),
    upstream=st.sampled_from(UPSTREAMS),
)
def test_any_body_is_mapped_or_refused(body: dict[str, Any], upstream: Upstream) -> None:
    for mapped in (lambda: chat(body, upstream, Policy("auto")), lambda: completion(body, upstream)):
        with contextlib.suppress(ApiError):
            assert isinstance(mapped().body, dict)


def card(name: str, owner: str, **more: Any) -> dict[str, Any]:
    return {"id": name, "object": "model", "owned_by": owner} | more


def test_servers_tell_what_they_are() -> None:
    vllm = {"data": [card("base", "vllm", parent=None), card("quick", "vllm", parent="base")]}
    assert upstream_of(vllm, None, UpstreamOptions()) == VLLM
    sglang = {"data": [card("base", "sglang"), card("quick", "sglang", parent="base")]}
    assert upstream_of(sglang, None, UpstreamOptions()) == SGLANG
    llama = {"data": [card("base", "llamacpp")]}
    adapters = [{"id": n, "path": f"{n}.gguf", "scale": 0.0} for n in range(3)]
    assert upstream_of(llama, adapters, UpstreamOptions(fast="1")) == LLAMA
    assert upstream_of(llama, adapters, UpstreamOptions(fast="1.gguf")) == LLAMA
    assert upstream_of(llama, [], UpstreamOptions()) == Upstream("llama.cpp", "base")
    assert upstream_of(llama, [], UpstreamOptions(), "{% if enable_thinking %}").has_fast
    one = upstream_of(llama, [], UpstreamOptions(), "{{ messages }}</think>")
    assert (one.has_fast, one.reasons) == (False, True)
    for effort in ("none", "auto"):
        with pytest.raises(ApiError, match="has one mode"):
            chat({"messages": [], "reasoning_effort": effort}, one, Policy())
    assert chat({"messages": [], "reasoning_effort": "high"}, one, Policy()).decision.mode == "slow"
    assert "slow only" in one.summary()
    assert upstream_of(llama, [], UpstreamOptions(), "{{ reasoning_effort }}").reasons
    plain = upstream_of(llama, [], UpstreamOptions(), "{{ messages }}")
    assert (plain.has_fast, plain.reasons) == (False, False)
    none = {"messages": [], "reasoning_effort": "none"}
    assert chat(none, plain, Policy()).body == none | {"lora": []}
    with pytest.raises(ApiError, match="has one mode"):
        chat({"messages": [], "reasoning_effort": "auto"}, plain, Policy())
    assert "never reasons" in plain.summary()
    unknown = {"data": [card("base", "me")]}
    assert upstream_of(unknown, None, UpstreamOptions(kind="vllm")) == BARE


@pytest.mark.parametrize(
    ("models", "wanted", "match"),
    [
        ({"data": [card("base", "me")]}, UpstreamOptions(), "give its kind"),
        ({"data": [card("base", "justright")]}, UpstreamOptions(), "needs no gateway"),
        ({"data": [card("base", "vllm")]}, UpstreamOptions(model="other"), "no model 'other'; it has: base"),
        ({"data": [card("base", "vllm")]}, UpstreamOptions(fast="q"), "no adapter 'q'; it has: none"),
        (
            {"data": [card("base", "vllm"), *(card(name, "vllm", parent="base") for name in "ab")]},
            UpstreamOptions(),
            "the adapters a, b: name the one",
        ),
        ({"data": []}, UpstreamOptions(), "/v1/models is not that.*data: List should have at least 1 item"),
        ([], UpstreamOptions(), "/v1/models is not that.*the response"),
        ({"data": [1]}, UpstreamOptions(), "/v1/models is not that.*data.0"),
    ],
)
def test_servers_that_are_not_understood(models: Any, wanted: UpstreamOptions, match: str) -> None:
    with pytest.raises(UsageError, match=match):
        upstream_of(models, None, wanted)


def test_kinds_and_efforts_are_checked() -> None:
    with pytest.raises(UsageError, match=r"allowed: vllm, sglang, llama.cpp"):
        UpstreamOptions(kind="tgi")
    with pytest.raises(UsageError, match="allowed: none, minimal"):
        Policy("escalate")
    listed = {"data": [card("base", "llamacpp")]}
    with pytest.raises(UsageError, match="no adapter '9'"):
        upstream_of(listed, [{"id": 0, "path": "0.gguf"}], UpstreamOptions(fast="9"))
