"""The messages a worker holds: which of them wait, run, or are lost, and how they ended. No thread, no socket.

Shared by ``worker.py``, which guards it by a lock, and ``aio_worker.py``.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Generic, TypeVar

from ..message import Delivery

M = TypeVar("M", bound=Delivery)


@dataclass(frozen=True, slots=True)
class Summary:
    """What became of the deliveries of one `Client.work`.

    ``done`` were acked, ``retried`` given back to be tried again (or buried, after their last attempt),
    ``rejected`` made dead letters. ``lost`` counts those whose lease ended first: they were delivered again.
    """

    done: int = 0
    retried: int = 0
    rejected: int = 0
    lost: int = 0


@dataclass(slots=True, eq=False)
class Entry(Generic[M]):
    """One message that is held. ``generation`` numbers the connection it came over."""

    message: M
    generation: int
    running: bool = False
    deadline: float | None = None
    """When the time of its handler is over (monotonic seconds)."""
    settling: bool = False
    """A request that settles it is under way; its reply is what counts."""
    confirming: bool = False
    """That request is the ack of a handler that has ended, and is waited for later."""
    settled: bool = False
    lost: bool = False
    overdue: bool = False

    @property
    def open(self) -> bool:
        """Whether it is still ours to settle."""
        return not (self.settled or self.lost or self.overdue)


class InFlight(Generic[M]):
    """All messages of a worker, by receipt. All times are monotonic seconds.

    ``most`` may be held at once; new ones are asked for when there is room for ``fewest``.
    """

    def __init__(self, most: int, fewest: int) -> None:
        self._most = most
        self._fewest = fewest
        self._entries: dict[str, Entry[M]] = {}
        self._running: dict[str, Entry[M]] = {}
        """Those whose handlers run, by id."""
        self._confirming = 0
        self.ends = 0
        """How many are held no more,"""
        self.ended_at = 0.0
        """and since when the last of them is not."""
        self._counts = {"done": 0, "retried": 0, "rejected": 0, "lost": 0}

    def __len__(self) -> int:
        return len(self._entries)

    def room(self) -> int:
        """How many messages to ask for now. One whose ack is under way has made room: the daemon reads that first."""
        room = self._most - (len(self._entries) - self._confirming)
        return room if room >= self._fewest else 0

    def add(self, messages: Iterable[M], generation: int) -> list[Entry[M]]:
        """Backoff what was received over the connection number ``generation``."""
        entries = [Entry(message, generation) for message in messages]
        for entry in entries:
            self._entries[entry.message.receipt] = entry
        return entries

    def blocked(self, entry: Entry[M]) -> bool:
        """Whether an earlier delivery of the same message, whose lease was lost, is still being handled."""
        return entry.message.id in self._running

    def begin(self, entry: Entry[M], generation: int) -> bool:
        """Whether its handler may run now: not if it was given back, or its lease is surely gone."""
        if entry.message.receipt not in self._entries:
            return False
        if entry.generation != generation:
            # Bound leases ended with the connection they came over.
            self._lose(entry)
        if entry.lost:
            self.end(entry)
            return False
        entry.running = True
        self._running[entry.message.id] = entry
        return True

    def confirming(self, entry: Entry[M]) -> bool:
        """Notes that an ack of it is under way, which is waited for later. Not where it is held no more."""
        if entry.message.receipt not in self._entries:
            return False
        entry.confirming = True
        self._confirming += 1
        self._runs_no_more(entry)
        return True

    def end(self, entry: Entry[M]) -> None:
        """Its handler has ended, and its ack is confirmed if there is one; or it will not run."""
        if self._entries.pop(entry.message.receipt, None) is not None:
            self._confirming -= entry.confirming
            self._runs_no_more(entry)
            self.ends += 1
            self.ended_at = time.monotonic()

    def _runs_no_more(self, entry: Entry[M]) -> None:
        if self._running.get(entry.message.id) is entry:
            del self._running[entry.message.id]

    def drop_waiting(self) -> list[str]:
        """Forgets what waits; returns the receipts that can be given back."""
        waiting = [entry for entry in self._entries.values() if not entry.running]
        for entry in waiting:
            self.end(entry)
        return [entry.message.receipt for entry in waiting if not entry.lost]

    def to_extend(self) -> list[str]:
        """The receipts of all leases to be kept."""
        return [receipt for receipt, entry in self._entries.items() if entry.open and not entry.confirming]

    def lose(self, receipts: Iterable[str]) -> list[Entry[M]]:
        """Notes that an extension found these leases ended; returns the messages it is news for."""
        entries = [self._entries[receipt] for receipt in receipts if receipt in self._entries]
        return [entry for entry in entries if not entry.settling and self._lose(entry)]

    def _lose(self, entry: Entry[M]) -> bool:
        news = entry.open
        if news:
            entry.lost = True
            self._counts["lost"] += 1
        return news

    def settling(self, receipt: str) -> Entry[M] | None:
        """Notes that a message is about to be settled. None where it is not held."""
        if (entry := self._entries.get(receipt)) is not None:
            entry.settling = True
        return entry

    def settled(self, receipt: str, outcome: str) -> None:
        """Notes that a message was settled, as ``done``, ``retried`` or ``rejected``."""
        if (entry := self._entries.get(receipt)) is not None and not entry.settled:
            entry.settled = True
            self._counts[outcome] += 1

    def not_settled(self, receipt: str, lost: bool) -> None:
        """Notes that settling failed, because its lease was ``lost`` or for another reason."""
        if (entry := self._entries.get(receipt)) is not None:
            entry.settling = False
            if lost:
                self._lose(entry)

    def next_deadline(self) -> float | None:
        """When to call `overtake` next."""
        entries = [entry for entry in self._entries.values() if entry.open and not entry.settling]
        return min((entry.deadline for entry in entries if entry.deadline is not None), default=None)

    def overtake(self, now: float) -> list[Entry[M]]:
        """Marks and returns those whose handlers have run for too long."""
        overdue = [
            entry
            for entry in self._entries.values()
            if entry.open and not entry.settling and entry.deadline is not None and entry.deadline <= now
        ]
        for entry in overdue:
            entry.overdue = True
            self._counts["retried"] += 1
        return overdue

    def overdue(self) -> int:
        """How many handlers still run although their time is over."""
        return sum(entry.overdue for entry in self._entries.values())

    def summary(self) -> Summary:
        """How the messages ended so far."""
        return Summary(**self._counts)
