"""The callback that reports progress."""

from collections.abc import Callable

ProgressCallback = Callable[[str, int, int], None]
"""Called with ``(stage, units done, units in all)``; units are layers, problems, runs or bytes."""
