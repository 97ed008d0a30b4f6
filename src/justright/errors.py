"""Every error that justright raises on purpose.

    JustrightError                      exit code
    ├── UsageError            2         an invalid request (an option, a prompt, a value)
    ├── SourceError           3         the model cannot be found or fetched
    │   └── CheckpointError   3         the checkpoint is damaged, incomplete or of an unsafe kind
    ├── UnsupportedModelError 4         an unsupported family, cache kind or layout
    ├── ResourceError         5         not enough disk, memory or context
    ├── ConstraintError       1         an answer cannot satisfy its constraint (a JSON schema)
    └── MissingExtraError     6         an optional dependency is missing; the message gives the command

A message says what was found, what is allowed and what to do. The CLI prints it without a traceback (``--debug`` shows
one) and ends with the exit code.
"""

from __future__ import annotations


class SlowerWarning(UserWarning):
    """Something runs, but slower or larger than requested; the command line shows it as a note."""


class JustrightError(Exception):
    """Base class of every error raised on purpose; ``exit_code`` is the CLI's exit code."""

    exit_code = 1


class UsageError(JustrightError):
    """An invalid request: a bad option, an empty prompt, an unknown value.

    Args:
        message: for the user.
        about: name of the invalid setting in the code, for callers that show users another name.
    """

    exit_code = 2

    def __init__(self, message: str = "", *, about: str | None = None) -> None:
        super().__init__(message)
        self.about = about


class SourceError(JustrightError):
    """The model cannot be found or fetched."""

    exit_code = 3


class CheckpointError(SourceError):
    """The checkpoint is damaged, incomplete, or of an unsafe kind."""


class UnsupportedModelError(JustrightError):
    """An unsupported model family, cache kind or layout."""

    exit_code = 4


class ResourceError(JustrightError):
    """Not enough disk, memory or context."""

    exit_code = 5


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out: errors of Python, torch, its CPU allocator (a plain RuntimeError) and CUDA.

    torch's class is compared by name, so that torch is not imported.
    """
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    text = str(error)
    by_allocator = "DefaultCPUAllocator" in text and ("can't allocate" in text or "not enough memory" in text)
    return isinstance(error, RuntimeError) and (by_allocator or "CUDA error: out of memory" in text)


class ConstraintError(JustrightError):
    """An answer reached a point where it cannot satisfy its constraint (a JSON schema)."""


class MissingExtraError(JustrightError):
    """A required optional dependency is not installed."""

    exit_code = 6


def install_command(extra: str = "", folder: str = ".") -> str:
    """Return how to install an extra of justright, or a package of a ``folder`` of its checkout, for a message.

    The packages are not published; once they are, this is the place to say so.
    """
    what = f"'{folder}[{extra}]'" if extra else folder
    return f"in the checkout of justright: pip install {what}"
