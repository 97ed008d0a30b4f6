"""ASGI middleware before the application: it checks host names, API keys, body sizes and upload times."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import time
from collections.abc import Callable

from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from justright.readable import readable_bytes
from justright.serve.api_errors import ApiError
from justright.serve.connection import CROWDED
from justright.serve.hosts import Hosts

_HEALTH = frozenset({"/health", "/health/live"})
FREE = _HEALTH | {"/"}
"""Paths that need no key; the files of the page at ``/`` need none either, as the page asks for one itself."""
_PAGE = "/dashboard/"

Log = Callable[[str, str, int, float], None]
"""Called for every response: method, path, status, seconds."""


class Guard:
    """Rejects excess connections, foreign host names, missing API keys, and bodies that are too large or too slow.

    It logs every response. It reads a body whole, up to the limit, before the application sees it.

    Args:
        app: the application it protects.
        keys: accepted API keys; empty: no key is needed.
        max_body_bytes: most bytes in a body.
        body_timeout_s: seconds in which a body must arrive.
        log: called for every response.
        hosts: names that clients may use for the server.
    """

    def __init__(
        self,
        app: ASGIApp,
        keys: tuple[str, ...],
        max_body_bytes: int,
        body_timeout_s: float,
        log: Log,
        hosts: Hosts,
    ) -> None:
        self.app, self._hosts = app, hosts
        self._keys = [_digest(key) for key in keys]
        self._max, self._timeout_s, self._log = max_body_bytes, body_timeout_s, log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began, status = time.perf_counter(), 499  # nginx's status for a client that disconnected

        async def send_noting_status(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            if scope.get("state", {}).get(CROWDED) and scope["path"] not in _HEALTH:
                raise _too_many_connections()
            self._hosts.check(scope, keys=bool(self._keys))
            http = Request(scope, receive)
            self._check_key(scope["path"], http.headers)
            body = await self._body(http)
            await self.app(scope, replayed(body, receive), send_noting_status)
        except ApiError as error:
            await error.to_response()(scope, receive, send_noting_status)
        except ClientDisconnect:
            pass
        finally:
            self._log(scope["method"], scope["path"], status, time.perf_counter() - began)

    def _check_key(self, path: str, headers: Headers) -> None:
        """Compare the key in constant time with every accepted key."""
        if not self._keys or path in FREE or path.startswith(_PAGE):
            return
        scheme, _, given = headers.get("authorization", "").partition(" ")
        digest = _digest(given.strip())
        matches = [hmac.compare_digest(digest, key) for key in self._keys]
        if scheme.lower() != "bearer" or not any(matches):
            message = "this server needs an API key: send it as `Authorization: Bearer KEY`"
            raise ApiError(401, message, None, "invalid_api_key", {"WWW-Authenticate": "Bearer"})

    async def _body(self, http: Request) -> bytes:
        """Read the whole body."""
        announced = http.headers.get("content-length", "0")
        if announced.isdigit() and int(announced) > self._max:
            raise self._too_large()
        body = bytearray()
        try:
            async with asyncio.timeout(self._timeout_s):
                async for piece in http.stream():
                    body += piece
                    if len(body) > self._max:
                        raise self._too_large()
        except TimeoutError:
            message = f"the body did not arrive within {self._timeout_s:g} s: send it at once"
            raise ApiError(408, message, None, "body_timeout", {"Connection": "close"}) from None
        return bytes(body)

    def _too_large(self) -> ApiError:
        message = f"the body is too large; allowed: {readable_bytes(self._max)} at most"
        return ApiError(413, message, None, "body_too_large", {"Connection": "close"})


def _too_many_connections() -> ApiError:
    message = "too many connections are open: send the request again later"
    headers = {"Retry-After": "5", "Connection": "close"}
    return ApiError(503, message, None, "too_many_connections", headers)


def replayed(body: bytes, receive: Receive) -> Receive:
    """Return a ``receive`` that first yields ``body``, which was already read."""
    read = False

    async def receive_again() -> Message:
        nonlocal read
        if not read:
            read = True
            return {"type": "http.request", "body": body, "more_body": False}
        return await receive()

    return receive_again


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode(errors="surrogateescape")).digest()
