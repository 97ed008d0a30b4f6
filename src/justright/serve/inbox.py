"""Passes output chunks from the engine's thread to the event loop."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from justright.engine.request import Emission


@dataclass(frozen=True, slots=True)
class InboxItem:
    """One output chunk.

    Attributes:
        index: index of its answer.
        emission: the output chunk.
        at: time of arrival, by `time.perf_counter`.
    """

    index: int
    emission: Emission
    at: float


class Inbox:
    """Takes output chunks on the engine's thread and returns them on the event loop; never blocks the engine.

    The ``max_tokens`` of the requests bounds what waits here for a slow reader.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._items: deque[InboxItem] = deque()
        self._arrived = asyncio.Event()
        self._notified = False

    def listener(self, index: int) -> Callable[[Emission], None]:
        """Return the listener to pass to `Scheduler.submit` for answer ``index``."""

        def listen(emission: Emission) -> None:
            self._items.append(InboxItem(index, emission, time.perf_counter()))
            if not self._notified:
                self._notified = True
                self._notify()

        return listen

    async def get(self, timeout_s: float) -> list[InboxItem]:
        """Return all chunks since the last call; wait up to ``timeout_s`` for one, else return an empty list."""
        try:
            async with asyncio.timeout(timeout_s):
                while not self._items:  # the event may be set for items that were taken already
                    await self._arrived.wait()
                    self._arrived.clear()
                    self._notified = False  # before taking the items, so that later ones set the event again
        except TimeoutError:
            return []
        found = []
        while self._items:
            found.append(self._items.popleft())
        return found

    def _notify(self) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed; nobody reads any more
            self._loop.call_soon_threadsafe(self._arrived.set)
