# Made from aio_guest.py by .ci/unasync.py. Change that file, then run the script.
"""The guest inbox in PostgreSQL: inside transactions that another library begins and commits over psycopg 3.

With SQLAlchemy (``postgresql+psycopg://…``) give ``sessionmaker(engine).begin`` and
``lambda session: session.connection().connection.driver_connection``; with Django ``partial(transaction.atomic,
durable=True)`` and ``lambda _: connection.connection``.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Generic, TypeVar

import psycopg

from ..errors import InvalidRequest
from ..inbox.committed import not_committed
from ..inbox.forked import LibraryConnections
from ..inbox.rules.pruning import Pruning, Stream
from ..inbox.rules.settling import give_back
from ..message import Message
from ..outcomes import error_text
from ..system.forks import watch_forks
from .driver import conflict_pauses, cut, is_conflict
from .sql.inbox import Schema
from .transaction import PgProcessed, find_tables

T = TypeVar("T")
R = TypeVar("R")


class PgGuestInbox(Generic[T]):
    """An inbox inside the PostgreSQL transactions of another library, such as SQLAlchemy or Django.

    ``begin`` returns a context manager that begins a transaction, commits it at its end, and rolls it back after an
    exception. It has to be the outermost transaction, since the message is acked after it. ``connection`` is called
    with what the context manager yields, and returns psycopg's connection of the transaction. The handler gets what the
    context manager yields, and the message. ``keep``, ``schema`` and ``clock`` are those of the inbox that opens its
    own connections.

    A handler cannot commit: the database refuses it, and its writes are undone. Before the ack a second transaction of
    the library looks whether the first one has committed.
    """

    def __init__(
        self,
        begin: Callable[[], AbstractContextManager[T]],
        connection: Callable[[T], psycopg.Connection[Any]],
        *,
        keep: float | None = None,
        schema: str | None = None,
        clock: Callable[[], float] | None = None,
    ) -> None:
        self._begin = begin
        self._connection_of = connection
        self._pruning = Pruning(keep)
        self._schema = schema
        self._clock = clock
        self._tables: Schema | None = None
        self._connections: LibraryConnections[psycopg.Connection[Any], None] = LibraryConnections(
            lambda connection: not connection.closed, lambda _: None
        )
        self._in_use: set[psycopg.Connection[Any]] = set()
        watch_forks(self)

    def forked(self) -> None:
        """Cut off the connections in a child that a handler has forked: their transactions are the parent's."""
        for connection in self._in_use:
            cut(connection)
        self._in_use = set()

    def process(self, message: Message, handler: Callable[[T, Message], object]) -> bytes | None:
        """Apply a message in one transaction of the library, and ack it after the commit.

        Raises `InvalidRequest` if the library's block ended without an exception, but did not commit: Django discards a
        block in which an error of the database was caught.
        """

        def work(transaction: T, processed: PgProcessed) -> bytes | None:
            if processed.was_processed(message):
                return processed.result(message)
            return processed.apply(message, lambda: handler(transaction, message))

        self._connections.refuse_inherited()  # outside: the message is the parent's, and must not be given back here
        process = os.getpid()
        try:
            result, number = self._in_transaction([message], work)
            # Also the id of a message that was processed before may be in a transaction around this one.
            if not self._is_committed(message, number):
                raise not_committed(message)
        except Exception as error:
            if process == os.getpid():  # in a child that the handler has forked, the message is the parent's
                give_back(message, error)
            raise
        message.ack(result=result)
        return result

    def seen(self, queue: str, id: str) -> bool:
        """Return whether this message was processed, and its id was not pruned since."""

        def look(_transaction: T, processed: PgProcessed) -> bool:
            return processed.seen(queue, id)

        found, _number = self._in_transaction([], look)
        return found

    def prune(self) -> int:
        """Delete all ids that can be deleted, with a transaction for each step. Return how many were deleted."""

        def look(_transaction: T, processed: PgProcessed) -> list[Stream]:
            return processed.streams()

        streams, _number = self._in_transaction([], look)
        count = 0
        for stream in streams:
            count += self._prune(stream)
        return count

    def _prune(self, stream: Stream) -> int:
        count, from_start, ended = 0, True, False
        while not ended:

            def step(_transaction: T, processed: PgProcessed, from_start: bool = from_start) -> tuple[int, bool]:
                return processed.prune(stream, from_start)

            (deleted, ended), _number = self._in_transaction([], step)
            count += deleted
            from_start = False
        return count

    # ── the library's transaction ───────────────────────────────────────────────────────────────────────

    def _in_transaction(self, messages: list[Message], work: Callable[[T, PgProcessed], R]) -> tuple[R, int]:
        """Return what ``work`` returns in a transaction of the library, and the number of that transaction.

        It is repeated where another transaction was in its way.
        """
        pauses = conflict_pauses()
        while True:
            try:
                return self._try_transaction(messages, work)
            except Exception as error:
                pause = next(pauses)
                if pause is None or not is_conflict(error):
                    raise
            time.sleep(pause)  # until the other transaction has ended

    def _try_transaction(self, messages: list[Message], work: Callable[[T, PgProcessed], R]) -> tuple[R, int]:
        self._connections.refuse_inherited()
        own: BaseException | None = None
        joined: PgProcessed | None = None
        try:
            with self._begin() as transaction:
                try:
                    joined = self._join(transaction)
                    joined.join(messages)
                    result = work(transaction, joined)
                    joined.finish()
                except BaseException as error:
                    own = error
                    raise
        except Exception as error:
            if own is None or error is own:
                raise
            own.add_note(f"eoq: the library's block then ended with {error_text(error)}")
            raise own from own.__cause__
        finally:
            if joined is not None:
                joined.forget_receipts()
                self._in_use.discard(joined.connection)
        if own is not None:
            raise own  # the library's block has suppressed it
        return result, joined.number

    def _join(self, transaction: T) -> PgProcessed:
        connection = self._connection(transaction)
        self._in_use.add(connection)
        tables = self._tables or find_tables(connection, self._schema)
        return PgProcessed(connection, tables, self._pruning, self._clock)

    def _connection(self, transaction: T) -> psycopg.Connection[Any]:
        connection = self._connection_of(transaction)
        if not isinstance(connection, psycopg.Connection):
            raise InvalidRequest(
                f"`connection` returned a {type(connection).__name__}, not psycopg's connection of the transaction; "
                "this inbox works with PostgreSQL over psycopg 3"
            )
        self._connections.note(connection)
        return connection

    def _is_committed(self, message: Message, number: int) -> bool:
        """Return whether the id of a message is committed, as another transaction of the library sees it."""
        with self._begin() as transaction:
            connection = self._connection(transaction)
            tables = self._tables or find_tables(connection, self._schema)
            shown = PgProcessed(connection, tables, self._pruning, self._clock).is_committed(message, number)
        if shown:
            self._tables = tables  # they were not made in a transaction that was rolled back
        return shown
