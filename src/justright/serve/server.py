"""Serves one engine until a signal or until the engine dies."""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable

from justright.engine.llm import LLM
from justright.errors import JustrightError
from justright.serve.app import Log, Service, create_app
from justright.serve.lifecycle import MAX_CONNECTIONS, HttpServer
from justright.serve.scheduler import Scheduler
from justright.serve.server_settings import ServeSettings

log = logging.getLogger("justright.serve")


def server_of(
    service: Service,
    bound: socket.socket,
    *,
    drain_s: float = 30.0,
    max_connections: int = MAX_CONNECTIONS,
    on_ready: Callable[[], None] = lambda: None,
) -> HttpServer:
    """Create a server for a service on a bound socket; it stops when the engine dies.

    Args:
        service: the service; the caller starts its scheduler afterwards.
        bound: the socket to serve on.
        drain_s: seconds for requests to finish after the first signal.
        max_connections: most open connections.
        on_ready: called once clients can connect.
    """
    scheduler = service.scheduler

    def drain() -> None:
        now = scheduler.snapshot()
        if count := now.running + now.waiting:
            log.warning(
                "stopping: %d requests have %g s to finish; a second signal stops at once",
                count,
                drain_s,
            )
        if not scheduler.drain(drain_s):
            log.warning("some requests did not finish within %g s and are cancelled", drain_s)

    server = HttpServer(
        create_app(service), bound, drain=drain, max_connections=max_connections, on_ready=on_ready
    )
    scheduler.on_death = server.stop
    return server


def serve(
    engine: LLM,
    scheduler: Scheduler,
    settings: ServeSettings,
    bound: socket.socket,
    *,
    drain_s: float = 30.0,
    max_connections: int = MAX_CONNECTIONS,
    on_ready: Callable[[], None] = lambda: None,
    on_request: Log = lambda _: None,
) -> None:
    """Serve an engine until a signal.

    Args:
        engine: a loaded engine.
        scheduler: the engine's scheduler; it is started here.
        settings: server settings.
        bound: the socket to serve on.
        drain_s: see `server_of`, as for the next two.
        max_connections: see `server_of`.
        on_ready: see `server_of`.
        on_request: called for every HTTP request.

    Raises:
        JustrightError: the engine died.
    """
    service = Service(engine, scheduler, settings, on_request)
    server = server_of(service, bound, drain_s=drain_s, max_connections=max_connections, on_ready=on_ready)
    scheduler.start()
    try:
        server.run_until_stopped()
    finally:
        scheduler.drain(0.0)
        service.close()
    if scheduler.death is not None:
        raise JustrightError(
            f"the engine died ({type(scheduler.death).__name__}: {scheduler.death}): restart the server"
        ) from scheduler.death
