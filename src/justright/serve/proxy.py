"""What a server that hands requests on needs: which headers pass, and what a client gets where there is no answer."""

from __future__ import annotations

from collections.abc import Iterable

import httpx

from justright.serve.api_errors import ApiError

HOP_BY_HOP = frozenset(
    (
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
    )
) | {"transfer-encoding", "upgrade"}
_REQUEST_OWN = HOP_BY_HOP | {"host", "content-length", "content-type", "expect", "accept-encoding"}


def fault_of(error: httpx.HTTPError, url: str, timeout_s: float) -> ApiError:
    """The answer where the other server gives none: 502 where it is down, 504 where it hangs."""
    if isinstance(error, httpx.ReadTimeout | httpx.WriteTimeout):
        message = f"the upstream {url} said nothing for {timeout_s:g} s: send the request again later"
        return ApiError(504, message, None, "upstream_timeout")
    if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
        message = f"the upstream {url} cannot be reached: is it running?"
        return ApiError(502, message, None, "upstream_unreachable")
    message = f"the upstream {url} broke the connection: {error or type(error).__name__}"
    return ApiError(502, message, None, "upstream_failed")


def passed_headers(headers: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """A client's headers, without those that are about the connection or the body as it was."""
    return [(name, value) for name, value in headers if name.lower() not in _REQUEST_OWN]


def origin(url: httpx.URL) -> str:
    """Scheme, host and port, for messages: a URL's user and password stay here."""
    return f"{url.scheme}://{url.netloc.decode('ascii')}"
