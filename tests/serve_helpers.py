"""Real servers on free ports, and clients for them."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import httpx
from openai import OpenAI

from justright.engine.llm import LLM
from justright.serve.app import Service
from justright.serve.lifecycle import HttpServer, address_of, bind
from justright.serve.scheduler import Scheduler
from justright.serve.server import server_of
from justright.serve.server_settings import ServeSettings

MODEL = "tiny"


@dataclass
class Running:
    """A running server, and clients for it."""

    service: Service
    server: HttpServer
    address: str
    reference: LLM | None = None
    """The same model without drafts, for expected outputs."""
    _clients: dict[str, OpenAI] = field(default_factory=dict)

    @property
    def engine(self) -> LLM:
        return self.service.engine

    @property
    def scheduler(self) -> Scheduler:
        return self.service.scheduler

    def openai(self, key: str = "none") -> OpenAI:
        if key not in self._clients or self._clients[key].is_closed():
            self._clients[key] = OpenAI(base_url=f"{self.address}/v1", api_key=key, max_retries=0, timeout=60)
        return self._clients[key]

    @cached_property
    def client(self) -> httpx.Client:
        return self.http()

    def close(self) -> None:
        self.client.close()
        for client in self._clients.values():
            client.close()

    def http(self, **options: Any) -> httpx.Client:
        return httpx.Client(base_url=self.address, timeout=60, **options)


@contextlib.contextmanager
def running(
    engine: LLM,
    settings: ServeSettings | None = None,
    *,
    max_waiting: int = 64,
    cache_tokens: int | None = None,
    drain_s: float = 5.0,
    reference: LLM | None = None,
    **options: Any,
) -> Iterator[Running]:
    """Run a server in this process; ``options`` go to `server_of`."""
    scheduler = Scheduler(engine, max_waiting=max_waiting, cache_tokens=cache_tokens)
    settings = settings or ServeSettings(MODEL)
    service = Service(engine, scheduler, settings)
    ready = threading.Event()
    bound = bind("127.0.0.1", 0)
    server = server_of(service, bound, drain_s=drain_s, on_ready=ready.set, **options)
    scheduler.start()
    thread = threading.Thread(target=server.run_until_stopped, daemon=True)
    thread.start()
    assert ready.wait(30)
    found = Running(service, server, address_of(bound), reference)
    try:
        yield found
    finally:
        found.close()
        server.stop()
        thread.join(30)
        assert not thread.is_alive()
        service.close()
        bound.close()
