"""What the engine's thread says, on its way to the event loop."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from justright.engine.request import Emission


@dataclass(frozen=True, slots=True)
class Letter:
    """One emission.

    Attributes:
        index: of the answer that it belongs to.
        emission: what came.
        at: when, by `time.perf_counter`.
    """

    index: int
    emission: Emission
    at: float


class Inbox:
    """Takes emissions on the engine's thread, hands them out on the event loop, never makes the engine wait.

    What waits here for a slow reader is bounded by the ``max_tokens`` of its requests.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._letters: deque[Letter] = deque()
        self._arrived = asyncio.Event()
        self._rung = False

    def listener(self, index: int) -> Callable[[Emission], None]:
        """What to give to `Scheduler.submit` for answer ``index``."""

        def listen(emission: Emission) -> None:
            self._letters.append(Letter(index, emission, time.perf_counter()))
            if not self._rung:
                self._rung = True
                self._ring()

        return listen

    async def get(self, timeout_s: float) -> list[Letter]:
        """All that came since the last call; waits for something, at most ``timeout_s`` (then nothing)."""
        try:
            async with asyncio.timeout(timeout_s):
                while not self._letters:  # the bell may still ring for some that were taken
                    await self._arrived.wait()
                    self._arrived.clear()
                    self._rung = False  # before the letters are taken: whoever comes later rings again
        except TimeoutError:
            return []
        found = []
        while self._letters:
            found.append(self._letters.popleft())
        return found

    def _ring(self) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed, and nobody reads any more
            self._loop.call_soon_threadsafe(self._arrived.set)
