"""The guest inbox in PostgreSQL: inside transactions that another library begins and commits over psycopg 3.

With SQLAlchemy (``postgresql+psycopg://…``) give ``sessionmaker(engine).begin`` and
``lambda session: session.connection().connection.driver_connection``; with Django ``partial(transaction.atomic,
durable=True)`` and ``lambda _: connection.connection``.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any, Generic, TypeVar

import psycopg

from ..errors import InvalidRequest
from ..inbox.committed import not_committed
from ..inbox.forked import LibraryConnections
from ..inbox.rules.aio_settling import give_back
from ..inbox.rules.pruning import Pruning, Stream
from ..message import AsyncMessage
from ..outcomes import error_text
from ..system.forks import watch_forks
from .aio_transaction import AsyncPgProcessed, find_tables
from .driver import conflict_pauses, cut, is_conflict
from .sql.inbox import Schema

T = TypeVar("T")
R = TypeVar("R")


class AsyncPgGuestInbox(Generic[T]):
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
        begin: Callable[[], AbstractAsyncContextManager[T]],
        connection: Callable[[T], Awaitable[psycopg.AsyncConnection[Any]]],
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
        self._connections: LibraryConnections[psycopg.AsyncConnection[Any], None] = LibraryConnections(
            lambda connection: not connection.closed, lambda _: None
        )
        self._in_use: set[psycopg.AsyncConnection[Any]] = set()
        watch_forks(self)

    def forked(self) -> None:
        """Cut off the connections in a child that a handler has forked: their transactions are the parent's."""
        for connection in self._in_use:
            cut(connection)
        self._in_use = set()

    async def process(
        self, message: AsyncMessage, handler: Callable[[T, AsyncMessage], Awaitable[object]]
    ) -> bytes | None:
        """Apply a message in one transaction of the library, and ack it after the commit.

        Raises `InvalidRequest` if the library's block ended without an exception, but did not commit: Django discards a
        block in which an error of the database was caught.
        """

        async def work(transaction: T, processed: AsyncPgProcessed) -> bytes | None:
            if processed.was_processed(message):
                return processed.result(message)
            return await processed.apply(message, lambda: handler(transaction, message))

        self._connections.refuse_inherited()  # outside: the message is the parent's, and must not be given back here
        process = os.getpid()
        try:
            result, number = await self._in_transaction([message], work)
            # Also the id of a message that was processed before may be in a transaction around this one.
            if not await self._is_committed(message, number):
                raise not_committed(message)
        except Exception as error:
            if process == os.getpid():  # in a child that the handler has forked, the message is the parent's
                await give_back(message, error)
            raise
        await message.ack(result=result)
        return result

    async def seen(self, queue: str, id: str) -> bool:
        """Return whether this message was processed, and its id was not pruned since."""

        async def look(_transaction: T, processed: AsyncPgProcessed) -> bool:
            return await processed.seen(queue, id)

        found, _number = await self._in_transaction([], look)
        return found

    async def prune(self) -> int:
        """Delete all ids that can be deleted, with a transaction for each step. Return how many were deleted."""

        async def look(_transaction: T, processed: AsyncPgProcessed) -> list[Stream]:
            return await processed.streams()

        streams, _number = await self._in_transaction([], look)
        count = 0
        for stream in streams:
            count += await self._prune(stream)
        return count

    async def _prune(self, stream: Stream) -> int:
        count, from_start, ended = 0, True, False
        while not ended:

            async def step(
                _transaction: T, processed: AsyncPgProcessed, from_start: bool = from_start
            ) -> tuple[int, bool]:
                return await processed.prune(stream, from_start)

            (deleted, ended), _number = await self._in_transaction([], step)
            count += deleted
            from_start = False
        return count

    # ── the library's transaction ───────────────────────────────────────────────────────────────────────

    async def _in_transaction(
        self, messages: list[AsyncMessage], work: Callable[[T, AsyncPgProcessed], Awaitable[R]]
    ) -> tuple[R, int]:
        """Return what ``work`` returns in a transaction of the library, and the number of that transaction.

        It is repeated where another transaction was in its way.
        """
        pauses = conflict_pauses()
        while True:
            try:
                return await self._try_transaction(messages, work)
            except Exception as error:
                pause = next(pauses)
                if pause is None or not is_conflict(error):
                    raise
            await asyncio.sleep(pause)  # until the other transaction has ended

    async def _try_transaction(
        self, messages: list[AsyncMessage], work: Callable[[T, AsyncPgProcessed], Awaitable[R]]
    ) -> tuple[R, int]:
        self._connections.refuse_inherited()
        own: BaseException | None = None
        joined: AsyncPgProcessed | None = None
        try:
            async with self._begin() as transaction:
                try:
                    joined = await self._join(transaction)
                    await joined.join(messages)
                    result = await work(transaction, joined)
                    await joined.finish()
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

    async def _join(self, transaction: T) -> AsyncPgProcessed:
        connection = await self._connection(transaction)
        self._in_use.add(connection)
        tables = self._tables or await find_tables(connection, self._schema)
        return AsyncPgProcessed(connection, tables, self._pruning, self._clock)

    async def _connection(self, transaction: T) -> psycopg.AsyncConnection[Any]:
        connection = await self._connection_of(transaction)
        if not isinstance(connection, psycopg.AsyncConnection):
            raise InvalidRequest(
                f"`connection` returned a {type(connection).__name__}, not psycopg's connection of the transaction; "
                "this inbox works with PostgreSQL over psycopg 3"
            )
        self._connections.note(connection)
        return connection

    async def _is_committed(self, message: AsyncMessage, number: int) -> bool:
        """Return whether the id of a message is committed, as another transaction of the library sees it."""
        async with self._begin() as transaction:
            connection = await self._connection(transaction)
            tables = self._tables or await find_tables(connection, self._schema)
            shown = await AsyncPgProcessed(connection, tables, self._pruning, self._clock).is_committed(message, number)
        if shown:
            self._tables = tables  # they were not made in a transaction that was rolled back
        return shown
