"""Storing the entries of an export that are no messages: paused queues, bindings, schedules, and counts."""

from __future__ import annotations

from .....errors import EoqError
from ....measures import COUNTERS
from ....portable import BindingLine, CountsLine, Queue, ScheduleLine, Setup, schedule_of
from ....records import Binding
from ..database import Database
from ..tables.queues import Queues
from ..tables.schedules import Schedules
from ..tables.topics import Bindings
from ..totals import DELETED

_COUNTS = f"""
    insert or ignore into total (queue, {", ".join(COUNTERS)})
    values (?, {", ".join("?" for _ in COUNTERS)})
    """  # noqa: S608 # our own columns


class Setups:
    """The storing of these entries."""

    def __init__(self, database: Database, queues: Queues, bindings: Bindings, schedules: Schedules) -> None:
        self._database = database
        self._queues = queues
        self._bindings = bindings
        self._schedules = schedules
        self._newest_binding = 0
        """The line of the newest binding of this step; 0 without one."""

    def store(self, number: int, entry: Setup) -> bool:
        """Store one entry of the line ``number``, unless it is known. Return whether it is new."""
        match entry:
            case Queue():
                return self._pause(entry.queue)
            case BindingLine():
                self._newest_binding = number
                return self._bindings.restore(Binding(entry.topic, entry.queue, entry.headers))
            case ScheduleLine():
                return self._schedules.restore(schedule_of(entry))
            case CountsLine():
                return self._count(entry)

    def check(self) -> None:
        """Check the bindings of a step together: each against all would take long."""
        number, self._newest_binding = self._newest_binding, 0
        if number:
            try:
                self._bindings.check()
            except EoqError as error:
                raise type(error)(f"the bindings up to line {number}: {error}") from error

    def _pause(self, queue: str) -> bool:
        queue_id = self._queues.make(queue)
        update = "update queue set paused = 1 where number = ? and not paused"
        return self._database.execute(update, (queue_id,)).rowcount > 0

    def _count(self, entry: CountsLine) -> bool:
        """Store what was counted of a queue. Where it has counts already, they stay."""
        queue_id = DELETED if entry.queue is None else self._queues.make(entry.queue)
        counts = [entry.counts.get(name, 0) for name in COUNTERS]
        return self._database.execute(_COUNTS, (queue_id, *counts)).rowcount > 0
