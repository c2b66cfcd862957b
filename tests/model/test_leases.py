"""The table of leases: which lease ends when, and how many ended leases it keeps."""

from __future__ import annotations

import tracemalloc

import pytest

from eoq.daemon.broker.leases import Bound, Lease, Leases
from eoq.daemon.records import DeliveryRef


def _lease(number: int, deadline: float, bound: Bound | None = None) -> Lease:
    return Lease(DeliveryRef(number, 1, "q"), f"m{number}", 1, f"epoch.{number}.1", deadline, bound)


def _expired(leases: Leases, now: float) -> list[str]:
    """Let time pass. Return the ids of the leases that end, in their order."""
    return [lease.id for lease in leases.expire(now)]


@pytest.fixture
def leases() -> Leases:
    return Leases()


def test_leases_of_one_claim_end_together_unless_one_is_settled_or_extended(leases: Leases) -> None:
    together = [_lease(number, 10.0) for number in range(6)]
    leases.add(together)
    leases.remove([together[5], together[1]])
    leases.extend(together[2], 30.0)
    leases.extend(together[3], 5.0)
    assert leases.next_deadline() == 5.0
    assert _expired(leases, 5.0) == ["m3"]
    assert _expired(leases, 9.9) == []
    assert _expired(leases, 10.0) == ["m0", "m4"]
    assert (leases.next_deadline(), leases.count("q"), len(leases)) == (30.0, 1, 1)
    assert _expired(leases, 30.0) == ["m2"]
    assert (leases.next_deadline(), leases.count("q"), len(leases)) == (None, 0, 0)


@pytest.mark.slow
def test_one_live_lease_does_not_keep_all_that_ended_behind_it(leases: Leases) -> None:
    """It ends before they would have, and lives while many others are given and settled."""
    bound: Bound = {}
    live = _lease(0, 1000.0)
    leases.add([live])
    tracemalloc.start()
    try:
        for first in range(1, 200_000, 100):
            batch = [_lease(number, 2000.0 + first, bound) for number in range(first, first + 100)]
            leases.add(batch)
            leases.remove(batch)
        size, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert size < 10_000_000, "about 20,000 leases are kept, not 200,000"
    assert not bound
    assert _expired(leases, 999.9) == []
    assert _expired(leases, 1000.0) == ["m0"]
    assert leases.next_deadline() is None
