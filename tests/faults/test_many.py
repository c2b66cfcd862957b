"""Test ten thousand groups, ten thousand queues and a million messages: every request is still answered soon."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

import eoq
from tests.faults.daemons import planted_daemon
from tests.support import running_daemon

PATIENT = 1.0
"""Seconds that nine of ten short requests may take, also on a slow machine."""
STALL = 20.0
"""Seconds that the slowest of them may take: a busy machine may stop for a while."""


def _seconds(step: Callable[[], object], rounds: int) -> list[float]:
    """Return the seconds of ``rounds`` calls, the slowest last."""
    seconds = []
    for _ in range(rounds):
        start = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - start)
    return sorted(seconds)


def _are_soon(seconds: list[float]) -> bool:
    return seconds[len(seconds) * 9 // 10] < PATIENT and seconds[-1] < STALL


@pytest.mark.slow
def test_ten_thousand_groups_are_delivered_in_order_and_soon() -> None:
    with running_daemon() as daemon, eoq.connect(daemon.socket) as client:
        client.send_many(
            "q", (eoq.Outgoing(b"", id=f"{n}", group=f"g{n % 10_000}", priority=n % 3) for n in range(30_000))
        )
        done: dict[str, list[int]] = {}

        def turn() -> None:
            messages = client.receive("q", 100)
            for message in messages:
                done.setdefault(str(message.group), []).append(int(message.id))
            client.ack_many([(message, None) for message in messages])

        assert _are_soon(_seconds(turn, 300))
        assert client.receive("q") == []
        assert len(done) == 10_000
        assert all(len(ids) == 3 and ids == sorted(ids) for ids in done.values())


@pytest.mark.slow
def test_ten_thousand_queues_are_received_from_soon() -> None:
    with running_daemon() as daemon, eoq.connect(daemon.socket) as client:
        for number in range(0, 10_000, 1000):
            with client.transaction() as tx:
                for n in range(number, number + 1000):
                    tx.send(f"queue.{n}", b"", id="x")
        daemon.restart()
        numbers = iter(range(10_000))

        def turn() -> None:
            (message,) = client.receive(f"queue.{next(numbers)}")
            message.ack()

        assert _are_soon(_seconds(turn, 2000))
        states = client.queues()
        assert len(states) == 10_000
        assert sum(state["ready"] for state in states) == 8_000


@pytest.mark.slow
def test_a_million_messages_are_purged_in_steps() -> None:
    """The daemon serves another client meanwhile."""
    with planted_daemon() as daemon, eoq.connect(daemon.socket) as client, eoq.connect(daemon.socket) as other:
        for _ in client.send_stream("q", (eoq.Outgoing(b"x" * 20, ttl=3600) for _ in range(1_000_000))):
            pass

        def turn() -> None:
            other.send("other", b"")
            (message,) = other.receive("other")
            message.ack()

        with ThreadPoolExecutor(1) as thread:
            begun = time.perf_counter()
            purging = thread.submit(client.purge, "q")
            slowest = 0.0
            while not purging.done():
                slowest = max(slowest, _seconds(turn, 1)[-1])
            assert purging.result() == 1_000_000
        # In one step, the purge would hold up a request for all of its time, however quick the machine is.
        assert slowest < max(PATIENT, (time.perf_counter() - begun) / 3)
