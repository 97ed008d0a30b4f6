"""The options of every command that serves, each defined once, and the reading of API keys."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from justright.errors import UsageError

SERVING = "Serving"
MIB = 2**20

Host = Annotated[
    str,
    typer.Option(
        help="Address to listen on; 0.0.0.0: all of this machine's, which needs an --api-key.",
        rich_help_panel=SERVING,
    ),
]
Port = Annotated[
    int, typer.Option(min=0, max=65535, help="Port to listen on; 0: any.", rich_help_panel=SERVING)
]
AllowedHosts = Annotated[
    list[str] | None,
    typer.Option(
        "--allowed-host",
        metavar="NAME",
        help="A further name that clients may call this server by in their Host header; repeatable. Without an API "
        "key, requests to a loopback address are refused unless they name localhost, that address or --host; with "
        "this option every request is checked.",
        rich_help_panel=SERVING,
        show_default=False,
    ),
]
Name = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="The model's name for clients.  (default: MODEL; of a path, its last part)",
        rich_help_panel=SERVING,
        show_default=False,
    ),
]
Slots = Annotated[
    int, typer.Option(min=1, metavar="N", help="Requests run at once.", rich_help_panel=SERVING)
]
CacheTokens = Annotated[
    int | None,
    typer.Option(
        min=256,
        metavar="N",
        help="Most tokens whose keys and values are kept, of all requests together; if less than the model's context, "
        "also the longest request.  (default: as memory allows)",
        rich_help_panel=SERVING,
        show_default=False,
    ),
]
Queue = Annotated[
    int,
    typer.Option(
        min=0,
        metavar="N",
        help="Most waiting requests; further ones get status 429.",
        rich_help_panel=SERVING,
    ),
]
Deadline = Annotated[
    float | None,
    typer.Option(
        metavar="SECONDS",
        help="Cut a request off after so long.  (default: never)",
        rich_help_panel=SERVING,
        show_default=False,
    ),
]
Drain = Annotated[
    float,
    typer.Option(
        min=0.0,
        metavar="SECONDS",
        help="Let requests come to their end for so long after SIGTERM or Ctrl-C; a second signal does not wait.",
        rich_help_panel=SERVING,
    ),
]
Connections = Annotated[
    int,
    typer.Option(
        min=1,
        metavar="N",
        help="Most open connections; requests on further ones get an error that says to retry.",
        rich_help_panel=SERVING,
    ),
]
Keys = Annotated[
    list[str] | None,
    typer.Option(
        "--api-key",
        metavar="KEY",
        envvar="JUSTRIGHT_API_KEY",
        help="Refuse requests without this key (Authorization: Bearer KEY); repeatable. Others of this machine can "
        "read a command line: rather use the variable (several with spaces between) or the file.",
        rich_help_panel=SERVING,
        show_default=False,
        show_envvar=True,
    ),
]
KeyFile = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="API keys, one a line.", rich_help_panel=SERVING, show_default=False),
]
MaxBody = Annotated[
    float, typer.Option(min=0.001, metavar="MIB", help="Largest body of a request.", rich_help_panel=SERVING)
]
Engine = Annotated[
    str,
    typer.Option(
        help="embedded: in this process. vllm: write vLLM's arguments and become it: the checkpoint as it is, the "
        "switch as a LoRA module, effort and auto by a middleware (docs/scale.md).",
        rich_help_panel=SERVING,
    ),
]
EngineArg = Annotated[
    list[str] | None,
    typer.Option(
        metavar="ARGUMENT",
        help="With --engine vllm: a further argument of vLLM's, as it is, such as --enforce-eager; repeatable.",
        rich_help_panel=SERVING,
        show_default=False,
    ),
]
Copies = Annotated[
    int,
    typer.Option(
        min=1,
        metavar="N",
        help="With --engine vllm: copies of the model, each in a process of its own.",
        rich_help_panel=SERVING,
    ),
]
DryRun = Annotated[
    bool,
    typer.Option(
        "--dry-run",
        help="With --engine vllm: write its files and print its command.",
        rich_help_panel=SERVING,
    ),
]


def read_keys(given: list[str], file: Path | None) -> tuple[str, ...]:
    """All API keys."""
    found = list(given)
    if file is not None:
        try:
            lines = file.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"the file of API keys {file} cannot be read: {error}") from error
        more = [line.strip() for line in lines if line.strip()]
        if not more:
            raise UsageError(f"the file of API keys {file} has none: write one a line")
        found += more
    return tuple(found)
