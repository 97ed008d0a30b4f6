"""``justright bench`` and ``justright demo``."""

from __future__ import annotations

import typer

app = typer.Typer(help="Measure speed, side by side.", no_args_is_help=True)


@app.command("decode")
def decode(ctx: typer.Context) -> None:
    """Compare ways to decode."""
    raise NotImplementedError


def demo(ctx: typer.Context) -> None:
    """Show the main job on real texts."""
    raise NotImplementedError
