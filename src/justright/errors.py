"""Every error that justright raises on purpose.

    JustrightError                      exit code
    ├── UsageError            2         the request itself makes no sense (an option, a prompt, a value)
    ├── SourceError           3         the model cannot be found or fetched
    │   └── CheckpointError   3         it was found, and is damaged, incomplete or of a kind we refuse
    ├── UnsupportedModelError 4         a family, cache kind or layout that justright does not know
    ├── ResourceError         5         no room: disk, memory, context
    ├── ConstraintError       1         an answer cannot keep its constraint (a JSON schema)
    └── MissingExtraError     6         an optional dependency is needed; the message names the command

A message says what was found, what is allowed and what to do. The CLI prints it without a traceback
(``--debug`` shows one) and ends with the exit code.
"""

from __future__ import annotations


class JustrightError(Exception):
    """The root of every error raised on purpose; ``exit_code`` is what the CLI ends with."""

    exit_code = 1


class UsageError(JustrightError):
    """The request makes no sense: a bad option, an empty prompt, an unknown value.

    Args:
        message: see above.
        about: the setting at fault, by its name in the code, for those who let users call it otherwise.
    """

    exit_code = 2

    def __init__(self, message: str = "", *, about: str | None = None) -> None:
        super().__init__(message)
        self.about = about


class SourceError(JustrightError):
    """The model cannot be found or fetched."""

    exit_code = 3


class CheckpointError(SourceError):
    """The checkpoint was found, and is damaged, incomplete, or of a kind we refuse to load."""


class UnsupportedModelError(JustrightError):
    """A model family, cache kind or layout that justright does not support."""

    exit_code = 4


class ResourceError(JustrightError):
    """Not enough of something: disk, memory, context positions."""

    exit_code = 5


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out: Python's, torch's, its CPU allocator's (a plain RuntimeError), CUDA's.

    torch is not imported for the sake of its error's class.
    """
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    text = str(error)
    by_allocator = "DefaultCPUAllocator" in text and ("can't allocate" in text or "not enough memory" in text)
    return isinstance(error, RuntimeError) and (by_allocator or "CUDA error: out of memory" in text)


class ConstraintError(JustrightError):
    """An answer came to a point where it cannot keep its constraint (a JSON schema)."""


class MissingExtraError(JustrightError):
    """An optional dependency is needed and is not installed."""

    exit_code = 6


def install_command(extra: str = "", folder: str = ".") -> str:
    """Return how to install an extra of justright, or a package of a ``folder`` of its checkout, for a message.

    The packages are not published; once they are, this is the place to say so.
    """
    what = f"'{folder}[{extra}]'" if extra else folder
    return f"in the checkout of justright: pip install {what}"
