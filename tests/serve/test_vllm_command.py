"""The arguments that vLLM is started with, and its middleware; needs no vLLM."""

from __future__ import annotations

import asyncio
import copy
import json
import shutil
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from justright.adapter.adapter import Adapter, LowRank, read_adapter
from justright.adapter.padded import both_templates, save_portable
from justright.checkpoint.tokenizer import load_tokenizer
from justright.cli import main
from justright.engine.chat_modes import chat_tokens
from justright.engine.sampler import SamplingParams
from justright.errors import UsageError
from justright.serve.api_errors import ApiError
from justright.serve.upstream import Policy, Upstream, chat
from justright.serve.vllm.effort_middleware import (
    VARIABLE,
    EffortMiddleware,
    ServedModels,
    from_variable,
    to_variable,
)
from justright.serve.vllm.launch import VllmSettings, command, version_note
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
    assert after["--max-loras"] == "2"  # one more than the adapters
    assert (after["--max-model-len"], after["--max-num-seqs"], after["--data-parallel-size"]) == (
        "64",
        "3",
        "2",
    )
    assert json.loads(after["--speculative-config"])["method"] == "suffix"
    served = from_variable(found.environment[VARIABLE])
    ends = tuple(sorted(adapter.end_tokens))
    assert (served.upstream, served.policy) == (replace(UPSTREAM, end_tokens=ends), Policy())

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
    upstream = from_variable(found.environment[VARIABLE]).upstream
    assert (upstream.has_fast, upstream.reasons) == (False, False)
    with pytest.raises(UsageError, match="has one mode: give --switch"):
        command(tiny_path, None, tokenizer, VllmSettings("tiny", policy=Policy("auto")), tmp_path)
    reasoning = copy.deepcopy(tokenizer)
    reasoning.chat_template = "{{ '<think>' }}"
    for effort in ("none", "minimal", "auto"):
        with pytest.raises(UsageError, match=f"effort is {effort}, and the model has one mode"):
            command(tiny_path, None, reasoning, VllmSettings("tiny", policy=Policy(effort)), tmp_path)


@pytest.mark.parametrize("effort", ["none", "minimal"])
def test_effort_none_of_a_model_that_never_reasons_is_true(
    tiny_path: Path, tmp_path: Path, effort: str
) -> None:
    """As a default and in a request; vLLM gets the request without any change to it."""
    settings = VllmSettings("tiny", policy=Policy(effort))
    found = command(tiny_path, None, load_tokenizer(tiny_path), settings, tmp_path)
    served = from_variable(found.environment[VARIABLE])
    assert served.policy == Policy(effort)
    for asked in ({}, {"reasoning_effort": effort}):
        body = {"model": "tiny", "messages": HELLO, **asked}
        assert chat(body, served.upstream, served.policy).body == body
    with pytest.raises(ApiError, match="has one mode"):
        chat({"messages": HELLO, "reasoning_effort": "auto"}, served.upstream, served.policy)


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
    assert "are not single tokens of this model" in found.notes[0]
    tokenizer.add_tokens(["<think>", "</think>"])
    found = command(tiny_path, None, tokenizer, VllmSettings("tiny", closing="</think>So"), tmp_path)
    config = found.arguments[list(found.arguments).index("--reasoning-config") + 1]
    assert json.loads(config) == {"reasoning_start_str": "<think>", "reasoning_end_str": "</think>So"}
    assert from_variable(found.environment[VARIABLE]).upstream.budgets


@pytest.mark.parametrize("fast", ["\n F {{ x }}\n  ", "{% if true %}\nF{% endif %}\n", "F"])
@pytest.mark.parametrize(
    "slow", ["\n\nS {{ enable_thinking | default('unset') }}\n\n", "  {% if true %}S{% endif %}"]
)
def test_one_template_gives_what_two_gave(slow: str, fast: str) -> None:
    tokenizer = copy.deepcopy(tiny_tokenizer())

    def said(template: str, **arguments: Any) -> list[int]:
        tokenizer.chat_template = template
        return chat_tokens(tokenizer, HELLO, **arguments)

    both = both_templates(slow, fast)
    assert said(both, x="1", enable_thinking=False) == said(fast, x="1", enable_thinking=False)
    assert said(both, x="1", enable_thinking=True) == said(slow, x="1", enable_thinking=True)
    assert said(both, x="1") == said(slow, x="1")


MACRO = "{% macro end() %}{{ eos_token }}{% endmacro %}"
WITH_TOKENS = MACRO + "{{ bos_token }}{% for m in messages %}{{ end() }}{% endfor %}"


def test_each_template_has_its_own_special_tokens() -> None:
    tokenizer = copy.deepcopy(tiny_tokenizer())
    own = tokenizer.special_tokens_map

    def written(template: str, **arguments: Any) -> str:
        return str(tokenizer.apply_chat_template(HELLO, tokenize=False, chat_template=template, **arguments))

    fast = {"bos_token": "it's\"😀%}", "eos_token": "\n<|é|>"}
    both = both_templates("S" + WITH_TOKENS, "F" + WITH_TOKENS, fast)
    assert written(both, enable_thinking=False) == f"F{fast['bos_token']}{fast['eos_token']}"
    assert written(both) == f"S{own['bos_token']}{own['eos_token']}"


@pytest.mark.parametrize("place", ["jinja", "tokenizer_config", "named"])
def test_fast_requests_have_the_fast_models_template_and_end_tokens(
    pair: tuple[Path, Path], tmp_path: Path, place: str
) -> None:
    """For every place of the slow model's template, and every form of the fast model's in the adapter's folder."""
    model, adapter = tmp_path / "model", tmp_path / "adapter"
    shutil.copytree(pair[0], model)
    shutil.copytree(pair[1], adapter)
    slow = (model / "chat_template.jinja").read_text()
    if place != "jinja":
        config = json.loads((model / "tokenizer_config.json").read_text())
        named = [{"name": "default", "template": slow}, {"name": "tool_use", "template": "T"}]
        config["chat_template"] = slow if place == "tokenizer_config" else named
        (model / "tokenizer_config.json").write_text(json.dumps(config))
        (model / "chat_template.jinja").unlink()
    special = json.loads((adapter / "tokenizer_config.json").read_text()) | {"eos_token": "<fast end>"}
    special["chat_template"] = "F {{ messages[0]['content'] }}{{ eos_token }}"
    (adapter / "tokenizer_config.json").write_text(json.dumps(special))
    (adapter / "chat_template.jinja").unlink()
    (adapter / "generation_config.json").write_text('{"eos_token_id": [11, 5]}')
    settings = VllmSettings("tiny")
    found = command(model, read_adapter(adapter), load_tokenizer(model), settings, tmp_path / "out")
    assert from_variable(found.environment[VARIABLE]).upstream.end_tokens == (5, 11)
    written = Path(dict(pairwise(found.arguments))["--chat-template"]).read_text()
    tokenizer = load_tokenizer(pair[0])
    said = tokenizer.apply_chat_template(HELLO, tokenize=False, chat_template=written, enable_thinking=False)
    assert said == "F Hello<fast end>"
    said = tokenizer.apply_chat_template(HELLO, tokenize=False, chat_template=written)
    assert said == tokenizer.apply_chat_template(HELLO, tokenize=False)


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
        (
            {"draft": "recycling"},
            "a drafter of the embedded engine; allowed with vLLM: none, suffix, lstm, hybrid",
        ),
        ({"draft_options": {"path": "x"}}, "none drafts have no options with vLLM"),
        ({"draft": "magic"}, "not a drafter"),
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
    assert "0.33.1 is not the tested version" in str(version_note("0.33.1"))


async def _asked(path: str, *pieces: bytes) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The request that the application received, and the answer that the client received."""
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
    scope = {"type": "http", "method": "POST", "path": path, "headers": headers}
    await EffortMiddleware(app)(scope, receive, send)
    return got, sent


@pytest.fixture
def _modes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, to_variable(ServedModels(replace(UPSTREAM, end_tokens=(7, 8)), "none")))


@pytest.mark.usefixtures("_modes")
def test_the_middleware_changes_the_model_and_the_length() -> None:
    body = json.dumps({"model": "tiny", "messages": HELLO}).encode()
    got, sent = asyncio.run(_asked("/v1/chat/completions", body[:9], body[9:]))
    assert json.loads(got["body"]) == {
        "model": "tiny-fast",
        "messages": HELLO,
        "chat_template_kwargs": {"enable_thinking": False},
        "stop_token_ids": [7, 8],
    }
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


WHOLE = b'{"id" : "x", "choices": [{"message": {"reasoning": "\\n so", "content": " 1\xc2\x85"}}], "usage":null}\n'
STREAM = (
    b'data: {"choices":[{"delta":{"reasoning":"\n","token_ids":[]}}]}\n\ndata: {"choices":  []}\r\n\r\n'
    b': a comment\n\ndata: {"x": "\xe2\x80\xa8"}\n\ndata: [DONE]\n\n'
)


@pytest.mark.usefixtures("_modes")
@pytest.mark.parametrize("size", [1, 7, 1000])
@pytest.mark.parametrize(
    ("status", "kind", "answer"),
    [
        (200, b"application/json", WHOLE),
        (200, b"text/event-stream; charset=utf-8", STREAM),
        (400, b"application/json", b'{"error": {"param": "body.temperature", "code": 400}}'),
        (200, b"application/json", b"no JSON \xff"),
    ],
)
def test_vllms_answers_pass_byte_for_byte(status: int, kind: bytes, answer: bytes, size: int) -> None:
    pieces = [answer[at : at + size] for at in range(0, len(answer), size)]
    headers = [(b"content-type", kind), (b"content-length", str(len(answer)).encode())]
    sent: list[dict[str, Any]] = []

    async def vllm(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "http.response.start", "status": status, "headers": headers})
        for piece in pieces:
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    async def run() -> None:
        async def receive() -> Any:
            body = json.dumps({"model": "tiny", "messages": HELLO, "nonsense": 1}).encode()
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(message: Any) -> None:
            sent.append(message)

        scope = {"type": "http", "method": "POST", "path": "/v1/chat/completions", "headers": []}
        await EffortMiddleware(vllm)(scope, receive, send)

    asyncio.run(run())
    start, *body = sent
    reason = (b"x-justright-reason", b"effort none")
    assert (start["status"], start["headers"]) == (status, [*headers, (b"x-justright-mode", b"fast"), reason])
    assert [one["body"] for one in body] == [*pieces, b""]


def test_the_middleware_needs_its_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    with pytest.raises(UsageError, match="justright serve MODEL --engine vllm"):
        EffortMiddleware(lambda *_: None)  # type: ignore[arg-type, return-value]
    with pytest.raises(UsageError, match=VARIABLE):
        from_variable('{"model": 3}')


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--engine", "vllm", "--queue", "3"), "vLLM's queue has no limit"),
        (("--engine", "vllm", "--effort", "auto", "--scorer", "probe"), "allowed on vLLM: heuristic"),
        (("--engine", "vllm", "--effort", "escalate"), "allowed: none"),
        (("--engine", "vllm", "--host", "0.0.0.0"), "say --no-api-key"),
        (("--engine", "vllm", "--draft", "recycling"), "a drafter of the embedded engine"),
        (("--engine", "sglang"), "allowed: embedded, vllm"),
        ((), "need --engine vllm"),
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
