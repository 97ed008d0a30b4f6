"""The effort mapping inside vLLM's own server, as an ASGI class for its ``--middleware``.

It maps requests before vLLM reads them; vLLM's responses pass byte for byte, with two more headers for the mode.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field

from pydantic import TypeAdapter, ValidationError
from starlette.datastructures import MutableHeaders
from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from justright.errors import UsageError
from justright.serve.api_errors import ApiError
from justright.serve.front import check_plain
from justright.serve.hosts import Hosts
from justright.serve.middleware import replayed
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
            http = Request(scope, receive)
            check_plain(http.headers)
            sent, more = mapped(scope["path"], await http.body(), served.upstream, served.policy)
        except ApiError as error:
            await error.to_response()(scope, receive, send)
            return
        except ClientDisconnect:
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
        effort: the default effort, as in `Policy`.
        threshold: of the scorer for `auto`, as in `Policy`.
        hosts: names that clients may use for the server.
        keys: whether it needs an API key.
    """

    upstream: Upstream
    effort: str | None = None
    threshold: float | None = None
    hosts: Hosts = field(default_factory=Hosts)
    keys: bool = False

    @property
    def policy(self) -> Policy:
        """Defaults for requests that leave the mode open."""
        return Policy(self.effort, threshold=self.threshold)


_SERVED = TypeAdapter(ServedModels)


def to_variable(served: ServedModels) -> str:
    """Return the content of `VARIABLE`."""
    return _SERVED.dump_json(served).decode()


def from_variable(text: str | None) -> ServedModels:
    """Parse the output of `to_variable`.

    Raises:
        UsageError: the variable is missing or damaged.
    """
    try:
        return _SERVED.validate_json(text or "")
    except ValidationError as error:
        raise UsageError(
            f"the environment variable {VARIABLE} is {text!r}, which does not describe what vLLM serves: start vLLM "
            "with `justright serve MODEL --engine vllm`, or copy the variable from its --dry-run"
        ) from error
