"""``justright gateway``: effort and `auto` in front of a running server."""

from __future__ import annotations

import asyncio
import socket
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from justright.cli import options as opt
from justright.cli import serve_options as srv
from justright.cli.output import Terminal, output_of
from justright.errors import MissingExtraError, UsageError, install_command

if TYPE_CHECKING:
    from justright.serve.gateway import Gateway

_upstream = partial(typer.Option, rich_help_panel="Upstream")


def gateway(
    ctx: typer.Context,
    upstream: Annotated[
        str,
        _upstream(
            metavar="URL", help="Server to forward requests to: http://HOST:PORT, with or without /v1."
        ),
    ],
    kind: Annotated[
        str | None,
        _upstream(help="Kind of server: vllm, sglang or llama.cpp.  (default: detected from its model list)"),
    ] = None,
    model: Annotated[
        str | None, _upstream(metavar="NAME", help="Model to serve.  (default: the first in its model list)")
    ] = None,
    fast: Annotated[
        str | None,
        _upstream(
            metavar="NAME",
            help="Adapter for the fast mode, by name; for llama.cpp by id or path.  (default: the only adapter; if "
            "there is none, the chat template's enable_thinking)",
        ),
    ] = None,
    upstream_key: Annotated[
        str | None,
        _upstream(
            metavar="KEY",
            envvar="JUSTRIGHT_UPSTREAM_KEY",
            help="API key for the upstream.  (default: the client's)",
        ),
    ] = None,
    timeout: Annotated[
        float,
        _upstream(
            min=0.001,
            metavar="SECONDS",
            help="Longest time without data from the upstream before a request fails (504).",
        ),
    ] = 600.0,
    effort: Annotated[
        str | None,
        typer.Option(
            metavar="EFFORT",
            help="Effort of requests that set none. none, minimal: fast mode. low, medium, high: slow mode. auto: by "
            "the prompt's numbers and reasoning words (only `justright serve` has the calibrated probe).  (default: "
            "the model's own behaviour)",
            rich_help_panel="Reasoning",
        ),
    ] = None,
    threshold: Annotated[
        float | None,
        typer.Option(
            help="Score above which auto chooses slow mode.  (default: 0.5)", rich_help_panel="Reasoning"
        ),
    ] = None,
    host: srv.Host = "127.0.0.1",
    port: srv.Port = 8080,
    allowed_host: srv.AllowedHosts = None,
    drain: srv.Drain = 30.0,
    max_connections: srv.Connections = 1024,
    api_key: srv.Keys = None,
    api_key_file: srv.KeyFile = None,
    no_api_key: srv.NoKey = False,
    max_body: srv.MaxBody = 4.0,
    as_json: opt.Json = False,
    stats: opt.Stats = True,
) -> None:
    """Choose slow or fast for each request to a running vLLM, SGLang or llama.cpp server.

    Clients use it like the server itself; the response headers X-Justright-Mode and X-Justright-Reason give the mode
    and the reason.
    """
    try:
        from justright.serve.discover import UpstreamOptions
        from justright.serve.gateway import Gateway, GatewaySettings
        from justright.serve.hosts import Hosts
        from justright.serve.lifecycle import bind
        from justright.serve.upstream import Policy
    except ImportError as error:
        raise MissingExtraError(f"the gateway needs {error.name}; {install_command('serve')}") from error

    output = output_of(ctx)
    settings = GatewaySettings(
        upstream,
        UpstreamOptions(kind, model, fast),
        Policy(effort, threshold=threshold),
        srv.read_keys(api_key or [], api_key_file, host, none=no_api_key),
        upstream_key,
        timeout_s=timeout,
        max_body_bytes=int(max_body * srv.MIB),
        hosts=Hosts(tuple(allowed_host or ()), host),
    )
    with bind(host, port) as bound:
        asyncio.run(_run(Gateway(settings), bound, drain, max_connections, output))
    output.note("the gateway has stopped")


async def _run(
    running: Gateway, bound: socket.socket, drain_s: float, max_connections: int, output: Terminal
) -> None:
    """Detect the upstream, and serve."""
    from justright.serve.api_errors import ApiError
    from justright.serve.gateway import create_gateway
    from justright.serve.lifecycle import HttpServer, address_of

    answered = srv.access_log(output)

    def log(method: str, path: str, status: int, seconds: float) -> None:
        answered({"method": method, "path": path, "status": status, "seconds": round(seconds, 4)})

    try:
        summary = (await running.upstream()).summary()
    except ApiError as error:
        if error.code == "upstream_unknown":
            raise UsageError(error.message) from error
        summary = f"{error.message}. The gateway tries again at each request"

    def on_ready() -> None:
        address = address_of(bound)
        with output.lines_may_fail():
            if output.json:
                output.object({"event": "ready", "address": address, "upstream": summary})
            else:
                output.text(f"{address}/v1 forwards to {running.origin}; {summary}")

    app = create_gateway(running, log)
    server = HttpServer(app, bound, close_s=drain_s, max_connections=max_connections, on_ready=on_ready)
    await server.serve([bound])
