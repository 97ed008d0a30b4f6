"""One request handed on to another server, and its answer handed back as it comes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from typing import Any

import httpx
from starlette.types import Receive, Scope, Send

from justright.readable import without_line_breaks
from justright.serve.api_errors import ApiError
from justright.serve.front import disconnected
from justright.serve.middleware import respond

_HOP_BY_HOP = frozenset(
    {
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
    }
    | {"transfer-encoding", "upgrade"}
)
_REQUEST_OWN = _HOP_BY_HOP | {"host", "content-length", "content-type", "expect", "accept-encoding"}


_BEGUN = (b"\xc2", b"\xe2", b"\xe2\x80")
"""How the bytes of U+0085, U+2028 and U+2029 begin."""


class BadUpstream(ApiError):
    """The other server is not there, or did not do its part."""

    def to_dict(self) -> dict[str, Any]:
        """The body."""
        return {"error": {"message": self.message, "type": "server_error", "param": None, "code": self.code}}


def fault_of(error: httpx.HTTPError, url: str, timeout_s: float) -> BadUpstream:
    """What a client is told where there is no answer: 502 of a server that is down, 504 of one that hangs."""
    if isinstance(error, httpx.ReadTimeout | httpx.WriteTimeout):
        message = f"the upstream {url} said nothing for {timeout_s:g} s: send the request again later"
        return BadUpstream(504, message, None, "upstream_timeout")
    if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
        message = f"the upstream {url} cannot be reached: is it running?"
        return BadUpstream(502, message, None, "upstream_unreachable")
    message = f"the upstream {url} broke the connection: {error or type(error).__name__}"
    return BadUpstream(502, message, None, "upstream_failed")


class Relay:
    """An ASGI answer: what the other server answers, byte by byte; when the client goes, that request ends too.

    Of an event stream one thing changes: the line breaks in its JSON that are not ASCII are escaped, as here.

    An error before the first byte is an ordinary answer. One later ends an event stream with an event that tells it,
    and any other body in the middle, so that nobody takes it for whole.

    Args:
        client: connected to nothing yet.
        request: to send.
        timeout_s: how long the other server may say nothing.
        send_timeout_s: how long the client may take nothing.
        headers: further ones of the answer.
        on_unreachable: called where the other server is not there.
    """

    def __init__(
        self,
        client: httpx.AsyncClient,
        request: httpx.Request,
        *,
        timeout_s: float,
        send_timeout_s: float,
        headers: Mapping[str, str],
        on_unreachable: Callable[[], None],
    ) -> None:
        self._client, self._request = client, request
        self._timeout_s, self._send_timeout_s = timeout_s, send_timeout_s
        self._headers = [
            (name.lower().encode(), value.encode("ascii", "replace")) for name, value in headers.items()
        ]
        self._on_unreachable = on_unreachable
        self._begun, self._events = False, False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send everything."""
        relaying = asyncio.ensure_future(self._relay(send))
        gone = asyncio.ensure_future(disconnected(receive))
        try:
            await asyncio.wait((relaying, gone), return_when=asyncio.FIRST_COMPLETED)
            if relaying.done():
                relaying.result()
        finally:
            for task in (relaying, gone):
                task.cancel()
            await asyncio.gather(relaying, gone, return_exceptions=True)

    async def _relay(self, send: Send) -> None:
        try:
            answer = await self._client.send(self._request, stream=True)
            try:
                await self._answer(answer, send)
            finally:
                await answer.aclose()
        except httpx.HTTPError as error:
            fault = fault_of(error, origin(self._request.url), self._timeout_s)
            if fault.status == 502:
                self._on_unreachable()
            if not self._begun:
                await respond(fault, send)
                return
            if not self._events:
                return  # the server closes a connection whose body was not ended
            body = b"data: " + json.dumps(fault.to_dict()).encode() + b"\n\n"
            await self._send(send, {"type": "http.response.body", "body": body, "more_body": False})

    async def _answer(self, answer: httpx.Response, send: Send) -> None:
        self._begun = True
        self._events = answer.headers.get("content-type", "").startswith("text/event-stream")
        kept = [(name.lower(), value) for name, value in answer.headers.raw]
        dropped = _HOP_BY_HOP | {"date"}  # this server says when it answers
        raw = [(name, value) for name, value in kept if name.decode("latin-1") not in dropped]
        start = {"type": "http.response.start", "status": answer.status_code, "headers": raw + self._headers}
        await self._send(send, start)
        pieces = answer.aiter_raw()
        plain = answer.headers.get("content-encoding", "identity") == "identity"
        async for piece in _escaped(pieces) if self._events and plain else pieces:
            await self._send(send, {"type": "http.response.body", "body": piece, "more_body": True})
        await self._send(send, {"type": "http.response.body", "body": b"", "more_body": False})

    async def _send(self, send: Send, message: dict[str, Any]) -> None:
        async with asyncio.timeout(self._send_timeout_s):
            await send(message)


async def _escaped(pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The same bytes, line breaks that are not ASCII escaped, also where one is cut."""
    held = b""
    async for piece in pieces:
        data = held + piece
        held = next((data[-n:] for n in (2, 1) if data[-n:] in _BEGUN), b"")
        if sent := without_line_breaks(data[: len(data) - len(held)]):
            yield sent
    if held:
        yield held


def passed_headers(headers: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """A client's headers, without those that are about the connection or the body as it was."""
    return [(name, value) for name, value in headers if name.lower() not in _REQUEST_OWN]


def origin(url: httpx.URL) -> str:
    """Scheme, host and port, for messages: a URL's user and password stay here."""
    return f"{url.scheme}://{url.netloc.decode('ascii')}"
