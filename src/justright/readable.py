"""Numbers as people read them, options as people write them, JSON as programs read it line by line."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from justright.errors import UsageError


def key_values(pairs: Iterable[str], option: str) -> dict[str, Any]:
    """``["tree=true", "path=a/b"]`` to a dictionary; values are JSON where they can be, else text.

    Args:
        pairs: ``KEY=VALUE`` each.
        option: where they were given, for the message.

    Raises:
        UsageError: a text without a key and a value, or a key twice.
    """
    found: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not (key and equals and value):
            raise UsageError(f"{option} {pair!r}: give KEY=VALUE, such as tree=true")
        if key in found:
            raise UsageError(f"{option} {key} is given twice")
        try:
            found[key] = json.loads(value)
        except ValueError:
            found[key] = value
    return found


_LINE_BREAKS = {ord(one): f"\\u{ord(one):04x}" for one in "\x85\u2028\u2029"}
"""The line breaks that JSON leaves as they are in a string (it escapes all below U+0020), and their escapes."""


def json_line(value: Any) -> str:
    """JSON that every reader takes for one line, those too that split at U+0085, U+2028 and U+2029."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).translate(_LINE_BREAKS)


def readable_bytes(count: float) -> str:
    """``1536`` -> ``1.5 KiB``."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def readable_count(count: float) -> str:
    """``134515008`` -> ``134.5M``."""
    for unit in ("", "K", "M", "B"):
        if count < 1000:
            return f"{count:.0f}" if not unit else f"{count:.1f}{unit}"
        count /= 1000
    return f"{count:.1f}T"


def readable_seconds(seconds: float) -> str:
    """``95`` -> ``1.6 min``."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 3600 else f"{seconds / 3600:.1f} h"
