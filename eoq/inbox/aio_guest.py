"""The guest inbox for asyncio: the twin of ``guest.py``, inside transactions of a library that works over aiosqlite.

    async def connection(session):
        return (await (await session.connection()).get_raw_connection()).driver_connection

    inbox = eoq.AsyncGuestInbox(async_sessionmaker(engine).begin, connection)
    await inbox.process(message, book)        # await book(session, message)

What the inbox does itself runs on the thread of the library's connection.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, suppress
from functools import partial
from typing import Generic, TypeVar

import aiosqlite

from ..errors import InvalidRequest
from ..message import AsyncMessage
from ..outcomes import error_text
from ..system.aio_sqlite import run
from ..system.aio_thread import complete, in_thread
from .committed import Disk, FileIdentity, Place, not_committed
from .forked import LibraryConnections, file_of, is_open
from .rules.aio_settling import give_back
from .rules.pruning import Pruning, Stream
from .transaction import Processed

T = TypeVar("T")
R = TypeVar("R")


class _Joined:
    """The tables of the inbox inside an open transaction of the library."""

    def __init__(
        self, connection: aiosqlite.Connection, processed: Processed, place: Place, file: FileIdentity
    ) -> None:
        self.connection = connection
        self.processed = processed
        self.place = place
        self.file = file

    async def run(self, work: Callable[[], R]) -> R:
        """Run ``work`` on the thread of the connection."""
        return await run(self.connection, lambda _database: work())

    async def roll_back(self, error: BaseException) -> None:
        """Roll back for ``error``, even if this task is cancelled again."""
        try:
            await complete(self.run(partial(self.processed.rollback, error)))
        except ValueError:  # the library has closed the connection, as SQLAlchemy does after a cancellation
            self.processed.abandon()


class AsyncGuestInbox(Generic[T]):
    """An inbox inside the transactions of another library over aiosqlite, such as SQLAlchemy's `AsyncSession`.

    ``begin`` returns an asynchronous context manager that begins a transaction, commits it at its end, and rolls it
    back after an exception: ``async_sessionmaker(engine).begin`` of SQLAlchemy. ``connection`` is awaited with what the
    context manager yields, and returns the `aiosqlite.Connection` of the transaction. The handler is awaited with what
    the context manager yields, and the message. All else is as for `GuestInbox`.
    """

    def __init__(
        self,
        begin: Callable[[], AbstractAsyncContextManager[T]],
        connection: Callable[[T], Awaitable[aiosqlite.Connection]],
        *,
        keep: float | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._begin = begin
        self._connection_of = connection
        self._pruning = Pruning(keep)
        self._clock = clock
        self._disk = Disk()
        self._connections = LibraryConnections(is_open, file_of)

    async def process(
        self, message: AsyncMessage, handler: Callable[[T, AsyncMessage], Awaitable[object]]
    ) -> bytes | None:
        """Apply a message once, in one transaction of the library, and ack it after the commit. Return its result.

        The result is the handler's as bytes, from now or from the first time. If the handler raises, the library rolls
        back, the message is given back with the error's text (or as `Reject` and `Retry` say), and the exception
        reaches the caller.

        Raises `LeaseLost` if the lease ended before the ack. The effect is then committed; the message is delivered
        again, and is then only acked. Raises `LeaseLost`, and runs no handler, if the delivery is older than ``keep``
        and its id may have been pruned.

        Raises `InvalidRequest` if the library's block ended without an exception, but did not commit.
        """

        async def apply(transaction: T, joined: _Joined) -> bytes | None:
            processed = joined.processed
            if processed.was_processed(message):
                return processed.result(message)

            def prepare() -> None:
                processed.refuse_late(message)
                processed.savepoint()

            await joined.run(prepare)
            returned = await handler(transaction, message)
            return await joined.run(partial(processed.accept, message, returned))

        self._connections.refuse_inherited()  # outside: the message is the parent's, and must not be given back here
        try:
            result, joined = await self._in_transaction([message], apply)
            # Also the id of a message that was processed before may be in a transaction around this one.
            if not await self._is_committed(message, joined):
                raise not_committed(message)
            joined.file.check()
        except Exception as error:
            await give_back(message, error)
            raise
        await message.ack(result=result)
        return result

    async def seen(self, queue: str, id: str) -> bool:
        """Return whether the file has the id of this message: it was processed, and its id was not pruned since."""

        async def look(_transaction: T, joined: _Joined) -> bool:
            return await joined.run(partial(joined.processed.seen, queue, id))

        found, _joined = await self._in_transaction([], look)
        return found

    async def prune(self) -> int:
        """Delete all ids that can be deleted, in transactions of a few rows each. Return how many were deleted.

        An inbox that processes messages prunes by itself. Call this where an application processes no more messages,
        or after ``keep`` was made shorter.
        """

        async def look(_transaction: T, joined: _Joined) -> list[Stream]:
            return await joined.run(joined.processed.streams)

        streams, _joined = await self._in_transaction([], look)
        count = 0
        for stream in streams:
            count += await self._prune(stream)
        return count

    async def _prune(self, stream: Stream) -> int:
        count, from_start, ended = 0, True, False
        while not ended:

            async def step(_transaction: T, joined: _Joined, from_start: bool = from_start) -> tuple[int, bool]:
                return await joined.run(partial(joined.processed.prune, stream, from_start))

            (deleted, ended), _joined = await self._in_transaction([], step)
            count += deleted
            from_start = False
        return count

    # ── the library's transaction ───────────────────────────────────────────────────────────────────────

    async def _in_transaction(
        self, messages: list[AsyncMessage], work: Callable[[T, _Joined], Awaitable[R]]
    ) -> tuple[R, _Joined]:
        """Await ``work`` in a transaction of the library. Return what it returned, and where it was."""
        self._connections.refuse_inherited()
        own: BaseException | None = None
        try:
            async with self._begin() as transaction:
                joined = await self._join(transaction)
                try:
                    # Even if this task is cancelled, the calls run on the thread. The rollback follows them.
                    await joined.run(partial(joined.processed.join, messages))
                    result = await work(transaction, joined)
                    await joined.run(joined.processed.finish)
                except BaseException as error:
                    own = error
                    await joined.roll_back(error)
                    raise
        except Exception as error:
            self._disk.note(error)
            if own is None or error is own:
                raise
            # The rollback above leaves the library nothing to roll back, and some libraries raise then.
            own.add_note(f"eoq: the library's block then ended with {error_text(error)}")
            raise own from own.__cause__
        if own is not None:
            raise own  # the library's block has suppressed it
        return result, joined

    async def _join(self, transaction: T) -> _Joined:
        connection = await self._connection_of(transaction)
        if not isinstance(connection, aiosqlite.Connection):
            raise InvalidRequest(
                f"`connection` returned a {type(connection).__name__}, not the aiosqlite.Connection of the "
                "transaction; the inbox works only with SQLite files over aiosqlite"
            )

        def make(database: sqlite3.Connection) -> _Joined:
            file = self._connections.note(database)
            processed = Processed(database, self._pruning, self._clock, owned=False, disk=self._disk, in_tasks=True)
            return _Joined(connection, processed, Place.of(database), file)

        return await run(connection, make)

    async def _is_committed(self, message: AsyncMessage, joined: _Joined) -> bool:
        shown: bool | None = None
        with suppress(ValueError):  # the library has closed the connection
            shown = await joined.run(partial(joined.place.shows, message))
        if shown is None and joined.place.path:
            shown = await in_thread(partial(joined.place.file_shows, message))
        return await self.seen(message.queue, message.id) if shown is None else shown
