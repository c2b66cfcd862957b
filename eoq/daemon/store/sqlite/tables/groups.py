"""Groups: of each group only the first message that is not settled may be delivered (G8)."""

from __future__ import annotations

from ..database import Database
from ..deliveries.leased import Leased
from .clock import ClockNotes


class Groups:
    """The messages of groups: which of them are blocked."""

    def __init__(self, database: Database, leased: Leased, clock_notes: ClockNotes) -> None:
        self._database = database
        self._leased = leased
        self._clock_notes = clock_notes

    def block_new(self, first_seq: int) -> None:
        """Block the messages from ``first_seq`` on whose group has an earlier unsettled message."""
        self._database.execute(
            """
            update message
            set state = 'blocked'
            where seq >= ?
              and "group" is not null
              and exists (
                select 1
                from message as earlier
                where earlier.queue = message.queue
                  and earlier."group" = message."group"
                  and earlier.state in ('ready', 'delayed', 'blocked')
                  and earlier.seq < message.seq
              )
            """,
            (first_seq,),
        )

    def unblock(self, now: float, queue_id: int, group: str) -> None:
        """Unblock the first blocked message of a group, unless another one is ready, delayed or leased."""
        rows = self._database.execute(
            """
            update message
            set
              state = iif(due_at > iif(fixed, :now, :unset), 'delayed', 'ready'),
              due_at = iif(due_at > iif(fixed, :now, :unset), due_at, null)
            where seq = (
              select seq
              from message
              where queue = :queue and "group" = :group and state = 'blocked'
              order by seq
              limit 1
            )
            and not exists (
              select 1
              from message as ahead
              where ahead.queue = :queue and ahead."group" = :group
                and ahead.state in ('ready', 'delayed')
            )
            returning priority, seq, state
            """,
            {"now": now, "unset": self._clock_notes.unset(now), "queue": queue_id, "group": group},
        ).fetchall()
        for priority, seq, state in rows:
            if state == "ready":
                self._leased.ready(queue_id, priority, seq)

    def line_up(self, now: float, queue_id: int, group: str) -> None:
        """Order a group again after one of its messages was given back: the one that was stored first is next."""
        self._database.execute(
            """
            update message
            set state = 'blocked'
            where queue = ? and "group" = ? and state in ('ready', 'delayed') and not leased(seq)
            """,
            (queue_id, group),
        )
        self.unblock(now, queue_id, group)
