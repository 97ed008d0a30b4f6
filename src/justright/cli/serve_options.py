"""The options of every command that serves, each defined once, and the reading of API keys."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

import typer

from justright.cli.output import Terminal
from justright.errors import UsageError

_serving = partial(typer.Option, rich_help_panel="Serving")
MIB = 2**20

Host = Annotated[
    str,
    _serving(help="Address to listen on; 0.0.0.0: all addresses of this machine, which needs an --api-key."),
]
Port = Annotated[int, _serving(min=0, max=65535, help="Port to listen on; 0: any.")]
AllowedHosts = Annotated[
    list[str] | None,
    _serving(
        "--allowed-host",
        metavar="NAME",
        help="A further allowed name in the Host header of requests; repeatable. Without an API key, requests to a "
        "loopback address must name localhost, that address or --host; with this option every request is checked.",
    ),
]
Name = Annotated[
    str | None,
    _serving(metavar="NAME", help="Model name for clients.  (default: MODEL; of a path, its last part)"),
]
Slots = Annotated[int, _serving(min=1, metavar="N", help="Requests run at once.")]
CacheTokens = Annotated[
    int | None,
    _serving(
        min=256,
        metavar="N",
        help="Capacity of the KV cache in tokens, for all requests together; if less than the model's context, also "
        "the longest request.  (default: as memory allows)",
    ),
]
Queue = Annotated[
    int, _serving(min=0, metavar="N", help="Most waiting requests; further ones get status 429.")
]
Deadline = Annotated[
    float | None,
    _serving(
        metavar="SECONDS", help="Longest time of a request, after which its output ends.  (default: no limit)"
    ),
]
Drain = Annotated[
    float,
    _serving(
        min=0.0,
        metavar="SECONDS",
        help="Longest time for running requests to finish after SIGTERM or Ctrl-C; a second signal ends them.",
    ),
]
Connections = Annotated[
    int,
    _serving(
        min=1,
        metavar="N",
        help="Most open connections; requests on further ones get an error that asks to retry.",
    ),
]
Keys = Annotated[
    list[str] | None,
    _serving(
        "--api-key",
        metavar="KEY",
        envvar="JUSTRIGHT_API_KEY",
        help="API key that requests must have (Authorization: Bearer KEY); repeatable. Other users of this machine can "
        "read a command line: prefer the variable (several keys separated by spaces) or --api-key-file.",
        show_envvar=True,
    ),
]
KeyFile = Annotated[Path | None, _serving(metavar="FILE", help="File of API keys, one per line.")]
NoKey = Annotated[
    bool,
    _serving("--no-api-key", help="No API key, although others can reach --host: anybody may send requests."),
]
MaxBody = Annotated[float, _serving(min=0.001, metavar="MIB", help="Largest body of a request.")]
Engine = Annotated[
    str,
    _serving(
        help="Engine: embedded, or vllm: vLLM replaces this process, with the switch as a LoRA module, and effort and "
        "auto by a middleware (docs/scale.md)."
    ),
]
EngineArg = Annotated[
    list[str] | None,
    _serving(
        metavar="ARGUMENT",
        help="With --engine vllm: a further argument for vLLM, such as --enforce-eager; repeatable.",
    ),
]
Copies = Annotated[
    int,
    _serving(min=1, metavar="N", help="With --engine vllm: copies of the model, each in its own process."),
]
DryRun = Annotated[
    bool, _serving("--dry-run", help="With --engine vllm: only its files and its command, printed.")
]


def read_keys(given: list[str], file: Path | None, host: str, *, none: bool) -> tuple[str, ...]:
    """Return all API keys.

    Args:
        given: keys.
        file: a file of further keys.
        host: the address to listen on.
        none: whether the user says that there shall be none.

    Raises:
        UsageError: no key although others can reach the server, a key that shall not be, or an unusable file.
    """
    from justright.serve.hosts import is_loopback

    found = list(given)
    if file is not None:
        try:
            lines = file.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"the file of API keys {file} cannot be read: {error}") from error
        more = [line.strip() for line in lines if line.strip()]
        if not more:
            raise UsageError(f"the file of API keys {file} is empty: write one key per line")
        found += more
    if found and none:
        raise UsageError("--no-api-key contradicts the API key that is set: leave out one of the two")
    if not found and not none and not is_loopback(host):
        raise UsageError(
            f"anybody who reaches {host} could use this server: set --api-key, --api-key-file or $JUSTRIGHT_API_KEY, "
            "or say --no-api-key"
        )
    return tuple(found)


def access_log(output: Terminal) -> Callable[[Mapping[str, Any]], None]:
    """Return a function that logs a request: a JSON object on stdout with ``--json``, otherwise a line on stderr.

    The line leaves out what the page and monitors ask for again and again.
    """

    def log(values: Mapping[str, Any]) -> None:
        with output.lines_may_fail():
            if output.json:
                output.object({"event": "request", **values})
            elif values["status"] >= 400 or not values["path"].startswith(_ROUTINE):
                at, path = time.strftime("%H:%M:%S"), quote(values["path"], safe="/:", errors="replace")
                output.note(f"{at} {values['method']} {path} {values['status']} {values['seconds']:.2f} s")

    return log


_ROUTINE = ("/metrics", "/health", "/dashboard/")
