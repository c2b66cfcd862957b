"""Leases: which delivery is whose, and until when. They live in memory and end with the daemon.

What makes them safe is in the file: a settle names the fence of its delivery, and the store compares it. This
table only decides when a lease ends.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Final

from msgspec import Struct

from ..records import DeliveryRef, counted

MOST_OVER: Final = 10_000
"""Leases that are over and not yet forgotten, beside as many as are alive."""


class Lease(Struct, eq=False):
    """One delivery that is not settled yet. ``deadline`` is monotonic seconds."""

    delivery: DeliveryRef
    id: str
    attempt: int
    receipt: str
    deadline: float
    owner: set[Lease] | None
    """The leases of the connection it is bound to; None where it is not bound."""
    scheduled: float = 0.0
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
        self.get = self._by_receipt.get
        """The lease of a receipt; None where it is over."""
        self._by_deadline: list[tuple[float, int, list[Lease]]] = []
        """Those that were given together end together, unless one is settled or extended before."""
        self._listed = 0
        """Leases in there, also those that are over."""
        self._by_queue: Counter[str] = Counter()
        self._serial = 0

    def __len__(self) -> int:
        return len(self._by_receipt)

    def count(self, queue: str) -> int:
        """How many messages of a queue are leased."""
        return self._by_queue[queue]

    def add(self, leases: Sequence[Lease]) -> None:
        """Leases of one queue and owner that have the same deadline."""
        if not leases:
            return
        first = leases[0]
        self._by_receipt.update([(lease.receipt, lease) for lease in leases])
        self._by_queue[first.delivery.queue] += len(leases)
        if first.owner is not None:
            first.owner.update(leases)
        self._schedule(leases)

    def extend(self, lease: Lease, deadline: float) -> None:
        lease.deadline = deadline
        if deadline < lease.scheduled:
            self._schedule([lease])

    def remove(self, leases: Sequence[Lease]) -> None:
        """They are over, however they ended. Without effect on those that were already."""
        removed = []
        for lease in leases:
            if self._by_receipt.pop(lease.receipt, None) is not None:
                removed.append(lease.delivery.queue)
            if lease.owner is not None:
                lease.owner.discard(lease)
        for queue, count in counted(removed).items():
            self._by_queue[queue] -= count
            if not self._by_queue[queue]:
                del self._by_queue[queue]

    def next_deadline(self) -> float | None:
        """When to call `expire` next; None while nothing is leased."""
        get = self.get
        while self._by_deadline:
            moment, _, leases = self._by_deadline[0]
            listed = len(leases)
            while leases:
                last = leases[-1]
                if last.scheduled == moment and get(last.receipt) is last:
                    break  # as `_is_scheduled`, without a call for each
                leases.pop()
            self._listed -= listed - len(leases)
            if leases:
                return moment
            heapq.heappop(self._by_deadline)
        return None

    def _is_scheduled(self, lease: Lease, moment: float) -> bool:
        return lease.scheduled == moment and self._by_receipt.get(lease.receipt) is lease

    def expire(self, now: float) -> None:
        """Ends the leases whose deadline has come, and hands them to ``ended``."""
        ended = []
        while (moment := self.next_deadline()) is not None and moment <= now:
            _, _, leases = heapq.heappop(self._by_deadline)
            self._listed -= len(leases)
            for lease in leases:
                if not self._is_scheduled(lease, moment):
                    continue
                if lease.deadline > now:
                    self._schedule([lease])
                else:
                    self.remove([lease])
                    ended.append(lease)
        if ended:
            self._ended(ended)

    def _schedule(self, leases: Sequence[Lease]) -> None:
        """They have the same deadline."""
        moment = leases[0].deadline
        for lease in leases:
            lease.scheduled = moment
        self._serial += 1
        heapq.heappush(self._by_deadline, (moment, self._serial, list(leases)))
        self._listed += len(leases)
        if self._listed > 2 * len(self._by_receipt) + MOST_OVER:
            self._sweep()

    def _sweep(self) -> None:
        """Forgets those that are over: a lease that is alive may hold thousands behind it."""
        living = [
            (moment, serial, [lease for lease in leases if self._is_scheduled(lease, moment)])
            for moment, serial, leases in self._by_deadline
        ]
        self._by_deadline = [entry for entry in living if entry[2]]
        heapq.heapify(self._by_deadline)
        self._listed = sum(len(leases) for _, _, leases in self._by_deadline)
