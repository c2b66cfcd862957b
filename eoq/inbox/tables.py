"""The inbox's tables in the application's file, and one transaction on them: all of an inbox that waits for nothing.

`Inbox` calls it, `AsyncInbox` runs it on its connection's thread, `GuestInbox` inside a transaction of somebody
else's. The tables are plain SQL, so that a consumer in any language can keep them:

    create table eoq_processed (
      queue text not null,
      id text not null,
      seq integer not null,        -- the message's place in the daemon's file
      result blob,                 -- what the handler returned, as bytes
      processed_at real not null,  -- seconds since the epoch: when it was processed, or last came again
      primary key (queue, id)
    ) without rowid

    create table eoq_watermark (
      queue text not null primary key,
      watermark integer not null,  -- as a delivery brought it
      seen_at real not null        -- when that delivery was asked for, seconds since the epoch
    ) without rowid

A message that is found runs nothing; its ``seq`` and ``processed_at`` are only ever raised, to those of now. What may
be forgotten again is said in ``forgetting.py``.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Any, Final, TypeAlias

from ..errors import InvalidRequest, LeaseLost, MessageTooLarge
from ..message import Delivery, encode_payload
from ..protocol.limits import MAX_BODY
from ..system.sqlite import DURABLE
from .pruning import Pruning

Key: TypeAlias = tuple[str, str]
"""A queue and an id."""

MANY: Final = 50
"""Rows in one statement where there are many: each step of a statement costs Python as much as SQLite."""

_EXTRA: Final = 3

# The index is for forgetting: without it each step would read all that is kept. With the steps it costs a message
# that comes alone some 6 µs of 600, and one among many about 1 of 35.
_SCHEMA: Final = (
    """
    create table if not exists eoq_processed (
      queue text not null,
      id text not null,
      seq integer not null,
      result blob,
      processed_at real not null,
      primary key (queue, id)
    ) without rowid
    """,
    """
    create index if not exists eoq_processed_by_seq on eoq_processed (queue, seq, processed_at)
    """,
    """
    create table if not exists eoq_watermark (
      queue text not null primary key,
      watermark integer not null,
      seen_at real not null
    ) without rowid
    """,
)
# Our own words for what a handler may not do: a statement of the same text, prepared while it was allowed, would
# come from the connection's cache and pass the guard.
_BEGIN: Final = "begin immediate /* eoq inbox */"
_COMMIT: Final = "commit /* eoq inbox */"
_ROLLBACK: Final = "rollback /* eoq inbox */"
_ENDING: Final = (sqlite3.SQLITE_TRANSACTION, sqlite3.SQLITE_ATTACH, sqlite3.SQLITE_DETACH)
_READING: Final = (sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION, sqlite3.SQLITE_RECURSIVE)

_FIND: Final = """
    select cast(result as blob)
    from eoq_processed
    where queue = ? and id = ?
    """
# By their place in the list, not by their text: the application may have set a text_factory.
_FIND_MANY: Final = """
    select asked.key, cast(eoq_processed.result as blob)
    from json_each(?) as asked
    cross join eoq_processed on eoq_processed.queue = ? and eoq_processed.id = asked.value
    """
_INSERT: Final = """
    insert into eoq_processed (queue, id, seq, result, processed_at)
    values {rows}
    """
_NEW_ROW: Final = "(?, ?, ?, ?, ?)"
_INSERT_ONE: Final = _INSERT.format(rows=_NEW_ROW)
_INSERT_MANY: Final = _INSERT.format(rows=", ".join([_NEW_ROW] * MANY))


class Processed:
    """The processed messages of one SQLite connection, and at most one transaction that adds to them.

    `begin`, then for each message `known`, or `mark`, a handler and `accept`; then `finish`, or `undo`.
    Raises the errors of `sqlite3` as they are, and `InvalidRequest` for what a caller or a handler may not do.
    """

    def __init__(
        self, database: sqlite3.Connection, forgetting: Pruning, clock: Callable[[], float], *, owned: bool
    ) -> None:
        self._database = database
        self._forgetting = forgetting
        self._clock = clock
        self._owned = owned
        self._joined = False
        self._guarded = False
        self._refused = False
        self._isolation_level = database.isolation_level
        self._synchronous = _EXTRA
        self._known: dict[Key, bytes | None] = {}
        self._new: list[Delivery] = []
        self._again: list[Delivery] = []
        if owned:
            database.set_authorizer(self._authorize)

    def create(self) -> None:
        """Makes the tables where they are missing, in a transaction of its own."""
        with self.transaction():
            self._create()

    def _create(self) -> None:
        for statement in _SCHEMA:
            self._database.execute(statement)

    # ── the transaction ─────────────────────────────────────────────────────────────────────────────────

    @contextmanager
    def transaction(self, messages: Sequence[Delivery] = ()) -> Iterator[None]:
        """`begin`, and `finish` at the end or `undo` after an exception."""
        self.begin(messages)
        try:
            yield
            self.finish()
        except BaseException:
            self.undo()
            raise

    def begin(self, messages: Sequence[Delivery] = ()) -> None:
        """Begins a transaction that may process ``messages``, and finds those that were processed before."""
        self.refuse_open_transaction()
        try:
            if not self._owned:
                self._database.set_authorizer(self._authorize)
                self._isolation_level = self._database.isolation_level
                ((self._synchronous,),) = self._rows("pragma synchronous", ())
                if self._synchronous < _EXTRA:
                    self._database.execute(DURABLE)
            # Not in autocommit mode: should a statement of a handler's undo the transaction (`insert or rollback`),
            # the next one that writes would commit by itself, where now it begins a transaction and meets the guard.
            if self._database.isolation_level is None:
                self._database.isolation_level = "IMMEDIATE"
            self._database.execute(_BEGIN)
            self._find(messages)
        except BaseException:
            self.undo()
            raise

    def join(self, messages: Sequence[Delivery]) -> None:
        """`begin` inside a transaction of the caller's, which the caller ends; begins it if it is not yet begun."""
        self._joined = True
        self._database.set_authorizer(self._authorize)
        if not self._database.in_transaction:
            # At once for writing: a transaction that begins to write later can find its place taken.
            self._database.execute(_BEGIN)
        self._create()
        self._find(messages)

    def finish(self) -> None:
        """Records what was accepted, forgets a little where it is time to, and commits."""
        now = self._clock()
        self._record(now)
        self._forgetting.go_on(self._database, chain(self._new, self._again), now)
        if not self._joined:
            self._database.execute(_COMMIT)
        self._rest()

    def undo(self) -> None:
        """Rolls back what `begin` began, or `join` found."""
        self._guarded = False
        try:
            # Also what was joined: its library may have lost sight of it, and it must not wait in a pool.
            if self._database.in_transaction:
                self._database.execute(_ROLLBACK)
        finally:
            self._rest()

    def _rest(self) -> None:
        self._known.clear()
        self._new.clear()
        self._again.clear()
        if not self._owned:
            self._database.set_authorizer(None)
            if not self._joined and not self._database.in_transaction:  # which this would commit
                self._database.isolation_level = self._isolation_level
                if self._synchronous < _EXTRA:
                    self._database.execute(f"pragma synchronous = {self._synchronous}")

    def refuse_open_transaction(self) -> None:
        """Raises `InvalidRequest` where the application has a transaction open on its connection."""
        if self._database.in_transaction:
            raise InvalidRequest(
                "the connection has a transaction open, so the inbox cannot begin its own: commit or roll back first "
                "(a connection made with autocommit=False always has one; use the default, or isolation_level=None)"
            )

    # ── messages ────────────────────────────────────────────────────────────────────────────────────────

    def _find(self, messages: Sequence[Delivery]) -> None:
        if len(messages) == 1:
            (message,) = messages
            for (result,) in self._rows(_FIND, (message.queue, message.id)):
                self._known[message.queue, message.id] = result
            return
        by_queue: dict[str, list[str]] = {}
        for message in messages:
            by_queue.setdefault(message.queue, []).append(message.id)
        for queue, ids in by_queue.items():
            for index, result in self._rows(_FIND_MANY, (json.dumps(ids), queue)):
                self._known[queue, ids[index]] = result

    def known(self, message: Delivery) -> bool:
        """Whether this message was processed before, perhaps in this very transaction. It is remembered anew."""
        if (message.queue, message.id) not in self._known:
            return False
        self._again.append(message)
        return True

    def is_old(self, message: Delivery) -> bool:
        """Whether a delivery is one for `refuse_late`."""
        return self._forgetting.is_old(message, self._clock())

    def refuse_late(self, message: Delivery) -> None:
        """Raises `LeaseLost` for a delivery, not `known`, that came so long ago that its id may be forgotten."""
        now = self._clock()
        if self._forgetting.is_old(message, now) and self._forgetting.is_late(self._database, message, now):
            raise LeaseLost(
                f"the message {message.id!r} was delivered more than {self._forgetting.keep:g} s ago (`keep`), and may "
                "have been processed and forgotten since, so its handler was not run; if it is still to be processed "
                "it comes again"
            )

    def result(self, message: Delivery) -> bytes | None:
        """The result of a message that is `known`."""
        return self._known[message.queue, message.id]

    def accept(self, message: Delivery, returned: object) -> bytes | None:
        """Takes what a handler returned as the message's result; returns it as bytes.

        Raises `InvalidRequest` or `MessageTooLarge` where it can be none: better now than after the commit, when
        it could not be acked any more.
        """
        self._guarded = False
        # A library that was refused a commit no longer knows of the transaction, and would not commit it later.
        if not self._database.in_transaction or (self._joined and self._refused):
            raise InvalidRequest(
                f"the handler of {message.id!r} ended the transaction; leave commit and rollback to the inbox"
            )
        result = None if returned is None else encode_payload(returned)[0]
        if result is not None and len(result) > MAX_BODY:
            raise MessageTooLarge(
                f"the handler's result has {len(result):,} bytes and {MAX_BODY:,} is the limit; store it elsewhere"
            )
        try:
            self._database.execute("release eoq_message")
        except sqlite3.OperationalError as error:
            raise InvalidRequest(
                f"a statement of the handler of {message.id!r} failed and undid the whole transaction (a full disk, or "
                "`on conflict rollback`), and the handler went on; it has to let that error pass"
            ) from error
        self._known[message.queue, message.id] = result
        self._new.append(message)
        return result

    def _record(self, now: float) -> None:
        rows = [(m.queue, m.id, m.seq, self._known[m.queue, m.id], now) for m in self._new]
        whole = len(rows) // MANY * MANY
        for start in range(0, whole, MANY):
            self._database.execute(_INSERT_MANY, [*chain.from_iterable(rows[start : start + MANY])])
        for row in rows[whole:]:
            self._database.execute(_INSERT_ONE, row)
        for message in self._again:
            # In another file of the daemon's the same message may have another place: the higher one holds longer.
            self._database.execute(
                """
                update eoq_processed
                set seq = max(seq, ?), processed_at = max(processed_at, ?)
                where queue = ? and id = ?
                """,
                (message.seq, now, message.queue, message.id),
            )

    def seen(self, queue: str, id: str) -> bool:
        """Whether this message was processed."""
        return bool(self._rows(_FIND, (queue, id)))

    def _rows(self, sql: str, parameters: tuple[object, ...]) -> list[tuple[Any, ...]]:
        cursor = self._database.cursor()
        cursor.row_factory = None  # the application may have set one on its connection
        return cursor.execute(sql, parameters).fetchall()

    # ── handlers ────────────────────────────────────────────────────────────────────────────────────────

    def mark(self) -> None:
        """A handler is about to run: until `accept` nobody may end the transaction.

        Its savepoint tells whether the transaction is still the same then, and lets a failure undo only its own writes.
        """
        self._database.execute("savepoint eoq_message")
        self._guarded = True

    def back_to_mark(self, error: Exception) -> None:
        """It has failed. Raises its ``error`` where that has undone the whole transaction."""
        self._guarded = False
        if not self._database.in_transaction:
            raise error
        self._database.execute("rollback to eoq_message")
        self._database.execute("release eoq_message")

    def _authorize(self, action: int, *_details: object) -> int:
        # Where a statement has undone the transaction, whatever writes would commit by itself.
        if self._guarded and (action in _ENDING or (action not in _READING and not self._database.in_transaction)):
            self._refused = True
            return sqlite3.SQLITE_DENY
        return sqlite3.SQLITE_OK

    # ── forgetting ──────────────────────────────────────────────────────────────────────────────────────

    def forgettable(self) -> list[str]:
        """The queues of which a watermark is known."""
        return self._forgetting.queues(self._database)

    def forget(self, queue: str, after: int | None) -> tuple[int, int | None]:
        """One step of forgetting, in a transaction of its own. See `Pruning.forget`."""
        with self.transaction():
            return self.forget_here(queue, after)

    def forget_here(self, queue: str, after: int | None) -> tuple[int, int | None]:
        """`forget` inside a transaction that is open."""
        return self._forgetting.forget(self._database, queue, after, self._clock())
