"""The command line. It only parses, calls and prints; ``main`` turns every error into a message and an exit code.

Importing a module here imports neither torch nor transformers, so that ``--help`` answers at once.
"""

from __future__ import annotations

import os
import sys
import traceback
import warnings
from collections.abc import Sequence
from typing import NoReturn

from justright.cli.output import Terminal
from justright.errors import (
    JustrightError,
    ResourceError,
    SlowerWarning,
    SourceError,
    UsageError,
    is_out_of_memory,
)
from justright.files import cache_hint, cannot_write

INTERRUPTED = 130
CLOSED_PIPE = 141
# Network errors of client libraries, by module and class name, so that none of the libraries has to be imported.
_NETWORK = {
    "requests": {"ConnectionError", "Timeout", "HTTPError"},
    "httpx": {"TransportError", "HTTPStatusError"},
    "httpcore": {"NetworkError", "TimeoutException", "ProxyError"},
    "urllib3": {"HTTPError"},
    "urllib": {"URLError"},
    "aiohttp": {"ClientConnectionError"},
    "huggingface_hub": {"HfHubHTTPError", "OfflineModeIsEnabled", "LocalEntryNotFoundError"},
    "datasets": {"DatasetNotFoundError", "DataFilesNotFoundError"},
    "socket": {"gaierror"},
}


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit.

    Args:
        argv: the arguments; None: those of the process.
    """
    from justright.cli.app import app

    # transformers reads these when it is imported; values that the user has set take priority.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    words = sys.argv[1:] if argv is None else list(argv)
    output = Terminal()
    with warnings.catch_warnings():
        if not sys.warnoptions:
            warnings.simplefilter("ignore")
            warnings.simplefilter("always", SlowerWarning)
            warnings.showwarning = lambda message, *_args, **_named: output.note(f"note: {message}")
        try:
            app(args=words, prog_name="justright", obj=output)
        except KeyboardInterrupt:
            sys.exit(INTERRUPTED)
        except SystemExit as ended:
            _left_by_typer(ended, output, as_json="--json" in words)
        except Exception as error:
            _fail(error, output)
    sys.exit(0)


def _left_by_typer(ended: SystemExit, output: Terminal, *, as_json: bool) -> NoReturn:
    """Exit as Typer does, after its message on stderr: report it in JSON too, and give a closed pipe its own code."""
    cause = ended.__context__
    if isinstance(cause, BrokenPipeError):
        sys.exit(CLOSED_PIPE)
    explain = getattr(cause, "format_message", None)
    if as_json and ended.code and explain is not None:
        message = explain() or "an argument is missing: see --help"
        output.object({"error": {"type": "UsageError", "message": message, "exit_code": ended.code}})
    raise ended


def _fail(error: Exception, output: Terminal) -> NoReturn:
    """Report an error on stderr and, with ``--json``, as an object on stdout; then exit."""
    known = as_known(error)
    if output.debug:
        traceback.print_exception(error)
    if known is not None:
        message, code, kind = str(known), known.exit_code, type(known).__name__
    else:
        message = f"this is a bug in justright: {type(error).__name__}: {error}"
        code, kind = 1, "Bug"
    hint = "" if known is not None or output.debug else " (run `justright --debug ...` for the traceback)"
    print(f"error: {message}{hint}", file=sys.stderr, flush=True)
    if output.json:
        output.object({"error": {"type": kind, "message": message, "exit_code": code}})
    sys.exit(code)


def _network_fault(error: BaseException) -> BaseException | None:
    """Return the network error that an error is or is caused by; None if there is none."""
    seen: set[int] = set()
    found: BaseException | None = error
    while found is not None and id(found) not in seen:
        seen.add(id(found))
        own = isinstance(found, ConnectionError) and not isinstance(found, BrokenPipeError)
        if own or any(
            one.__name__ in _NETWORK.get(one.__module__.split(".")[0], ()) for one in type(found).__mro__
        ):
            return found
        found = found.__cause__ or (None if found.__suppress_context__ else found.__context__)
    return None


def as_known(error: Exception) -> JustrightError | None:
    """Convert an error to a `JustrightError`: itself, out of memory or disk, an unusable path; None for others."""
    if isinstance(error, JustrightError):
        return error
    if (full := cannot_write(error)) is not None:
        return full
    if (fault := _network_fault(error)) is not None:
        line = next(iter(str(fault).splitlines()), type(fault).__name__)
        return SourceError(
            f"a download failed ({line}). Check the network, HF_ENDPOINT and HTTPS_PROXY and repeat the command, or "
            "download the files into the hub's cache on a machine with network access"
        )
    if isinstance(error, OSError) and error.filename:
        return UsageError(f"{error.filename} cannot be used: {error.strerror}{cache_hint(error.filename)}")
    if is_out_of_memory(error):
        return ResourceError(
            "not enough memory: use a smaller --max-context, fewer prompts at once (--batch), a smaller "
            "--dtype or a smaller model (`justright inspect` shows what a model needs)"
        )
    return None
