"""Effort and `auto` inside vLLM's own server: the ASGI class that its ``--middleware`` takes.

It changes the bodies of chats and completions before vLLM reads them, and nothing else.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from justright.errors import UsageError
from justright.serve import upstream as mapping
from justright.serve.faults import ApiError
from justright.serve.guard import respond
from justright.serve.upstream import Mapped, Policy, Upstream

VARIABLE = "JUSTRIGHT_VLLM_MODES"
"""Tells the class, which vLLM makes without arguments, what there is: see `to_variable`."""
PATH = f"{__name__}.Modes"
_CHAT, _COMPLETION = "/v1/chat/completions", "/v1/completions"


class Modes:
    """Chooses slow or fast for each request, by the name of the model that is asked for.

    Args:
        app: vLLM's.

    Raises:
        UsageError: the variable is missing or damaged.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._upstream, self._policy = from_variable(os.environ.get(VARIABLE))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http" or scope["method"] != "POST" or scope["path"] not in (_CHAT, _COMPLETION):
            await self._app(scope, receive, send)
            return
        body = await _whole(receive)
        if body is None:
            return
        try:
            found = self._mapped(scope["path"], body)
        except ApiError as error:
            await respond(error, send)
            return
        if found is None:  # no JSON object: vLLM says what is wrong with it
            await self._app(scope, _again(body, receive), send)
            return
        sent = json.dumps(found.body).encode()
        headers = [(name, value) for name, value in scope["headers"] if name != b"content-length"]
        changed = dict(scope) | {"headers": [*headers, (b"content-length", str(len(sent)).encode())]}
        await self._app(changed, _again(sent, receive), _telling(found, send))

    def _mapped(self, path: str, body: bytes) -> Mapped | None:
        try:
            asked = json.loads(body)
        except (ValueError, RecursionError):
            return None
        if not isinstance(asked, dict):
            return None
        if path == _CHAT:
            return mapping.chat(asked, self._upstream, self._policy)
        return mapping.completion(asked, self._upstream)


def to_variable(upstream: Upstream, policy: Policy) -> str:
    """What `VARIABLE` holds; a scorer of the user's own does not travel."""
    names = ("model", "fast", "budgets", "has_fast")
    found: dict[str, Any] = {name: getattr(upstream, name) for name in names}
    return json.dumps(found | {"effort": policy.effort, "threshold": policy.threshold})


def from_variable(text: str | None) -> tuple[Upstream, Policy]:
    """Read what `to_variable` wrote.

    Raises:
        UsageError: it is missing or damaged.
    """
    try:
        found: Mapping[str, Any] = json.loads(text or "")
        settings = {name: found[name] for name in ("budgets", "has_fast")}
        upstream = Upstream("vllm", found["model"], found["fast"], **settings)
        return upstream, Policy(found["effort"], threshold=found["threshold"])
    except (ValueError, KeyError, TypeError) as error:
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


def _telling(found: Mapped, send: Send) -> Send:
    """A send that puts who answers, and why, into the headers."""
    raw = [(name.lower().encode(), value.encode("ascii", "replace")) for name, value in found.headers.items()]

    async def telling(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message.get("headers", []), *raw]
        await send(message)

    return telling
