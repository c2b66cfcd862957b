"""Deliveries: a message is leased, then settled, tried again, or dead. Each is fenced by its number (G7)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from msgspec.structs import replace

from ....records import Claimed, ClaimedMessage, DeliveryLost, DeliveryRef, End, NewMessage, Stored
from ..database import MANY
from .messages import ENDING_COLUMNS, Ending, at_places
from .publishing import Sending

EXPIRY_ROWS: Final = 500
"""Messages looked at in one claim that finds some that have expired."""

_LEASE: Final = """
    update message
    set state = 'leased', attempts = attempts + 1, fence = fence + 1, delivered_at = ?, consumer = ?
    where {places}
    """
_ACK: Final = """
    update message
    set state = 'done', settled_at = held.now, result = held.result, body = null, headers = null, error = null
    from (
      select column1 as seq, column2 as fence, column3 as result, column4 as now
      from (values {rows})
    ) as held
    where message.seq = held.seq and message.number = held.number and message.state = 'leased'
    """
_ACK_ONE: Final = """
    update message
    set state = 'done', settled_at = ?4, result = ?3, body = null, headers = null, error = null
    where seq = ?1 and fence = ?2 and state = 'leased'
    """
_ACK_ALIKE: Final = """
    update message
    set state = 'done', settled_at = ?, result = ?, body = null, headers = null, error = null
    where {places} and fence = ? and state = 'leased'
    """
_ACK_MANY: Final = _ACK.format(rows=", ".join(["(?, ?, ?, ?)"] * MANY))
# Each part is answered by the first entry of an index. What was delivered and then given up may have been processed,
# its ack lost: it counts as long as its record is kept, so that no backup from before its end finds its id forgotten.
UNSETTLED_NOT_READY: Final = """
      select min(seq) as seq from message where queue = ?1 and state = 'leased'
      union all
      select min(seq) from message where queue = ?1 and state in ('delayed', 'blocked')
      union all
      select min(seq) from message where queue = ?1 and state = 'dead'
      union all
      select min(seq) from message where queue = ?1 and state in ('expired', 'dropped') and fence > 0
    """
_LOWEST_UNSETTLED: Final = f"""
    select min(seq)
    from (
      {UNSETTLED_NOT_READY}
      union all
      select min(seq) from message where queue = ?1 and state = 'ready' and priority = 0
      union all
      select min(seq) from message where queue = ?1 and state = 'ready' and priority <> 0
    )
    """  # noqa: S608 # a constant


class Delivering(Sending):
    """The verbs `claim`, `settle`, `retry` and `reject`, and what becomes of leases when the daemon starts."""

    def claim(self, now: float, queue: str, limit: int, most_bytes: int, consumer: str | None = None) -> Claimed:
        """Leases the next messages of a queue: at most ``limit``, and not more than ``most_bytes`` of bodies
        and headers, unless the first alone has more. None while the queue is paused.
        """
        number = self._queues.get(queue) or self._find_queue(queue)
        if number is None:
            return Claimed([], self._end())
        if self._is_paused(number):
            return Claimed([], self._watermark(number))
        claimed, expired, cut = self._next(now, number, limit, most_bytes)
        ended: list[End] = []
        if expired:
            ended = self._expire_first(now, number)
            claimed, expired, cut = self._next(now, number, limit, most_bytes)
            cut = cut or expired
            if expired and not claimed:
                return Claimed([], self._watermark(number), ended, unfinished=True)
        if claimed:
            places, values = at_places([message.seq for message in claimed])
            self._database.execute(_LEASE.format(places=places), (now, consumer, *values))
        return Claimed(claimed, self._watermark(number), ended, unfinished=cut)

    def _next(self, now: float, number: int, limit: int, most_bytes: int) -> tuple[list[ClaimedMessage], bool, bool]:
        """What may be leased, whether there was one among it whose time is over, and whether the rest is too large."""
        claimed: list[ClaimedMessage] = []
        size = 0
        cursor = self._database.execute(
            """
            select seq, id, body, headers, attempts + 1, fence + 1, priority, "group", enqueued_at, expires_at
            from message
            where queue = ? and state = 'ready'
            order by priority desc, seq
            limit ?
            """,
            (number, limit),
        )
        expired = cut = False
        for row in cursor:
            size += len(row[2]) + len(row[3] or "")
            if claimed and size > most_bytes:
                cut = True
                break
            expires_at = row[9]
            if expires_at is not None and expires_at <= now:
                expired = True
                break
            claimed.append(ClaimedMessage(*row))
        cursor.close()
        return claimed, expired, cut

    def _expire_first(self, now: float, number: int) -> list[End]:
        """Ends those whose time is over, among the first that could be delivered."""
        rows = self._database.execute(
            f"""
            select {ENDING_COLUMNS}, expires_at
            from message
            where queue = ? and state = 'ready'
            order by priority desc, seq
            limit ?
            """,  # noqa: S608 # a constant
            (number, EXPIRY_ROWS),
        ).fetchall()
        return self._expire(now, [Ending._make(row) for *row, at in rows if at is not None and at <= now])

    def _watermark(self, number: int) -> int:
        (lowest,) = self._database.execute(_LOWEST_UNSETTLED, (number,)).fetchone()
        return self._end() if lowest is None else int(lowest)

    # ── settling ────────────────────────────────────────────────────────────────────────────────────────

    def settle(
        self, now: float, acks: Sequence[tuple[DeliveryRef, bytes | None]], sends: Sequence[NewMessage]
    ) -> Stored:
        """Acks with their results, and messages to store: everything or nothing (G4).

        An ack that this very delivery made already is repeated without effect. Raises `LeaseLost`, or what `put`
        raises.
        """
        if not sends:
            if len(acks) == 1:
                self._ack_each(now, acks)
            elif not self._ack_together(now, acks):
                with self._all_or_nothing():
                    self._ack_each(now, acks)
            return Stored([], [])
        with self._all_or_nothing():
            repeated = not self._ack_together(now, acks) and self._ack_each(now, acks)
            stored = self.put(now, sends)
            if stored.duplicates and repeated:
                duplicates = self._duplicates_at_first(acks[0][0], sends, stored.duplicates)
                stored = replace(stored, duplicates=duplicates)
            return stored

    def _duplicates_at_first(
        self, held: DeliveryRef, sends: Sequence[NewMessage], duplicates: Sequence[int]
    ) -> list[int]:
        """The answer of a settle that is repeated: what it sent itself, at the moment of its acks, is no duplicate.

        Of an id that it holds twice, the second was one also then.
        """
        firsts: dict[tuple[str, str], int] = {}
        for index, message in enumerate(sends):
            firsts.setdefault((message.queue, message.id), index)
        (settled_at,) = self._database.execute("select settled_at from message where seq = ?", (held.seq,)).fetchone()
        return [
            index
            for index in duplicates
            if firsts[sends[index].queue, sends[index].id] != index
            or self._database.execute(
                """
                select 1
                from message
                where queue = ? and id = ? and enqueued_at <> ?
                """,
                (self._queue_number(sends[index].queue), sends[index].id, settled_at),
            ).fetchone()
        ]

    def _ack_each(self, now: float, acks: Sequence[tuple[DeliveryRef, bytes | None]]) -> bool:
        """Settles one after the other; returns whether some were done before, by the same delivery.

        Where it raises `LeaseLost`, others of them may be settled: whoever gives several takes that back.
        """
        changed = [
            held
            for held, result in acks
            if not held.ended and self._database.execute(_ACK_ONE, (held.seq, held.number, result, now)).rowcount
        ]
        repeated = len(changed) < len(acks)
        if repeated:
            for held, _ in acks:
                self._require(held, "done")
        self._acked(now, acks, changed)
        return repeated

    def _ack_together(self, now: float, acks: Sequence[tuple[DeliveryRef, bytes | None]]) -> bool:
        """Settles several that are all leased, by one statement; where they are not, changes nothing and is False."""
        if len(acks) < 2 or any(held.ended for held, _ in acks):
            return False
        self._database.execute("savepoint acks")
        if self._update_acked([(held.seq, held.number, result, now) for held, result in acks]) < len(acks):
            self._database.execute("rollback to acks")
            self._database.execute("release acks")
            return False
        self._database.execute("release acks")
        self._acked(now, acks, [held for held, _ in acks])
        return True

    def _acked(
        self, now: float, acks: Sequence[tuple[DeliveryRef, bytes | None]], changed: Sequence[DeliveryRef]
    ) -> None:
        """What follows: those that were ``changed`` no longer count, and the groups of all move on."""
        if self._contents:
            for held in changed:
                self._count(self._queue_number(held.queue), -1, -held.size)
        for held, _ in acks:
            if held.group is not None:
                self._unblock(now, self._queue_number(held.queue), held.group)

    def _update_acked(self, rows: Sequence[tuple[int, int, bytes | None, float]]) -> int:
        """Returns how many of these rows (seq, fence, result, now) were leased."""
        _, fence, result, now = rows[0]
        if any(row[1] != fence or row[2] != result for row in rows):
            return self._execute_rows(_ACK_ONE, _ACK_MANY, rows)
        # Mostly it is each one's first delivery and there are no results: this takes two thirds of the time.
        places, values = at_places([row[0] for row in rows])
        return self._database.execute(_ACK_ALIKE.format(places=places), (now, result, *values, fence)).rowcount

    def _require(self, held: DeliveryRef, state: str) -> None:
        """Raises `LeaseLost` unless the message is in ``state`` by this delivery's own doing."""
        found = self._database.execute(
            """
            select state, fence
            from message
            where seq = ?
            """,
            (held.seq,),
        ).fetchone()
        if found != (state, held.number):
            raise DeliveryLost(held)

    # ── failing ─────────────────────────────────────────────────────────────────────────────────────────

    def retry(
        self,
        now: float,
        deliveries: Sequence[DeliveryRef],
        *,
        due_at: float | None = None,
        error: str | None = None,
        counts: bool = True,
    ) -> list[End | bool]:
        """Makes leased messages deliverable again, at ``due_at``, or dead where no attempt is left.

        A delivery that does not count is one that nobody has looked at. Returns for each the end of its message,
        True where it goes on, and False where its lease had ended before.
        """
        return [self._retry(now, held, due_at, error, counts) for held in deliveries]

    def _retry(
        self, now: float, held: DeliveryRef, due_at: float | None, error: str | None, counts: bool
    ) -> End | bool:
        row = self._database.execute(
            """
            update message
            set
              state = case
                when :counts and attempts >= :max_attempts then 'dead'
                when :due_at > :now then 'delayed'
                else 'ready'
              end,
              attempts = attempts - not :counts,
              due_at = iif(:due_at > :now, :due_at, null),
              fixed = 0,
              error = coalesce(:error, error),
              failed_at = iif(:counts, :now, failed_at)
            where seq = :seq and fence = :fence and state = 'leased'
            returning queue, id, state, error, expires_at <= :now
            """,
            {
                "now": now,
                "due_at": due_at,
                "counts": counts,
                "max_attempts": self._settings(held.queue).max_attempts,
                "error": error,
                "seq": held.seq,
                "fence": held.number,
            },
        ).fetchone()
        if row is None:
            return False
        number, id, state, last_error, expired = row
        if counts:
            self._note_failure(now, held.seq, held.number, error)
        message = Ending(held.seq, number, id, held.group, held.size, state)
        if state == "dead":
            return self._left(now, message._replace(state="leased"), "dead", last_error)
        if expired:
            return self._expire(now, [message])[0]
        if held.group is not None:
            self._line_up(now, number, held.group)
        return True

    def reject(self, now: float, held: DeliveryRef, error: str | None) -> None:
        """Makes a leased message a dead letter. Raises `LeaseLost`."""
        if held.ended:
            self._require(held, "dead")
            return
        row = self._database.execute(
            """
            update message
            set state = 'dead', error = coalesce(:error, error), failed_at = :now
            where seq = :seq and fence = :fence and state = 'leased'
            returning queue, id
            """,
            {"error": error, "now": now, "seq": held.seq, "fence": held.number},
        ).fetchone()
        if row is None:
            self._require(held, "dead")
            return
        self._note_failure(now, held.seq, held.number, error)
        number, id = row
        self._left(now, Ending(held.seq, number, id, held.group, held.size, "leased"), "dead", error)

    # ── starting ────────────────────────────────────────────────────────────────────────────────────────

    def _recover(self, now: float) -> None:
        """Leases do not outlive their daemon: what it had leased is delivered again (G3), or dead."""
        # That the file cannot be written is to be found out now, also where nothing has to be.
        self._database.execute("update queue set paused = paused where false")
        queues = self._database.execute(
            """
            select number, name
            from queue
            where number in (select queue from message where state = 'leased')
            """
        ).fetchall()
        for number, name in queues:
            self._recover_queue(now, number, self._settings(name).max_attempts)
        self._next_seq = self._end()

    def _recover_queue(self, now: float, number: int, max_attempts: int) -> None:
        error = "the daemon ended before the message was settled"
        self._database.execute(
            """
            insert or replace into failure (seq, fence, delivered_at, consumer, failed_at, error)
            select seq, fence, delivered_at, consumer, ?, ?
            from message
            where queue = ? and state = 'leased'
            """,
            (now, error, number),
        )
        groups = self._database.execute(
            """
            select distinct "group"
            from message
            where queue = ? and state = 'leased' and "group" is not null
            """,
            (number,),
        ).fetchall()
        sizes = self._database.execute(
            """
            update message
            set state = 'dead', failed_at = ?, error = ?
            where queue = ? and state = 'leased' and attempts >= ?
            returning length(body)
            """,
            (now, error, number, max_attempts),
        ).fetchall()
        self._database.execute(
            """
            update message
            set state = 'ready', failed_at = ?, error = ?
            where queue = ? and state = 'leased'
            """,
            (now, error, number),
        )
        self._count(number, -len(sizes), -sum(size for (size,) in sizes))
        for (group,) in groups:
            self._line_up(now, number, group)
