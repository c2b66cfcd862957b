"""The table ``total``: what each queue has stored, delivered and ended since the file was made.

Counts are kept in memory and follow the transaction: what is rolled back was never counted. An update of the file with
each commit would take a twentieth of the time of a send (tests/bench/run.py, `send, 1 producer`). So a commit now and
then writes them, with one update for each queue. After a kill, the counts of the last second may be missing.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from typing import Any, Final

from ....errors import EoqError, IdConflict, QueueFull, StorageFailed, StorageFull
from ...measures import COUNTERS, Counter, Counts
from ...store.commands import Command, Put, Settle
from .database import Database
from .tables.queues import Queues

DELETED: Final = 0
"""The id under which the totals of all deleted queues are added up."""
PAUSE: Final = 1.0
"""Seconds between two updates of the file."""
MOST_WRITTEN: Final = 500
"""How many queues one transaction updates, so that no send waits long for it."""
_SUMS: Final = ", ".join(f"{name} = {name} + excluded.{name}" for name in COUNTERS)
_MOVE: Final = f"""
    insert into total (queue, {", ".join(COUNTERS)})
    select {DELETED}, {", ".join(COUNTERS)}
    from total
    where queue = ?
    on conflict (queue) do update set {_SUMS}
    """  # noqa: S608 # our own columns
_READ: Final = f"select {', '.join(COUNTERS)} from total where queue = ?"  # noqa: S608 # our own columns
_SUM: Final = f"select {', '.join(f'coalesce(sum({name}), 0)' for name in COUNTERS)} from total"  # noqa: S608 # our own columns

_NOTHING: Final[Counts] = dict.fromkeys(COUNTERS, 0)


def queues_of(command: Command[Any]) -> set[str]:
    """Return the queues in which a command stores messages that clients send."""
    if isinstance(command, Put | Settle):
        return {message.queue for message in command.messages}
    return set()


class Totals:
    """The totals of all queues."""

    def __init__(self, database: Database, queues: Queues) -> None:
        self._database = database
        self._queues = queues
        self._now: dict[tuple[int, Counter], int] = {}
        """By queue and counter, what this transaction has counted."""
        self._recent: dict[int, Counts] = {}
        """What was committed, and is not written to the file yet."""
        self._writing: dict[int, Counts] = {}
        """The part of it that this transaction writes."""
        self._write_at = time.monotonic() + PAUSE
        self._before: dict[int, Counts] = {}
        """The totals that a queue had in the file before the first update of this life."""
        self._since_start: dict[int, Counts] = {}
        """What was written to the file in this life."""
        self._all_before: Counts = {}
        self._all_since_start: Counts = {}
        self._gone: list[int] = []
        """The queues that this transaction deletes."""
        self._reading = threading.Lock()
        """Held where committed counts change, also on the thread of the file, and where the event loop reads them."""
        database.keep(self._keep)

    # ── counting ────────────────────────────────────────────────────────────────────────────────────────

    def add(self, queue_id: int, counter: Counter, count: int) -> None:
        """Add to a counter of a queue, unless the transaction is rolled back."""
        key = queue_id, counter
        self._now[key] = self._now.get(key, 0) + count

    def refused(self, command: Command[Any], error: EoqError) -> None:
        """Count a command that the store refused, once for each queue that it would have stored messages in."""
        for queue_id, counter in self._refusals(command, error):
            self.add(queue_id, counter, 1)

    def failed(self, command: Command[Any], error: EoqError) -> None:
        """Count a command whose transaction has failed."""
        for queue_id, counter in self._refusals(command, error):
            with self._reading:
                _merge(self._recent, queue_id, {counter: 1})

    def _refusals(self, command: Command[Any], error: EoqError) -> Iterator[tuple[int, Counter]]:
        if not isinstance(error, IdConflict | QueueFull | StorageFull | StorageFailed):
            return
        counter: Counter = "conflicts" if isinstance(error, IdConflict) else "refused"
        for name in queues_of(command):
            yield self._queues.known_id(name) or DELETED, counter

    # ── transactions ────────────────────────────────────────────────────────────────────────────────────

    def _keep(self) -> Callable[[], None]:
        """Return how to go back to what was counted until now, where a transaction or savepoint begins."""
        if not (self._now or self._writing or self._gone):
            return self._forget
        return partial(self._go_back, self._now.copy(), self._writing.copy(), self._gone.copy())

    def _forget(self) -> None:
        self._go_back({}, {}, [])

    def _go_back(self, now: dict[tuple[int, Counter], int], writing: dict[int, Counts], gone: list[int]) -> None:
        self._now, self._writing, self._gone = now, writing, gone

    def committed(self) -> None:
        """Note that the transaction is committed, and with it what it has counted."""
        if self._now or self._writing or self._gone:
            with self._reading:
                self._note_committed()

    def _note_committed(self) -> None:
        for queue_id, counts in self._writing.items():
            del self._recent[queue_id]
            _merge(self._since_start, queue_id, counts)
            _add(self._all_since_start, counts)
        self._writing.clear()
        for (queue_id, counter), count in self._now.items():
            recent = self._recent.get(queue_id)
            if recent is None:
                self._recent[queue_id] = {counter: count}
            else:
                recent[counter] = recent.get(counter, 0) + count
        self._now.clear()
        for queue_id in self._gone:
            _add(self._all_since_start, self._recent.pop(queue_id, {}))
            self._before.pop(queue_id, None)
            self._since_start.pop(queue_id, None)
        self._gone.clear()

    # ── the file ────────────────────────────────────────────────────────────────────────────────────────

    def start(self) -> None:
        """Read what was counted before this life."""
        row = self._database.execute(_SUM).fetchone()
        self._all_before = dict(zip(COUNTERS, row, strict=True))

    def store(self) -> None:
        """Write what earlier transactions have counted to the file, if it is time. Call it in each transaction."""
        if self._recent and time.monotonic() >= self._write_at:
            self.write(MOST_WRITTEN)

    def write(self, most: int) -> None:
        """Write the counts of up to ``most`` queues to the file."""
        waiting = (queue_id for queue_id in self._recent if queue_id not in self._writing)
        for queue_id in [queue_id for queue_id in islice(waiting, most) if queue_id not in self._gone]:
            self._write(queue_id, self._recent[queue_id])
            self._writing[queue_id] = self._recent[queue_id]
        if len(self._writing) < most:
            self._write_at = time.monotonic() + PAUSE

    @property
    def is_behind(self) -> bool:
        """Whether this transaction leaves counts in memory that earlier ones have made."""
        return len(self._recent) > len(self._writing)

    def _write(self, queue_id: int, counts: Counts) -> None:
        if queue_id not in self._before:
            row = self._database.execute(_READ, (queue_id,)).fetchone()
            self._before[queue_id] = {} if row is None else dict(zip(COUNTERS, row, strict=True))
        sums = ", ".join([f"{name} = {name} + ?" for name in counts])
        update = f"update total set {sums} where queue = ?"  # noqa: S608 # our own columns
        if not self._database.execute(update, (*counts.values(), queue_id)).rowcount:
            self._database.execute("insert into total (queue) values (?)", (queue_id,))
            self._database.execute(update, (*counts.values(), queue_id))

    def move_to_deleted(self, queue_id: int) -> None:
        """Add the totals of a queue that is about to be deleted to those of all deleted queues."""
        recent = None if queue_id in self._writing else self._recent.get(queue_id)
        now = {counter: count for (queue, counter), count in self._now.items() if queue == queue_id}
        for counts in (recent, now):
            if counts:
                self._write(queue_id, counts)
        self._database.execute(_MOVE, (queue_id,))
        self._database.execute("delete from total where queue = ?", (queue_id,))
        self._gone.append(queue_id)

    # ── reading ─────────────────────────────────────────────────────────────────────────────────────────

    def of_queue(self, queue_id: int) -> Counts | None:
        """Return the counts of a queue since the file was made. None: nothing was written in this life."""
        before = self._before.get(queue_id)
        return None if before is None else _sum(before, self.of_queue_since_start(queue_id))

    def of_queue_since_start(self, queue_id: int) -> Counts:
        """Return the counts of a queue since the daemon started."""
        with self._reading:
            written, recent = self._since_start.get(queue_id), self._recent.get(queue_id)
            return _NOTHING.copy() if written is recent is None else _sum(written or {}, recent or {})

    def all(self) -> Counts:
        """Return the counts of all queues, deleted ones included, since the file was made."""
        return _sum(self._all_before, self.all_since_start())

    def all_since_start(self) -> Counts:
        """Return the counts of all queues since the daemon started."""
        with self._reading:
            counts = self._all_since_start.copy()
            for recent in self._recent.values():
                _add(counts, recent)
        return _sum(counts, {})


def _merge(into: dict[int, Counts], queue_id: int, counts: Counts) -> None:
    mine = into.get(queue_id)
    if mine is None:
        into[queue_id] = counts
    else:
        _add(mine, counts)


def _add(to: Counts, counts: Counts) -> None:
    for name, count in counts.items():
        to[name] = to.get(name, 0) + count


def _sum(one: Counts, other: Counts) -> Counts:
    return {name: one.get(name, 0) + other.get(name, 0) for name in COUNTERS}
