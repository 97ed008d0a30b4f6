"""A server's life: a port before any weight is read, requests until a signal, then the rest of them to their end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import threading
from collections.abc import Callable, Generator
from types import FrameType

import uvicorn

from justright.engine.api import Engine
from justright.errors import UsageError
from justright.serve.app import Log, Service, create_app
from justright.serve.scheduler import Scheduler
from justright.serve.settings import ServeSettings

log = logging.getLogger("justright.serve")

_SILENCE_MS = 60_000
"""After which a client that takes nothing of what was sent is cut off, its half-open connection too."""


def bind(host: str, port: int) -> socket.socket:
    """A port of our own, not listening yet; 0 takes any.

    Raises:
        UsageError: it is taken, or the host is none of this machine.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        found = socket.socket(family, kind, protocol)
    except (OSError, UnicodeError) as error:
        raise UsageError(f"host {host!r} cannot be used: {error}") from error
    try:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if hasattr(socket, "TCP_USER_TIMEOUT"):  # Linux: of every connection, which takes it over from here
            found.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _SILENCE_MS)
        found.bind(address)
    except OSError as error:
        found.close()
        raise UsageError(
            f"port {port} of {host} cannot be used ({error.strerror}): give another --port, or 0 for any"
        ) from error
    return found


def address_of(bound: socket.socket) -> str:
    """Where clients find it."""
    host, port = bound.getsockname()[:2]
    return f"http://[{host}]:{port}" if bound.family == socket.AF_INET6 else f"http://{host}:{port}"


class HttpServer(uvicorn.Server):
    """Serves one service on a bound socket until `stop`, or a signal: the first drains, the second does not wait.

    Args:
        service: with a started scheduler.
        bound: where.
        drain_s: to let requests come to their end.
        on_ready: called once clients are let in.
    """

    def __init__(
        self,
        service: Service,
        bound: socket.socket,
        *,
        drain_s: float = 30.0,
        on_ready: Callable[[], None] = lambda: None,
    ) -> None:
        config = uvicorn.Config(
            create_app(service),
            log_config=None,
            access_log=False,
            lifespan="off",
            timeout_keep_alive=30,
            timeout_graceful_shutdown=5,
            server_header=False,
        )
        super().__init__(config)
        self._service, self._bound, self._drain_s, self._on_ready = service, bound, drain_s, on_ready
        self._draining: threading.Thread | None = None

    def run_until_stopped(self) -> None:
        """Serve; returns when all is over."""
        asyncio.run(self.serve([self._bound]))

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to listen, and say so."""
        await super().startup(sockets)
        if self.started:
            self._on_ready()

    def stop(self) -> None:
        """Take no more requests, let those that run come to their end, then stop; returns at once."""
        if self._draining is None:
            self._draining = threading.Thread(target=self._drain, name="justright-drain", daemon=True)
            self._draining.start()

    def _drain(self) -> None:
        now = self._service.scheduler.snapshot()
        if count := now.running + now.waiting:
            log.warning(
                "stopping: %d requests may come to their end for %g s; a second signal does not wait",
                count,
                self._drain_s,
            )
        if not self._service.scheduler.drain(self._drain_s):
            log.warning("some requests were not done within %g s; they are cancelled", self._drain_s)
        self.should_exit = True

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """SIGTERM and SIGINT stop the server; uvicorn's own way would cut requests off."""
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


def serve(
    engine: Engine,
    scheduler: Scheduler,
    settings: ServeSettings,
    bound: socket.socket,
    *,
    drain_s: float = 30.0,
    on_ready: Callable[[], None] = lambda: None,
    on_request: Log = lambda _: None,
) -> None:
    """Serve an engine until a signal.

    Args:
        engine: loaded.
        scheduler: of it; started here.
        settings: how to serve.
        bound: where.
        drain_s: to let requests come to their end, after the first signal.
        on_ready: called once clients are let in.
        on_request: told of every HTTP request.
    """
    service = Service(engine, scheduler, settings, on_request)
    scheduler.start()
    try:
        HttpServer(service, bound, drain_s=drain_s, on_ready=on_ready).run_until_stopped()
    finally:
        scheduler.drain(0.0)
        service.close()
