"""The daemon's file: every statement that changes it, behind verbs (put, claim, settle, retry, …).

A verb runs inside the transaction that `transact` opens for all verbs of the moment. It either does all of its
work, or raises an `EoqError` having changed nothing, so that one refusal harms no other verb of the batch.
This is the only connection that writes and checkpoints; those that only look are in ``reader.py``.
"""

from __future__ import annotations

import json
import logging
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from importlib import resources
from itertools import chain
from pathlib import Path
from typing import Final, NamedTuple, TypeVar

import aiosqlite

from ..errors import EoqError, Forbidden, IdConflict, LeaseLost, QueueFull, StorageFailed, StorageFull

T = TypeVar("T")
Verb = Callable[[], object]

log = logging.getLogger("eoq.store")

APPLICATION_ID: Final = 0x656F7131
"""``eoq1`` in the header of the file: tells it from other SQLite files."""
MINIMUM_SQLITE: Final = (3, 40, 0)
MAX_QUEUES: Final = 100_000
MAX_ATTEMPTS: Final = 10
"""Deliveries of a message before it is dead."""
QUICK_COMMIT: Final = 0.002
"""Seconds. A disk that commits faster than this is not worth two hops between threads (0.1 ms)."""


MANY: Final = 50
"""Rows in one statement where there are many: each step of a statement costs Python as much as SQLite."""

_NEW_ROW: Final = "(?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
_PUT: Final = """
    insert into message
      (seq, queue, id, state, priority, enqueued_at, due_at, digest, "group", headers, body)
    values {rows}
    on conflict (queue, id) do nothing
    """
_PUT_ONE: Final = _PUT.format(rows=_NEW_ROW)
_PUT_MANY: Final = _PUT.format(rows=", ".join([_NEW_ROW] * MANY))

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


class _Connection(aiosqlite.Connection):
    """aiosqlite, with a whole transaction as one call: each call is a hop to its thread and back."""

    async def run(self, function: Callable[[], T]) -> T:
        return await self._execute(function)  # type: ignore[no-any-return,no-untyped-call] # aiosqlite leaves it untyped


class Store:
    """The SQLite file of a daemon. Open it with `Store.open`; one process and one writer at a time."""

    def __init__(self, connection: _Connection, database: sqlite3.Connection, path: Path, quick_commit: float) -> None:
        self.path = path
        self._connection = connection
        self._database = database
        self._quick_commit = quick_commit
        self._last_commit = 0.0
        self._durable = True
        self._queues: dict[str, int] = {}
        self._next_seq = 1

    @classmethod
    async def open(cls, path: Path, *, max_attempts: int = MAX_ATTEMPTS, quick_commit: float = QUICK_COMMIT) -> Store:
        """Opens or makes the file, brings its schema up to date, and ends the leases of the daemon before.

        Where such a lease was the last of ``max_attempts``, its message is dead.

        Raises `StorageFailed`, `StorageFull` or `Forbidden` with what to do about it.
        """
        if sqlite3.sqlite_version_info < MINIMUM_SQLITE:
            raise StorageFailed(
                f"Python is linked to SQLite {sqlite3.sqlite_version}; eoq needs 3.40 or newer: "
                "use a newer Python, or one built against a newer SQLite"
            )
        if path.is_file() and path.stat().st_nlink > 1:
            raise StorageFailed(
                f"{path} has more than one name (hard links), and SQLite would keep another log under each of them: "
                "remove all names but one"
            )
        try:
            # Two threads use it, never at once: the writer waits for the one before it asks the other.
            database = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=10)
        except sqlite3.Error as error:
            raise storage_error(error, path) from error
        connection = _Connection(lambda: database, 64)
        await connection
        store = cls(connection, database, path, quick_commit)
        try:
            await connection.run(partial(store._prepare, max_attempts))
        except sqlite3.Error as error:
            await connection.close()
            raise storage_error(error, path) from error
        except BaseException:
            await connection.close()
            raise
        return store

    async def close(self) -> None:
        """Closes the file; SQLite then moves the rest of the WAL into it."""
        await self._connection.close()

    # ── transactions ────────────────────────────────────────────────────────────────────────────────────

    @property
    def quick(self) -> bool:
        """Whether the disk answers so fast that waiting for it here is cheaper than asking the thread."""
        return self._last_commit < self._quick_commit

    async def transact_in_thread(self, verbs: Sequence[Verb], durable: bool = True) -> list[object]:
        """`transact` on aiosqlite's thread, so that a slow disk does not hold up the event loop."""
        return await self._connection.run(partial(self.transact, verbs, durable))

    def transact(self, verbs: Sequence[Verb], durable: bool = True) -> list[object]:
        """Runs all ``verbs`` in one transaction with one fsync, or without any where it need not be ``durable``.

        Returns what each returned, or the `EoqError` it raised. If the transaction fails as a whole, each verb
        is tried again in one of its own, so that an error reaches only those it belongs to.
        """
        start = time.perf_counter()
        changes = self._database.total_changes
        try:
            self._set_durable(durable)
            self._database.execute("begin immediate")
            outcomes = [self._attempt(verb) for verb in verbs]
            self._database.execute("commit")
        except Exception as error:  # noqa: BLE001 # whatever it is, the transaction is undone and the error answered
            self._undo()
            if len(verbs) == 1:
                return [self._failure(error)]
            return [self.transact([verb], durable)[0] for verb in verbs]
        if durable and self._database.total_changes != changes:
            # Only this has asked the disk; the others are quick on any.
            self._last_commit = time.perf_counter() - start
        return outcomes

    def _set_durable(self, durable: bool) -> None:
        # Without a sync of its own a transaction becomes durable with the next one that has: the WAL is one file.
        if durable != self._durable:
            self._database.execute("pragma synchronous = full" if durable else "pragma synchronous = normal")
            self._durable = durable

    def _attempt(self, verb: Verb) -> object:
        try:
            return verb()
        except EoqError as refusal:
            return refusal

    def _undo(self) -> None:
        # A failed commit (a full disk) has rolled back by itself.
        if self._database.in_transaction:
            self._database.execute("rollback")
        self._queues.clear()

    def _failure(self, error: Exception) -> EoqError:
        if isinstance(error, sqlite3.Error):
            return storage_error(error, self.path)
        log.exception("a verb of the store failed", exc_info=error)
        return EoqError(f"the daemon failed inside, and nothing was changed: {error!r}; see its log")

    @contextmanager
    def _all_or_nothing(self) -> Iterator[None]:
        self._database.execute("savepoint verb")
        try:
            yield
        except BaseException:
            # A full disk has undone the whole transaction, and the savepoint with it.
            if self._database.in_transaction:
                self._database.execute("rollback to verb")
                self._database.execute("release verb")
            self._queues.clear()
            raise
        self._database.execute("release verb")

    # ── verbs ───────────────────────────────────────────────────────────────────────────────────────────

    def put(self, now: float, messages: Sequence[NewMessage]) -> list[int]:
        """Stores messages; returns the indexes of those that were stored before, under the same id.

        Raises `IdConflict` where an id is stored with other content, and `QueueFull` where there are too many
        queues; then none of ``messages`` is stored.
        """
        first = self._next_seq
        rows = []
        grouped = False
        for message in messages:
            delayed = message.due_at is not None and message.due_at > now
            grouped = grouped or message.group is not None
            rows.append(
                (
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
            )
            self._next_seq += 1
        stored = self._execute_rows(_PUT_ONE, _PUT_MANY, rows)
        duplicates = [] if stored == len(rows) else self._duplicates(first, messages)
        if grouped:
            self._block_behind_their_group(first)
        return duplicates

    def _execute_rows(self, one: str, many: str, rows: Sequence[tuple[object, ...]]) -> int:
        """Runs a statement for all ``rows``, `MANY` at a time where there are so many; returns the rows changed."""
        changed = 0
        whole = len(rows) // MANY * MANY
        for start in range(0, whole, MANY):
            changed += self._database.execute(many, [*chain.from_iterable(rows[start : start + MANY])]).rowcount
        for row in rows[whole:]:
            changed += self._database.execute(one, row).rowcount
        return changed

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
        row = self._database.execute(
            """
            select seq
            from message
            where queue = ? and settled_at is null
            order by seq
            limit 1
            """,
            (number,),
        ).fetchone()
        return self._end() if row is None else int(row[0])

    def _end(self) -> int:
        """A place that every message yet to come lies at or above, also one that is stored after a restart.

        Not the next seq: some of those are given to duplicates, and used again after a restart.
        """
        (end,) = self._database.execute("select coalesce(max(seq), 0) + 1 from message").fetchone()
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
            self._ack(now, acks)
            return self.put(now, sends) if sends else []

    def _ack(self, now: float, acks: Sequence[tuple[Held, bytes | None]]) -> None:
        rows = [(held.seq, held.fence, result, now) for held, result in acks if not held.ended]
        if self._execute_rows(_ACK_ONE, _ACK_MANY, rows) < len(acks):
            for held, _ in acks:
                self._require(held, "done")
        for held, _ in acks:
            if held.group is not None:
                self._unblock(now, self._queue_number(held.queue), held.group)

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
            raise LeaseLost("the lease of this receipt has ended, so nothing was changed; go on with the next message")

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
        max_attempts: int,
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
                    "max_attempts": max_attempts,
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

    def _prepare(self, max_attempts: int) -> None:
        database = self._database
        (version,) = database.execute("pragma user_version").fetchone()
        (application,) = database.execute("pragma application_id").fetchone()
        (tables,) = database.execute("select count(*) from sqlite_schema").fetchone()
        if tables and application != APPLICATION_ID:
            raise StorageFailed(f"{self.path} is a SQLite file of another program; give the daemon one of its own")
        scripts = migrations()
        if version > len(scripts):
            raise StorageFailed(
                f"{self.path} was written by a newer eoq (schema {version}, this one knows {len(scripts)}); "
                "install that version again"
            )
        (mode,) = database.execute("pragma journal_mode = wal").fetchone()
        if mode != "wal":
            raise StorageFailed(f"{self.path} cannot use a write-ahead log; put it on a local file system")
        database.executescript(
            """
            pragma synchronous = full;
            pragma mmap_size = 0;
            pragma cache_size = -16384;
            pragma wal_autocheckpoint = 4000;
            pragma journal_size_limit = 67108864;
            """
        )
        for number, script in enumerate(scripts[version:], start=version + 1):
            database.executescript(
                f"""
                begin immediate;
                {script}
                pragma application_id = {APPLICATION_ID};
                pragma user_version = {number};
                commit;
                """
            )
        self._recover(max_attempts)

    def _recover(self, max_attempts: int) -> None:
        """Leases do not outlive their daemon: what it had leased is delivered again (G3), or dead."""
        self._database.execute("begin immediate")
        dead = self._database.execute(
            """
            update message
            set state = 'dead', error = 'the daemon ended before the message was settled'
            where state = 'leased' and attempts >= ?
            returning queue, "group"
            """,
            (max_attempts,),
        ).fetchall()
        self._database.execute(
            """
            update message
            set state = 'ready'
            where state = 'leased'
            """
        )
        for number, group in dead:
            if group is not None:
                self._unblock(time.time(), number, group)
        self._database.execute("commit")
        (self._next_seq,) = self._database.execute(
            """
            select max(
              (select coalesce(max(seq), 0) + 1 from message),
              (select coalesce(max(value), 1) from counter where name = 'next_seq')
            )
            """
        ).fetchone()


def migrations() -> list[str]:
    """The scripts of ``schema/``, in the order of their numbers."""
    files = [entry for entry in resources.files("eoq.daemon.schema").iterdir() if entry.name.endswith(".sql")]
    return [entry.read_text() for entry in sorted(files, key=lambda entry: entry.name)]


def storage_error(error: sqlite3.Error, path: Path) -> EoqError:
    """What a failure of SQLite means for whoever asked."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code == sqlite3.SQLITE_FULL:
        return StorageFull(f"the disk of {path} is full, so nothing was stored; free some space and try again")
    if code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM):
        return Forbidden(
            f"{path} or its folder cannot be written by this user; mend its permissions or give another --db"
        )
    if code == sqlite3.SQLITE_CANTOPEN:
        return Forbidden(f"{path} cannot be opened; check that its folder exists and that this user may write there")
    if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        return StorageFailed(f"{path} is damaged or no database ({error}); restore it from a backup")
    return StorageFailed(f"{path} could not be read or written ({error}); nothing was changed; see to the disk")
