"""Ctrl-C ends requests after the current step, and a second Ctrl-C ends the program."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from justright.cli.running import as_object, cancel_on_interrupt, stats_line, until
from justright.engine.request import Emission, Request
from justright.engine.stats import RequestStats


def press() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def test_the_first_interrupt_cancels_and_the_second_raises() -> None:
    before = signal.getsignal(signal.SIGINT)
    requests = [Request([1]), Request([2])]
    with cancel_on_interrupt(requests) as interrupt:
        assert not interrupt.seen
        press()
        assert interrupt.seen
        assert all(request.cancelled for request in requests)
        with pytest.raises(KeyboardInterrupt):
            press()
    assert signal.getsignal(signal.SIGINT) is before


def test_after_an_interrupt_waiting_requests_do_not_start() -> None:
    started = []

    def emissions() -> Iterator[Emission]:
        for number in range(3):
            started.append(number)
            press()
            yield Emission(requests[number], [], "", 0, "cancelled")

    requests = [Request([n]) for n in range(3)]
    with cancel_on_interrupt(requests) as interrupt:
        assert len(list(until(interrupt, emissions()))) == 1
    assert started == [0]


def test_stats_line() -> None:
    stats = RequestStats(
        prompt_tokens=100,
        output_tokens=41,
        prefill_s=0.5,
        decode_s=4,
        verifications=20,
        drafted=30,
        accepted=20,
        near_ties=2,
    )
    request = Request([1], stats=stats, finish_reason="stop")
    assert stats_line(request) == (
        "prompt 100 tokens, 200/s | answer 41 tokens, 10.0/s | 2.00 tokens per step "
        "(20 of 30 drafted tokens accepted) | 2 near ties | ended by stop"
    )
    stats.drafted = stats.accepted = 0
    assert "plain decoding" in stats_line(request, drafts=True)
    assert "plain decoding" not in stats_line(request)
    assert [as_object(request, drafts=drafts)["decoded_plainly"] for drafts in (True, False)] == [True, False]
