"""What vLLM is started with, and its middleware; no vLLM is needed."""

from __future__ import annotations

import asyncio
import copy
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from justright.adapter.adapter import Adapter, LowRank, read_adapter
from justright.adapter.padded import both_templates, save_portable
from justright.checkpoint.tokenizer import load_tokenizer
from justright.cli import main
from justright.engine.chat_modes import chat_tokens
from justright.engine.sampler import SamplingParams
from justright.errors import UsageError
from justright.serve.upstream import Policy, Upstream
from justright.serve.vllm.effort_middleware import (
    VARIABLE,
    Answering,
    Modes,
    Served,
    from_variable,
    to_variable,
)
from justright.serve.vllm.launch import VllmSettings, command, version_note
from justright.serve.vllm.told import Asked
from tiny import tiny_tokenizer

HELLO = [{"role": "user", "content": "Hello"}]
UPSTREAM = Upstream("vllm", "tiny", "tiny-fast")


def test_the_command_has_the_model_as_it_is_and_the_switch_padded(
    pair: tuple[Path, Path], tmp_path: Path
) -> None:
    adapter = read_adapter(pair[1])
    settings = VllmSettings(
        "tiny", port=1, max_context=64, slots=3, data_parallel=2, draft="suffix", more=("--x",)
    )
    found = command(pair[0], adapter, load_tokenizer(pair[0]), settings, tmp_path)
    words = list(found.arguments)
    after = dict(pairwise(words))
    assert words[:2] == ["-m", "vllm.entrypoints.openai.api_server"]
    assert words[-1] == "--x"
    assert after["--model"] == str(pair[0])
    assert after["--lora-modules"] == f"tiny-fast={tmp_path / 'switch'}"
    assert after["--max-loras"] == "2"  # one more than there are
    assert (after["--max-model-len"], after["--max-num-seqs"], after["--data-parallel-size"]) == (
        "64",
        "3",
        "2",
    )
    assert json.loads(after["--speculative-config"])["method"] == "suffix"
    served = from_variable(found.environment[VARIABLE])
    assert (served.upstream, served.policy) == (UPSTREAM, Policy())
    assert served.drafts

    written = read_adapter(tmp_path / "switch")
    rank = int(after["--max-lora-rank"])
    assert written.low_rank.keys() == adapter.low_rank.keys()
    for name, one in written.low_rank.items():
        assert one.a.shape[0] == rank
        torch.testing.assert_close(one.b @ one.a, adapter.low_rank[name].b @ adapter.low_rank[name].a)


def test_a_plain_model_needs_no_files(tiny_path: Path, tmp_path: Path) -> None:
    settings = VllmSettings("tiny", params=SamplingParams(temperature=0.5), api_keys=("secret",))
    found = command(tiny_path, None, load_tokenizer(tiny_path), settings, tmp_path)
    assert not list(tmp_path.iterdir())
    assert "--enable-lora" not in found.arguments
    assert "secret" not in " ".join(found.arguments)
    assert found.environment["VLLM_API_KEY"] == "secret"
    sampling = found.arguments[list(found.arguments).index("--override-generation-config") + 1]
    assert json.loads(sampling)["temperature"] == 0.5


def test_a_model_of_one_mode_is_not_fast_by_default(tiny_path: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(tiny_path)
    found = command(tiny_path, None, tokenizer, VllmSettings("tiny"), tmp_path)
    assert not from_variable(found.environment[VARIABLE]).upstream.has_fast
    with pytest.raises(UsageError, match="needs a switch"):
        command(tiny_path, None, tokenizer, VllmSettings("tiny", policy=Policy("none")), tmp_path)


def test_our_drafter_goes_by_the_plugin(tiny_path: Path, tmp_path: Path) -> None:
    settings = VllmSettings("tiny", draft="hybrid", draft_options={"path": "x"})
    found = command(tiny_path, None, load_tokenizer(tiny_path), settings, tmp_path)
    config = json.loads(found.arguments[list(found.arguments).index("--speculative-config") + 1])
    assert config["method"] == "custom_class"
    told = json.loads(found.environment["JUSTRIGHT_VLLM_DRAFTER"])
    assert told == {"draft": "hybrid", "options": {"path": "x"}, "model": str(tiny_path)}


def test_thoughts_are_vllms_own_where_the_tags_are_tokens(tiny_path: Path, tmp_path: Path) -> None:
    tokenizer = copy.deepcopy(tiny_tokenizer())
    tokenizer.chat_template = "{{ '</think>' }}"
    found = command(tiny_path, None, tokenizer, VllmSettings("tiny"), tmp_path)
    assert "--reasoning-parser" not in found.arguments
    assert "are no tokens of this model" in found.notes[0]
    tokenizer.add_tokens(["<think>", "</think>"])
    found = command(tiny_path, None, tokenizer, VllmSettings("tiny", closing="</think>So"), tmp_path)
    config = found.arguments[list(found.arguments).index("--reasoning-config") + 1]
    assert json.loads(config) == {"reasoning_start_str": "<think>", "reasoning_end_str": "</think>So"}
    assert from_variable(found.environment[VARIABLE]).upstream.budgets


@pytest.mark.parametrize("fast", ["\n F {{ x }}\n  ", "{% if true %}\nF{% endif %}\n", "F"])
@pytest.mark.parametrize(
    "slow", ["\n\nS {{ enable_thinking | default('unset') }}\n\n", "  {% if true %}S{% endif %}"]
)
def test_one_template_says_what_two_said(slow: str, fast: str) -> None:
    tokenizer = copy.deepcopy(tiny_tokenizer())

    def said(template: str, **arguments: Any) -> list[int]:
        tokenizer.chat_template = template
        return chat_tokens(tokenizer, HELLO, **arguments)

    both = both_templates(slow, fast)
    assert said(both, x="1", enable_thinking=False) == said(fast, x="1", enable_thinking=False)
    assert said(both, x="1", enable_thinking=True) == said(slow, x="1", enable_thinking=True)
    assert said(both, x="1") == said(slow, x="1")


def test_what_cannot_be_padded_is_refused(tmp_path: Path) -> None:
    def adapter(*shape: int) -> Adapter:
        return Adapter(
            tmp_path, {"model.x": LowRank(torch.zeros(shape), torch.zeros(shape).mT)}, {}, None, None, {}
        )

    with pytest.raises(UsageError, match="stacked experts"):
        save_portable(adapter(2, 3, 4), tmp_path, tmp_path)
    with pytest.raises(UsageError, match="at most 512"):
        save_portable(adapter(513, 600), tmp_path, tmp_path)
    assert save_portable(adapter(9, 20), tmp_path, tmp_path) == 16


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"draft": "recycling"}, "a drafter of ours, and vLLM drafts by none, suffix, lstm, hybrid"),
        ({"draft_options": {"path": "x"}}, "none has none here"),
        ({"draft": "magic"}, "no drafter"),
        ({"data_parallel": 0}, "1 or more"),
        ({"api_keys": ("a", "b")}, "takes one"),
        ({"more": ("--port=3",)}, "set by justright"),
        ({"params": SamplingParams(seed=1)}, "a seed is for a request"),
    ],
)
def test_settings_are_checked(settings: dict[str, Any], match: str) -> None:
    with pytest.raises(UsageError, match=match):
        VllmSettings("tiny", **settings)


def test_versions() -> None:
    assert version_note("0.32.0") is None
    assert "0.33.1 was not tried" in str(version_note("0.33.1"))


SCHEMAS = {
    "ChatCompletionRequest": {
        "properties": {name: {} for name in ("model", "messages", "chat_template_kwargs", "reasoning_effort")}
    }
}


class Document:
    """vLLM's application, as far as it is asked what it knows."""

    def openapi(self) -> Any:
        return {"components": {"schemas": SCHEMAS}}


async def _asked(path: str, *pieces: bytes) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What the application behind the middleware got, and what the client got."""
    got: dict[str, Any] = {}
    sent: list[dict[str, Any]] = []
    coming = [{"type": "http.request", "body": one, "more_body": True} for one in pieces[:-1]]
    coming += [{"type": "http.request", "body": pieces[-1], "more_body": False}, {"type": "http.disconnect"}]

    async def app(scope: Any, receive: Any, send: Any) -> None:
        body = b""
        while True:
            message = await receive()
            body += message["body"]
            if not message["more_body"]:
                break
        got.update(body=body, headers=dict(scope["headers"]), after=await receive())
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def receive() -> Any:
        return coming.pop(0)

    async def send(message: Any) -> None:
        sent.append(message)

    headers = [(b"content-length", str(sum(map(len, pieces))).encode()), (b"x-a", b"b")]
    scope = {"type": "http", "method": "POST", "path": path, "headers": headers, "app": Document()}
    await Modes(app)(scope, receive, send)
    return got, sent


@pytest.fixture
def _modes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, to_variable(Served(UPSTREAM, Policy("none"), (7, 8))))


@pytest.mark.usefixtures("_modes")
def test_the_middleware_changes_the_model_and_the_length() -> None:
    body = json.dumps({"model": "tiny", "messages": HELLO}).encode()
    got, sent = asyncio.run(_asked("/v1/chat/completions", body[:9], body[9:]))
    assert json.loads(got["body"])["model"] == "tiny-fast"
    assert got["headers"] == {b"content-length": str(len(got["body"])).encode(), b"x-a": b"b"}
    assert got["after"]["type"] == "http.disconnect"
    assert (b"x-justright-mode", b"fast") in sent[0]["headers"]


@pytest.mark.usefixtures("_modes")
@pytest.mark.parametrize(
    ("path", "body"),
    [("/v1/chat/completions", b"{"), ("/v1/completions", b"[]"), ("/v1/embeddings", b'{"model": "tiny"}')],
)
def test_the_middleware_leaves_the_rest_alone(path: str, body: bytes) -> None:
    got, sent = asyncio.run(_asked(path, body))
    assert got["body"] == body
    assert sent[0]["headers"] == []


@pytest.mark.usefixtures("_modes")
def test_the_middleware_refuses_as_the_api_does() -> None:
    got, sent = asyncio.run(
        _asked("/v1/chat/completions", b'{"messages": [], "reasoning_effort": "escalate"}')
    )
    assert (got, sent[0]["status"]) == ({}, 400)
    assert json.loads(sent[1]["body"])["error"]["code"] == "unsupported_value"


@pytest.mark.usefixtures("_modes")
@pytest.mark.parametrize(
    ("more", "param", "code"),
    [
        ({"nonsense": 1}, "nonsense", "unknown_parameter"),
        ({"store": True}, "store", "unsupported_parameter"),
        ({"reasoning": {"depth": 1}}, "reasoning.depth", "unknown_parameter"),
    ],
)
def test_what_vllm_would_ignore_is_refused(more: dict[str, Any], param: str, code: str) -> None:
    body = json.dumps({"model": "tiny", "messages": HELLO, **more}).encode()
    got, sent = asyncio.run(_asked("/v1/chat/completions", body))
    error = json.loads(sent[1]["body"])["error"]
    assert (got, error["param"], error["code"]) == ({}, param, code)
    neutral = json.dumps({"model": "tiny", "messages": HELLO, "store": False}).encode()
    got, _ = asyncio.run(_asked("/v1/chat/completions", neutral))
    assert "store" not in json.loads(got["body"])


SLOW = Asked(chat=True, model="tiny", mode="slow", thoughts=(7, 8), tail=1)


def _answered(asked: Asked | None, status: int, kind: str, *pieces: bytes) -> tuple[dict[str, Any], bytes]:
    """What a client gets of an answer that comes in pieces."""
    sent: list[dict[str, Any]] = []

    async def run() -> None:
        async def send(message: Any) -> None:
            sent.append(message)

        answering = Answering(send, asked, {"X-Justright-Mode": "slow"})
        headers = [(b"Content-Type", kind.encode()), (b"content-length", b"5")]
        await answering({"type": "http.response.start", "status": status, "headers": headers})
        for index, piece in enumerate(pieces):
            more = index + 1 < len(pieces)
            await answering({"type": "http.response.body", "body": piece, "more_body": more})

    asyncio.run(run())
    return sent[0], b"".join(message["body"] for message in sent[1:])


def _vllms_answer() -> dict[str, Any]:
    message = {"role": "assistant", "content": "\n\nYes.", "reasoning": "\nWell\n"}
    choice = {
        "index": 0,
        "message": message,
        "finish_reason": "stop",
        "stop_reason": None,
        "token_ids": [1, 8, 2, 3, 9],
    }
    body: dict[str, Any] = {"model": "tiny", "choices": [choice], "prompt_token_ids": [5, 7]}
    return body | {"usage": {"prompt_tokens": 2, "completion_tokens": 5, "total_tokens": 7}}


@pytest.mark.parametrize(
    ("prompt", "said", "ids", "content", "reasoning_tokens"),
    [
        # The user's last words are an opening tag; the template (one token) opens nothing.
        ([5, 7, 4], {"content": "Yes."}, [1, 2], "Yes.", 0),
        # Tags in the content are content, whoever wrote them.
        (
            [5, 4],
            {"content": "A <think> tag </think> here"},
            [1, 7, 2, 8, 3],
            "A <think> tag </think> here",
            0,
        ),
        ([5, 7], {"content": "\n{a</think>}", "reasoning": "so"}, [1, 8, 2, 8, 3], "{a</think>}", 2),
    ],
)
def test_vllms_split_stands(
    prompt: list[int], said: dict[str, str], ids: list[int], content: str, reasoning_tokens: int
) -> None:
    body = _vllms_answer()
    body["prompt_token_ids"] = prompt
    body["choices"][0] |= {"message": {"role": "assistant", **said}, "token_ids": ids}
    found = json.loads(_answered(SLOW, 200, "application/json", json.dumps(body).encode())[1])
    assert found["choices"][0]["message"]["content"] == content
    assert found["usage"]["completion_tokens_details"]["reasoning_tokens"] == reasoning_tokens


def test_a_whole_answer_gets_our_form() -> None:
    start, body = _answered(SLOW, 200, "application/json", json.dumps(_vllms_answer()).encode())
    found = json.loads(body)
    assert dict(start["headers"])[b"content-length"] == str(len(body)).encode()
    assert dict(start["headers"])[b"x-justright-mode"] == b"slow"
    [choice] = found["choices"]
    assert choice["message"]["reasoning_content"] == "Well"
    assert choice["message"]["content"] == "Yes."
    assert found["usage"]["completion_tokens_details"] == {"reasoning_tokens": 2}
    assert (choice["justright"]["mode"], choice["justright"]["ended_by"]) == ("slow", "end")
    assert "prompt_token_ids" not in found
    assert "token_ids" not in choice


def test_errors_get_openais_form_and_other_bodies_none() -> None:
    error = {"error": {"message": "no", "type": "BadRequestError", "param": "body.temperature", "code": 400}}
    _, body = _answered(None, 400, "application/json", json.dumps(error).encode())
    assert json.loads(body)["error"] | {"message": ""} == {
        "message": "", "type": "invalid_request_error", "param": "temperature", "code": "invalid_value",
    }  # fmt: skip
    _, body = _answered(SLOW, 200, "text/plain", b"as ", b"it is")
    assert body == b"as it is"
    _, body = _answered(SLOW, 200, "application/json", b"no JSON")
    assert body == b"no JSON"


@given(st.lists(st.integers(0, 2000), max_size=6))
def test_a_stream_is_rewritten_event_by_event_wherever_it_is_cut(cuts: list[int]) -> None:
    def chunk(delta: dict[str, Any], ids: list[int], **more: Any) -> dict[str, Any]:
        return {"model": "tiny", "choices": [{"index": 0, "delta": delta, "token_ids": ids, **more}]}

    first = chunk({"role": "assistant"}, []) | {"prompt_token_ids": [5, 7]}
    chunks = [first, chunk({"reasoning": "Well"}, [1]), chunk({}, [8]), chunk({"content": "\n"}, [2])]
    chunks += [chunk({"content": "Yes"}, [3]), chunk({"content": ""}, [9], finish_reason="stop")]
    chunks += [{"model": "tiny", "choices": [], "usage": {"prompt_tokens": 2, "completion_tokens": 5}}]
    data = b"".join(b"data: " + json.dumps(one).encode() + b"\n\n" for one in chunks) + b"data: [DONE]\n\n"
    edges = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    pieces = [data[begin:end] for begin, end in pairwise(edges)]
    _, body = _answered(SLOW, 200, "text/event-stream", *pieces)
    *events, end, rest = body.split(b"\n\n")
    assert (end, rest) == (b"data: [DONE]", b"")
    found = [json.loads(one.removeprefix(b"data: "))["choices"][0] for one in events]
    deltas = [choice["delta"] for choice in found]
    assert "".join(one.get("reasoning_content", "") for one in deltas) == "Well"
    assert "".join(one.get("content") or "" for one in deltas) == "Yes"
    assert found[-1]["justright"]["ended_by"] == "end"
    assert not any("token_ids" in choice for choice in found)


def test_the_middleware_needs_to_be_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    with pytest.raises(UsageError, match="justright serve MODEL --engine vllm"):
        Modes(lambda *_: None)  # type: ignore[arg-type, return-value]
    with pytest.raises(UsageError, match=VARIABLE):
        from_variable('{"model": 3}')


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--engine", "vllm", "--queue", "3"), "vLLM queues without a limit"),
        (("--engine", "vllm", "--effort", "auto", "--scorer", "probe"), "vLLM keeps"),
        (("--engine", "vllm", "--effort", "escalate"), "allowed: none"),
        (("--engine", "vllm", "--draft", "recycling"), "a drafter of ours"),
        (("--engine", "sglang"), "allowed: embedded, vllm"),
        ((), "for --engine vllm"),
    ],
)
def test_options_that_would_do_nothing(
    tiny_path: Path, options: tuple[str, ...], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["serve", str(tiny_path), *options, "--dry-run"])
    assert (ended.value.code, told in capsys.readouterr().err) == (2, True)


def test_the_command_line(
    pair: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("JUSTRIGHT_CACHE", str(tmp_path))
    options = ("--engine", "vllm", "--switch", str(pair[1]), "--effort", "auto", "--dry-run", "--json")
    with pytest.raises(SystemExit) as ended:
        main(["serve", str(pair[0]), *options])
    out, err = capsys.readouterr()
    assert (ended.value.code, "hidden states" in err) == (0, True)
    found = json.loads(out)
    assert json.loads(found["environment"][VARIABLE])["effort"] == "auto"
    assert (
        json.loads(found["command"][found["command"].index("--override-generation-config") + 1])[
            "temperature"
        ]
        == 1
    )
