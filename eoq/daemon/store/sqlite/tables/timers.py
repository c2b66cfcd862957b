"""The passing of time: due messages become ready, and others expire.

Work on many rows is done in steps, so that no send waits long for it.
"""

from __future__ import annotations

from ....records import Advanced, End, Shifted
from ....store.commands import Advance, NoteClock, ShiftTimes
from ..database import Database
from ..deliveries.leased import Leased
from .clock import ClockNotes
from .messages import ENDING_COLUMNS, Ending, Messages
from .queues import Queues


class Timers:
    """The times of messages: when they are due, and when they expire."""

    def __init__(
        self, database: Database, queues: Queues, messages: Messages, leased: Leased, clock_notes: ClockNotes
    ) -> None:
        self._database = database
        self._queues = queues
        self._messages = messages
        self._leased = leased
        self._clock_notes = clock_notes

    def advance(self, command: Advance) -> Advanced:
        """See `Advance`."""
        ended = self._expire(command)
        rows = self._database.execute(
            """
            update message
            set state = 'ready', due_at = null
            where seq in (
              select *
              from (
                select seq
                from message
                where state = 'delayed' and fixed = 0 and due_at <= :unset
                order by due_at
                limit :limit
              )
              union all
              select *
              from (
                select seq
                from message
                where state = 'delayed' and fixed = 1 and due_at <= :now
                order by due_at
                limit :limit
              )
            )
            returning queue, priority, seq
            """,
            {"now": command.now, "unset": self._clock_notes.unset(command.now), "limit": command.limit},
        ).fetchall()
        ready: dict[str, int] = {}
        for queue_id, priority, seq in rows:
            self._leased.ready(queue_id, priority, seq)
            name = self._queues.name(queue_id)
            ready[name] = ready.get(name, 0) + 1
        return Advanced(ready, ended, self._next_moment())

    def _expire(self, command: Advance) -> list[End]:
        rows = self._database.execute(
            f"""
            select {ENDING_COLUMNS}
            from message
            where expires_at <= ? and state in ('ready', 'delayed', 'blocked') and not leased(seq)
            order by expires_at
            limit ?
            """,  # noqa: S608 # a constant
            (self._clock_notes.unset(command.now), command.limit),
        ).fetchall()
        return self._messages.expire(command.now, [Ending._make(row) for row in rows], command.settings)

    def _next_moment(self) -> float | None:
        """Return when the next message is due or expires; None where there is none."""
        moments = self._database.execute(
            """
            select min(due_at) + :set_by from message where state = 'delayed' and fixed = 0
            union all
            select min(due_at) from message where state = 'delayed' and fixed = 1
            union all
            select min(expires_at) + :set_by
            from message
            where expires_at is not null and state in ('ready', 'delayed', 'blocked') and not leased(seq)
            """,
            {"set_by": self._clock_notes.set_by},
        ).fetchall()
        return min((moment for (moment,) in moments if moment is not None), default=None)

    def shift(self, command: ShiftTimes) -> Shifted:
        """See `ShiftTimes`."""
        self._clock_notes.set_forward(command.now, command.seconds)
        self._clock_notes.store(command.now, command.elapsed, command.boot, command.seconds)
        return Shifted(command.seconds)

    def note_clock(self, command: NoteClock) -> Shifted:
        """See `NoteClock`."""
        return Shifted(self._clock_notes.note(command))
