"""Leases: which delivery is whose, and until when. They live in memory and end with the daemon.

What makes them safe is in the file: a settle names the fence of its delivery, and the store compares it. This
table only decides when a lease ends.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass, field

from .rows import Held


@dataclass(slots=True, eq=False)
class Lease:
    """One delivery that is not settled yet. ``deadline`` is monotonic seconds."""

    held: Held
    id: str
    attempt: int
    receipt: str
    deadline: float
    owner: set[Lease] | None
    """The leases of the connection it is bound to; None where it is not bound."""
    scheduled: float = field(default=0.0)
    """The earliest moment at which the table looks at it again."""


class Receipts:
    """Writes and reads receipts: opaque to clients, ``epoch.seq.fence`` to the daemon.

    ``epoch`` is new at each start: a receipt of an earlier start never names a lease of this one.
    """

    def __init__(self, epoch: str) -> None:
        self._epoch = epoch

    def write(self, seq: int, fence: int) -> str:
        return f"{self._epoch}.{seq:x}.{fence:x}"

    def read(self, receipt: str) -> tuple[int, int] | None:
        """Its seq and its fence; None for what never was a receipt."""
        parts = receipt.split(".")
        if len(parts) != 3:
            return None
        try:
            seq, fence = int(parts[1], 16), int(parts[2], 16)
        except ValueError:
            return None
        if not (0 <= seq < 2**63 and 0 <= fence < 2**63):
            return None
        return seq, fence


class Leases:
    """All leases, by receipt, and the order in which they end."""

    def __init__(self, ended: Callable[[list[Lease]], None]) -> None:
        self._ended = ended
        self._by_receipt: dict[str, Lease] = {}
        self._by_deadline: list[tuple[float, int, Lease]] = []
        self._by_queue: dict[str, int] = {}
        self._serial = 0

    def __len__(self) -> int:
        return len(self._by_receipt)

    def count(self, queue: str) -> int:
        """How many messages of a queue are leased."""
        return self._by_queue.get(queue, 0)

    def add(self, lease: Lease) -> None:
        self._by_receipt[lease.receipt] = lease
        self._by_queue[lease.held.queue] = self._by_queue.get(lease.held.queue, 0) + 1
        if lease.owner is not None:
            lease.owner.add(lease)
        self._schedule(lease)

    def get(self, receipt: str) -> Lease | None:
        return self._by_receipt.get(receipt)

    def extend(self, lease: Lease, deadline: float) -> None:
        lease.deadline = deadline
        if deadline < lease.scheduled:
            self._schedule(lease)

    def remove(self, lease: Lease) -> None:
        if self._by_receipt.pop(lease.receipt, None) is not None:
            count = self._by_queue.pop(lease.held.queue) - 1
            if count:
                self._by_queue[lease.held.queue] = count
        if lease.owner is not None:
            lease.owner.discard(lease)

    def next_deadline(self) -> float | None:
        """When to call `expire` next; None while nothing is leased."""
        while self._by_deadline:
            moment, _, lease = self._by_deadline[0]
            if lease.scheduled == moment and self._by_receipt.get(lease.receipt) is lease:
                return moment
            heapq.heappop(self._by_deadline)
        return None

    def expire(self, now: float) -> None:
        """Ends the leases whose deadline has come, and hands them to ``ended``."""
        ended = []
        while (moment := self.next_deadline()) is not None and moment <= now:
            _, _, lease = heapq.heappop(self._by_deadline)
            if lease.deadline > now:
                self._schedule(lease)
            else:
                self.remove(lease)
                ended.append(lease)
        if ended:
            self._ended(ended)

    def _schedule(self, lease: Lease) -> None:
        lease.scheduled = lease.deadline
        self._serial += 1
        heapq.heappush(self._by_deadline, (lease.deadline, self._serial, lease))
