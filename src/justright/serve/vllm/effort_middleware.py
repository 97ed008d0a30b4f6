"""The effort mapping inside vLLM's own server, as an ASGI class for its ``--middleware``.

It maps requests before vLLM reads them; vLLM's responses pass byte for byte, with two more headers for the mode.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from justright.errors import UsageError
from justright.serve.api_errors import ApiError
from justright.serve.front import check_plain
from justright.serve.hosts import Hosts
from justright.serve.middleware import replayed, respond
from justright.serve.upstream import CHAT, COMPLETION, Policy, Upstream, mapped

VARIABLE = "JUSTRIGHT_VLLM_MODES"
"""Environment variable that describes what is served (`to_variable`): vLLM constructs the class without arguments."""
PATH = f"{__name__}.EffortMiddleware"


class EffortMiddleware:
    """Chooses slow or fast for each request, through the model name that it passes to vLLM.

    Args:
        app: vLLM's application.

    Raises:
        UsageError: the variable is missing or damaged.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._served = from_variable(os.environ.get(VARIABLE))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        served = self._served
        try:
            if scope["type"] == "http":
                served.hosts.check(scope, keys=served.keys)
            if scope["type"] != "http" or (scope["method"], scope["path"]) not in _MAPPED:
                await self._app(scope, receive, send)
                return
            check_plain(Headers(scope=scope))
            if (body := await _whole(receive)) is None:
                return
            sent, more = mapped(scope["path"], body, served.upstream, served.policy)
        except ApiError as error:
            await respond(error, send)
            return
        left = [name for name in scope["headers"] if name[0] != b"content-length"]
        changed = {**scope, "headers": [*left, (b"content-length", str(len(sent)).encode())]}

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", ())]}
                MutableHeaders(scope=message).update(more)
            await send(message)

        await self._app(changed, replayed(sent, receive), answer)


_MAPPED = {("POST", CHAT), ("POST", COMPLETION)}


@dataclass(frozen=True, slots=True)
class ServedModels:
    """What a vLLM server serves.

    Attributes:
        upstream: its models.
        policy: defaults for requests that leave the mode open.
        hosts: names that clients may use for the server.
        keys: whether it needs an API key.
    """

    upstream: Upstream
    policy: Policy
    hosts: Hosts = field(default_factory=Hosts)
    keys: bool = False


def to_variable(served: ServedModels) -> str:
    """Return the content of `VARIABLE`; a custom scorer cannot be passed this way."""
    names = ("model", "fast", "budgets", "has_fast", "end_tokens")
    found: dict[str, Any] = {name: getattr(served.upstream, name) for name in names}
    found |= {"effort": served.policy.effort, "threshold": served.policy.threshold}
    return json.dumps(found | {"hosts": asdict(served.hosts), "keys": served.keys})


def from_variable(text: str | None) -> ServedModels:
    """Parse the output of `to_variable`.

    Raises:
        UsageError: the variable is missing or damaged.
    """
    try:
        found: Mapping[str, Any] = json.loads(text or "")
        settings = {name: found[name] for name in ("budgets", "has_fast")}
        ends = tuple(map(int, found["end_tokens"]))
        upstream = Upstream("vllm", found["model"], found["fast"], end_tokens=ends, **settings)
        policy = Policy(found["effort"], threshold=found["threshold"])
        hosts = Hosts(tuple(found["hosts"]["allowed"]), found["hosts"]["bound"])
        return ServedModels(upstream, policy, hosts, found["keys"])
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(
            f"the environment variable {VARIABLE} is {text!r}, which does not say what vLLM serves: start vLLM by "
            "`justright serve MODEL --engine vllm`, or copy the variable from its --dry-run"
        ) from error


async def _whole(receive: Receive) -> bytes | None:
    """Return the whole body; None if the client disconnects first."""
    pieces: list[bytes] = []
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        pieces.append(message.get("body", b""))
        if not message.get("more_body", False):
            return b"".join(pieces)
