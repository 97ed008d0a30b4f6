"""Our front inside vLLM's own server: the ASGI class that its ``--middleware`` takes.

Effort and `auto` choose a model before vLLM reads a request; its answers are given the embedded server's form.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from justright.errors import UsageError
from justright.serve import upstream as mapping
from justright.serve.api_errors import ApiError
from justright.serve.front import check_plain
from justright.serve.hosts import Hosts
from justright.serve.middleware import respond
from justright.serve.upstream import SWITCH, Mapped, Policy, Upstream
from justright.serve.vllm.parameters import Parameters
from justright.serve.vllm.told import Asked, Telling, openai_error

VARIABLE = "JUSTRIGHT_VLLM_MODES"
"""Tells the class, which vLLM makes without arguments, what there is: see `to_variable`."""
PATH = f"{__name__}.Modes"
_CHAT, _COMPLETION = "/v1/chat/completions", "/v1/completions"
_KINDS = {True: "ChatCompletionRequest", False: "CompletionRequest"}


class Modes:
    """Chooses slow or fast for each request, by the name of the model that is asked for; answers as `serve` does.

    Parameters that vLLM would ignore are refused, its answers and errors get the embedded server's form (`Telling`).

    Args:
        app: vLLM's.

    Raises:
        UsageError: the variable is missing or damaged.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._served = from_variable(os.environ.get(VARIABLE))
        self._parameters: Parameters | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] == "http":
            try:
                self._served.hosts.check(scope, keys=self._served.keys)
            except ApiError as error:
                await respond(error, send)
                return
        if scope["type"] != "http" or scope["method"] != "POST" or scope["path"] not in (_CHAT, _COMPLETION):
            await self._app(scope, receive, send)
            return
        body = await _whole(receive)
        if body is None:
            return
        try:
            check_plain(Headers(scope=scope))
            found, asked = self._mapped(scope, body)
        except ApiError as error:
            await respond(error, send)
            return
        if found is None:  # no JSON object: vLLM says what is wrong with it
            await self._app(scope, _again(body, receive), Answering(send, None, {}))
            return
        sent = json.dumps(found.body).encode()
        headers = [(name, value) for name, value in scope["headers"] if name != b"content-length"]
        changed = dict(scope) | {"headers": [*headers, (b"content-length", str(len(sent)).encode())]}
        await self._app(changed, _again(sent, receive), Answering(send, asked, found.headers))

    def _mapped(self, scope: Scope, body: bytes) -> tuple[Mapped | None, Asked | None]:
        """The request for vLLM, and what its answer has to be told by."""
        try:
            said = json.loads(body)
        except (ValueError, RecursionError):
            return None, None
        if not isinstance(said, dict):
            return None, None
        chat, served = scope["path"] == _CHAT, self._served
        if chat:
            found = mapping.chat(said, served.upstream, served.policy)
        else:
            found = mapping.completion(said, served.upstream)
        sent = self._known(scope).checked(_KINDS[chat], found.body, mapped=found.decision is not None)
        named = said.get("model")
        mode = "fast" if named is not None and named == served.upstream.fast else "slow"
        asked = Asked(
            chat,
            named if isinstance(named, str) else None,
            mode if found.decision is None else found.decision.mode,
            found.decision,
            served.thoughts
            if chat and _dict(sent, "chat_template_kwargs").get(SWITCH) is not False
            else None,
            tail=served.tail,
            ids=said.get("return_token_ids") is True,
            usage=_dict(said, "stream_options").get("include_usage") is True,
            drafts=served.drafts,
        )
        return Mapped(sent | _for_us(sent, asked), found.decision), asked

    def _known(self, scope: Scope) -> Parameters:
        """What vLLM knows; its application comes with a request."""
        if self._parameters is None:
            app: Any = scope.get("app")
            self._parameters = Parameters({} if app is None else app.openapi())
        return self._parameters


def _dict(body: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """A parameter that is an object; vLLM refuses one that is not."""
    found = body.get(name)
    return found if isinstance(found, Mapping) else {}


def _for_us(sent: Mapping[str, Any], asked: Asked) -> dict[str, Any]:
    """What we ask beside the client: token ids to count thoughts, a stream's usage (both left out of the answer)."""
    more: dict[str, Any] = {}
    if asked.thoughts is not None:
        more["return_token_ids"] = True
    options = sent.get("stream_options")
    if sent.get("stream") is True and (options is None or isinstance(options, dict)):
        more["stream_options"] = {**(options or {}), "include_usage": True}
    return more


class Answering:
    """A send that rewrites vLLM's answer: events as they come, anything else whole.

    Args:
        send: to the client.
        asked: by the client; None: something that is no request.
        headers: further ones: who answers, and why.
    """

    def __init__(self, send: Send, asked: Asked | None, headers: Mapping[str, str]) -> None:
        self._send = send
        self._telling = None if asked is None else Telling(asked)
        self._more = [
            (name.lower().encode(), value.encode("ascii", "replace")) for name, value in headers.items()
        ]
        self._start: Message = {}
        self._kind, self._held = b"", b""

    async def __call__(self, message: Message) -> None:
        """Take one message of vLLM's."""
        if message["type"] == "http.response.start":
            headers = [(name.lower(), value) for name, value in message.get("headers", [])]
            self._kind = dict(headers).get(b"content-type", b"").partition(b";")[0]
            self._start = {**message, "headers": [*headers, *self._more]}
            if self._kind != b"application/json":
                await self._send(self._start)
            return
        if message["type"] != "http.response.body":
            await self._send(message)
            return
        body, more = message.get("body", b""), message.get("more_body", False)
        if self._kind == b"application/json":
            self._held += body
            if not more:
                await self._whole()
            return
        if self._kind == b"text/event-stream" and self._telling is not None:
            body = self._events(body) + (self._held if not more else b"")
            if not body and more:
                return
        await self._send({"type": "http.response.body", "body": body, "more_body": more})

    async def _whole(self) -> None:
        status, body = self._start["status"], self._held
        try:
            found = json.loads(body)
        except ValueError:
            found = None
        if isinstance(found, dict) and status >= 400:
            body = json.dumps(openai_error(status, found)).encode()
        elif isinstance(found, dict) and self._telling is not None and "choices" in found:
            body = json.dumps(self._telling.whole(found), ensure_ascii=False).encode()
        length = (b"content-length", str(len(body)).encode())
        headers = [(name, value) for name, value in self._start["headers"] if name != b"content-length"]
        await self._send({**self._start, "headers": [*headers, length]})
        await self._send({"type": "http.response.body", "body": body})

    def _events(self, data: bytes) -> bytes:
        assert self._telling is not None
        *events, self._held = (self._held + data).split(b"\n\n")
        return b"".join(map(self._telling.events, events))


@dataclass(frozen=True, slots=True)
class Served:
    """What a vLLM serves.

    Attributes:
        upstream: its models.
        policy: where a request says nothing.
        thoughts: ids of the tokens that begin and end a thought; None: it does not tell them from answers.
        drafts: whether it has a drafter.
        hosts: the names that clients may call it by.
        keys: whether it needs an API key.
        tail: tokens that the slow mode's chat template writes after the last message.
    """

    upstream: Upstream
    policy: Policy
    thoughts: tuple[int, int] | None = None
    drafts: bool = False
    hosts: Hosts = field(default_factory=Hosts)
    keys: bool = False
    tail: int = 0


def to_variable(served: Served) -> str:
    """What `VARIABLE` holds; a scorer of the user's own does not travel."""
    names = ("model", "fast", "budgets", "has_fast")
    found: dict[str, Any] = {name: getattr(served.upstream, name) for name in names}
    found |= {"effort": served.policy.effort, "threshold": served.policy.threshold}
    found |= {"hosts": asdict(served.hosts), "keys": served.keys, "tail": served.tail}
    return json.dumps(found | {"thoughts": served.thoughts, "drafts": served.drafts})


def from_variable(text: str | None) -> Served:
    """Read what `to_variable` wrote.

    Raises:
        UsageError: it is missing or damaged.
    """
    try:
        found: Mapping[str, Any] = json.loads(text or "")
        settings = {name: found[name] for name in ("budgets", "has_fast")}
        upstream = Upstream("vllm", found["model"], found["fast"], **settings)
        thoughts = None if found["thoughts"] is None else (found["thoughts"][0], found["thoughts"][1])
        policy = Policy(found["effort"], threshold=found["threshold"])
        hosts = Hosts(tuple(found["hosts"]["allowed"]), found["hosts"]["bound"])
        tail = int(found["tail"])
        return Served(upstream, policy, thoughts, found["drafts"], hosts, found["keys"], tail)
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise UsageError(
            f"the environment variable {VARIABLE} is {text!r}, which does not say what vLLM serves: start vLLM by "
            "`justright serve MODEL --engine vllm`, or copy the variable from its --dry-run"
        ) from error


async def _whole(receive: Receive) -> bytes | None:
    """The whole body; None if the client left before."""
    pieces: list[bytes] = []
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        pieces.append(message.get("body", b""))
        if not message.get("more_body", False):
            return b"".join(pieces)


def _again(body: bytes, receive: Receive) -> Receive:
    """A receive that begins with a body."""
    left = [body]

    async def receive_again() -> Message:
        if left:
            return {"type": "http.request", "body": left.pop(), "more_body": False}
        return await receive()

    return receive_again
