"""Schemas that cannot be satisfied: rejected up front if possible, else an error; and limits of compilation."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from jsonschema_rs import is_valid

from justright.errors import UsageError
from justright.serve import constraint as constrain
from justright.serve.constraint import Grammars
from justright.serve.schema_trial import SchemaTrial
from serve_helpers import MODEL, Running

CHAT = "/v1/chat/completions"
TEXT = "/v1/completions"
DEAD_END: dict[str, Any] = {
    "type": "object",
    "properties": {"score": {"type": "integer", "minimum": 0, "maximum": 9}},
    "required": ["score"],
    "additionalProperties": False,
    "patternProperties": {"^score$": {"type": "integer"}},
}
"""A comma is allowed after the score, and nothing after the comma."""


def body(schema: Any, path: str = CHAT, *, strict: bool | None = None, **fields: Any) -> dict[str, Any]:
    prompt = {"messages": [{"role": "user", "content": "Hello"}]} if path == CHAT else {"prompt": "Hello"}
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema, "strict": strict}}
    return {"model": MODEL, "max_tokens": 100, "response_format": form} | prompt | fields


def content_of(answer: Any) -> str:
    choice = answer["choices"][0]
    return str(choice["message"]["content"] if "message" in choice else choice["text"])


@pytest.mark.parametrize("path", [CHAT, TEXT])
def test_a_dead_end_is_an_error(plain: Running, path: str) -> None:
    """Half of the seeds take the comma."""
    seen = set()
    for seed in range(5):
        answer = plain.client.post(path, json=body(DEAD_END, path, seed=seed, temperature=2.0))
        seen.add(answer.status_code)
        if answer.status_code == 200:
            assert is_valid(DEAD_END, json.loads(content_of(answer.json())))
            continue
        assert answer.status_code == 400
        error = answer.json()["error"]
        assert (error["param"], error["code"]) == ("response_format", "constraint_failed")
    assert seen == {200, 400}
    several = plain.client.post(path, json=body(DEAD_END, path, seed=0, n=5, temperature=2.0))
    assert several.status_code == 400, "one of them fails"


def test_a_dead_end_in_a_stream_is_an_error_event(plain: Running) -> None:
    ends = set()
    for seed in range(5):
        asked = body(DEAD_END, seed=seed, temperature=2.0, stream=True)
        lines = [line[6:] for line in plain.client.post(CHAT, json=asked).text.splitlines() if line]
        if lines[-1] == "[DONE]":
            chunks = [json.loads(line)["choices"][0] for line in lines[:-1]]
            text = "".join(chunk["delta"].get("content", "") for chunk in chunks)
            assert is_valid(DEAD_END, json.loads(text))
            ends.add(chunks[-1]["finish_reason"])
        else:
            assert all(json.loads(line)["choices"][0]["finish_reason"] is None for line in lines[:-1])
            ends.add(json.loads(lines[-1])["error"]["code"])
    assert ends == {"stop", "constraint_failed"}


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "integer", "minimum": 5, "maximum": 3},
        {"enum": []},
        {"type": "object", "properties": {"a": False}, "required": ["a"]},
        {"allOf": [{"type": "string"}, {"type": "integer"}]},
        {"type": "string", "pattern": "^a$", "minLength": 5},
        {"type": "string", "pattern": "(?=a)b"},
        {"$ref": "#"},
        {"$ref": "#/$defs/nowhere"},
        {"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"], "additionalProperties": False},
        {"type": "nonsense"},
        {"type": "string", "enum": ["x" * constrain.MAX_SCHEMA]},
        {"$ref": "#/$defs/0", "$defs": {str(n): {"$ref": f"#/$defs/{n + 1}"} for n in range(2000)}},
    ],
)  # fmt: skip
def test_what_can_be_known_is_refused_before(plain: Running, schema: Any) -> None:
    answer = plain.client.post(CHAT, json=body(schema, stream=True))
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "response_format"
    assert "\n" not in answer.json()["error"]["message"]


def test_a_limit_cuts(plain: Running) -> None:
    answer = plain.client.post(CHAT, json=body(DEAD_END, max_tokens=2, temperature=0)).json()
    assert answer["choices"][0]["finish_reason"] == "length"
    assert content_of(answer).startswith("{")


def test_strict_closes_objects(plain: Running) -> None:
    """With an open schema, a random model continues to the limit."""
    schema = {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"]}
    for seed in range(3):
        answer = plain.client.post(CHAT, json=body(schema, strict=True, seed=seed)).json()
        assert answer["choices"][0]["finish_reason"] == "stop"
        assert set(json.loads(content_of(answer))) == {"a"}
    refused = plain.client.post(CHAT, json=body({"allOf": [schema, schema]}, strict=True))
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "response_format")


def test_strict_false_is_as_without(plain: Running) -> None:
    """OpenAI's default is false; such objects stay open, and schemas that cannot be closed are accepted."""
    schema = {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"]}
    for wanted in (schema, {"allOf": [schema, schema]}):
        answers = [plain.client.post(CHAT, json=body(wanted, strict=s, seed=0)) for s in (False, None)]
        assert [answer.status_code for answer in answers] == [200, 200]
        assert content_of(answers[0].json()) == content_of(answers[1].json())


@pytest.mark.parametrize(
    "value", ["</think>", "x</think>y<think>z", "<think>", "<|endoftext|>", "<", "\u00e9"]
)
def test_a_constant_may_hold_marks_as_text(thinking: Running, value: str) -> None:
    schema = {"type": "object", "properties": {"a": {"const": value}}, "required": ["a"]}
    answer = thinking.client.post(CHAT, json=body(schema, strict=True, reasoning_effort="none"))
    assert answer.status_code == 200, answer.text
    assert json.loads(content_of(answer.json())) == {"a": value}


@pytest.fixture
def grammars(plain: Running) -> Iterator[Grammars]:
    engine = plain.engine
    assert engine.tokenizer is not None
    found = Grammars(engine.tokenizer, engine.verifier.spec.vocab_size, engine.stop_token_ids)
    yield found
    found.close()


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The schemas that were compiled."""
    found: list[str] = []

    def run(_: SchemaTrial, schema: str) -> None:
        found.append(schema)

    monkeypatch.setattr(SchemaTrial, "run", run)
    return found


def test_compiled_schemas_are_kept(
    grammars: Grammars, compiled: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def new(*numbers: int) -> list[int]:
        compiled.clear()
        await asyncio.gather(*(grammars.json({"const": number}) for number in numbers))
        return [json.loads(one)["const"] for one in compiled]

    async def check() -> None:
        assert await new(1, 1, 2, 1) == [1, 2], "simultaneous requests compile it once"
        assert await new(1, 3) == [3]
        assert await new(1, 4) == [4], "2 was used longest ago"
        assert await new(1, 3, 4) == []
        assert await new(2) == [2]

    monkeypatch.setattr(constrain, "CACHED", 3 * len('{"const": 1}'))
    asyncio.run(check())


def test_a_bad_schema_is_tried_once(grammars: Grammars, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[str] = []

    def run(_: SchemaTrial, schema: str) -> str:
        tried.append(schema)
        return f"fault {json.loads(schema)['const']}"

    async def ask(number: int) -> None:
        with pytest.raises(UsageError, match=f"fault {number}"):
            await grammars.json({"const": number})

    async def check() -> None:
        for number in (1, 1, 2, 1, 3, 1, 2):
            await ask(number)

    monkeypatch.setattr(SchemaTrial, "run", run)
    monkeypatch.setattr(constrain, "CACHED", 2 * len('{"const": 1}'))
    asyncio.run(check())
    assert [json.loads(one)["const"] for one in tried] == [1, 2, 3, 2], "2 was used longest ago"


def test_a_schema_that_takes_too_long_or_crashes_ends_its_process_only() -> None:
    many = {"enum": [f"value number {n}" for n in range(400_000)]}
    deep = {"$ref": "#/$defs/0", "$defs": {str(n): {"$ref": f"#/$defs/{n + 1}"} for n in range(3000)}}
    trial = SchemaTrial(cpu_seconds=0)
    try:
        for schema, fault in ((many, "takes more than 0 s"), (deep, "nests too deep")):
            assert fault in str(trial.run(json.dumps(schema)))
            assert trial.run('{"type": "boolean"}') is None
    finally:
        trial.close()


def test_a_client_that_leaves_ends_the_work(grammars: Grammars) -> None:
    """The process is killed while it compiles, and the next schema gets a new process."""
    started = threading.Event()
    answers: list[str | None] = []

    class Stuck(SchemaTrial):
        def run(self, schema: str) -> str | None:
            process = self._process = self._start()
            started.set()
            assert process.stdout is not None
            answers.append(process.stdout.readline() or None)  # no work was sent, so it waits forever
            self._discard()
            return "it was killed"

    async def leave() -> None:
        grammars._trial = Stuck()
        work = asyncio.ensure_future(grammars.json({"const": 1}))
        await asyncio.to_thread(started.wait, 60)
        work.cancel()
        with pytest.raises(asyncio.CancelledError):
            await work
        grammars._trial = SchemaTrial()
        assert (await grammars.json({"const": 1})).failure is None

    asyncio.run(leave())
    assert answers == [None]


def test_other_requests_do_not_wait_for_schemas_and_long_prompts(
    plain: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While both queues are blocked, plain chats are answered; work of disconnected clients is cancelled."""
    service, held = plain.service, threading.Event()
    began, stopped = threading.Event(), threading.Event()
    written: list[Any] = []
    conversation = plain.engine.conversation

    def compiling(*_: Any) -> None:
        began.set()
        assert held.wait(60)

    def counting(messages: Any, *params: Any, **options: Any) -> Any:
        written.append(messages)
        return conversation(messages, *params, **options)

    monkeypatch.setattr(SchemaTrial, "run", compiling)
    monkeypatch.setattr(SchemaTrial, "stop", lambda _: stopped.set())
    monkeypatch.setattr(plain.engine, "conversation", counting)
    service._encoding_long.submit(held.wait, 60)
    ours = {"model": MODEL, "max_tokens": 2, "messages": [{"role": "user", "content": "Hello"}]}
    clients = [
        sent(plain, body({"const": "never seen before"})),
        sent(plain, ours | {"metadata": {"x": "y" * 2**17}}),
    ]
    try:
        assert began.wait(60)
        wait_until(lambda: service._encoding_now == 2)
        assert plain.client.post(CHAT, json=ours).status_code == 200
        for client in clients:
            client.close()
        wait_until(lambda: service._encoding_now == 0)
        assert stopped.wait(60)
        assert plain.client.post(CHAT, json=ours).status_code == 200
    finally:
        held.set()
    service._encoding_long.submit(int).result()
    assert len(written) == 3, "the long prompt was not even begun"


def sent(server: Running, what: dict[str, Any]) -> socket.socket:
    """A connection with one sent request."""
    host, port = server.address.removeprefix("http://").split(":")
    client = socket.create_connection((host, int(port)), timeout=60)
    content = json.dumps(what).encode()
    head = f"POST {CHAT} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
    client.sendall(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content)
    return client


def wait_until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_too_large_is_refused_without_compiling(grammars: Grammars, compiled: list[str]) -> None:
    with pytest.raises(UsageError, match="allowed: 131072"):
        asyncio.run(grammars.json({"const": "x" * 2**17}))
    assert compiled == []
