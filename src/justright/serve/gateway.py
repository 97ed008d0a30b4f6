"""The same front without an engine: effort and `auto` for a vLLM, SGLang or llama.cpp server that runs already."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import AsyncGenerator, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

import httpx
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from justright.errors import UsageError
from justright.serve import upstream as mapping
from justright.serve.api_errors import ApiError
from justright.serve.discover import Wanted, kind_of, upstream_of
from justright.serve.front import HANDLERS, body_of
from justright.serve.hosts import Hosts
from justright.serve.middleware import Guard, Log
from justright.serve.proxy import BadUpstream, Relay, fault_of, origin, passed_headers
from justright.serve.upstream import Mapped, Policy, Upstream

_LOOK_S = 10.0
"""How long the upstream may take to say what it is, and whether it is well."""


@dataclass(frozen=True, slots=True)
class GatewaySettings:
    """How a gateway is run.

    Attributes:
        url: of the upstream, with or without ``/v1``.
        wanted: what the user says of it.
        policy: where a request says nothing.
        api_keys: of which a request must have one; empty: the client's own goes to the upstream, which may ask for it.
        upstream_key: sent to the upstream, instead of the client's.
        connect_timeout_s: to reach the upstream.
        timeout_s: how long the upstream may say nothing.
        send_timeout_s: after which a client that takes nothing is given up.
        max_body_bytes: of a request.
        body_timeout_s: to receive one.
        hosts: the names that clients may call the gateway by.
    """

    url: str
    wanted: Wanted = field(default_factory=Wanted)
    policy: Policy = field(default_factory=Policy)
    api_keys: tuple[str, ...] = ()
    upstream_key: str | None = None
    connect_timeout_s: float = 5.0
    timeout_s: float = 600.0
    send_timeout_s: float = 60.0
    max_body_bytes: int = 4 * 2**20
    body_timeout_s: float = 30.0
    hosts: Hosts = field(default_factory=Hosts)

    def __post_init__(self) -> None:
        try:
            url = httpx.URL(self.url)
        except httpx.InvalidURL as error:
            raise UsageError(f"the upstream {self.url!r} is no URL: {error}") from error
        if url.scheme not in ("http", "https") or not url.host or url.query or url.fragment:
            raise UsageError(f"the upstream is {self.url!r}; allowed: http://HOST:PORT, or https://")
        for name in ("connect_timeout_s", "timeout_s", "send_timeout_s", "max_body_bytes", "body_timeout_s"):
            if not getattr(self, name) > 0:
                raise UsageError(f"{name} is {getattr(self, name)}; allowed: above 0")
        keys = [*self.api_keys, *([] if self.upstream_key is None else [self.upstream_key])]
        if any(not key.strip() or not key.isascii() for key in keys):
            raise UsageError("an API key is empty or not ASCII: give at least one character, no accents")

    @property
    def base(self) -> str:
        """The URL that paths are put behind."""
        return re.sub(r"(/v1)?/*$", "", self.url)


class Gateway:
    """Knows the upstream and hands requests on to it; asks it what it is, once, when that is first needed.

    After the upstream was away it is asked again: another model may have come back.

    Args:
        settings: how to run.
    """

    def __init__(self, settings: GatewaySettings) -> None:
        self.settings = settings
        timeout = httpx.Timeout(settings.timeout_s, connect=settings.connect_timeout_s)
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=64)
        self.client = httpx.AsyncClient(timeout=timeout, limits=limits, trust_env=False)
        self._known: Upstream | None = None

    async def upstream(self, headers: Mapping[str, str] | None = None) -> Upstream:
        """What the upstream is.

        Args:
            headers: of the client, whose key the upstream may want to see.

        Raises:
            ApiError: it is not there, or tells nothing that is understood.
        """
        if self._known is None:
            self._known = await self._ask(headers or {})
        return self._known

    async def _ask(self, headers: Mapping[str, str]) -> Upstream:
        models = await self._json("/v1/models", headers)
        try:
            kind = kind_of(models, self.settings.wanted)
            if kind != "llama.cpp":
                return upstream_of(models, None, self.settings.wanted)
            adapters = await self._json("/lora-adapters", headers)
            return upstream_of(models, adapters, self.settings.wanted, await self._template(headers))
        except UsageError as error:
            raise BadUpstream(502, str(error), None, "upstream_unknown") from error

    async def _template(self, headers: Mapping[str, str]) -> str | None:
        """llama.cpp's chat template, if it tells."""
        with contextlib.suppress(ApiError):
            props = await self._json("/props", headers)
            if isinstance(props, dict) and isinstance(found := props.get("chat_template"), str):
                return found
        return None

    async def _json(self, path: str, headers: Mapping[str, str]) -> Any:
        """What the upstream tells at ``path``."""
        key = {name: value for name, value in headers.items() if name.lower() == "authorization"}
        try:
            answer = await self.client.send(self.request("GET", path, key, timeout_s=_LOOK_S))
        except httpx.HTTPError as error:
            raise fault_of(error, self.origin, _LOOK_S) from error
        if answer.status_code in (401, 403):
            raise ApiError(401, f"the upstream {self.origin} wants an API key", None, "invalid_api_key")
        try:
            answer.raise_for_status()
            return answer.json()
        except (httpx.HTTPStatusError, ValueError) as error:
            message = (
                f"the upstream {self.origin} answers {path} with status {answer.status_code}, and no list"
            )
            raise BadUpstream(502, message, None, "upstream_unknown") from error

    def request(
        self,
        method: str,
        path: str,
        headers: Mapping[str, str],
        body: Mapping[str, Any] | None = None,
        timeout_s: float | None = None,
    ) -> httpx.Request:
        """A request for the upstream, with what the client's headers say."""
        passed = passed_headers(headers.items())
        if self.settings.upstream_key is not None or self.settings.api_keys:
            passed = [(name, value) for name, value in passed if name.lower() != "authorization"]
        if self.settings.upstream_key is not None:
            passed.append(("authorization", f"Bearer {self.settings.upstream_key}"))
        passed.append(("accept-encoding", "identity"))  # events are read on their way
        content = None
        if body is not None:
            content = json.dumps(body).encode()
            passed.append(("content-type", "application/json"))
        timeout = httpx.Timeout(timeout_s or self.settings.timeout_s, connect=self.settings.connect_timeout_s)
        extensions = {"timeout": timeout.as_dict()}
        return httpx.Request(
            method, self.settings.base + path, headers=passed, content=content, extensions=extensions
        )

    @property
    def origin(self) -> str:
        """The upstream, for messages."""
        return origin(httpx.URL(self.settings.url))

    async def relay(self, http: Request, body: Mapping[str, Any] | None, headers: Mapping[str, str]) -> Relay:
        """The upstream's answer to the request at the same path."""
        path = quote(http.url.path, safe="/:@")
        request = self.request(http.method, path, http.headers, body)
        settings = self.settings
        return Relay(
            self.client,
            request,
            timeout_s=settings.timeout_s,
            send_timeout_s=settings.send_timeout_s,
            headers=headers,
            on_unreachable=self.forget,
        )

    def forget(self) -> None:
        """Ask the upstream again what it is, before the next request."""
        self._known = None

    async def generate(self, http: Request, mapped: Callable[[dict[str, Any], Upstream], Mapped]) -> ASGIApp:
        """Map a request and hand it on."""
        body = parsed(await body_of(http))
        found = mapped(body, await self.upstream(http.headers))
        return await self.relay(http, found.body, found.headers)

    async def health(self, http: Request) -> Response:
        """Whether the upstream takes requests."""
        try:
            answer = await self.client.send(self.request("GET", "/health", {}, timeout_s=_LOOK_S))
        except httpx.HTTPError as error:
            fault = fault_of(error, self.origin, _LOOK_S)
            return JSONResponse({"status": "failed", "upstream": fault.message}, 503)
        ready = answer.status_code < 400
        told = f"{self.origin} answers with status {answer.status_code}"
        return JSONResponse(
            {"status": "ready" if ready else "failed", "upstream": told}, 200 if ready else 503
        )


def create_gateway(gateway: Gateway, log: Log = lambda *_: None) -> ASGIApp:
    """The application, guarded."""
    policy = gateway.settings.policy

    async def chat(http: Request) -> ASGIApp:
        return await gateway.generate(http, lambda body, there: mapping.chat(body, there, policy))

    async def completion(http: Request) -> ASGIApp:
        return await gateway.generate(http, mapping.completion)

    async def look(http: Request) -> ASGIApp:
        return await gateway.relay(http, None, {})

    async def model(http: Request) -> ASGIApp:
        if {".", "..", ""} & set(http.path_params["model"].split("/")):
            raise ApiError(404, "there is no such model", "model", "model_not_found")
        return await look(http)

    async def live(_: Request) -> Response:
        return Response(status_code=204)

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncGenerator[None]:
        yield
        await gateway.client.aclose()

    routes = [
        Route("/v1/chat/completions", chat, methods=["POST"]),
        Route("/v1/completions", completion, methods=["POST"]),
        Route("/v1/models", look, methods=["GET"]),
        Route("/v1/models/{model:path}", model, methods=["GET"]),
        Route("/metrics", look, methods=["GET"]),
        Route("/health", gateway.health, methods=["GET"]),
        Route("/health/live", live, methods=["GET"]),
    ]
    app = Starlette(routes=routes, exception_handlers=HANDLERS, lifespan=lifespan)
    app.router.redirect_slashes = False  # a redirect would go to an address built from the Host header
    settings = gateway.settings
    limits = (settings.max_body_bytes, settings.body_timeout_s)
    return Guard(app, settings.api_keys, *limits, log, settings.hosts)


def parsed(body: bytes) -> dict[str, Any]:
    """A request's body.

    Raises:
        ApiError: it is no JSON object.
    """
    try:
        found = json.loads(body, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError is a ValueError
        raise ApiError(400, f"the body is no JSON: {error}", None, "invalid_json") from error
    if not isinstance(found, dict):
        raise ApiError(400, f"the body is a {type(found).__name__}: send a JSON object", None, "invalid_json")
    return found


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON number")
