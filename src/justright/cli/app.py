"""The commands and their groups; each command is implemented in its own module."""

from __future__ import annotations

from typing import Annotated

import typer

from justright import __version__
from justright.cli import (
    bench,
    bundle,
    chat,
    draft,
    evaluate,
    gateway,
    generate,
    model,
    prune,
    serve,
    switch,
    unpack,
    zoo,
)
from justright.cli.output import output_of

app = typer.Typer(
    name="justright",
    help="Open-weight language models, made just right: not too big, not too slow, not lost in thought.",
    epilog="MODEL is a checkpoint directory, a GGUF file, a hub id org/name, packaged:NAME or zoo:NAME. Exit codes: "
    "0 done, 1 a bug, 2 usage, 3 model not found or damaged, 4 model not supported, 5 not enough disk, memory or "
    "context, 6 a package is missing, 130 interrupted, 141 the output pipe was closed.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(value: bool) -> None:
    if value:
        typer.echo(f"justright {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    ctx: typer.Context,
    debug: Annotated[
        bool, typer.Option("--debug", envvar="JUSTRIGHT_DEBUG", help="Show the traceback of errors.")
    ] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    output_of(ctx).debug = debug


app.command("generate")(generate.generate)
app.command("chat")(chat.chat)
app.command("serve")(serve.serve)
app.command("gateway")(gateway.gateway)
app.command("inspect")(model.inspect)
app.command("path")(model.path)
app.command("prune")(prune.prune)
app.command("unpack")(unpack.unpack)
app.add_typer(switch.app, name="switch")
app.add_typer(draft.app, name="draft")
app.add_typer(bundle.app, name="bundle")
app.add_typer(bench.app, name="bench")
app.command("demo")(bench.demo)
app.command("eval")(evaluate.evaluate)
app.add_typer(zoo.app, name="zoo")
