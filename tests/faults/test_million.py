"""Test a million waiting messages: the daemon needs little memory, and is as quick as with a thousand."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Final

import pytest

import eoq
from tests.faults.daemons import left, planted_daemon
from tests.support import HAS_PROC

MILLION: Final = 1_000_000
THOUSAND: Final = 1_000
BODY: Final = b"x" * 100
MOST_MEMORY: Final = 80 * 1024
"""Kilobytes that the daemon may need."""
ROUNDS: Final = 300
SLOWER: Final = 2.5
"""How many times slower it may be with a million. Generous, because other processes disturb the measurement."""


def _medians(*steps: Callable[[], object]) -> list[float]:
    """Return the median seconds of each step. The steps alternate, so that a disturbance affects all of them."""
    times: list[list[float]] = [[] for _ in steps]
    for _ in range(ROUNDS):
        for step, taken in zip(steps, times, strict=True):
            start = time.perf_counter()
            step()
            taken.append(time.perf_counter() - start)
    return [statistics.median(taken) for taken in times]


def _load(client: eoq.Client, queue: str, count: int) -> None:
    """Send ``count`` messages."""
    for _ in client.send_stream(queue, (BODY for _ in range(count))):
        pass


@pytest.mark.slow
def test_a_million_messages_cost_neither_memory_nor_time() -> None:
    with (
        planted_daemon() as daemon,
        eoq.connect(daemon.socket) as client,
        planted_daemon() as other,
        eoq.connect(other.socket) as other_client,
    ):
        memory: dict[str, int] = {}

        def note(what: str) -> None:
            if HAS_PROC:
                memory[what] = daemon.resident_kilobytes()

        _load(other_client, "small", THOUSAND)
        _load(client, "big", MILLION)
        note("loaded")
        small, big = _medians(lambda: other_client.receive("small")[0].ack(), lambda: client.receive("big")[0].ack())
        for _ in range(10):
            messages = client.receive("big", 500)
            client.ack_many([(message, b"result") for message in messages])
        note("after some thousands")
        assert left(client, "big") == {"ready": MILLION - ROUNDS - 5000}
        note("counted")
        daemon.restart()
        assert len(client.receive("big", 1000)) == 1000
        note("started again")
    print(f"receive and ack: {small * 1000:.2f} ms with a thousand, {big * 1000:.2f} ms with a million; {memory}")
    assert big < SLOWER * small
    assert {what: kilobytes for what, kilobytes in memory.items() if kilobytes > MOST_MEMORY} == {}
