"""With very many messages leased, the other work does not look at each of them again and again.

What a command costs is counted in hundreds of instructions of SQLite, which are the same on every machine.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
from msgspec.structs import replace

from eoq.daemon.config.settings import QueueSettings
from eoq.daemon.records import DeliveryRef, NewMessage
from eoq.daemon.store.commands import Advance, Claim, Command, Purge, Put, RetryDeliveries, ShiftTimes
from eoq.daemon.store.sqlite.store import SqliteStore
from eoq.errors import QueueFull

NOW: Final = 1_700_000_000.0
LEASED: Final = 5000
FEW: Final = 150
"""Hundreds of instructions that a command may take. To look at all that are leased takes several hundred."""


class Counted:
    """A store that tells what a command costs."""

    def __init__(self, store: SqliteStore) -> None:
        self.store = store
        self.settings = QueueSettings()
        self._hundreds = 0

    def run(self, command: Command[Any]) -> Any:
        """Run a command, and return its outcome."""
        (outcome,) = self.store.transact([command])
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def cost(self, command: Command[Any]) -> int:
        """Run a command, and return how many hundreds of instructions it took."""
        self._hundreds = 0
        database = self.store.database._database
        database.set_progress_handler(self._count, 100)
        try:
            self.run(command)
        finally:
            database.set_progress_handler(None, 100)
        return self._hundreds

    def _count(self) -> int:
        self._hundreds += 1
        return 0

    def put(self, *ids: str, expires_at: float | None = None, priority: int = 0, now: float = NOW) -> Put:
        """Return the command that stores messages."""
        message = NewMessage("q", "", b"", b"digest", expires_at=expires_at, priority=priority)
        return Put(now, [replace(message, id=id) for id in ids], lambda _: self.settings)

    def claim(self, limit: int) -> list[DeliveryRef]:
        """Claim messages, and return their deliveries."""
        claimed = self.run(Claim(NOW, "q", limit, 1 << 30, lambda _: self.settings))
        return [DeliveryRef(one.seq, claimed.delivery_number, "q") for one in claimed.messages]

    def lease(self, expires_at: float | None = None) -> list[DeliveryRef]:
        """Store very many messages, and lease them."""
        self.run(self.put(*(f"leased{number}" for number in range(LEASED)), expires_at=expires_at))
        return self.claim(LEASED)

    def give_back(self, *deliveries: DeliveryRef, now: float = NOW) -> None:
        """End leases."""
        self.run(RetryDeliveries(now, deliveries, lambda _: self.settings, None, None, "none"))

    def advance(self, now: float) -> Advance:
        """Return the command that lets messages expire."""
        return Advance(now, 500, lambda _: self.settings)

    def expire(self, now: float) -> list[str]:
        """Let messages expire in as many steps as it takes, and return their ids."""
        ended: list[str] = []
        while True:
            outcome = self.run(self.advance(now))
            ended += [end.id for end in outcome.ended]
            if outcome.next_at is None or outcome.next_at > now:
                return ended


@pytest.fixture
def counted(tmp_path: Path) -> Iterator[Counted]:
    loop = asyncio.new_event_loop()
    store = loop.run_until_complete(SqliteStore.open(tmp_path / "eoq.db"))
    try:
        yield Counted(store)
    finally:
        loop.run_until_complete(store.close())
        loop.close()


def test_a_full_queue_drops_its_oldest_quickly(counted: Counted) -> None:
    deliveries = counted.lease()
    counted.settings = QueueSettings(max_depth=LEASED + 2, when_full="drop_oldest")
    counted.run(counted.put("a"))
    counted.run(counted.put("b", priority=5))
    assert [end.id for end in counted.run(counted.put("c")).ended] == ["a"]
    assert counted.cost(counted.put("d")) < FEW
    # What is given back is the oldest again, also if it has another priority.
    counted.give_back(deliveries[7])
    assert [end.id for end in counted.run(counted.put("e")).ended] == ["leased7"]
    assert [end.id for end in counted.run(counted.put("f", priority=9)).ended] == ["c"]
    counted.give_back(deliveries[3], deliveries[1])
    (leased,) = counted.claim(1)
    assert leased.seq != deliveries[1].seq, "the first claim takes the highest priority"
    assert [end.id for end in counted.run(counted.put("g", "h")).ended] == ["leased1", "leased3"]


def test_what_is_rolled_back_is_found_again(counted: Counted) -> None:
    counted.lease()
    counted.settings = QueueSettings(max_depth=LEASED + 1, when_full="drop_oldest")
    counted.run(counted.put("a"))
    of_others = QueueSettings(max_depth=0)
    two = [NewMessage(queue, "b", b"", b"digest") for queue in ("q", "z")]
    with pytest.raises(QueueFull, match="'z'"):
        counted.run(Put(NOW, two, lambda queue: counted.settings if queue == "q" else of_others))
    assert [end.id for end in counted.run(counted.put("b")).ended] == ["a"]


def test_a_purge_passes_over_them_once(counted: Counted) -> None:
    deliveries = counted.lease()
    counted.run(counted.put(*(f"{number}" for number in range(1200))))
    purge = Purge(NOW, "q", None)
    assert len(counted.run(purge).ids) == 500
    with_leased = counted.cost(purge)
    counted.give_back(*deliveries[:500])
    assert len(counted.run(purge).ids) == 500
    assert len(counted.run(purge).ids) == 200
    assert with_leased < 20 * FEW
    assert counted.run(purge).ids == []


def test_those_whose_time_has_passed_are_looked_at_once(counted: Counted) -> None:
    deliveries = counted.lease(expires_at=NOW + 10)
    counted.run(counted.put("behind", expires_at=NOW + 20))
    assert counted.expire(NOW + 30) == ["behind"]
    assert counted.cost(counted.advance(NOW + 31)) < FEW
    counted.run(counted.put("later", expires_at=NOW + 40))
    assert counted.expire(NOW + 50) == ["later"]
    counted.give_back(deliveries[5], now=NOW + 50)
    assert counted.run(Claim(NOW, "q", 10, 1 << 20, lambda _: counted.settings)).messages == []


def test_the_next_that_expires_is_found_behind_them(counted: Counted) -> None:
    counted.lease(expires_at=NOW + 10)
    outcome = counted.run(counted.advance(NOW))
    assert outcome.next_at == NOW + 10, "it looks again then"
    assert counted.cost(counted.advance(NOW)) < FEW


def test_a_clock_that_is_set_back_hides_none(counted: Counted) -> None:
    (delivery, *_) = counted.lease(expires_at=NOW + 10)
    assert counted.expire(NOW + 30) == []
    counted.give_back(delivery, now=NOW + 9)
    counted.run(counted.put("new", expires_at=NOW + 9.5, now=NOW + 9))
    assert counted.expire(NOW + 11) == ["new", "leased0"]
    counted.run(counted.put("shifted", expires_at=NOW + 50))
    counted.run(ShiftTimes(-100.0, NOW - 60, 0.0, "boot"))
    assert counted.expire(NOW) == ["shifted"]
