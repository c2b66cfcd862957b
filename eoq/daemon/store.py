"""The daemon's file: every statement that changes it, behind verbs (put, claim, settle, retry, …).

A verb runs inside the transaction that `transact` opens for all verbs of the moment. It either does all of its
work, or raises an `EoqError` having changed nothing, so that one refusal harms no other verb of the batch.
How the file is opened, and what a transaction is, stands in ``file.py``.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple, Self

from ..errors import EoqError, IdConflict, LeaseLost, QueueFull
from .file import MANY, QUICK_COMMIT, Connection, File
from .once_table import OnceTable
from .schedule_table import ScheduleTable
from .settings import SettingsOf, defaults

MAX_QUEUES: Final = 100_000

_PUT: Final = """
    insert into message
      (seq, queue, id, state, priority, enqueued_at, due_at, digest, "group", headers, body)
    values {rows}
    on conflict (queue, id) do nothing
    """
_PUT_ONE: Final = _PUT.format(rows="(?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)")
# For messages of one queue that are ready now. What they share is bound once: half of the time of a row is binding.
_PUT_MANY: Final = _PUT.format(
    rows=", ".join(
        "(?1 + {}, ?2, ?{}, 'ready', ?{}, ?3, null, ?{}, ?{}, ?{}, ?{})".format(n, *range(4 + 6 * n, 10 + 6 * n))
        for n in range(MANY)
    )
)

_ACK: Final = """
    update message
    set state = 'done', settled_at = held.now, result = held.result, body = null, headers = null, error = null
    from (
      select column1 as seq, column2 as fence, column3 as result, column4 as now
      from (values {rows})
    ) as held
    where message.seq = held.seq and message.fence = held.fence and message.state = 'leased'
    """
_ACK_ONE: Final = """
    update message
    set state = 'done', settled_at = ?4, result = ?3, body = null, headers = null, error = null
    where seq = ?1 and fence = ?2 and state = 'leased'
    """
_ACK_MANY: Final = _ACK.format(rows=", ".join(["(?, ?, ?, ?)"] * MANY))


_END: Final = """
    select max(
      (select coalesce(max(seq), 0) + 1 from message),
      (select coalesce(max(value), 1) from counter where name = 'next_seq')
    )
    """
# Each part is answered by the first entry of an index.
_LOWEST_UNSETTLED: Final = """
    select min(seq)
    from (
      select min(seq) as seq from message where queue = ?1 and state = 'ready' and priority = 0
      union all
      select min(seq) from message where queue = ?1 and state = 'ready' and priority <> 0
      union all
      select min(seq) from message where queue = ?1 and state = 'leased'
      union all
      select min(seq) from message where queue = ?1 and state in ('delayed', 'blocked')
      union all
      select min(seq) from message where queue = ?1 and state = 'dead'
    )
    """


class NewMessage(NamedTuple):
    """A message to be stored, already validated. ``headers`` is JSON; ``due_at`` None is now."""

    queue: str
    id: str
    body: bytes
    digest: bytes
    headers: str | None = None
    priority: int = 0
    group: str | None = None
    due_at: float | None = None


class Claimed(NamedTuple):
    """A message as it is leased. ``fence`` is the number of this delivery."""

    seq: int
    id: str
    body: bytes
    headers: str | None
    attempt: int
    fence: int
    priority: int
    group: str | None
    enqueued_at: float


class Claim(NamedTuple):
    """What one receive takes, and the queue's watermark."""

    messages: list[Claimed]
    watermark: int


class Held(NamedTuple):
    """A delivery that is to be settled: the message's place, its fence, and what its lease knows of it.

    Of one that has ``ended`` there is no lease any more; all it can do is repeat what it did before.
    """

    seq: int
    fence: int
    queue: str = ""
    group: str | None = None
    ended: bool = False


class DeliveryLost(LeaseLost):
    """The lease of ``held`` has ended."""

    def __init__(self, held: Held) -> None:
        super().__init__("the lease of this receipt has ended, so nothing was changed; go on with the next message")
        self.held = held


class Store(OnceTable, ScheduleTable, File):
    """The messages of a daemon, in its file. Open it with `Store.open`."""

    def __init__(self, connection: Connection, database: sqlite3.Connection, path: Path, quick_commit: float) -> None:
        super().__init__(connection, database, path, quick_commit)
        self._settings: SettingsOf = defaults
        self._queues: dict[str, int] = {}
        self._next_seq = 1

    @classmethod
    async def open(
        cls,
        path: Path,
        *,
        quick_commit: float = QUICK_COMMIT,
        settings: SettingsOf = defaults,
        clock: Callable[[], float] = time.time,
    ) -> Self:
        """As `File.open`; then ends the leases of the daemon before.

        Where such a lease was the last of its queue's ``max_attempts``, its message is dead.
        """
        store = await super().open(path, quick_commit=quick_commit)
        store._settings = settings
        (failure,) = await store.transact_in_thread([partial(store._recover, clock())])
        if isinstance(failure, EoqError):
            await store.close()
            raise failure
        return store

    def _undone(self) -> None:
        self._queues.clear()

    # ── verbs ───────────────────────────────────────────────────────────────────────────────────────────

    def put(self, now: float, messages: Sequence[NewMessage]) -> list[int]:
        """Stores messages; returns the indexes of those that were stored before, under the same id.

        Raises `IdConflict` where an id is stored with other content, and `QueueFull` where there are too many
        queues; then none of ``messages`` is stored.
        """
        first = self._next_seq
        many = 0
        if len(messages) >= MANY and all(m.queue == messages[0].queue and m.due_at is None for m in messages):
            many = len(messages) // MANY * MANY
        stored = self._put_ready(now, messages[:many]) + self._put_each(now, messages[many:])
        duplicates = [] if stored == len(messages) else self._duplicates(first, messages)
        if any(message.group is not None for message in messages):
            self._block_behind_their_group(first)
        return duplicates

    def _put_ready(self, now: float, messages: Sequence[NewMessage]) -> int:
        """Stores `MANY` at a time; they are of one queue, and none is delayed. Returns how many were not there."""
        stored = 0
        for start in range(0, len(messages), MANY):
            values: list[object] = [self._next_seq, self._queue_number(messages[0].queue), now]
            for message in messages[start : start + MANY]:
                values += (message.id, message.priority, message.digest, message.group, message.headers, message.body)
            stored += self._database.execute(_PUT_MANY, values).rowcount
            self._next_seq += MANY
        return stored

    def _put_each(self, now: float, messages: Sequence[NewMessage]) -> int:
        stored = 0
        for message in messages:
            delayed = message.due_at is not None and message.due_at > now
            row = (
                self._next_seq,
                self._queue_number(message.queue),
                message.id,
                "delayed" if delayed else "ready",
                message.priority,
                now,
                message.due_at if delayed else None,
                message.digest,
                message.group,
                message.headers,
                message.body,
            )
            stored += self._database.execute(_PUT_ONE, row).rowcount
            self._next_seq += 1
        return stored

    def _duplicates(self, first: int, messages: Sequence[NewMessage]) -> list[int]:
        duplicates = []
        for index, message in enumerate(messages):
            seq, digest = self._database.execute(
                """
                select seq, digest
                from message
                where queue = ? and id = ?
                """,
                (self._queue_number(message.queue), message.id),
            ).fetchone()
            if seq == first + index:
                continue
            if digest != message.digest:
                self._database.execute("delete from message where seq >= ?", (first,))
                raise IdConflict(
                    f"the id {message.id!r} is stored in the queue {message.queue!r} with other content; "
                    "a new message needs a new id"
                )
            duplicates.append(index)
        return duplicates

    def _block_behind_their_group(self, first: int) -> None:
        """Of each group only the first message that is not settled may be delivered (G8)."""
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
                  and earlier.state in ('ready', 'leased', 'delayed', 'blocked')
                  and earlier.seq < message.seq
              )
            """,
            (first,),
        )

    def claim(self, queue: str, limit: int, most_bytes: int) -> Claim:
        """Leases the next messages of a queue: at most ``limit``, and not more than ``most_bytes`` of bodies,
        unless the first alone has more.
        """
        number = self._queues.get(queue) or self._find_queue(queue)
        if number is None:
            return Claim([], self._end())
        claimed: list[Claimed] = []
        size = 0
        cursor = self._database.execute(
            """
            select seq, id, body, headers, attempts + 1, fence + 1, priority, "group", enqueued_at
            from message
            where queue = ? and state = 'ready'
            order by priority desc, seq
            limit ?
            """,
            (number, limit),
        )
        for row in cursor:
            size += len(row[2])
            if claimed and size > most_bytes:
                break
            claimed.append(Claimed._make(row))
        cursor.close()
        if not claimed:
            return Claim([], self._watermark(number))
        self._database.execute(
            """
            update message
            set state = 'leased', attempts = attempts + 1, fence = fence + 1
            where seq in (select value from json_each(?))
            """,
            (json.dumps([message.seq for message in claimed]),),
        )
        return Claim(claimed, self._watermark(number))

    def _watermark(self, number: int) -> int:
        (lowest,) = self._database.execute(_LOWEST_UNSETTLED, (number,)).fetchone()
        return self._end() if lowest is None else int(lowest)

    def _end(self) -> int:
        """A place that every message yet to come lies at or above, also one that is stored after a restart.

        Not the next seq: some of those are given to duplicates, and used again after a restart.
        """
        (end,) = self._database.execute(_END).fetchone()
        return int(end)

    def settle(self, now: float, acks: Sequence[tuple[Held, bytes | None]], sends: Sequence[NewMessage]) -> list[int]:
        """Acks with their results, and messages to store: everything or nothing (G4).

        Returns the indexes of ``sends`` that were stored before. An ack that this very delivery made already is
        repeated without effect. Raises `LeaseLost`, or what `put` raises.
        """
        if len(acks) == 1 and not sends:
            self._ack(now, acks)
            return []
        with self._all_or_nothing():
            repeated = self._ack(now, acks)
            duplicates = self.put(now, sends) if sends else []
            if duplicates and repeated:
                duplicates = self._duplicates_at_first(acks[0][0], sends, duplicates)
            return duplicates

    def _duplicates_at_first(self, held: Held, sends: Sequence[NewMessage], duplicates: Sequence[int]) -> list[int]:
        """The answer of a settle that is repeated: what it sent itself, at the moment of its acks, is no duplicate."""
        (settled_at,) = self._database.execute("select settled_at from message where seq = ?", (held.seq,)).fetchone()
        return [
            index
            for index in duplicates
            if self._database.execute(
                """
                select 1
                from message
                where queue = ? and id = ? and enqueued_at <> ?
                """,
                (self._queue_number(sends[index].queue), sends[index].id, settled_at),
            ).fetchone()
        ]

    def _ack(self, now: float, acks: Sequence[tuple[Held, bytes | None]]) -> bool:
        """Returns whether some of them were done before, by the same delivery."""
        rows = [(held.seq, held.fence, result, now) for held, result in acks if not held.ended]
        repeated = self._execute_rows(_ACK_ONE, _ACK_MANY, rows) < len(acks)
        if repeated:
            for held, _ in acks:
                self._require(held, "done")
        for held, _ in acks:
            if held.group is not None:
                self._unblock(now, self._queue_number(held.queue), held.group)
        return repeated

    def _require(self, held: Held, state: str) -> None:
        """Raises `LeaseLost` unless the message is in ``state`` by this delivery's own doing."""
        found = self._database.execute(
            """
            select state, fence
            from message
            where seq = ?
            """,
            (held.seq,),
        ).fetchone()
        if found != (state, held.fence):
            raise DeliveryLost(held)

    def _unblock(self, now: float, number: int, group: str) -> None:
        self._database.execute(
            """
            update message
            set state = iif(due_at > :now, 'delayed', 'ready')
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
                and ahead.state in ('ready', 'leased', 'delayed')
            )
            """,
            {"now": now, "queue": number, "group": group},
        )

    def retry(
        self,
        now: float,
        deliveries: Sequence[Held],
        *,
        due_at: float | None = None,
        error: str | None = None,
        counts: bool = True,
    ) -> list[str | None]:
        """Makes leased messages deliverable again, at ``due_at``, or dead where no attempt is left.

        A delivery that does not count is one that nobody has looked at. Returns the new state of each; None
        where its lease had ended before.
        """
        states = []
        for held in deliveries:
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
                  error = coalesce(:error, error)
                where seq = :seq and fence = :fence and state = 'leased'
                returning state
                """,
                {
                    "now": now,
                    "due_at": due_at,
                    "counts": counts,
                    "max_attempts": self._settings(held.queue).max_attempts,
                    "error": error,
                    "seq": held.seq,
                    "fence": held.fence,
                },
            ).fetchone()
            states.append(None if row is None else row[0])
            if states[-1] == "dead" and held.group is not None:
                self._unblock(now, self._queue_number(held.queue), held.group)
        return states

    def reject(self, now: float, held: Held, error: str | None) -> None:
        """Makes a leased message a dead letter. Raises `LeaseLost`."""
        if held.ended:
            self._require(held, "dead")
            return
        cursor = self._database.execute(
            """
            update message
            set state = 'dead', error = coalesce(?, error)
            where seq = ? and fence = ? and state = 'leased'
            """,
            (error, held.seq, held.fence),
        )
        if cursor.rowcount == 0:
            self._require(held, "dead")
        if held.group is not None:
            self._unblock(now, self._queue_number(held.queue), held.group)

    def promote(self, now: float, limit: int) -> tuple[dict[str, int], float | None]:
        """Makes due messages ready: how many in which queue, and when the next one is due."""
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
        counts: dict[str, int] = {}
        for (number,) in numbers:
            name = self._queue_name(number)
            counts[name] = counts.get(name, 0) + 1
        (next_due,) = self._database.execute("select min(due_at) from message where state = 'delayed'").fetchone()
        return counts, next_due

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
            gone += self._database.execute(
                """
                delete from message
                where seq in (
                  select seq
                  from message
                  where queue = ? and settled_at < ?
                  order by settled_at
                  limit ?
                )
                """,
                (number, settled_before(name), limit - gone),
            ).rowcount
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

    # ── queues ──────────────────────────────────────────────────────────────────────────────────────────

    def _queue_number(self, name: str) -> int:
        number = self._queues.get(name) or self._find_queue(name)
        if number is not None:
            return number
        (count,) = self._database.execute("select count(*) from queue").fetchone()
        if count >= MAX_QUEUES:
            raise QueueFull(f"there are {MAX_QUEUES:,} queues, and no more can be made; use fewer, with groups")
        (number,) = self._database.execute("insert into queue (name) values (?) returning number", (name,)).fetchone()
        self._queues[name] = number
        return int(number)

    def _find_queue(self, name: str) -> int | None:
        row = self._database.execute("select number from queue where name = ?", (name,)).fetchone()
        if row is None:
            return None
        self._queues[name] = row[0]
        return int(row[0])

    def _queue_name(self, number: int) -> str:
        (name,) = self._database.execute("select name from queue where number = ?", (number,)).fetchone()
        return str(name)

    # ── opening ─────────────────────────────────────────────────────────────────────────────────────────

    def _recover(self, now: float) -> None:
        """Leases do not outlive their daemon: what it had leased is delivered again (G3), or dead."""
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
        dead = self._database.execute(
            """
            update message
            set state = 'dead', error = 'the daemon ended before the message was settled'
            where queue = ? and state = 'leased' and attempts >= ?
            returning "group"
            """,
            (number, max_attempts),
        ).fetchall()
        self._database.execute(
            """
            update message
            set state = 'ready'
            where queue = ? and state = 'leased'
            """,
            (number,),
        )
        for (group,) in dead:
            if group is not None:
                self._unblock(now, number, group)
