"""Checks the name that a client uses for the server, against DNS rebinding."""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address

from starlette.datastructures import Headers
from starlette.types import Scope

from justright.errors import UsageError
from justright.serve.api_errors import ApiError

_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_NAME = re.compile(r"[a-z0-9_-]+(\.[a-z0-9_-]+)*\.?")


@dataclass(frozen=True, slots=True)
class Hosts:
    """The names that a request's ``Host`` header may contain.

    A web page can make its own name resolve to this machine, and the browser then lets the page read the responses of
    a server here (DNS rebinding). The page cannot change the ``Host`` header, which contains the page's own name.

    Attributes:
        allowed: names and addresses besides those of the loopback interface, without scheme and port. If there are
            any, every request is checked; otherwise only one that needs no API key and comes to a loopback address.
        bound: the host that the server listens on, as the user gave it.

    Raises:
        UsageError: an allowed name is not a host name or address.
    """

    allowed: tuple[str, ...] = ()
    bound: str = "localhost"

    def __post_init__(self) -> None:
        for name in self.allowed:
            if not (_NAME.fullmatch(name.lower()) or _address(name.strip("[]"))):
                raise UsageError(
                    f"the allowed host {name!r} is not a host name or address: give one without scheme and port, such "
                    "as gpu-box.local"
                )

    def check(self, scope: Scope, *, keys: bool) -> None:
        """Raise an error if the ``Host`` header has another name; a request without it comes from no browser.

        Args:
            scope: ASGI scope of an HTTP request.
            keys: whether the server needs an API key.

        Raises:
            ApiError: the name is not allowed (403).
        """
        header = Headers(scope=scope).get("host")
        local = str((scope.get("server") or ("",))[0])
        if header is None or not (self.allowed or (not keys and is_loopback(local))):
            return
        names = {_normalized(name) for name in (*_LOOPBACK, local, self.bound, *self.allowed)} - {""}
        found = _without_port(header)
        if found not in names:
            shown = repr(found if len(found) <= 60 else f"{found[:57]}...")
            raise ApiError(
                403,
                f"the Host header names {shown}; allowed: {', '.join(sorted(names))}, and the names given by "
                "--allowed-host",
                None,
                "host_not_allowed",
            )


def is_loopback(host: str) -> bool:
    """Whether ``host`` is ``localhost`` or a loopback address."""
    address = _address(host)
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    return host.lower() == "localhost" or (address is not None and address.is_loopback)


def _without_port(header: str) -> str:
    """Return the name in a ``Host`` header: ``[::1]:80`` -> ``::1``."""
    header = header.strip()
    return _normalized(header.partition("]")[0] if header.startswith("[") else header.partition(":")[0])


def _normalized(name: str) -> str:
    return name.strip("[]").lower().removesuffix(".")


def _address(host: str) -> IPv4Address | IPv6Address | None:
    try:
        return ip_address(host)
    except ValueError:
        return None
