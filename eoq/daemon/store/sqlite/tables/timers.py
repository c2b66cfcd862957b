"""What time does to messages: due ones become ready, others expire, settled records are forgotten."""

from __future__ import annotations

from collections.abc import Callable

from ....records import Advanced, End, Shifted
from .messages import ENDING_COLUMNS, Ending, MessageTable, at_places


class Timing(MessageTable):
    """The verbs `advance`, `shift` and `forget`. What has a million rows to do goes in steps, so that no send waits."""

    def advance(self, now: float, limit: int) -> Advanced:
        """Ends up to ``limit`` messages that have expired, and makes up to ``limit`` due ones ready."""
        ended = self._expire_due(now, limit)
        numbers = self._database.execute(
            """
            update message
            set state = 'ready', due_at = null
            where seq in (
              select seq
              from message
              where state = 'delayed' and due_at <= ?
              order by due_at
              limit ?
            )
            returning queue
            """,
            (now, limit),
        ).fetchall()
        ready: dict[str, int] = {}
        for (number,) in numbers:
            name = self._queue_name(number)
            ready[name] = ready.get(name, 0) + 1
        return Advanced(ready, ended, self._next_moment())

    def _expire_due(self, now: float, limit: int) -> list[End]:
        rows = self._database.execute(
            f"""
            select {ENDING_COLUMNS}
            from message
            where expires_at <= ? and state in ('ready', 'delayed', 'blocked')
            order by expires_at
            limit ?
            """,  # noqa: S608 # a constant
            (now, limit),
        ).fetchall()
        return self._expire(now, [Ending._make(row) for row in rows])

    def _next_moment(self) -> float | None:
        (due_at,) = self._database.execute("select min(due_at) from message where state = 'delayed'").fetchone()
        (expires_at,) = self._database.execute(
            """
            select min(expires_at)
            from message
            where expires_at is not null and state in ('ready', 'delayed', 'blocked')
            """
        ).fetchone()
        return min((moment for moment in (due_at, expires_at) if moment is not None), default=None)

    def shift(self, seconds: float) -> Shifted:
        """The wall clock was set ahead by so many seconds, or back: waits and times to live go on for as long as they
        had left. Moments that were asked for stay.

        Not in steps, so that nothing is moved twice: a clock does not jump often.
        """
        self._database.execute(
            """
            update message
            set due_at = due_at + ?
            where state in ('delayed', 'blocked') and due_at is not null and not fixed
            """,
            (seconds,),
        )
        self._database.execute(
            """
            update message
            set expires_at = expires_at + ?
            where expires_at is not null and state in ('ready', 'delayed', 'blocked')
            """,
            (seconds,),
        )
        self._database.execute(
            """
            update message
            set expires_at = expires_at + ?
            where expires_at is not null and state = 'leased'
            """,
            (seconds,),
        )
        self._database.execute(
            """
            update once
            set expires_at = expires_at + ?
            where expires_at is not null
            """,
            (seconds,),
        )
        return Shifted(seconds)

    def forget(self, after: int, settled_before: Callable[[str], float], limit: int) -> tuple[int, int | None]:
        """Drops settled records of the queues behind number ``after``: at most ``limit``, of those settled before
        the moment that ``settled_before`` gives for the queue's name.

        Returns how many went, and the ``after`` to go on with; None when the last queue is done.
        """
        end = self._end()
        gone = 0
        queues = self._database.execute(
            """
            select number, name
            from queue
            where number > ?
            order by number
            limit ?
            """,
            (after, limit),
        ).fetchall()
        for number, name in queues:
            gone += self._forget_in(number, settled_before(name), limit - gone)
            if gone == limit:
                break
            after = number
        if gone:
            # A seq is never used twice, also when the rows that had the highest are gone.
            self._database.execute(
                """
                insert into counter (name, value)
                values ('next_seq', ?)
                on conflict (name) do update set value = max(value, excluded.value)
                """,
                (end,),
            )
        return gone, None if gone < limit and len(queues) < limit else after

    def _forget_in(self, number: int, settled_before: float, limit: int) -> int:
        rows = self._database.execute(
            """
            select seq
            from message
            where queue = ? and settled_at < ?
            order by settled_at
            limit ?
            """,
            (number, settled_before, limit),
        ).fetchall()
        if rows:
            places, values = at_places([seq for (seq,) in rows])
            self._database.execute(f"delete from failure where {places}", values)  # noqa: S608 # one of two constants
            self._database.execute(f"delete from message where {places}", values)  # noqa: S608 # one of two constants
        return len(rows)
