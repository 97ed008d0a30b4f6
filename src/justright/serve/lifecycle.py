"""A server's life cycle: bind a port before slow work, serve until a signal, let running requests finish.

This module does not depend on what is served, nor on torch.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import threading
from collections.abc import Callable, Generator
from types import FrameType

import uvicorn
from starlette.types import ASGIApp

from justright.errors import UsageError
from justright.serve.connection import Connection

MAX_CONNECTIONS = 1024
_SILENCE_MS = 60_000
"""Milliseconds after which a client that reads nothing is disconnected, a half-open connection included."""


def bind(host: str, port: int) -> socket.socket:
    """Bind a port, without listening yet; 0 takes any free port.

    Raises:
        UsageError: the port is in use, or the host is not an address of this machine.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        found = socket.socket(family, kind, protocol)
    except (OSError, UnicodeError) as error:
        raise UsageError(f"host {host!r} cannot be used ({error}): give another --host") from error
    try:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if hasattr(socket, "TCP_USER_TIMEOUT"):  # Linux only; accepted connections inherit it
            found.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _SILENCE_MS)
        found.bind(address)
    except OSError as error:
        found.close()
        raise UsageError(
            f"port {port} of {host} cannot be used ({error.strerror}): give another --port, or 0 for any"
        ) from error
    return found


def address_of(bound: socket.socket) -> str:
    """Return the URL at which clients reach the server."""
    host, port = bound.getsockname()[:2]
    return f"http://[{host}]:{port}" if bound.family == socket.AF_INET6 else f"http://{host}:{port}"


class HttpServer(uvicorn.Server):
    """Serves an application on a bound socket until `stop` or a signal: the first drains, the second stops at once.

    Args:
        app: wrapped in a `Guard`, which rejects connections beyond ``max_connections``.
        bound: the socket to serve on.
        drain: lets requests finish; called on a separate thread while the server still answers.
        close_s: seconds for responses to finish once no more connections are accepted.
        max_connections: most open connections.
        head_s: seconds in which the head of a request must arrive.
        on_ready: called once clients can connect.
    """

    def __init__(
        self,
        app: ASGIApp,
        bound: socket.socket,
        *,
        drain: Callable[[], None] = lambda: None,
        close_s: float = 5.0,
        max_connections: int = MAX_CONNECTIONS,
        head_s: float = 10.0,
        on_ready: Callable[[], None] = lambda: None,
    ) -> None:
        config = uvicorn.Config(
            app,
            http=Connection.limited(max_connections, head_s),
            ws="none",
            log_config=None,
            access_log=False,
            timeout_keep_alive=30,
            timeout_graceful_shutdown=max(1, round(close_s)),
            server_header=False,
        )
        super().__init__(config)
        self._bound, self._drain, self._on_ready = bound, drain, on_ready
        self._draining: threading.Thread | None = None

    def run_until_stopped(self) -> None:
        """Serve; return when the server has stopped."""
        asyncio.run(self.serve([self._bound]))

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start to listen, then call ``on_ready``."""
        await super().startup(sockets)
        if self.started:
            self._on_ready()

    def stop(self) -> None:
        """Accept no more requests, let running ones finish, then stop; returns at once."""
        if self._draining is None:
            self._draining = threading.Thread(target=self._end, name="justright-drain", daemon=True)
            self._draining.start()

    def _end(self) -> None:
        try:
            self._drain()
        finally:
            self.should_exit = True

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Stop the server on SIGTERM and SIGINT; uvicorn's own handler would cut requests off."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {one: signal.signal(one, self._on_signal) for one in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for one, handler in before.items():
                signal.signal(one, handler)

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        if self._draining is not None:
            os._exit(128 + number)
        self.stop()
