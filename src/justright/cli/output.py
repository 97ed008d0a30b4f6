"""Where output goes: results to stdout, everything else to stderr; text for people or JSON for programs."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import typer

from justright.readable import json_line

if TYPE_CHECKING:
    from rich.console import Console, RenderableType


@dataclass(slots=True)
class Terminal:
    """Output settings of one run; ``main`` makes it and passes it to every command as ``ctx.obj``.

    Attributes:
        json: print results as JSON objects, one a line; set by ``--json``.
        debug: print the traceback of errors; set by ``--debug``.
        quiet: print no progress and no statistics; set by ``--quiet``.
    """

    json: bool = False
    debug: bool = False
    quiet: bool = False

    @property
    def progress(self) -> bool:
        """Whether progress is shown (on stderr)."""
        return not (self.quiet or self.json) and sys.stderr.isatty()

    def text(self, text: str, *, end: str = "\n") -> None:
        """Write a piece of the result to stdout and flush it."""
        sys.stdout.write(text + end)
        sys.stdout.flush()

    def object(self, value: Any) -> None:
        """Write a JSON object to stdout as one line."""
        self.text(json_line(value))

    @contextlib.contextmanager
    def lines_may_fail(self) -> Iterator[None]:
        """On a full disk or a closed pipe, drop the lines and let the server continue."""
        try:
            yield
        except OSError as error:
            with contextlib.suppress(OSError):
                self.note(
                    f"note: a line of output could not be written ({error.strerror}); requests are still answered"
                )

    def note(self, text: str) -> None:
        """Write a line to stderr, for people; no effect with ``--quiet``."""
        if not self.quiet:
            print(text, file=sys.stderr, flush=True)

    def table(self, *parts: RenderableType) -> None:
        """Print rich tables and texts to stdout."""
        for part in parts:
            self.console().print(part)

    def console(self, *, stderr: bool = False) -> Console:
        """Return a rich console on the current stdout or stderr."""
        from rich.console import Console

        return Console(file=sys.stderr if stderr else sys.stdout, highlight=False)

    @contextlib.contextmanager
    def status(self, text: str) -> Iterator[None]:
        """Show ``text`` on stderr with a spinner while the block runs, if progress is shown."""
        if not self.progress:
            yield
            return
        with self.console(stderr=True).status(text):
            yield


def output_of(ctx: typer.Context) -> Terminal:
    """Return the run's `Terminal`; create it where ``main`` did not start the program (completion, tests)."""
    return ctx.ensure_object(Terminal)
