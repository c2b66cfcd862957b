"""The table of leases by itself: which end when, and how much is remembered of those that are over."""

from __future__ import annotations

import tracemalloc

import pytest

from eoq.daemon.broker.leases import Lease, Leases
from eoq.daemon.records import DeliveryRef


def _lease(number: int, deadline: float, owner: set[Lease] | None = None) -> Lease:
    return Lease(DeliveryRef(number, 1, "q"), f"m{number}", 1, f"epoch.{number}.1", deadline, owner)


@pytest.fixture
def ended() -> list[str]:
    """The ids of the leases that have ended by themselves, in their order."""
    return []


@pytest.fixture
def leases(ended: list[str]) -> Leases:
    return Leases(lambda over: ended.extend(lease.id for lease in over))


def test_those_of_one_claim_end_together_but_for_what_became_of_each(leases: Leases, ended: list[str]) -> None:
    together = [_lease(number, 10.0) for number in range(6)]
    leases.add(together)
    leases.remove([together[5], together[1]])
    leases.extend(together[2], 30.0)
    leases.extend(together[3], 5.0)
    assert leases.next_deadline() == 5.0
    leases.expire(5.0)
    assert ended == ["m3"]
    leases.expire(9.9)
    assert ended == ["m3"]
    leases.expire(10.0)
    assert ended == ["m3", "m0", "m4"]
    assert (leases.next_deadline(), leases.count("q"), len(leases)) == (30.0, 1, 1)
    leases.expire(30.0)
    assert ended == ["m3", "m0", "m4", "m2"]
    assert (leases.next_deadline(), leases.count("q"), len(leases)) == (None, 0, 0)


def test_one_that_is_alive_does_not_keep_all_that_came_after_it(leases: Leases, ended: list[str]) -> None:
    """It ends before they would have, and lives while many are given and settled."""
    owner: set[Lease] = set()
    alive = _lease(0, 1000.0)
    leases.add([alive])
    tracemalloc.start()
    try:
        for first in range(1, 200_000, 100):
            batch = [_lease(number, 2000.0 + first, owner) for number in range(first, first + 100)]
            leases.add(batch)
            leases.remove(batch)
        size, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert size < 10_000_000, "some 20,000 of them, not 200,000"
    assert not owner
    leases.expire(999.9)
    assert ended == []
    leases.expire(1000.0)
    assert ended == ["m0"]
    assert leases.next_deadline() is None
