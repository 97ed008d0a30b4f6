"""Maps effort in front of a running vLLM, SGLang or llama.cpp server; its responses pass byte for byte."""

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
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Send

from justright.errors import UsageError
from justright.serve.api_errors import ApiError
from justright.serve.discover import UpstreamOptions, kind_of, upstream_of
from justright.serve.front import HANDLERS, body_of, unless_gone
from justright.serve.hosts import Hosts
from justright.serve.middleware import Guard, Log
from justright.serve.proxy import HOP_BY_HOP, fault_of, origin, passed_headers
from justright.serve.upstream import CHAT, COMPLETION, Policy, Upstream, mapped

_CONNECT_S, _BODY_S = 5.0, 30.0
_STATUS_S = 10.0
"""Seconds in which the upstream must report what it is and whether it is healthy."""


@dataclass(frozen=True, slots=True)
class GatewaySettings:
    """Settings of a gateway.

    Attributes:
        url: URL of the upstream, with or without ``/v1``.
        wanted: what the user specifies about the upstream.
        policy: defaults for requests that leave the mode open.
        api_keys: accepted API keys; empty: the client's own key goes to the upstream, which may need it.
        upstream_key: sent to the upstream in place of the client's key.
        timeout_s: seconds for which the upstream may be silent.
        max_body_bytes: most bytes in a request's body.
        hosts: names that clients may use for the gateway.
    """

    url: str
    wanted: UpstreamOptions = field(default_factory=UpstreamOptions)
    policy: Policy = field(default_factory=Policy)
    api_keys: tuple[str, ...] = ()
    upstream_key: str | None = None
    timeout_s: float = 600.0
    max_body_bytes: int = 4 * 2**20
    hosts: Hosts = field(default_factory=Hosts)

    def __post_init__(self) -> None:
        try:
            url = httpx.URL(self.url)
        except httpx.InvalidURL as error:
            raise UsageError(
                f"the upstream {self.url!r} is no URL ({error}): give http://HOST:PORT"
            ) from error
        if url.scheme not in ("http", "https") or not url.host or url.query or url.fragment:
            raise UsageError(f"the upstream is {self.url!r}; allowed: http://HOST:PORT, or https://")
        for name in ("timeout_s", "max_body_bytes"):
            if not getattr(self, name) > 0:
                raise UsageError(f"{name} is {getattr(self, name)}; allowed: above 0")
        keys = [*self.api_keys, *([] if self.upstream_key is None else [self.upstream_key])]
        if any(not key.strip() or not key.isascii() for key in keys):
            raise UsageError("an API key is empty or not ASCII: give at least one character, no accents")


class Gateway:
    """Sends mapped requests to the upstream; detects its kind on first use, and again after it was down.

    Args:
        settings: the gateway's settings.
    """

    def __init__(self, settings: GatewaySettings) -> None:
        self.settings = settings
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=64)
        self.client = httpx.AsyncClient(limits=limits, trust_env=False)
        self._known: Upstream | None = None

    @property
    def origin(self) -> str:
        """The upstream's origin, for messages."""
        return origin(httpx.URL(self.settings.url))

    async def upstream(self, headers: Mapping[str, str] | None = None) -> Upstream:
        """Return the upstream, detecting it if needed.

        Args:
            headers: the client's headers, whose key the upstream may need.

        Raises:
            ApiError: the upstream is down, or of an unknown kind.
        """
        if self._known is None:
            key = {name: value for name, value in (headers or {}).items() if name.lower() == "authorization"}
            models, wanted = await self._json("/v1/models", key), self.settings.wanted
            try:
                if kind_of(models, wanted) == "llama.cpp":
                    adapters, template = await self._json("/lora-adapters", key), None
                    with contextlib.suppress(ApiError, KeyError, TypeError):
                        template = (await self._json("/props", key))["chat_template"]
                    self._known = upstream_of(models, adapters, wanted, template)
                else:
                    self._known = upstream_of(models, None, wanted)
            except UsageError as error:
                raise ApiError(502, str(error), None, "upstream_unknown") from error
        return self._known

    async def _json(self, path: str, key: Mapping[str, str]) -> Any:
        """Return the upstream's response at ``path``."""
        try:
            answer = await self.client.send(self._request("GET", path, key, timeout_s=_STATUS_S))
            if answer.status_code in (401, 403):
                message = (
                    f"the upstream {self.origin} needs an API key: send it as `Authorization: Bearer KEY`"
                )
                raise ApiError(401, message, None, "invalid_api_key")
            return answer.raise_for_status().json()
        except (httpx.HTTPStatusError, ValueError) as error:
            message = (
                f"the upstream {self.origin} answers {path} with an error or no JSON ({error}): check its URL"
            )
            raise ApiError(502, message, None, "upstream_unknown") from error
        except httpx.HTTPError as error:
            raise fault_of(error, self.origin, _STATUS_S) from error

    def _request(
        self,
        method: str,
        path: str,
        headers: Mapping[str, str],
        content: bytes | None = None,
        timeout_s: float | None = None,
    ) -> httpx.Request:
        settings, passed = self.settings, passed_headers(headers.items())
        if settings.upstream_key is not None or settings.api_keys:
            passed = [(name, value) for name, value in passed if name.lower() != "authorization"]
        if settings.upstream_key is not None:
            passed.append(("authorization", f"Bearer {settings.upstream_key}"))
        passed.append(("accept-encoding", headers.get("accept-encoding", "identity")))
        timeout = httpx.Timeout(timeout_s or settings.timeout_s, connect=_CONNECT_S)
        url = re.sub(r"(/v1)?/*$", "", settings.url) + path
        return self.client.build_request(method, url, headers=passed, content=content, timeout=timeout)

    async def generate(self, http: Request) -> Response:
        """Map a request and send it."""
        body = await body_of(http)
        upstream = await self.upstream(http.headers)
        return await self.relay(http, *mapped(http.url.path, body, upstream, self.settings.policy))

    async def relay(
        self, http: Request, content: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> Response:
        """Return the upstream's response at the same path, with ``headers`` added; cancelled if the client disconnects.

        Raises:
            ApiError: the upstream does not respond.
        """
        request = self._request(http.method, quote(http.url.path, safe="/:@"), http.headers, content)
        try:
            answer = await unless_gone(http.receive, self.client.send(request, stream=True))
        except httpx.HTTPError as error:
            raise self._fault(error) from error
        if answer is None:
            return Response(status_code=499)
        found = _Relayed(answer.aiter_raw(), answer.status_code, background=BackgroundTask(answer.aclose))
        found.fault_of = self._fault
        dropped = HOP_BY_HOP | {"date"}  # this server sets its own date
        kept = [(name.lower(), value) for name, value in answer.headers.raw]
        found.raw_headers = [(name, value) for name, value in kept if name.decode("latin-1") not in dropped]
        found.headers.update(headers or {})
        return found

    def _fault(self, error: httpx.HTTPError) -> ApiError:
        fault = fault_of(error, self.origin, self.settings.timeout_s)
        if fault.status == 502:
            self._known = None  # the upstream may return with another model
        return fault

    async def health(self, _: Request) -> Response:
        """Report whether the upstream accepts requests."""
        try:
            answer = await self.client.send(self._request("GET", "/health", {}, timeout_s=_STATUS_S))
            ready, found = answer.status_code < 400, f"{self.origin} answers with status {answer.status_code}"
        except httpx.HTTPError as error:
            ready, found = False, fault_of(error, self.origin, _STATUS_S).message
        status = "ready" if ready else "failed"
        return JSONResponse({"status": status, "upstream": found}, 200 if ready else 503)


class _Relayed(StreamingResponse):
    fault_of: Callable[[httpx.HTTPError], ApiError]

    async def stream_response(self, send: Send) -> None:
        """Send the body; if it breaks off, an event stream ends with the error, any other body stays incomplete."""
        try:
            await super().stream_response(send)
        except httpx.HTTPError as error:
            data = json.dumps(self.fault_of(error).to_dict()).encode()
            if self.headers.get("content-type", "").startswith("text/event-stream"):
                await send({"type": "http.response.body", "body": b"data: " + data + b"\n\n"})


def create_gateway(gateway: Gateway, log: Log = lambda *_: None) -> ASGIApp:
    """Create the application, wrapped in a `Guard`."""

    async def read(http: Request) -> Response:
        if {".", "..", ""} & set(http.path_params.get("model", "x").split("/")):
            raise ApiError(404, "there is no such model", "model", "model_not_found")
        return await gateway.relay(http)

    async def live(_: Request) -> Response:
        return Response(status_code=204)

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncGenerator[None]:
        yield
        await gateway.client.aclose()

    routes = [Route(path, gateway.generate, methods=["POST"]) for path in (CHAT, COMPLETION)]
    routes += [
        Route(path, read, methods=["GET"]) for path in ("/v1/models", "/v1/models/{model:path}", "/metrics")
    ]
    routes += [
        Route("/health", gateway.health, methods=["GET"]),
        Route("/health/live", live, methods=["GET"]),
    ]
    app = Starlette(routes=routes, exception_handlers=HANDLERS, lifespan=lifespan)
    app.router.redirect_slashes = False  # a redirect would use an address built from the Host header
    settings = gateway.settings
    return Guard(app, settings.api_keys, settings.max_body_bytes, _BODY_S, log, settings.hosts)
