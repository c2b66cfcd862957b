"""Where a claim goes on: it takes the same time however many messages are leased, and misses none."""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from eoq.daemon.config.settings import defaults
from eoq.daemon.records import Claimed, DeliveryRef, NewMessage
from eoq.daemon.store.commands import Claim, Purge, Put, RetryDeliveries, Settle
from eoq.daemon.store.sqlite.deliveries import leased
from eoq.daemon.store.sqlite.store import SqliteStore
from eoq.errors import EoqError

NOW: Final = 1_700_000_000.0


class Queue:
    """A queue of a store, whose leased messages the test holds."""

    def __init__(self, store: SqliteStore) -> None:
        self.store = store
        self.held: dict[int, DeliveryRef] = {}
        self.serial = itertools.count()

    def put(self, *priorities: int) -> None:
        """Store one message of each priority."""
        messages = [NewMessage("q", f"m{next(self.serial)}", b"body", b"digest", priority=one) for one in priorities]
        self.store.transact([Put(NOW, messages, defaults)])

    def claim(self, limit: int) -> list[tuple[int, int]]:
        """Lease messages; return the negated priority and the seq of each."""
        (claimed,) = self.store.transact([Claim(NOW, "q", limit, 1 << 20, defaults)])
        assert isinstance(claimed, Claimed)
        for message in claimed.messages:
            assert message.seq not in self.held, "leased twice"
            self.held[message.seq] = DeliveryRef(message.seq, claimed.delivery_number, "q")
        return [(-message.priority, message.seq) for message in claimed.messages]

    def ready(self) -> list[tuple[int, int]]:
        """Return what is ready and not leased, in the order of delivery."""
        rows = self.store.database.execute("select -priority, seq from message where state = 'ready'").fetchall()
        return sorted(row for row in rows if row[1] not in self.held)

    def give_back(self, *seqs: int) -> None:
        """Give messages back that are held."""
        given = [self.held.pop(seq) for seq in seqs]
        self.store.transact([RetryDeliveries(NOW, given, defaults, counts="none")])

    def ack(self, *seqs: int) -> None:
        """Settle messages that are held."""
        (outcome,) = self.store.transact([Settle(NOW, [(self.held.pop(seq), None) for seq in seqs], (), defaults)])
        assert not isinstance(outcome, EoqError)


@pytest.fixture
def queue(tmp_path: Path) -> Iterator[Queue]:
    loop = asyncio.new_event_loop()
    store = loop.run_until_complete(SqliteStore.open(tmp_path / "eoq.db"))
    try:
        yield Queue(store)
    finally:
        loop.run_until_complete(store.close())
        loop.close()


@pytest.mark.parametrize("most_back", [1, 3, 10_000])
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.first_by_default
def test_each_claim_takes_the_first_that_are_ready(
    queue: Queue, monkeypatch: pytest.MonkeyPatch, seed: int, most_back: int
) -> None:
    """With a low ``MOST_BACK`` the claims begin again at the first message now and then, and skip leased ones."""
    monkeypatch.setattr(leased, "MOST_BACK", most_back)
    rng = random.Random(seed)
    for _ in range(150):
        some = rng.sample(sorted(queue.held), min(len(queue.held), rng.randint(1, 5)))
        match rng.choice(["put", "put", "claim", "claim", "claim", "give back", "ack", "roll back", "purge"]):
            case "put":
                queue.put(*(rng.choice([0, 0, 0, 1, -1, 5]) for _ in range(rng.randint(1, 6))))
            case "claim":
                limit = rng.choice([1, 2, 5, 100])
                expected = queue.ready()[:limit]
                assert queue.claim(limit) == expected
            case "give back":
                queue.give_back(*some)
            case "ack" if some:
                queue.ack(*some)
            case "roll back":
                _roll_back(queue, rng)
            case "purge" if rng.random() < 0.1:
                queue.store.transact([Purge(NOW, "q", None)])
    assert queue.claim(1000) == queue.ready()[:1000] or queue.held


def _roll_back(queue: Queue, rng: random.Random) -> None:
    """Claim and give back in a transaction that fails as a whole."""

    def fail() -> None:
        claimed = queue.store.methods[Claim](Claim(NOW, "q", rng.choice([1, 3, 50]), 1 << 20, defaults))
        assert isinstance(claimed, Claimed)
        given = [DeliveryRef(one.seq, claimed.delivery_number, "q") for one in claimed.messages[::2]]
        if rng.random() < 0.5:
            queue.store.methods[RetryDeliveries](RetryDeliveries(NOW, given, defaults, counts="none"))
        if queue.held:
            held = queue.held[rng.choice(sorted(queue.held))]
            queue.store.methods[Settle](Settle(NOW, [(held, None)], (), defaults))
        raise ValueError("roll back")

    with pytest.raises(ValueError, match="roll back"):
        queue.store.database.transaction(fail, durable=False)


@pytest.mark.slow
def test_a_claim_takes_the_same_time_however_many_are_leased(queue: Queue) -> None:
    def seconds() -> float:
        best = float("inf")
        for _ in range(20):
            queue.put(*[0] * 100)
            start = time.perf_counter()
            assert len(queue.claim(100)) == 100
            best = min(best, time.perf_counter() - start)
        return best

    few = seconds()
    for _ in range(20):
        queue.put(*[0] * 1000)
        assert len(queue.claim(1000)) == 1000
    assert any(seconds() < 3 * few for _ in range(5)), "a machine that is busy is so only now and then"
