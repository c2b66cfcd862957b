# Made from aio_inbox.py by .ci/unasync.py. Change that file, then run the script.
"""The inbox in PostgreSQL: a handler's writes and the processed id in one transaction of the application's database.

It does what the inbox in SQLite does (``inbox/aio.py``). The transaction is in ``transaction.py``. This file opens
connections, calls the handler, and acks.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeAlias, TypeVar

import psycopg
from psycopg.pq import TransactionStatus

from .. import outcomes
from ..errors import InvalidRequest
from ..inbox.rules.batch import Results, split
from ..inbox.rules.pruning import Pruning, Stream
from ..inbox.rules.settling import ack_all, give_back
from ..message import Message
from ..system.forks import watch_forks
from .driver import conflict_pauses, cut, is_conflict, with_defaults
from .sql.inbox import Schema
from .transaction import PgProcessed, find_tables, refuse_open_transaction

T = TypeVar("T")

PgHandler: TypeAlias = Callable[[psycopg.Connection[Any], Message], object]
"""Called with the connection, inside the open transaction, and the message. It returns the result (or None)."""

_inside: ContextVar[tuple[object, ...]] = ContextVar("eoq_postgres_inside", default=())
"""The inboxes in whose transactions this code runs."""


class PgInbox:
    """The processed messages of one PostgreSQL database. It works as the inbox of a SQLite file does.

    ``database`` is a connection string (``postgresql://shop@db/shop``, ``service=shop``) by which the inbox opens
    connections: as many as transactions run at the same time, and it keeps them until `close`. Or it is an open
    connection of psycopg, which remains the application's; its transactions run one after the other.

    ``keep`` is how many seconds a processed id is kept at least; the default is the retention of its queue. ``schema``
    is the schema of the tables. By default it is the first in the search path that has them, or else the current one.
    ``clock`` returns seconds since the epoch. By default that is the clock of the database, so that workers on several
    machines agree.

    A handler gets the connection inside a transaction. It may use savepoints (``tx.transaction()``), but it cannot
    commit or roll back: psycopg refuses that, and the database refuses a commit in SQL. A transaction that fails
    because of another one at the same time (a serialization failure, a deadlock) is repeated, so the handler runs
    again. Where the database confirms commits before they are on disk (``synchronous_commit = off``), those of the
    inbox wait for the disk.

    A forked child may use an inbox of a connection string: it opens connections of its own.
    """

    def __init__(
        self,
        database: str | psycopg.Connection[Any],
        *,
        keep: float | None = None,
        schema: str | None = None,
        clock: Callable[[], float] | None = None,
    ) -> None:
        self._conninfo = with_defaults(database) if isinstance(database, str) else None
        self._given = None if isinstance(database, str) else database
        self._pruning = Pruning(keep)
        self._schema = schema
        self._clock = clock
        self._tables: Schema | None = None
        self._idle: list[psycopg.Connection[Any]] = []
        self._in_use: set[psycopg.Connection[Any]] = set()
        self._lock = threading.Lock()
        """Held while the connection that was given is in use."""
        self._closed = False
        self._refused = False
        """Whether this process must not use the connection that was given."""
        watch_forks(self)

    def __enter__(self) -> PgInbox:
        try:
            with self._connection() as connection:
                self._find_tables(connection)
        except BaseException:
            self._close_idle()  # nobody calls `__exit__`
            raise
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections that the inbox has opened."""
        self._closed = True
        self._close_idle()

    def forked(self) -> None:
        """Start anew in a forked child. The connections are the parent's."""
        for connection in (*self._idle, *self._in_use):
            cut(connection)
        self._idle, self._in_use, self._lock = [], set(), threading.Lock()
        self._refused = self._given is not None

    # ── processing ──────────────────────────────────────────────────────────────────────────────────────

    def process(self, message: Message, handler: PgHandler) -> bytes | None:
        """Apply a message once, and ack it. Return the handler's result as bytes, from now or from the first time.

        If the handler raises, its writes are rolled back, the message is given back with the error's text (or as
        `Reject` and `Retry` say), and the exception reaches the caller.

        Raises `LeaseLost` if the lease ended before the ack. The effect is then committed; the message is delivered
        again, and is then only acked. Raises `LeaseLost`, and commits nothing, if the delivery is older than ``keep``
        and its id may have been pruned.

        If the connection is lost during the commit, nobody knows yet whether it took place. The message is then given
        back, and its next delivery finds the id or not.
        """

        def work(processed: PgProcessed) -> bytes | None:
            if processed.was_processed(message):
                return processed.result(message)
            return processed.apply(message, lambda: handler(processed.connection, message))

        process = os.getpid()
        try:
            result = self._in_transaction([message], work)
        except Exception as error:
            if process == os.getpid():  # in a child that the handler has forked, the message is the parent's
                give_back(message, error)
            raise
        message.ack(result=result)
        return result

    def process_many(self, messages: Iterable[Message], handler: PgHandler) -> list[bytes | Exception | None]:
        """Apply many messages in one transaction, each in a savepoint of its own, and ack them together.

        Return a list with one entry for each message: what `process` would return, or the exception that its handler
        raised. A message whose handler raises undoes only its own writes, and is given back.

        Raises `LeaseLost` if some leases ended before the acks; the other messages are acked all the same. If the whole
        transaction fails, each message is processed again in one of its own. If that fails because the database cannot
        be reached, say, raises the error, and gives back all messages that are left.
        """
        batch = list(messages)
        results: Results = []

        def work(processed: PgProcessed) -> None:
            results.clear()
            for message in batch:
                if processed.was_processed(message):
                    results.append(processed.result_or_refusal(message))
                else:
                    results.append(_apply_alone(processed, message, handler))

        process = os.getpid()
        try:
            self._in_transaction(batch, work)
        except Exception as error:
            if process != os.getpid():
                raise
            if len(batch) > 1 and not outcomes.is_outage(error):
                return self._one_by_one(batch, handler)
            for message in batch:
                give_back(message, error)
            raise
        acks, failed = split(batch, results)
        for message, reason in failed:
            give_back(message, reason)
        ack_all(acks)
        return results

    def _one_by_one(self, batch: Sequence[Message], handler: PgHandler) -> Results:
        """Process each message in a transaction of its own, since they could not be committed together."""
        results: Results = []
        for index, message in enumerate(batch):
            try:
                results.append(self.process(message, handler))
            except Exception as error:
                if outcomes.is_outage(error):
                    for other in batch[index + 1 :]:
                        give_back(other, error)
                    raise
                results.append(error)
        return results

    # ── queries and pruning ─────────────────────────────────────────────────────────────────────────────

    def seen(self, queue: str, id: str) -> bool:
        """Return whether the database has the id of this message: it was processed, and its id was not pruned since."""
        if self._given is not None and self in _inside.get():
            return PgProcessed(self._given, self._find_tables(self._given), self._pruning, self._clock).seen(queue, id)
        return self._in_transaction([], lambda processed: processed.seen(queue, id))

    def prune(self) -> int:
        """Delete all ids that can be deleted. Return how many were deleted.

        An inbox that processes messages prunes by itself. Call this from a cron job of an application that processes
        no more messages, or after ``keep`` was made shorter. It uses the watermarks of the last deliveries, and makes
        transactions of a few rows each.
        """
        count = 0
        for stream in self._in_transaction([], lambda processed: processed.streams()):
            count += self._prune(stream)
        return count

    def _prune(self, stream: Stream) -> int:
        count, from_start, ended = 0, True, False
        while not ended:

            def step(processed: PgProcessed, from_start: bool = from_start) -> tuple[int, bool]:
                return processed.prune(stream, from_start)

            deleted, ended = self._in_transaction([], step)
            count += deleted
            from_start = False
        return count

    # ── connections and transactions ────────────────────────────────────────────────────────────────────

    def _in_transaction(self, messages: Sequence[Message], work: Callable[[PgProcessed], T]) -> T:
        """Return what ``work`` returns, from a transaction. It is repeated where another one was in its way."""
        pauses = conflict_pauses()
        while True:
            try:
                with self._connection() as connection:
                    tables = self._find_tables(connection)
                    processed = PgProcessed(connection, tables, self._pruning, self._clock)
                    return processed.transaction(messages, work)
            except Exception as error:
                pause = next(pauses)
                if pause is None or not is_conflict(error):
                    raise
            time.sleep(pause)  # until the other transaction has ended

    def _find_tables(self, connection: psycopg.Connection[Any]) -> Schema:
        if self._tables is None:
            refuse_open_transaction(connection)
            with connection.transaction():
                tables = find_tables(connection, self._schema)
            self._tables = tables
        return self._tables

    @contextmanager
    def _connection(self) -> Iterator[psycopg.Connection[Any]]:
        if self._closed:
            raise InvalidRequest("this inbox is closed; make a new one")
        if self._refused:
            raise InvalidRequest(
                "this inbox uses a connection that was opened before this process was forked, and belongs to the "
                "parent: open a connection and make an inbox in the child"
            )
        if self in _inside.get() and self._given is not None:
            raise InvalidRequest("a handler is inside the inbox's transaction already; process other messages after it")
        before = _inside.set((*_inside.get(), self))
        try:
            if self._given is not None:
                with self._lock:
                    self._in_use.add(self._given)
                    try:
                        yield self._given
                    finally:
                        self._in_use.discard(self._given)
            else:
                with self._own_connection() as connection:
                    yield connection
        finally:
            _inside.reset(before)

    @contextmanager
    def _own_connection(self) -> Iterator[psycopg.Connection[Any]]:
        process = os.getpid()
        connection = self._idle.pop() if self._idle else self._connect()
        self._in_use.add(connection)
        try:
            yield connection
        finally:
            self._in_use.discard(connection)
            if process == os.getpid():
                if connection.broken:
                    self._close_idle()  # the database has ended them as well
                if self._closed or connection.info.transaction_status != TransactionStatus.IDLE:
                    connection.close()
                else:
                    self._idle.append(connection)

    def _close_idle(self) -> None:
        while self._idle:
            self._idle.pop().close()

    def _connect(self) -> psycopg.Connection[Any]:
        return psycopg.Connection.connect(self._conninfo or "")


def _apply_alone(processed: PgProcessed, message: Message, handler: PgHandler) -> bytes | Exception | None:
    try:
        return processed.apply(message, lambda: handler(processed.connection, message))
    except Exception as error:
        if is_conflict(error) or outcomes.is_outage(error):
            raise  # the whole transaction has failed
        return error
