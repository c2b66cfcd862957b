"""Spinning: only in a row of requests, only for a moment, and not where other programs want the processor."""

from __future__ import annotations

import threading
import time

import pytest

import eoq
from eoq.system.spin import REST, ROW, TAKEN, Spin
from tests.support import HAS_PROC, Daemon, processor_seconds

LONGEST = 0.001
WAITS = 300
WAIT = 0.001
"""Seconds, so short that a client in a row of such requests would spin."""


class Clock:
    """A clock that stands still, except for the ``steps`` it is given: one each time it is read."""

    def __init__(self) -> None:
        self.now = 100.0
        self.steps: list[float] = []

    def __call__(self) -> float:
        if self.steps:
            self.now += self.steps.pop(0)
        return self.now


def after_a_wait(clock: Clock, seconds: float) -> Spin:
    spin = Spin(LONGEST, clock)
    spin.begin()
    clock.now += seconds
    spin.end()
    return spin


def test_the_first_wait_sleeps() -> None:
    spin = Spin(LONGEST, Clock())
    assert not spin.begin()
    assert not spin.again()


def test_a_wait_in_a_row_with_a_short_one_spins() -> None:
    clock = Clock()
    spin = after_a_wait(clock, LONGEST / 2)
    clock.now += ROW / 2
    assert spin.begin()
    assert spin.again()


def test_a_wait_after_a_long_one_sleeps() -> None:
    assert not after_a_wait(Clock(), LONGEST * 2).begin()


def test_a_wait_long_after_the_last_one_sleeps() -> None:
    clock = Clock()
    spin = after_a_wait(clock, LONGEST / 2)
    clock.now += ROW * 2
    assert not spin.begin()


def test_spinning_ends_after_a_moment() -> None:
    clock = Clock()
    spin = after_a_wait(clock, LONGEST / 2)
    spin.begin()
    clock.now += LONGEST * 2
    assert not spin.again()


def test_spinning_ends_when_the_data_comes() -> None:
    spin = after_a_wait(Clock(), LONGEST / 2)
    spin.begin()
    spin.end()
    assert not spin.again()


def test_there_is_no_spinning_while_others_want_the_processor() -> None:
    clock = Clock()
    spin = after_a_wait(clock, LONGEST / 2)
    spin.begin()
    clock.steps = [0.0, TAKEN / 2]  # the time of the offer, and the time at which the processor came back
    assert spin.again()
    spin.begin()
    clock.steps = [0.0, TAKEN * 2]
    assert not spin.again()
    spin.end()
    assert not spin.begin()
    clock.now += REST
    spin.begin()
    spin.end()
    assert spin.begin()


def test_a_client_that_waits_after_a_row_of_requests_sleeps(shared_daemon: Daemon, queue: str) -> None:
    with eoq.connect(shared_daemon.socket) as client:
        for _ in range(100):
            client.send(queue, b"x")
        used = time.process_time()
        assert client.receive("nothing-there", wait=1.0) == []
        assert time.process_time() - used < 0.3


def test_a_client_in_a_program_with_other_threads_sleeps(shared_daemon: Daemon, queue: str) -> None:
    """A spinning thread takes the interpreter's lock again and again, which the other threads need."""

    def used(client: eoq.Client) -> float:
        begun = time.process_time()
        for _ in range(WAITS):
            assert client.receive(queue, wait=WAIT) == []
        return time.process_time() - begun

    ended = threading.Event()
    other = threading.Thread(target=ended.wait)
    with eoq.connect(shared_daemon.socket) as client:
        other.start()
        try:
            # Requests themselves cost more on a machine that is busy, but not each time.
            assert any(used(client) < WAITS * WAIT / 2 for _ in range(20))
        finally:
            ended.set()
            other.join()


@pytest.mark.slow
@pytest.mark.skipif(not HAS_PROC, reason="needs /proc")
def test_a_daemon_sleeps_after_a_row_of_requests(daemon: Daemon, queue: str) -> None:
    with eoq.connect(daemon.socket) as client:
        for _ in range(100):
            client.send(queue, b"x")
        used = processor_seconds(daemon.pid)
        assert client.receive("nothing-there", wait=1.0) == []
        assert processor_seconds(daemon.pid) - used < 0.3
