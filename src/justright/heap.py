"""Return free memory to the system."""

from __future__ import annotations

import ctypes
import sys


def trim() -> None:
    """Return free memory to the system with glibc; do nothing with other C libraries.

    glibc keeps freed blocks of up to 32 MiB, the size of most matrices, and never returns those between other blocks:
    a run over all layers would grow with every layer.
    """
    trimming = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trimming is not None:
        trimming(0)
