"""The messages of a worker: which of them wait, run, or lost their lease, and how they ended. No thread, no socket.

Shared by both loops. The one with threads guards it by a lock.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from ..message import Delivery
from ..protocol.calls import Extended

M = TypeVar("M", bound=Delivery)


@dataclass(frozen=True, slots=True)
class Summary:
    """How the deliveries of one `Client.work` ended.

    ``done`` were acked. ``retried`` were given back to be tried again, or became dead letters after their last attempt.
    Those given back because a file was locked, say, are among them, although that counts no attempt.
    ``rejected`` were made dead letters. ``lost`` counts those whose lease ended first: they were delivered again.
    """

    done: int = 0
    retried: int = 0
    rejected: int = 0
    lost: int = 0


@dataclass(slots=True, eq=False)
class Entry(Generic[M]):
    """One message in flight. ``generation`` is that of the connection which brought it."""

    message: M
    generation: int
    running: bool = False
    deadline: float | None = None
    """When the timeout of its handler passes (monotonic seconds)."""
    settling: bool = False
    """Whether a request that settles it is in flight. Only the reply counts."""
    confirming: bool = False
    """Whether that request is the ack of a handler that has ended, so that the loop waits for its reply later."""
    settled: bool = False
    lost: bool = False
    overdue: bool = False

    @property
    def open(self) -> bool:
        """Whether this worker can still settle it."""
        return not (self.settled or self.lost or self.overdue)


class InFlight(Generic[M]):
    """All messages of a worker, by receipt. All times are monotonic seconds.

    At most ``most`` may be in flight. The worker asks for new ones when there is room for ``fewest``.

    ``suspects`` bounds the messages that have failed before, for a worker with batches; None for no bound. If a message
    kills its worker, the daemon counts an attempt of as many messages as are handled at once, which is a whole batch.
    Those are then suspect. They are handled alone, the last of what a request has brought, and while one of them is
    here nothing else is fetched: so a second kill counts only what was running.
    """

    def __init__(self, most: int, fewest: int, suspects: int | None = None) -> None:
        self._most = most
        self._fewest = fewest
        self._most_suspects = suspects
        self._limit = most
        self._suspects = 0
        self._entries: dict[str, Entry[M]] = {}
        self._running: dict[str, Entry[M]] = {}
        """The messages whose handlers run, by message id."""
        self._postponed: deque[Entry[M]] = deque()
        """The messages that are next, but must not share a batch with others."""
        self._blocked: list[Entry[M]] = []
        """The messages of which an earlier delivery is still being handled."""
        self._confirming = 0
        self.ends = 0
        """How many messages have left."""
        self.ended_at = 0.0
        """When the last of them left."""
        self._counts = {"done": 0, "retried": 0, "rejected": 0, "lost": 0}

    def __len__(self) -> int:
        return len(self._entries)

    # ── fetching ────────────────────────────────────────────────────────────────────────────────────────

    def room(self) -> int:
        """Return how many messages to ask for now.

        A message whose ack is in flight has made room already: the daemon reads the ack first.
        """
        if self._suspects:
            return 0
        room = self._most - (len(self._entries) - self._confirming)
        return min(room, self._limit) if room >= self._fewest else 0

    def sift(self, messages: Sequence[M]) -> tuple[Sequence[M], Sequence[M]]:
        """Return the messages of one request to keep, in the order to handle them, and those to give back."""
        if self._most_suspects is None:
            return messages, ()
        suspects = [message for message in messages if message.attempt > 1]
        if len(suspects) <= self._most_suspects:
            self._limit = min(self._limit * 2, self._most)
        else:
            self._limit = self._most_suspects  # so that few are fetched in vain
        if not suspects:
            return messages, ()
        fresh = [message for message in messages if message.attempt <= 1]
        return fresh + suspects[: self._most_suspects], suspects[self._most_suspects :]

    def add(self, messages: Iterable[M], generation: int) -> list[Entry[M]]:
        """Add messages that the connection of this ``generation`` brought. Return their entries, which now wait."""
        entries = [Entry(message, generation) for message in messages]
        for entry in entries:
            self._entries[entry.message.receipt] = entry
            self._suspects += self._is_suspect(entry)
        return entries

    def _is_suspect(self, entry: Entry[M]) -> bool:
        return self._most_suspects is not None and entry.message.attempt > 1

    def drop_waiting(self) -> list[str]:
        """Remove the messages that wait. Return the receipts of those that can be given back."""
        waiting = [entry for entry in self._entries.values() if not entry.running]
        for entry in waiting:
            self.end(entry)
        return [entry.message.receipt for entry in waiting if not entry.lost]

    # ── handling ────────────────────────────────────────────────────────────────────────────────────────

    def next_batch(self, waiting: Iterator[Entry[M]], most: int, generation: int) -> list[Entry[M]]:
        """Return the messages to handle now, at most ``most``; their handler runs from now on.

        They come from ``waiting``, one at a time. A message that was tried before is handled alone, since it may be
        the one that makes a whole batch fail. ``generation`` is that of the live connection.
        """
        batch: list[Entry[M]] = []
        while len(batch) < most:
            entry = self._postponed.popleft() if self._postponed else next(waiting, None)
            if entry is None:
                break
            if entry.message.id in self._running:
                self._blocked.append(entry)
            elif batch and entry.message.attempt > 1:
                self._postponed.append(entry)
                break
            elif self._begin(entry, generation):
                batch.append(entry)
                if entry.message.attempt > 1:
                    break
        return batch

    def _begin(self, entry: Entry[M], generation: int) -> bool:
        """Return whether its handler may run: not if it was given back, or its lease has surely ended."""
        if entry.message.receipt not in self._entries:
            return False
        if entry.generation != generation:
            # Bound leases ended with the connection that brought them.
            self._lose(entry)
        if entry.lost:
            self.end(entry)
            return False
        entry.running = True
        self._running[entry.message.id] = entry
        return True

    def unblock(self) -> list[Entry[M]]:
        """Return the messages that were blocked, to wait again, since a handler has ended."""
        blocked, self._blocked = self._blocked, []
        return blocked

    def end(self, entry: Entry[M]) -> None:
        """Remove a message: its handler has ended and its ack, if any, is confirmed, or its handler will not run."""
        if self._entries.pop(entry.message.receipt, None) is not None:
            self._confirming -= entry.confirming
            self._suspects -= self._is_suspect(entry)
            self._stop_running(entry)
            self.ends += 1
            self.ended_at = time.monotonic()

    def _stop_running(self, entry: Entry[M]) -> None:
        if self._running.get(entry.message.id) is entry:
            del self._running[entry.message.id]

    # ── leases and deadlines ────────────────────────────────────────────────────────────────────────────

    def to_extend(self) -> list[str]:
        """Return the receipts of all leases to extend."""
        return [receipt for receipt, entry in self._entries.items() if entry.open and not entry.confirming]

    def extended(self, extended: Extended) -> list[Entry[M]]:
        """Note which leases had ended before they could be extended, and which messages were cancelled.

        Return the entries that are newly lost.
        """
        for receipt in extended.cancelled & self._entries.keys():
            self._entries[receipt].message.cancelled = True
        entries = [self._entries[receipt] for receipt in extended.lost if receipt in self._entries]
        return [entry for entry in entries if not entry.settling and self._lose(entry)]

    def _lose(self, entry: Entry[M]) -> bool:
        is_new = entry.open
        if is_new:
            entry.lost = True
            self._counts["lost"] += 1
        return is_new

    def next_deadline(self) -> float | None:
        """Return when to call `expire_overdue` next."""
        entries = [entry for entry in self._entries.values() if entry.open and not entry.settling]
        return min((entry.deadline for entry in entries if entry.deadline is not None), default=None)

    def expire_overdue(self, now: float) -> list[Entry[M]]:
        """Mark the messages whose handlers have run for too long, and return them."""
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
        """Return how many handlers still run although their timeout has passed."""
        return sum(entry.overdue for entry in self._entries.values())

    # ── settling ────────────────────────────────────────────────────────────────────────────────────────

    def settling(self, receipt: str) -> Entry[M] | None:
        """Note that a message is about to be settled. Return its entry, or None where it is not in flight."""
        if (entry := self._entries.get(receipt)) is not None:
            entry.settling = True
        return entry

    def settling_all(self, receipts: Sequence[str]) -> list[Entry[M]] | None:
        """Note that messages are about to be acked. Return None, and note nothing, if one is not in flight any more."""
        entries = [self._entries.get(receipt) for receipt in receipts]
        found = [entry for entry in entries if entry is not None and not entry.confirming]
        if len(found) < len(entries):
            return None
        for entry in found:
            entry.settling = True
        return found

    def settled(self, receipt: str, outcome: str) -> None:
        """Note that a message was settled, as ``done``, ``retried`` or ``rejected``."""
        if (entry := self._entries.get(receipt)) is not None and not entry.settled:
            entry.settled = True
            self._counts[outcome] += 1

    def not_settled(self, receipt: str, lost: bool) -> None:
        """Note that settling failed, because the lease was ``lost`` or for another reason."""
        if (entry := self._entries.get(receipt)) is not None:
            entry.settling = False
            if lost:
                self._lose(entry)

    def confirming(self, entries: Sequence[Entry[M]]) -> bool:
        """Note that the acks of messages are in flight. Return False where they have left already."""
        if any(entry.message.receipt not in self._entries for entry in entries):
            return False
        for entry in entries:
            entry.confirming = True
            self._stop_running(entry)
        self._confirming += len(entries)
        return True

    def summary(self) -> Summary:
        """Return how the messages ended so far."""
        return Summary(**self._counts)
