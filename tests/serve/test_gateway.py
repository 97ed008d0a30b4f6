"""The gateway with upstreams that echo, hang, disconnect or are absent, and with the embedded server."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from openai import AuthenticationError, BadRequestError, OpenAI

from gateway_helpers import served
from justright.errors import UsageError
from justright.serve.discover import UpstreamOptions
from justright.serve.gateway import Gateway, GatewaySettings, create_gateway
from justright.serve.proxy import passed_headers
from justright.serve.upstream import Policy

if TYPE_CHECKING:
    from serve_helpers import Running

EASY = [{"role": "user", "content": "Hi"}]


@dataclass
class Fake:
    """A server that echoes the request; the header ``x-do`` makes it misbehave.

    Attributes:
        owner: The ``owned_by`` of its models.
        seen: Requests: path, headers, body.
        gone: Number of clients that disconnected before the end of their answer.
    """

    owner: str = "vllm"
    seen: list[tuple[str, dict[str, str], Any]] = field(default_factory=list)
    gone: int = 0

    async def __call__(self, scope: Any, receive: Callable[[], Any], send: Callable[[Any], Any]) -> None:
        assert scope["type"] == "http"
        path, headers = scope["path"], {k.decode(): v.decode() for k, v in scope["headers"]}
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message.get("body", b""), message.get("more_body", False)
        self.seen.append((path, headers, json.loads(body) if body else None))
        do = headers.get("x-do", "")
        if do == "hang":
            await self._until_gone(receive)
            return
        if do in ("stream", "stream-then-hang", "stream-then-break", "body-then-hang"):
            await self._begin(send, 200, "text/event-stream" if "stream" in do else "text/plain")
            for number in range(3):
                await send(
                    {"type": "http.response.body", "body": b"data: %d\n\n" % number, "more_body": True}
                )
            if do.endswith("hang"):
                await self._until_gone(receive)
            if do != "stream":
                return  # uvicorn breaks the connection
            await send({"type": "http.response.body", "body": b"data: [DONE]\n\n"})
            return
        status, answer = self._answer(path, headers, self.seen[-1][2])
        await self._begin(send, status, "application/json")
        await send({"type": "http.response.body", "body": json.dumps(answer).encode()})

    async def _until_gone(self, receive: Callable[[], Any]) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self.gone += 1

    async def _begin(self, send: Callable[[Any], Any], status: int, media: str) -> None:
        headers = [(b"content-type", media.encode()), (b"x-upstream", b"yes"), (b"connection", b"keep-alive")]
        await send({"type": "http.response.start", "status": status, "headers": headers})

    def _answer(self, path: str, headers: dict[str, str], body: Any) -> tuple[int, Any]:
        if headers.get("authorization") == "Bearer wrong":
            return 401, {"error": {"message": "wrong key"}}
        if path == "/lora-adapters":
            return 200, [{"id": 0, "path": "a.gguf", "scale": 1.0}]
        if path == "/v1/models":
            loras = (
                []
                if self.owner == "llamacpp"
                else [{"id": "quick", "owned_by": self.owner, "parent": "base"}]
            )
            return 200, {"object": "list", "data": [{"id": "base", "owned_by": self.owner}, *loras]}
        if path in ("/health", "/metrics") or path.startswith("/v1/models/"):
            return 200, {"path": path}
        return (
            (418, {"error": {"message": "as I like"}})
            if headers.get("x-do") == "refuse"
            else (200, {"got": body})
        )


@dataclass
class Before:
    """A gateway with a fake upstream."""

    fake: Fake
    gateway: Gateway
    address: str

    def post(self, path: str = "/v1/chat/completions", do: str = "", **body: Any) -> httpx.Response:
        return httpx.post(self.address + path, json=body, headers={"x-do": do} if do else {}, timeout=30)

    def got(self, **body: Any) -> Any:
        answer = self.post(**({"messages": EASY} | body))
        assert answer.status_code == 200, answer.text
        return answer.json()["got"]


@contextlib.contextmanager
def gateway_before(address: str, **settings: Any) -> Iterator[tuple[Gateway, str]]:
    gateway = Gateway(GatewaySettings(address, **settings))
    with served(create_gateway(gateway)) as there:
        yield gateway, there


@contextlib.contextmanager
def before(fake: Fake, **settings: Any) -> Iterator[Before]:
    with (
        served(fake) as upstream,
        gateway_before(upstream + settings.pop("path", ""), **settings) as (found, there),
    ):
        yield Before(fake, found, there)


@pytest.fixture(scope="module")
def ours() -> Iterator[Before]:
    with before(Fake()) as found:
        yield found


@pytest.fixture(scope="module")
def impatient() -> Iterator[Before]:
    """Short timeouts, only for upstreams that hang; other requests may take longer."""
    with before(Fake(), timeout_s=0.5) as found:
        yield found


def test_effort_chooses_the_model(ours: Before) -> None:
    assert ours.got(model="base", reasoning_effort="none")["model"] == "quick"
    assert ours.got(reasoning_effort="high")["model"] == "base"
    assert ours.got(reasoning_effort="auto") == {
        "messages": EASY, "model": "quick", "chat_template_kwargs": {"enable_thinking": False}
    }  # fmt: skip
    answer = ours.post(messages=EASY, reasoning_effort="auto")
    assert answer.headers["x-justright-mode"] == "fast"
    assert answer.headers["x-justright-reason"].startswith("heuristic score 0.0")
    assert "x-justright-mode" not in ours.post(model="other", messages=EASY).headers


def test_text_of_any_kind_arrives_as_it_was(ours: Before) -> None:
    messages = [{"role": "user", "content": 'é漢😀\u0000\ud800"\\ \u2028'}]
    sent = json.dumps({"messages": messages, "seed": 2**63, "temperature": 1e-17}).encode()
    answer = httpx.post(
        f"{ours.address}/v1/chat/completions", content=sent, headers={"content-type": "application/json"}
    )
    got = json.loads(answer.text)["got"]
    assert (got["messages"], got["seed"], got["temperature"]) == (messages, 2**63, 1e-17)


def test_llama_cpp_gets_a_scale_for_every_adapter() -> None:
    with before(Fake("llamacpp"), path="/v1/") as found:
        assert found.got(reasoning_effort="none")["lora"] == [{"id": 0, "scale": 1.0}]
        assert found.got()["lora"] == [{"id": 0, "scale": 0.0}]
        assert found.post("/v1/completions", prompt="a").json()["got"]["lora"] == [{"id": 0, "scale": 0.0}]
        assert sum(path == "/lora-adapters" for path, _, _ in found.fake.seen) == 1


def test_streams_come_as_they_are_sent(ours: Before) -> None:
    with httpx.stream(
        "POST", f"{ours.address}/v1/chat/completions", json={"messages": EASY}, headers={"x-do": "stream"}
    ) as answer:
        assert answer.headers["content-type"] == "text/event-stream"
        assert answer.headers["x-justright-mode"] == "slow"
        assert answer.headers["x-upstream"] == "yes"
        assert b"".join(answer.iter_raw()) == b"data: 0\n\ndata: 1\n\ndata: 2\n\ndata: [DONE]\n\n"


def test_what_only_looks_goes_through(ours: Before) -> None:
    assert [one["id"] for one in httpx.get(f"{ours.address}/v1/models").json()["data"]] == ["base", "quick"]
    for path in ("/metrics", "/v1/models/a%20b/c"):
        assert httpx.get(ours.address + path).json() == {"path": path.replace("%20", " ")}
    assert httpx.get(f"{ours.address}/health").json()["status"] == "ready"
    assert httpx.get(f"{ours.address}/health/live").status_code == 204


@pytest.mark.parametrize(
    "path", ["/v1/models/../../secret", "/v1/models/x/..", "/v1/models/%2e%2e/secret", "/lora-adapters"]
)
def test_nothing_else_of_the_upstream_is_reached(ours: Before, path: str) -> None:
    with socket.create_connection(httpx.URL(ours.address).netloc.decode().split(":")) as raw:  # type: ignore[arg-type]
        raw.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
        answer = b"".join(iter(lambda: raw.recv(4096), b""))
    assert answer.startswith(b"HTTP/1.1 404")
    assert not any("secret" in seen for seen, _, _ in ours.fake.seen)


def test_its_errors_come_through_as_they_are(ours: Before) -> None:
    answer = ours.post(do="refuse", messages=EASY)
    assert (answer.status_code, answer.json()) == (418, {"error": {"message": "as I like"}})


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (b'{"messages": [], "reasoning_effort": "huge"}', "invalid_value"),
        (b'{"messages": [], "reasoning_effort": "escalate"}', "unsupported_value"),
    ],
)
def test_bad_efforts_are_refused_here(ours: Before, content: bytes, code: str) -> None:
    headers = {"content-type": "application/json"}
    answer = httpx.post(f"{ours.address}/v1/chat/completions", content=content, headers=headers)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, code)
    assert httpx.post(f"{ours.address}/v1/chat/completions", content=content).json()["error"]["code"] == (
        "invalid_content_type"
    )


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe{}", b"[]", b"[" * 100_000])
def test_what_is_no_object_passes_as_it_is(content: bytes) -> None:
    """The upstream returns the error itself."""
    seen: list[bytes] = []

    async def upstream(scope: Any, receive: Any, send: Any) -> None:
        body, more = b"", scope["method"] == "POST"
        while more:
            message = await receive()
            body, more = body + message["body"], message["more_body"]
        seen.append(body)
        models = {"data": [{"id": "a", "owned_by": "vllm"}]}
        answer = json.dumps(models).encode() if scope["method"] == "GET" else b"no"
        await send({"type": "http.response.start", "status": 400 if body else 200, "headers": []})
        await send({"type": "http.response.body", "body": answer})

    with served(upstream) as there, gateway_before(there) as (_, address):
        headers = {"content-type": "application/json"}
        answer = httpx.post(f"{address}/v1/chat/completions", content=content, headers=headers)
    assert (answer.status_code, answer.content) == (400, b"no")
    assert seen[-1] == content


def test_an_upstream_that_hangs_is_given_up(impatient: Before) -> None:
    gone = impatient.fake.gone
    answer = impatient.post(do="hang", messages=EASY)
    assert (answer.status_code, answer.json()["error"]["code"]) == (504, "upstream_timeout")
    _until(lambda: impatient.fake.gone == gone + 1)


def test_a_stream_that_hangs_or_breaks_ends_with_an_error(impatient: Before) -> None:
    for do, code in (("stream-then-hang", "upstream_timeout"), ("stream-then-break", "upstream_failed")):
        lines = impatient.post(do=do, messages=EASY, stream=True).text.split("\n\n")
        assert lines[:3] == ["data: 0", "data: 1", "data: 2"]
        assert json.loads(lines[3].removeprefix("data: "))["error"]["code"] == code


def test_a_body_that_breaks_off_is_not_taken_for_whole(impatient: Before) -> None:
    with pytest.raises(httpx.RemoteProtocolError):
        impatient.post(do="body-then-hang", messages=EASY)


@pytest.mark.parametrize("do", ["hang", "stream-then-hang"])
def test_a_client_that_leaves_ends_its_request_upstream(do: str) -> None:
    with before(Fake()) as found:
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(
                f"{found.address}/v1/chat/completions",
                json={"messages": EASY},
                headers={"x-do": do},
                timeout=2.0,
            )
        _until(lambda: found.fake.gone == 1)


def test_an_upstream_that_is_down_may_come_back_as_another() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = "http://{}:{}".format(*free.getsockname())
    with gateway_before(address) as (gateway, there):
        asked = {"messages": EASY, "reasoning_effort": "none"}
        for _ in range(2):
            answer = httpx.post(f"{there}/v1/chat/completions", json=asked)
            assert (answer.status_code, answer.json()["error"]["code"]) == (502, "upstream_unreachable")
            assert answer.json()["error"]["type"] == "server_error"
        health = httpx.get(f"{there}/health")
        assert (health.status_code, health.json()["status"]) == (503, "failed")
        with served(Fake()) as back:
            gateway.settings = replace(gateway.settings, url=back)
            assert httpx.post(f"{there}/v1/chat/completions", json=asked).json()["got"]["model"] == "quick"
        assert httpx.post(f"{there}/v1/chat/completions", json=asked).status_code == 502
        with served(Fake("llamacpp")) as back:
            gateway.settings = replace(gateway.settings, url=back)
            assert httpx.post(f"{there}/v1/chat/completions", json=asked).json()["got"]["lora"]


def test_the_error_for_an_unknown_upstream_tells_what_to_do() -> None:
    with before(Fake("somebody")) as found:
        answer = found.post(messages=EASY)
        assert answer.status_code == 502
        assert "--kind vllm, sglang, llama.cpp" in answer.json()["error"]["message"]
    with before(Fake("somebody"), wanted=UpstreamOptions(kind="vllm")) as found:
        assert found.got(reasoning_effort="none")["model"] == "quick"


def test_keys() -> None:
    def seen(found: Before) -> str | None:
        return found.fake.seen[-1][1].get("authorization")

    with before(Fake()) as found:
        _ask(found, "mine")
        assert seen(found) == "Bearer mine"
    with before(Fake()) as found, pytest.raises(AuthenticationError, match="needs an API key"):
        _ask(found, "wrong")
    with before(Fake(), api_keys=("mine",), upstream_key="theirs") as found:
        _ask(found, "mine")
        assert seen(found) == "Bearer theirs"
        assert found.post(messages=EASY).status_code == 401
    with before(Fake(), api_keys=("mine",)) as found:
        _ask(found, "mine")
        assert seen(found) is None  # the gateway's key is not forwarded


def test_large_bodies_are_refused() -> None:
    with before(Fake(), max_body_bytes=100) as found:
        assert found.post(messages=[{"role": "user", "content": "a" * 200}]).status_code == 413


def test_many_at_once_each_get_their_own(ours: Before) -> None:
    async def all_of_them() -> list[Any]:
        async with httpx.AsyncClient(timeout=30) as client:
            asked = [
                client.post(f"{ours.address}/v1/chat/completions", json={"messages": EASY, "seed": number})
                for number in range(100)
            ]
            return [answer.json()["got"]["seed"] for answer in await asyncio.gather(*asked)]

    assert asyncio.run(all_of_them()) == list(range(100))


def test_headers_of_the_connection_stay_here() -> None:
    sent = [
        ("Host", "a"),
        ("Content-Length", "3"),
        ("Connection", "x"),
        ("Authorization", "k"),
        ("X-Request-Id", "7"),
    ]
    assert passed_headers(sent) == [("Authorization", "k"), ("X-Request-Id", "7")]


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"url": "localhost:8000"}, "allowed: http://HOST:PORT"),
        ({"url": "ftp://a"}, "allowed: http://HOST:PORT"),
        ({"url": "http://a:b"}, "is no URL"),
        ({"url": "http://a", "timeout_s": 0}, "allowed: above 0"),
        ({"url": "http://a", "upstream_key": "é"}, "not ASCII"),
    ],
)
def test_settings_are_checked(settings: dict[str, Any], match: str) -> None:
    with pytest.raises(UsageError, match=match):
        GatewaySettings(**settings)


def test_the_gateways_default_applies_to_requests_without_an_effort(ours: Before) -> None:
    with before(Fake(), policy=Policy("none")) as found:
        assert found.got()["model"] == "quick"
        assert found.got(chat_template_kwargs={"enable_thinking": True})["model"] == "base"


def test_before_the_embedded_server(plain: Running) -> None:
    wanted = UpstreamOptions(kind="vllm", model="tiny")
    asked: dict[str, Any] = {"model": "tiny", "messages": EASY, "max_tokens": 8, "temperature": 0}
    with (
        gateway_before(plain.address, wanted=wanted) as (_, there),
        plain.openai() as direct,
        openai(there) as client,
    ):
        expected = direct.chat.completions.create(**asked).choices[0].message
        assert client.chat.completions.create(**asked).choices[0].message == expected
        pieces = client.chat.completions.create(**asked, stream=True)
        assert (
            "".join(one.choices[0].delta.content or "" for one in pieces if one.choices) == expected.content
        )
        with pytest.raises(BadRequestError, match="max_tokens"):
            client.chat.completions.create(**(asked | {"max_tokens": -1}))


def openai(address: str, key: str = "none") -> OpenAI:
    return OpenAI(base_url=f"{address}/v1", api_key=key, max_retries=0)


def _ask(found: Before, key: str) -> None:
    with openai(found.address, key) as client:
        client.chat.completions.with_raw_response.create(model="base", messages=EASY)  # type: ignore[arg-type]


def _until(true: Callable[[], bool]) -> None:
    """Wait for a condition for at most some seconds."""
    for _ in range(500):
        if true():
            return
        time.sleep(0.01)
    raise AssertionError("it did not happen")
