"""Memory that is free, given back to the system."""

from __future__ import annotations

import ctypes
import sys


def trim() -> None:
    """Give free memory back to the system where the C library would keep it (glibc); elsewhere do nothing.

    glibc keeps freed blocks of up to 32 MiB, the size of most matrices, and where they lie between others it never
    gives them back by itself: a run that goes through layers would grow with every layer.
    """
    trimming = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trimming is not None:
        trimming(0)
