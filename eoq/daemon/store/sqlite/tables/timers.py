"""The passing of time: due messages become ready, and others expire.

Work on many rows is done in steps, so that no send waits long for it. A leased message does not expire. There may be
100,000 of them whose time has passed, so the search for others goes on behind those that it has seen.
"""

from __future__ import annotations

from typing import Final

from ....records import Advanced, End, Shifted
from ....store.commands import Advance, NoteClock, ShiftTimes
from ..database import Database
from ..deliveries.leased import Leased
from .clock import ClockNotes
from .messages import ENDING_COLUMNS, Ending, Messages
from .queues import Queues

_BEHIND: Final = """
    from message
    where expires_at >= :at and (expires_at > :at or seq > :seq) and state in ('ready', 'delayed', 'blocked')
    """
"""The messages that expire after a place."""
_NEXT: Final = f"""
    select expires_at
    from (select expires_at, seq {_BEHIND} order by expires_at, seq limit :most)
    where not leased(seq)
    limit 1
    """  # noqa: S608 # a constant
_FAR_BEHIND: Final = f"select expires_at {_BEHIND} order by expires_at, seq limit 1 offset :most - 1"
SCANNED: Final = 500
"""How many messages are looked at, at most, to find the next one that expires and is not leased."""


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
        place = self._leased.expiry
        rows = self._database.execute(
            f"""
            select {ENDING_COLUMNS}, expires_at, leased(seq)
            {_BEHIND} and expires_at <= :now
            order by expires_at, seq
            limit :limit
            """,
            {
                "at": place.expires_at,
                "seq": place.seq,
                "now": self._clock_notes.unset(command.now),
                "limit": command.limit,
            },
        ).fetchall()
        if rows:
            self._leased.move_expiry(rows[-1][-2], rows[-1][0])
        expired = [Ending._make(columns) for *columns, _, is_leased in rows if not is_leased]
        return self._messages.expire(command.now, expired, command.settings)

    def _next_moment(self) -> float | None:
        """Return when the next message is due, or expires and is not leased; None where there is none.

        Where very many of the next are leased, return when one of these expires: then the search goes on.
        """
        set_by = self._clock_notes.set_by
        moments = self._database.execute(
            """
            select min(due_at) + ? from message where state = 'delayed' and fixed = 0
            union all
            select min(due_at) from message where state = 'delayed' and fixed = 1
            """,
            (set_by,),
        ).fetchall()
        place = {"at": self._leased.expiry.expires_at, "seq": self._leased.expiry.seq, "most": SCANNED}
        found = self._database.execute(_NEXT, place).fetchone() or self._database.execute(_FAR_BEHIND, place).fetchone()
        if found is not None:
            moments.append((found[0] + set_by,))
        return min((moment for (moment,) in moments if moment is not None), default=None)

    def shift(self, command: ShiftTimes) -> Shifted:
        """See `ShiftTimes`."""
        self._clock_notes.set_forward(command.now, command.seconds)
        self._clock_notes.store(command.now, command.elapsed, command.boot, command.seconds)
        return Shifted(command.seconds)

    def note_clock(self, command: NoteClock) -> Shifted:
        """See `NoteClock`."""
        return Shifted(self._clock_notes.note(command))
