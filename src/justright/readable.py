"""Readable numbers, ``KEY=VALUE`` options, settings that differ, and JSON on a single line."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from justright.errors import UsageError


def key_values(pairs: Iterable[str], option: str) -> dict[str, Any]:
    """Parse ``["tree=true", "path=a/b"]``; values are JSON if they parse as JSON, else text.

    Args:
        pairs: ``KEY=VALUE`` each.
        option: name of the option, for messages.

    Raises:
        UsageError: a missing key or value, or a key given twice.
    """
    found: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not (key and equals and value):
            raise UsageError(f"{option} {pair!r}: give KEY=VALUE, such as tree=true")
        if key in found:
            raise UsageError(f"{option} {key} is given twice; give it once")
        try:
            found[key] = json.loads(value)
        except ValueError:
            found[key] = value
    return found


def differences(ours: Mapping[str, Any], theirs: Mapping[str, Any], missing: Any = None) -> dict[str, Any]:
    """Find the settings that differ, down to those within settings: ``{"rope.theta": (our value, their value)}``."""
    found: dict[str, Any] = {}
    for key in dict.fromkeys((*ours, *theirs)):
        left, right = ours.get(key, missing), theirs.get(key, missing)
        if isinstance(left, Mapping) and isinstance(right, Mapping):
            found |= {f"{key}.{name}": pair for name, pair in differences(left, right, missing).items()}
        elif left != right:
            found[key] = left, right
    return found


_LINE_BREAKS = {ord(one): f"\\u{ord(one):04x}" for one in "\x85\u2028\u2029"}
"""Line breaks that JSON does not escape in a string (it escapes those below U+0020) -> their escapes."""


def json_line(value: Any) -> str:
    """JSON on one line, also for readers that split at U+0085, U+2028 and U+2029."""
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
