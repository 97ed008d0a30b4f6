"""Helpers for a server that forwards requests: which headers pass, and the response when the upstream fails."""

from __future__ import annotations

from collections.abc import Iterable

import httpx

from justright.serve.api_errors import ApiError

_PROXY = {f"proxy-{name}" for name in ("authenticate", "authorization", "connection")}
HOP_BY_HOP = _PROXY | {"connection", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade"}
_REQUEST_OWN = HOP_BY_HOP | {"host", "content-length", "expect", "accept-encoding"}


def fault_of(error: httpx.HTTPError, url: str, timeout_s: float) -> ApiError:
    """Return the client's error for an upstream failure: 502 if it is down, 504 if it does not respond in time."""
    if isinstance(error, httpx.ReadTimeout | httpx.WriteTimeout):
        message = f"the upstream {url} sent nothing for {timeout_s:g} s: send the request again later"
        return ApiError(504, message, None, "upstream_timeout")
    if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
        message = f"the upstream {url} cannot be reached: check that it runs"
        return ApiError(502, message, None, "upstream_unreachable")
    message = (
        f"the upstream {url} broke the connection ({error or type(error).__name__}): send the request again"
    )
    return ApiError(502, message, None, "upstream_failed")


def passed_headers(headers: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """Return a client's headers without those about the connection or the original body."""
    return [(name, value) for name, value in headers if name.lower() not in _REQUEST_OWN]


def origin(url: httpx.URL) -> str:
    """Return scheme, host and port for messages, without the URL's user and password."""
    return f"{url.scheme}://{url.netloc.decode('ascii')}"
