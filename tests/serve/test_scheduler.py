"""The engine's thread: many callers, no endless waiting, no leftover state."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from engine_helpers import alone, letters_tokenizer, prompt_of, verifier_of
from justright.engine.llm import LLM
from justright.engine.options import EngineOptions
from justright.engine.request import Emission, Request
from justright.errors import ResourceError, UsageError
from justright.serve.scheduler import QueueFull, Scheduler, ShuttingDown

PROMPTS = [prompt_of(length, seed=length) for length in (3, 9, 17, 30, 41)]


class Caller:
    """Collects a request's output chunks."""

    def __init__(self) -> None:
        self.emissions: queue.Queue[Emission] = queue.Queue()

    def __call__(self, emission: Emission) -> None:
        self.emissions.put(emission)

    def tokens(self, timeout: float = 30) -> list[int]:
        found: list[int] = []
        while True:
            emission = self.emissions.get(timeout=timeout)
            found += emission.token_ids
            if emission.finish_reason is not None:
                return found


def engine_of(slots: int = 3, **options: Any) -> LLM:
    return LLM.from_parts(
        verifier_of("llama", slots=slots, prefill_chunk=8),
        letters_tokenizer(),
        options=EngineOptions(slots=slots, **options),
    )


@pytest.fixture
def scheduler() -> Iterator[Scheduler]:
    running = Scheduler(engine_of(reuse_prefix=True), max_waiting=50, prefill_share=8)
    running.start()
    yield running
    running.drain(10)


def test_many_threads_each_get_their_own(scheduler: Scheduler) -> None:
    wanted = {tuple(prompt): alone(prompt, 20) for prompt in PROMPTS}
    wrong = []

    def call(index: int) -> None:
        prompt = PROMPTS[index % len(PROMPTS)]
        caller = Caller()
        scheduler.submit(Request(prompt, max_tokens=20), caller)
        if caller.tokens() != wanted[tuple(prompt)]:
            wrong.append(index)

    threads = [threading.Thread(target=call, args=(i,)) for i in range(40)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not wrong
    found = scheduler.snapshot()
    assert (found.waiting, found.running, found.reserved_tokens) == (0, 0, 0)


def test_a_full_queue_reports_when_to_retry() -> None:
    scheduler = Scheduler(engine_of(slots=1), max_waiting=2)  # not started: no request makes progress
    for _ in range(3):
        scheduler.submit(Request(PROMPTS[0], max_tokens=2), Caller())
    with pytest.raises(QueueFull) as caught:
        scheduler.submit(Request(PROMPTS[0], max_tokens=2), Caller())
    assert caught.value.retry_after_s >= 1
    with pytest.raises(ResourceError, match="exceed the context"):
        scheduler.submit(Request(PROMPTS[0], max_tokens=10_000), Caller())


@pytest.mark.parametrize("running", [True, False], ids=["while it runs", "while it waits"])
def test_a_deadline_ends_a_request(running: bool) -> None:
    scheduler = Scheduler(engine_of(slots=1))
    first, late = Caller(), Caller()
    slow = Request(PROMPTS[0], max_tokens=300)
    scheduler.submit(slow, first)
    scheduler.start()
    first.emissions.get(timeout=30)
    if running:
        scheduler._entries[slow.id].deadline = 0.0
    request = Request(PROMPTS[1], max_tokens=4)
    scheduler.submit(request, late, deadline_s=None if running else 0.0)
    timed, other = (slow, request) if running else (request, slow)
    late.tokens()
    first.tokens()
    assert (timed.finish_reason, timed.timed_out) == ("cancelled", True)
    assert (other.finish_reason, other.timed_out) == ("length", False)
    assert scheduler.drain(5)


def test_a_deadline_ends_a_long_prompt_that_runs_alone() -> None:
    scheduler = Scheduler(engine_of(slots=1), prefill_share=8)
    caller, request = Caller(), Request(prompt_of(400), max_tokens=2)
    scheduler.submit(request, caller, deadline_s=0.0)
    before = scheduler.engine.verifier.prefill_one
    chunks: list[int] = []

    def counting(slot: int, tokens: Any, *rest: Any, **options: Any) -> Any:
        chunks.append(len(tokens))
        scheduler._entries[request.id].deadline = 0.0
        return before(slot, tokens, *rest, **options)

    scheduler._entries[request.id].deadline = None
    scheduler.engine.verifier.prefill_one = counting  # type: ignore[method-assign]
    scheduler.start()
    caller.tokens()
    assert request.timed_out
    assert len(chunks) == 1
    assert scheduler.drain(5)


def test_several_are_taken_all_or_none() -> None:
    scheduler = Scheduler(engine_of(slots=1), max_waiting=2)
    scheduler.submit(Request(PROMPTS[0], max_tokens=2), Caller())
    pair = [(Request(prompt, max_tokens=2), Caller()) for prompt in PROMPTS[:3]]
    with pytest.raises(QueueFull):
        scheduler.submit_all(pair)
    assert len(scheduler._entries) == 1
    scheduler.submit_all(pair[:2])
    with pytest.raises(UsageError, match="the request has 4 sequences; allowed: 3 at most"):
        scheduler.submit_all([*pair, *pair[:1]])


def test_a_cancelled_request_frees_its_slot(scheduler: Scheduler) -> None:
    caller = Caller()
    request = Request(PROMPTS[0], max_tokens=400)
    scheduler.submit(request, caller)
    caller.emissions.get(timeout=30)
    scheduler.cancel(request)
    caller.tokens()
    assert request.finish_reason == "cancelled"
    assert scheduler.snapshot().running == 0


def test_draining_finishes_what_runs_and_takes_no_more() -> None:
    scheduler = Scheduler(engine_of())
    scheduler.start()
    caller = Caller()
    scheduler.submit(Request(PROMPTS[0], max_tokens=20), caller)
    assert scheduler.drain(30)
    assert caller.tokens() == alone(PROMPTS[0], 20)
    with pytest.raises(ShuttingDown):
        scheduler.submit(Request(PROMPTS[0], max_tokens=2), Caller())


def test_draining_cancels_what_takes_too_long() -> None:
    scheduler = Scheduler(engine_of())
    scheduler.start()
    caller, request = Caller(), Request(PROMPTS[0], max_tokens=400)
    scheduler.submit(request, caller)
    caller.emissions.get(timeout=30)
    assert not scheduler.drain(0.0)
    caller.tokens()
    assert request.finish_reason == "cancelled"


def test_what_breaks_in_the_engine_ends_its_requests_and_nothing_else(
    scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = RuntimeError("this one is too much")

    def failing(*_: Any) -> Any:
        raise broken

    caller, request = Caller(), Request(PROMPTS[0], max_tokens=400)
    with monkeypatch.context() as patch:
        patch.setattr(scheduler.engine.verifier, "step", failing)
        patch.setattr(scheduler.engine.verifier, "time_step", lambda *_: 0.0)  # the device works
        scheduler.submit(request, caller)
        caller.tokens()
        assert request.error is broken
    again = Caller()
    scheduler.submit(Request(PROMPTS[1], max_tokens=20), again)
    assert again.tokens() == alone(PROMPTS[1], 20)


def test_a_device_that_is_gone_for_good_ends_the_thread() -> None:
    """Otherwise a server that reports ready would fail every request."""
    scheduler = Scheduler(engine_of(slots=1))
    broken, told = RuntimeError("the device is gone"), threading.Event()

    def failing(*_: Any) -> Any:
        raise broken

    scheduler.engine.verifier.step = failing  # type: ignore[method-assign]
    scheduler.on_death = told.set
    pairs = [(Request(prompt, max_tokens=20), Caller()) for prompt in PROMPTS[:3]]
    scheduler.submit_all(pairs)
    scheduler.start()
    for request, caller in pairs:
        caller.tokens()
        assert request.error is broken, "waiting requests get the error too"
    assert told.wait(5)
    assert scheduler.death is broken
    assert not scheduler.snapshot().alive
    with pytest.raises(ShuttingDown):
        scheduler.submit(Request(PROMPTS[0], max_tokens=4), Caller())


def test_a_trial_without_memory_ends_nothing(scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: Any) -> Any:
        raise ResourceError("no memory")

    with monkeypatch.context() as patch:
        patch.setattr(scheduler.engine.verifier, "step", failing)
        caller = Caller()
        scheduler.submit(Request(PROMPTS[0], max_tokens=40), caller)
        caller.tokens()
    again = Caller()
    scheduler.submit(Request(PROMPTS[1], max_tokens=20), again)
    assert again.tokens() == alone(PROMPTS[1], 20)


def test_those_that_wait_are_spared_when_a_step_breaks() -> None:
    scheduler = Scheduler(engine_of(slots=1))
    step, broken = scheduler.engine.verifier.step, RuntimeError("once")

    def failing_once(inputs: Any) -> Any:
        scheduler.engine.verifier.step = step  # type: ignore[method-assign]
        raise broken

    scheduler.engine.verifier.step = failing_once  # type: ignore[method-assign]
    pairs = [(Request(prompt, max_tokens=20), Caller()) for prompt in PROMPTS[:3]]
    scheduler.submit_all(pairs)
    scheduler.start()
    (first, caller), *others = pairs
    caller.tokens()
    assert first.error is broken
    for request, one in others:
        assert one.tokens() == alone(request.prompt_ids, 20)
    assert scheduler.drain(5)


def test_a_failing_listener_ends_only_its_request(scheduler: Scheduler) -> None:
    def failing(emission: Emission) -> None:
        raise ValueError("gone")

    request = Request(PROMPTS[0], max_tokens=400)
    scheduler.submit(request, failing)
    caller = Caller()
    scheduler.submit(Request(PROMPTS[1], max_tokens=20), caller)
    assert caller.tokens() == alone(PROMPTS[1], 20)
    end = time.monotonic() + 30
    while request.finish_reason is None and time.monotonic() < end:
        time.sleep(0.01)
    assert request.finish_reason == "cancelled"


def test_many_requests_leak_no_memory(scheduler: Scheduler) -> None:
    """Cache, entries and queues have the same size as after the first few requests."""
    sizes = []
    for turn in range(8):
        callers = [Caller() for _ in range(12)]
        for index, caller in enumerate(callers):
            request = Request(PROMPTS[(turn + index) % 5], max_tokens=2)
            scheduler.submit(request, caller)
            if index % 7 == 0:
                scheduler.cancel(request)
        for caller in callers:
            caller.tokens()
        sizes.append(scheduler.snapshot().cache_bytes)
    assert sizes[-1] == sizes[3]
    assert not scheduler._entries
    assert scheduler.snapshot().running == scheduler.snapshot().waiting == 0
