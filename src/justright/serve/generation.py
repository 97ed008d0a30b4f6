"""Runs one HTTP request's sequences from the queue to their last token, and cancels them whatever happens."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from types import TracebackType
from typing import Any

from justright.engine.request import Request
from justright.errors import ConstraintError, JustrightError, ResourceError
from justright.serve.answer_chunks import Answer, Delta, Writer, event
from justright.serve.api_errors import ApiError, of_error
from justright.serve.inbox import Inbox, InboxItem
from justright.serve.metrics import Metrics
from justright.serve.scheduler import QueueFull, Scheduler, ShuttingDown
from justright.serve.token_text import TokenTexts

KEEP_ALIVE = b": still working\n\n"
DONE = b"data: [DONE]\n\n"


class Exchange:
    """Runs requests and passes their output on; exiting it cancels what still runs.

    async with Exchange(...) as exchange:
        body = await exchange.whole(writer)

    Args:
        requests: new requests.
        scheduler: runs them.
        metrics: counts them.
        texts: token texts.
        apart: whether reasoning is separated from answers.
        deadline_s: time limit of each request, in seconds.
        arrived: time at which the HTTP request arrived, by `time.perf_counter`.
    """

    def __init__(
        self,
        requests: Sequence[Request],
        scheduler: Scheduler,
        metrics: Metrics,
        texts: TokenTexts,
        *,
        apart: bool,
        deadline_s: float | None,
        arrived: float,
    ) -> None:
        self.answers = [Answer(request, texts, apart) for request in requests]
        self._scheduler, self._metrics = scheduler, metrics
        self._deadline_s, self._arrived = deadline_s, arrived
        self._inbox = Inbox()
        self._first: dict[int, float] = {}

    async def __aenter__(self) -> Exchange:
        """Queue the requests.

        Raises:
            ApiError: the queue is full, or the server is shutting down.
        """
        pairs = [(answer.request, self._inbox.listener(n)) for n, answer in enumerate(self.answers)]
        try:
            self._scheduler.submit_all(pairs, deadline_s=self._deadline_s)
        except JustrightError as error:
            raise rejection_of(error) from error
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._cancel()

    async def whole(self, writer: Writer) -> dict[str, Any]:
        """Return the whole answer.

        Raises:
            ApiError: the requests failed.
        """
        while not all(answer.done for answer in self.answers):
            for item in await self._next_items(timeout_s=10.0):
                self._take(item)
        return writer.answer(self.answers)

    async def events(self, writer: Writer, keep_alive_s: float) -> AsyncGenerator[bytes]:
        """Yield the answer as server-sent events, with a comment after ``keep_alive_s`` of silence.

        An error ends the stream with an error event.
        """
        yield b"".join(event(chunk) for n in range(len(self.answers)) for chunk in writer.first(n))
        while not all(answer.done for answer in self.answers):
            pieces: list[bytes] = []
            try:
                items = await self._next_items(keep_alive_s)
                for item in items:
                    delta = self._take(item)
                    answer = self.answers[item.index]
                    pieces += [event(chunk) for chunk in writer.chunks(item.index, answer, delta)]
            except ApiError as error:
                yield b"".join([*pieces, event(error.to_dict())])
                return
            if pieces or not items:
                yield b"".join(pieces) or KEEP_ALIVE
        yield b"".join([*map(event, writer.last(self.answers)), DONE])

    async def _next_items(self, timeout_s: float) -> list[InboxItem]:
        """Return the new output chunks; fail if the engine is dead, since none will come."""
        items = await self._inbox.get(timeout_s)
        if not items and not self._scheduler.snapshot().alive:
            raise ApiError(
                500, "the engine has stopped after an error: restart the server", None, "engine_error"
            )
        return items

    def _take(self, item: InboxItem) -> Delta:
        """Add an output chunk to its answer; raise the client's error if it ends the answer too early."""
        answer, emission = self.answers[item.index], item.emission
        request = emission.request
        self._metrics.emitted_tokens.inc(len(emission.token_ids))
        if emission.token_ids and item.index not in self._first:
            self._first[item.index] = item.at
            self._metrics.first_token.observe(item.at - self._arrived)
        delta = answer.take(emission)
        if answer.done:
            self._count(item)
        if emission.finish_reason == "cancelled":
            if isinstance(request.error, ConstraintError):
                raise ApiError(400, str(request.error), "response_format", "constraint_failed")
            if request.error is not None:
                raise ApiError(500, f"the engine failed: {request.error}", None, "engine_error")
            if not request.timed_out:
                raise ApiError(
                    503, "the server is shutting down: send the request again", None, "shutting_down"
                )
            if not request.token_ids:
                message = f"no token was generated within {self._deadline_s:g} s, the deadline: send the request later"
                raise ApiError(504, message, None, "deadline_exceeded")
        return delta

    def _count(self, item: InboxItem) -> None:
        request = item.emission.request
        ended_by = "error" if request.error is not None else self.answers[item.index].ended_by
        self._metrics.answered(request, ended_by)
        tokens = request.stats.output_tokens
        seconds = item.at - self._first.get(item.index, item.at)
        if tokens > 1 and seconds > 0:  # a held-back answer arrives at once and says nothing about latency
            self._metrics.each_token.observe(seconds / (tokens - 1))

    def _cancel(self) -> None:
        """Cancel what still runs."""
        for answer in self.answers:
            if not answer.done:
                answer.done = True
                self._scheduler.cancel(answer.request)
                self._metrics.answered(answer.request, "abandoned")


def rejection_of(error: JustrightError) -> ApiError:
    """Return the client's error for a request that was not accepted."""
    if isinstance(error, QueueFull):
        seconds = max(1, round(error.retry_after_s))
        return ApiError(429, str(error), None, "queue_full", {"Retry-After": str(seconds)})
    if isinstance(error, ShuttingDown):
        return ApiError(503, str(error), None, "shutting_down", {"Retry-After": "5"})
    return of_error(error, "max_tokens" if isinstance(error, ResourceError) else None)
