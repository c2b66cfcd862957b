"""What the view knows: the queues of the last answer, the course of their figures, their order, and the filter."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

POINTS: Final = 40
"""Answers that the course of a figure goes back."""
ORDERS: Final[dict[str, Literal["busy", "depth", "dead", "name"]]] = {
    "activity": "busy",
    "depth": "depth",
    "dead": "dead",
    "name": "name",
}
"""The orders of the queues, as a key changes them, with what the daemon calls them."""
MOST: Final = 200
"""Queues that are asked for, the first in the order. The filter finds the others."""


def _course() -> deque[float]:
    return deque(maxlen=POINTS)


@dataclass(slots=True)
class QueueRow:
    """A queue as the last answer had it."""

    name: str
    paused: bool = False
    ready: int = 0
    leased: int = 0
    depth: int = 0
    """Messages that are not settled: ready, delayed, leased and blocked."""
    dead: int = 0
    oldest: float | None = None
    """Seconds since the oldest ready message may be delivered."""
    sent_rate: float = 0.0
    done_rate: float = 0.0
    retried: int = 0
    """Deliveries that were repeated since the daemon started."""
    depths: deque[float] = field(default_factory=_course)
    rates: deque[float] = field(default_factory=_course)

    def update(self, row: dict[str, Any], now: float) -> None:
        """Take over one row of an answer of the daemon."""
        self.paused, self.ready, self.leased = row["paused"], row["ready"], row["leased"]
        self.depth = row["ready"] + row["leased"] + row["delayed"] + row["blocked"]
        self.dead = row["dead"]
        ready_since = row.get("oldest_ready")
        self.oldest = None if ready_since is None else max(now - ready_since, 0.0)
        self.sent_rate, self.done_rate = row["sent_rate"], row["done_rate"]
        self.retried = row.get("since_start", {}).get("retried", 0)
        self.depths.append(self.depth)
        self.rates.append(self.sent_rate + self.done_rate)


class Model:
    """The state behind the view. It knows nothing of the terminal."""

    def __init__(self, wanted: str = "") -> None:
        self.wanted = wanted
        """Text that the names of the shown queues contain."""
        self.order = next(iter(ORDERS))
        self.status: dict[str, Any] = {}
        self.queues: dict[str, QueueRow] = {}
        """The first queues in the order, by name."""
        self.count = 0
        """How many queues there are."""
        self.matching = 0
        """How many of them pass the filter."""
        self.sums: dict[str, float] = {}
        """The messages of all queues in each state."""
        self.answer_seconds = 0.0
        """How long the daemon took for the last answer."""
        self.trouble: str | None = None
        """Why the figures are old, or None while the daemon answers."""

    @property
    def now(self) -> float:
        """The time of the daemon at the last answer, in seconds since the epoch."""
        return float(self.status.get("now", 0.0))

    def update(self, status: dict[str, Any], answer: dict[str, Any], answer_seconds: float) -> None:
        """Take over an answer of the daemon to ``overview``."""
        self.status, self.answer_seconds, self.trouble = status, answer_seconds, None
        self.count, self.matching, self.sums = answer["count"], answer["matching"], answer["sums"]
        before, self.queues = self.queues, {}
        for row in answer["queues"]:
            name = row["name"]
            queue = self.queues[name] = before.get(name) or QueueRow(name)
            queue.update(row, self.now)

    def update_queue(self, name: str, rows: Sequence[dict[str, Any]]) -> None:
        """Take over what was asked of one queue: its row, or none where there is no such queue."""
        found = next((row for row in rows if row["name"] == name), None)
        if found is None:
            self.queues.pop(name, None)
        else:
            self.queues.setdefault(name, QueueRow(name)).update(found, self.now)

    def next_order(self) -> None:
        """Change to the next order."""
        orders = list(ORDERS)
        self.order = orders[(orders.index(self.order) + 1) % len(orders)]

    def shown(self) -> list[QueueRow]:
        """Return the queues that pass the filter, in order."""
        wanted = self.wanted.casefold()
        found = [queue for queue in self.queues.values() if wanted in queue.name.casefold()]
        if self.order == "name":
            return sorted(found, key=lambda queue: queue.name)
        if self.order == "depth":
            return sorted(found, key=lambda queue: (-queue.depth, queue.name))
        if self.order == "dead":
            return sorted(found, key=lambda queue: (-queue.dead, queue.name))
        return sorted(
            found,
            key=lambda queue: (
                -(queue.sent_rate + queue.done_rate),
                -queue.leased,
                -queue.depth,
                -queue.dead,
                queue.name,
            ),
        )
