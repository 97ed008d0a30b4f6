"""The HTTP application: its routes, and the path from an HTTP request to the engine."""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import BaseModel, ValidationError
from pydantic_core import from_json
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from justright import __version__
from justright.engine.llm import LLM
from justright.engine.request import Request as EngineRequest
from justright.serve import dashboard, metrics, responses
from justright.serve.answer_chunks import CompletionWriter, Writer
from justright.serve.api_errors import ApiError, of_validation
from justright.serve.connection import PROBE
from justright.serve.front import HANDLERS, body_of, unless_gone
from justright.serve.generation import KEEP_ALIVE, Exchange, rejection_of
from justright.serve.middleware import Guard
from justright.serve.openapi import Responses, describe, errors, json_body, streamed
from justright.serve.protocol import ChatRequest, CommonFields, CompletionRequest
from justright.serve.requests import RequestReader
from justright.serve.scheduler import QueueFull, Scheduler
from justright.serve.server_settings import ServeSettings
from justright.serve.token_text import TokenTexts

B = TypeVar("B", bound=BaseModel)
A = TypeVar("A", bound=CommonFields)
Log = Callable[[dict[str, Any]], None]
"""Called for every HTTP request, with values that can be written as JSON."""
Make = Callable[[A], Iterator[list[EngineRequest]]]
"""Builds the engine's requests, prompt by prompt."""
LONG = 2**16
"""Bytes of a body above which its prompts are encoded on a separate thread, so that shorter ones do not wait."""
MAX_VALUES = 2**15
"""Most objects, arrays and object members in a body; numbers and strings in arrays do not count."""


class Service:
    """State that the routes share.

    Args:
        engine: a loaded engine.
        scheduler: the started scheduler of that engine.
        settings: server settings.
        log: called for every HTTP request.
    """

    def __init__(
        self, engine: LLM, scheduler: Scheduler, settings: ServeSettings, log: Log = lambda _: None
    ) -> None:
        assert engine.tokenizer is not None
        self.engine, self.scheduler, self.settings, self.log = engine, scheduler, settings, log
        self.reader = RequestReader(engine, settings)
        self.texts = TokenTexts(engine.tokenizer)
        self.metrics = metrics.Metrics(scheduler.snapshot)
        self.started = int(time.time())
        engine.encode("a")  # the first call may initialise the tokenizer; several threads use it from here on
        self._encoding = ThreadPoolExecutor(2, "justright-encode")
        self._encoding_long = ThreadPoolExecutor(1, "justright-encode-long")
        self._encoding_now = 0

    async def generate(self, http: Request, parsed: A, make: Make[A], size: int) -> Response:
        """Answer one request, streamed or whole.

        Args:
            http: the HTTP request.
            parsed: its parsed body.
            make: builds the engine's requests (see `Make`).
            size: size of the body in bytes.

        Raises:
            ApiError: the request cannot be answered.
        """
        arrived = time.perf_counter()
        requests = await unless_gone(http.receive, self._prepared(parsed, make, size))
        if requests is None:
            return Response(status_code=499)
        chat = isinstance(parsed, ChatRequest)
        kind = Writer if chat else CompletionWriter
        writer = kind(
            ("chatcmpl-" if chat else "cmpl-") + uuid.uuid4().hex,
            int(time.time()),
            parsed.model,
            self.texts,
            parsed.choices,
            parsed.wants_usage,
            parsed.wants_trace,
        )
        exchange = Exchange(
            requests,
            self.scheduler,
            self.metrics,
            self.texts,
            apart=chat,
            deadline_s=self.settings.deadline_s,
            arrived=arrived,
        )
        if parsed.stream:
            await exchange.__aenter__()  # it fails with an ordinary response; `EventStream` exits it
            return EventStream(exchange, writer, self.settings)
        return await self._whole(http, exchange, writer)

    async def _prepared(self, parsed: A, make: Make[A], size: int) -> list[EngineRequest]:
        """Build the engine's requests on our own threads; at most as many at once as the queue can hold.

        Cancellation stops the work after the prompt that is being encoded, and a schema compilation at once.
        """
        now = self.scheduler.snapshot()
        if now.draining:
            raise ApiError(
                503,
                "the server is shutting down: send the request later",
                None,
                "shutting_down",
                {"Retry-After": "5"},
            )
        limit = self.scheduler.max_waiting + now.slots
        if self._encoding_now >= limit:
            raise rejection_of(QueueFull(self._encoding_now - now.slots, 1.0))
        self._encoding_now += 1
        try:
            pool = self._encoding_long if size > LONG else self._encoding
            loop, steps = asyncio.get_running_loop(), make(parsed)
            requests: list[EngineRequest] = []
            while found := await loop.run_in_executor(pool, next, steps, None):
                requests += found
            await self.reader.constrain(requests, parsed)
            return requests
        finally:
            self._encoding_now -= 1

    async def _whole(self, http: Request, exchange: Exchange, writer: Writer) -> Response:
        """Return the whole answer; cancel it if the client disconnects first."""
        async with exchange:
            answer = await unless_gone(http.receive, exchange.whole(writer))
        return Response(status_code=499) if answer is None else JSONResponse(answer)

    def count(self, method: str, path: str, status: int, seconds: float) -> None:
        """Count and log a response."""
        known = path if path in _PATHS else "other"
        self.metrics.responses.labels(known, str(status)).inc()
        self.metrics.latency.labels(known).observe(seconds)
        self.log({"method": method, "path": path, "status": status, "seconds": round(seconds, 4)})

    def close(self) -> None:
        """Shut down the threads and processes that prepare requests."""
        self._encoding.shutdown(wait=False, cancel_futures=True)
        self._encoding_long.shutdown(wait=False, cancel_futures=True)
        self.reader.grammars.close()


class EventStream(StreamingResponse):
    """Sends an exchange's events; ends it when the client disconnects or reads nothing for too long."""

    def __init__(self, exchange: Exchange, writer: Writer, settings: ServeSettings) -> None:
        events = exchange.events(writer, settings.keep_alive_s)
        super().__init__(events, headers={"Cache-Control": "no-cache"}, media_type="text/event-stream")
        self._exchange, self._send_timeout_s = exchange, settings.send_timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send all events."""

        async def send_in_time(message: Message) -> None:
            async with asyncio.timeout(self._send_timeout_s):
                await send(message)

        scope.setdefault("state", {})[PROBE] = KEEP_ALIVE
        try:
            with contextlib.suppress(TimeoutError):  # the client reads nothing: uvicorn closes the connection
                await unless_gone(receive, self.stream_response(send_in_time))
        finally:
            await self._exchange.__aexit__(None, None, None)


_PATHS = frozenset(
    {"/v1/chat/completions", "/v1/completions", "/v1/models", "/health", "/health/live", "/metrics"}
)


def create_app(service: Service) -> ASGIApp:
    """Create the application, wrapped in a `Guard`."""
    app = FastAPI(
        title="justright",
        version=__version__,
        description="One model with an OpenAI-compatible API.",
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,  # a redirect would use an address built from the Host header
        exception_handlers=dict(HANDLERS),
    )
    _add_generation_routes(app, service)
    _add_read_routes(app, service)
    app.include_router(dashboard.router)
    describe(app, keys=bool(service.settings.api_keys))
    settings = service.settings
    limits = (settings.max_body_bytes, settings.body_timeout_s)
    return Guard(app, settings.api_keys, *limits, service.count, settings.hosts)


def _add_generation_routes(app: FastAPI, service: Service) -> None:
    """Add the routes that generate."""
    reader = service.reader

    @app.post(
        "/v1/chat/completions",
        summary="Continue a conversation",
        openapi_extra=json_body(ChatRequest),
        responses=streamed(responses.ChatCompletion, responses.ChatChunk)
        | errors(400, 401, 403, 404, 408, 413, 415, 429, 500, 503, 504),
    )
    async def chat_completions(http: Request) -> Response:
        body = await body_of(http)
        return await service.generate(http, parse(body, ChatRequest), reader.chat, len(body))

    @app.post(
        "/v1/completions",
        summary="Continue a text",
        openapi_extra=json_body(CompletionRequest),
        responses=streamed(responses.Completion, responses.CompletionChunk)
        | errors(400, 401, 403, 404, 408, 413, 415, 429, 500, 503, 504),
    )
    async def completions(http: Request) -> Response:
        body = await body_of(http)
        return await service.generate(http, parse(body, CompletionRequest), reader.completion, len(body))


def _add_read_routes(app: FastAPI, service: Service) -> None:
    """Add the read-only routes."""

    @app.get("/v1/models", summary="The served models", responses=errors(401, 403))
    async def models() -> responses.ModelList:
        return responses.ModelList(object="list", data=[card()])

    @app.get("/v1/models/{model:path}", summary="One model", responses=errors(401, 403, 404))
    async def model(model: str) -> responses.ModelCard:
        if model != service.settings.model:
            raise ApiError(
                404,
                f"there is no model {model!r}; allowed: {service.settings.model!r}",
                "model",
                "model_not_found",
            )
        return card()

    health_codes: Responses = {code: {"model": responses.Health} for code in (200, 503)}

    @app.get("/health", summary="Whether the server accepts requests", responses=health_codes | errors(403))
    async def health() -> Response:
        now = service.scheduler.snapshot()
        ready = now.alive and not now.draining
        body: dict[str, Any] = {"status": "ready" if ready else "draining" if now.draining else "failed"}
        body |= {"running": now.running, "waiting": now.waiting}
        return JSONResponse(body, 200 if ready else 503)

    @app.get(
        "/health/live",
        summary="Whether the process responds",
        response_class=Response,
        status_code=204,
        responses=errors(403),
    )
    async def live() -> Response:
        return Response(status_code=204)

    for path, endpoint in (("/health", health), ("/health/live", live)):  # some load balancers send HEAD
        app.add_api_route(path, endpoint, methods=["HEAD"], include_in_schema=False)

    text: Responses = {200: {"content": {"text/plain": {"schema": {"type": "string"}}}}}

    @app.get("/metrics", summary="Metrics for Prometheus", responses=text | errors(401, 403))
    async def figures() -> Response:
        return Response(service.metrics.render(), media_type=metrics.CONTENT_TYPE)

    def card() -> responses.ModelCard:
        return responses.ModelCard(
            id=service.settings.model,
            object="model",
            created=service.started,
            owned_by="justright",
            justright=responses.ModelDetails(
                context_length=service.engine.verifier.max_tokens,
                efforts=service.reader.efforts,
                reasoning=service.reader.reasoning,
            ),
        )


def parse(body: bytes, kind: type[B]) -> B:
    """Parse a request body.

    Raises:
        ApiError: the body is not JSON or not UTF-8, has too many values, or does not match ``kind``.
    """
    try:
        raw = from_json(body)
    except ValueError:
        raw = None
    if _has_more_values(raw, MAX_VALUES):  # pydantic needs 10 us or more for each, and 2 kB for each fault
        message = f"the body has too many objects, arrays and members; allowed: {MAX_VALUES} at most"
        raise ApiError(400, message, None, "too_many_values")
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        raise of_validation(error, raw) from error


def _has_more_values(raw: Any, limit: int) -> bool:
    """Whether the JSON value ``raw`` has more than ``limit`` objects, arrays and object members."""
    pending, count = [raw], 0
    while pending and count <= limit:
        one = pending.pop()
        if isinstance(one, dict):
            count += len(one)
            one = one.values()
        elif not isinstance(one, list):
            continue
        count += 1
        pending += [inner for inner in one if isinstance(inner, dict | list)]
    return count + len(pending) > limit
