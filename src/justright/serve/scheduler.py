"""Continuous batching: one thread runs the engine, requests join and leave between its steps."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from justright.engine.llm import LLM
from justright.engine.request import Emission, Request
from justright.errors import JustrightError, ResourceError, UsageError, is_out_of_memory

log = logging.getLogger("justright.serve")

PREFILL_SHARE = 512
"""Prompt tokens to prefill between two steps of the sequences that decode."""

Listener = Callable[[Emission], None]
"""Called for every output chunk, on the engine's thread; the last has a finish reason. It must not block."""


class QueueFull(JustrightError):
    """Too many requests are waiting.

    Attributes:
        retry_after_s: seconds until there may be room, estimated from recent requests.
    """

    def __init__(self, waiting: int, retry_after_s: float) -> None:
        super().__init__(
            f"the queue is full with {waiting} requests: send the request again in {retry_after_s:.0f} s"
        )
        self.retry_after_s = retry_after_s


class ShuttingDown(JustrightError):
    """The server accepts no more requests."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The scheduler's state at one moment.

    Attributes:
        waiting: requests without a slot.
        running: requests with a slot.
        slots: number of slots.
        cached_tokens: tokens in the KV cache, including those of finished sequences.
        reserved_tokens: tokens that the running requests may need in total.
        cache_tokens: limit on both; None: no limit.
        cache_bytes: bytes allocated for the KV cache.
        alive: whether the engine's thread runs.
        draining: whether new requests are rejected.
    """

    waiting: int
    running: int
    slots: int
    cached_tokens: int
    reserved_tokens: int
    cache_tokens: int | None
    cache_bytes: int
    alive: bool
    draining: bool


@dataclass(slots=True)
class _Entry:
    request: Request
    listener: Listener
    deadline: float | None
    submitted: float


class Scheduler:
    """Runs requests from many threads on one engine.

    Args:
        engine: the engine; nothing else may use it from now on.
        max_waiting: most requests that may wait for a slot; more are rejected.
        cache_tokens: most tokens in the KV cache at once; None: limited only by the slots' contexts.
        prefill_share: prompt tokens to prefill between two decode steps.

    Attributes:
        death: the error that ended the engine's thread; None: it did not fail.
        on_death: called on that thread when it fails.
    """

    def __init__(
        self,
        engine: LLM,
        *,
        max_waiting: int = 64,
        cache_tokens: int | None = None,
        prefill_share: int = PREFILL_SHARE,
    ) -> None:
        self.engine = engine
        self.max_waiting = max_waiting
        self._loop = engine.loop(cache_tokens=cache_tokens, prefill_share=prefill_share)
        self._changed = threading.Condition()
        self._new: deque[_Entry] = deque()  # submitted, not yet seen by the engine's thread
        self._entries: dict[int, _Entry] = {}
        self._draining = self._stopped = False
        self.death: BaseException | None = None
        self.on_death: Callable[[], None] = lambda: None
        self._recent: deque[float] = deque(maxlen=32)  # durations of recent requests, in seconds
        self._thread = threading.Thread(target=self._run, name="justright-engine", daemon=True)

    def start(self) -> None:
        """Start the engine's thread."""
        self._thread.start()

    def submit(self, request: Request, listener: Listener, *, deadline_s: float | None = None) -> None:
        """Submit one request; see `submit_all`."""
        self.submit_all([(request, listener)], deadline_s=deadline_s)

    def submit_all(
        self, pairs: Sequence[tuple[Request, Listener]], *, deadline_s: float | None = None
    ) -> None:
        """Submit requests, all of them or none; callable from any thread.

        Args:
            pairs: new requests with their listeners; the engine owns each request until its last output chunk.
            deadline_s: seconds after which unfinished requests are cut off, waiting or running.

        Raises:
            ResourceError: a request can never fit.
            UsageError: there are more requests than may ever wait and run at once.
            QueueFull: too many requests are waiting.
            ShuttingDown: the server accepts no more requests.
        """
        for request, _ in pairs:
            self._loop.check_room(request)
        places = self.max_waiting + self.engine.verifier.slots
        if len(pairs) > places:
            raise UsageError(
                f"the request has {len(pairs)} sequences; allowed: {places} at most. Request fewer"
            )
        now = time.monotonic()
        deadline = None if deadline_s is None else now + deadline_s
        with self._changed:
            if self._draining or self._stopped:
                raise ShuttingDown("the server is shutting down: send the request to another one")
            if len(self._entries) + len(pairs) > places:
                waiting = max(len(self._entries) - self.engine.verifier.slots, 0)
                raise QueueFull(waiting, self._expected_wait_s(waiting))
            for request, listener in pairs:
                entry = _Entry(request, listener, deadline, now)
                self._entries[request.id] = entry
                self._new.append(entry)
            self._changed.notify_all()

    def cancel(self, request: Request) -> None:
        """End a request at the next step or the next chunk of its prompt; callable from any thread."""
        request.cancel()
        with self._changed:
            self._changed.notify_all()

    def drain(self, timeout_s: float) -> bool:
        """Accept no more requests, wait for the rest, then cancel what is left and stop.

        Returns:
            Whether all requests finished within ``timeout_s``.
        """
        with self._changed:
            self._draining = True
            finished = self._changed.wait_for(lambda: not self._entries, timeout_s)
            self._stopped = True
            self._changed.notify_all()
        if self._thread.is_alive():
            self._thread.join()
        return finished

    def snapshot(self) -> Snapshot:
        """Return the state for metrics; callable from any thread, so its figures may span two steps."""
        places, cache = self._loop.places, self.engine.verifier.cache
        return Snapshot(
            waiting=len(self._new) + len(self._loop.waiting),
            running=len(places.all),
            slots=cache.slots,
            cached_tokens=sum(cache.lengths),
            reserved_tokens=places.reserved_tokens,
            cache_tokens=places.cache_tokens,
            cache_bytes=cache.nbytes,
            alive=self._thread.is_alive() and self.death is None,
            draining=self._draining,
        )

    def _expected_wait_s(self, waiting: int) -> float:
        """Estimate the seconds until a new request gets a slot."""
        each = sum(self._recent) / len(self._recent) if self._recent else 1.0
        return max(1.0, each * (waiting + 1) / self.engine.verifier.slots)

    def _run(self) -> None:
        """Run the engine's thread; if it fails, end every request so that no client waits forever."""
        try:
            self._serve()
        except BaseException as error:
            log.critical("the engine's thread died; the server stops", exc_info=error)
            self.death = error
            with self._changed:
                self._stopped = True
            for entry in list(self._entries.values()):
                self._abort(entry, error)
            self.on_death()

    def _serve(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._new or self._loop.busy or self._stopped)
                while self._new:
                    self._loop.waiting.append(self._new.popleft().request)
            if self._stopped:
                break
            self._enforce()
            try:
                for emission in self._loop.advance():
                    self._deliver(emission)
            except Exception as error:
                log.exception("the engine failed; its running requests end")
                self._end(error, waiting=False)
            else:
                continue
            self._try_one_token()
        self._end(None, waiting=True)

    def _try_one_token(self) -> None:
        """After a failed step, run one token; an error other than out of memory is fatal and ends the thread."""
        try:
            self.engine.verifier.time_step(1, 0)
        except Exception as error:
            if not isinstance(error, ResourceError) and not is_out_of_memory(error):
                raise
            log.warning("there is no memory for a step of one token; the server continues", exc_info=True)

    def _enforce(self) -> None:
        """Cancel requests past their deadline, and remove those cancelled while waiting."""
        now = time.monotonic()
        for entry in list(self._entries.values()):
            if entry.deadline is not None and now >= entry.deadline and not entry.request.cancelled:
                entry.request.timed_out = True
                entry.request.cancel()
        gone = [request for request in self._loop.waiting if request.cancelled]
        for request in gone:
            self._loop.waiting.remove(request)
            request.finish_reason = "cancelled"
            self._deliver(Emission(request, [], "", 0, "cancelled"))

    def _deliver(self, emission: Emission) -> None:
        if not (emission.token_ids or emission.text or emission.finish_reason):
            return  # held back; it may still be discarded in favour of an answer to another prompt
        entry = self._entries[emission.request.id]
        try:
            entry.listener(emission)
        except Exception:
            log.exception("a listener failed; its request is cancelled")
            emission.request.cancel()
        if emission.finish_reason is not None:
            with self._changed:
                del self._entries[emission.request.id]
                self._recent.append(time.monotonic() - entry.submitted)
                self._changed.notify_all()

    def _end(self, error: Exception | None, *, waiting: bool) -> None:
        """End the running requests with ``error``, if any, and the waiting ones too if ``waiting`` is set."""
        kept: list[Request] = []
        if not waiting:
            kept = list(self._loop.waiting)
            self._loop.waiting.clear()
        self._loop.cancel_all()
        for slot in range(self.engine.verifier.slots):
            self.engine.verifier.clear(slot)
        with self._changed:
            if waiting:
                self._new.clear()
            kept_ids = {request.id for request in [*kept, *(entry.request for entry in self._new)]}
            ended = [entry for entry in self._entries.values() if entry.request.id not in kept_ids]
        for entry in ended:
            self._abort(entry, error)
        self._loop.waiting.extend(kept)

    def _abort(self, entry: _Entry, error: BaseException | None) -> None:
        """End a request in its current state."""
        entry.request.error = error
        entry.request.finish_reason = "cancelled"
        self._deliver(Emission(entry.request, [], "", 0, "cancelled"))
