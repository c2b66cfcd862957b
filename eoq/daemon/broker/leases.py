"""Leases: which delivery belongs to which consumer, and until when. They live in memory and end with the daemon.

The store fences them: a settle names its delivery number, and the store compares it. This table only decides when a
lease ends.
"""

from __future__ import annotations

import heapq
import sys
from collections import Counter
from collections.abc import Sequence
from typing import Final, TypeAlias
from urllib.parse import quote, unquote

from msgspec import Struct

from ..records import DeliveryRef, counted

SAFE: Final = "/:@+,"
"""Characters of an id that stand in a receipt as they are, beside letters, digits and ``_.-~``."""
LONGEST_QUOTED: Final = 300
"""Characters of an id, with the others replaced, up to which that is done."""
RAW: Final = "="
"""Begins an id for which it is not done."""
MOST_ENDED: Final = 10_000
"""How many ended leases the table may keep in addition to one for each live lease."""


class Lease(Struct, eq=False):
    """One delivery that is not settled yet. ``deadline`` is in monotonic seconds."""

    delivery: DeliveryRef
    id: str
    attempt: int
    receipt: str
    deadline: float
    bound: Bound | None
    """The leases of the connection that it ends with. None where it is not bound to a connection."""
    cancelled: bool = False
    """Whether its message ends as cancelled, unless it is acked."""
    scheduled: float = 0.0
    """The moment at which the table checks its deadline, which may have been moved meanwhile."""


Bound: TypeAlias = dict[Lease, None]
"""The leases of one connection, in the order of delivery."""


class Receipts:
    """The format of receipts: ``token.seq.delivery.queue.id``. It is opaque to clients, with 400 characters at most.

    ``token`` is new in each life of the daemon, so a receipt of an earlier life never names a lease of this one. Queue
    and id find the record of the message once it is settled. Most ids stand as they are. The others are written without
    the characters that a shell would take apart.
    """

    def __init__(self, token: str) -> None:
        self._token = token

    def write(self, seq: int, number: int, queue_id: int, id: str) -> str:
        """Return the receipt of a delivery."""
        if not (id.isascii() and id.replace("-", "").isalnum()):
            quoted = quote(id, safe=SAFE)
            id = quoted if len(quoted) <= LONGEST_QUOTED else RAW + id
        return f"{self._token}.{seq:x}.{number:x}.{queue_id:x}.{id}"

    def read(self, receipt: str) -> DeliveryRef | None:
        """Return the ended delivery that a receipt names. Return None for a text that never was a receipt."""
        parts = receipt.split(".", 4)
        if len(parts) not in (3, 5):
            return None
        try:
            seq, number, queue_id = (int(part, 16) for part in (*parts[1:4], "0")[:3])
        except ValueError:
            return None
        if not (0 <= seq < 2**63 and 0 <= number < 2**63 and 0 <= queue_id < 2**63):
            return None
        if len(parts) == 3:
            number = -1  # of a daemon of an earlier version, whose deliveries are unknown to this one
        id = parts[4] if len(parts) == 5 else ""
        id = id[1:] if id.startswith(RAW) else unquote(id)
        return DeliveryRef(seq, number, ended=True, life=parts[0], queue_id=queue_id, id=id)


class Leases:
    """All live leases by receipt, and the order in which they end."""

    def __init__(self) -> None:
        self._by_receipt: dict[str, Lease] = {}
        self.get = self._by_receipt.get
        """Return the lease of a receipt, or None where it has ended."""
        self._by_deadline: list[tuple[float, int, list[Lease]]] = []
        """Lists of leases by deadline. Leases made together end together, unless settled or extended before."""
        self._listed = 0
        """How many leases these lists have, including ended ones."""
        self._by_queue: Counter[str] = Counter()
        self._serial = 0

    def __len__(self) -> int:
        return len(self._by_receipt)

    def count(self, queue: str) -> int:
        """Return how many messages of a queue are leased."""
        return self._by_queue[queue]

    def add(self, leases: Sequence[Lease]) -> None:
        """Add leases of one queue and connection that have the same deadline."""
        if not leases:
            return
        first = leases[0]
        self._by_receipt.update([(lease.receipt, lease) for lease in leases])
        self._by_queue[first.delivery.queue] += len(leases)
        if first.bound is not None:
            first.bound.update(dict.fromkeys(leases))
        self._schedule(leases)

    def extend(self, lease: Lease, deadline: float) -> None:
        """Move the deadline of a lease, in either direction."""
        lease.deadline = deadline
        if deadline < lease.scheduled:
            self._schedule([lease])

    def remove(self, leases: Sequence[Lease]) -> None:
        """End leases. Those that have ended before stay as they are."""
        removed = []
        for lease in leases:
            if self._by_receipt.pop(lease.receipt, None) is not None:
                removed.append(lease.delivery.queue)
            if lease.bound is not None:
                lease.bound.pop(lease, None)
        for queue, count in counted(removed).items():
            self._by_queue[queue] -= count
            if not self._by_queue[queue]:
                del self._by_queue[queue]

    def next_deadline(self) -> float | None:
        """Return when to call `expire` next, or None while nothing is leased."""
        get = self.get
        while self._by_deadline:
            moment, _, leases = self._by_deadline[0]
            listed = len(leases)
            while leases:
                last = leases[-1]
                if last.scheduled == moment and get(last.receipt) is last:
                    break  # the same as `_is_scheduled`, without a call for each lease
                leases.pop()
            self._listed -= listed - len(leases)
            if leases:
                return moment
            heapq.heappop(self._by_deadline)
        return None

    def _is_scheduled(self, lease: Lease, moment: float) -> bool:
        return lease.scheduled == moment and self._by_receipt.get(lease.receipt) is lease

    def expire(self, now: float, most: int = sys.maxsize) -> list[Lease]:
        """End leases whose deadline has passed, and return them: all, or ``most``.

        Of the leases of one delivery the last ones end first. So what is left of it begins as it did, and the messages
        that were being handled, which are the first ones, are found in each step.
        """
        expired: list[Lease] = []
        while len(expired) < most and (moment := self.next_deadline()) is not None and moment <= now:
            _, _, leases = self._by_deadline[0]
            some = leases[max(0, len(leases) - (most - len(expired))) :]
            del leases[-len(some) :]
            self._listed -= len(some)
            if not leases:
                heapq.heappop(self._by_deadline)
            for lease in some:
                if not self._is_scheduled(lease, moment):
                    continue
                if lease.deadline > now:
                    self._schedule([lease])
                else:
                    self.remove([lease])
                    expired.append(lease)
        return expired

    def _schedule(self, leases: Sequence[Lease]) -> None:
        """List leases of the same deadline under it."""
        moment = leases[0].deadline
        for lease in leases:
            lease.scheduled = moment
        self._serial += 1
        heapq.heappush(self._by_deadline, (moment, self._serial, list(leases)))
        self._listed += len(leases)
        if self._listed > 2 * len(self._by_receipt) + MOST_ENDED:
            self._sweep()

    def _sweep(self) -> None:
        """Drop ended leases from the list: one live lease may have thousands of ended ones behind it."""
        living = [
            (moment, serial, [lease for lease in leases if self._is_scheduled(lease, moment)])
            for moment, serial, leases in self._by_deadline
        ]
        self._by_deadline = [entry for entry in living if entry[2]]
        heapq.heapify(self._by_deadline)
        self._listed = sum(len(leases) for _, _, leases in self._by_deadline)
