"""What all HTTP servers here share: errors in OpenAI's format, JSON bodies, and clients that disconnect."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Mapping
from typing import Any, TypeVar

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive

from justright.errors import JustrightError
from justright.serve.api_errors import KINDS, ApiError, of_error

T = TypeVar("T")


async def body_of(http: Request) -> bytes:
    """Return the body of a request that declares JSON; web pages may send forms to any address unasked.

    Raises:
        ApiError: the request declares another type, or a compressed body.
    """
    check_plain(http.headers)
    media = http.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media != "application/json":
        message = (
            f"the Content-Type is {media or 'missing'}; allowed: application/json. Send the body as JSON"
        )
        raise ApiError(400, message, None, "invalid_content_type")
    return await http.body()


def check_plain(headers: Mapping[str, str]) -> None:
    """Raise an error for a compressed body.

    Raises:
        ApiError: the body is compressed (415).
    """
    coding = headers.get("content-encoding", "").strip().lower()
    if coding not in ("", "identity"):
        message = f"the Content-Encoding is {coding!r}; allowed: identity. Send the body uncompressed"
        raise ApiError(415, message, None, "unsupported_content_encoding", {"Accept-Encoding": "identity"})


async def unless_gone(receive: Receive, work: Coroutine[Any, Any, T]) -> T | None:
    """Return the result of ``work``; if the client disconnects first, cancel it and return None."""

    async def disconnected() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    working, gone = asyncio.ensure_future(work), asyncio.ensure_future(disconnected())
    try:
        await asyncio.wait((working, gone), return_when=asyncio.FIRST_COMPLETED)
        return working.result() if working.done() else None
    finally:
        for task in (working, gone):
            task.cancel()
        await asyncio.gather(working, gone, return_exceptions=True)


async def _from_api_error(_: Request, error: ApiError) -> Response:
    return error.to_response()


async def _from_own_error(_: Request, error: JustrightError) -> Response:
    return of_error(error).to_response()


async def _from_http_exception(http: Request, error: HTTPException) -> Response:
    what = "no such path" if error.status_code == 404 else str(error.detail)
    status = error.status_code if error.status_code in KINDS else 400
    message = f"{http.method} {http.url.path}: {what}"
    return ApiError(status, message, None, None, error.headers or {}).to_response()


async def _from_bug(_: Request, error: Exception) -> Response:
    message = f"a bug in justright raised {type(error).__name__}: report it with the server's log"
    return ApiError(500, message, None, "bug").to_response()


HANDLERS: Mapping[Any, Any] = {
    ApiError: _from_api_error,
    JustrightError: _from_own_error,
    HTTPException: _from_http_exception,
    Exception: _from_bug,
}
"""Handlers for Starlette and FastAPI that return every error in OpenAI's format."""
