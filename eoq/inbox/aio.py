"""The asyncio inbox over aiosqlite: the twin of ``blocking.py``, with the same ``transaction.py``.

Each call to aiosqlite's thread costs a hop there and back. So all work between two awaits of the handler is one call:
begin and search, or store and commit.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from contextvars import ContextVar
from functools import partial
from typing import TypeAlias, TypeVar

import aiosqlite

from .. import outcomes
from ..errors import InvalidRequest
from ..message import AsyncMessage
from ..system import aio_sqlite
from ..system.aio_thread import complete
from ..system.forks import close_before_forks
from ..system.sqlite import BUSY_SECONDS, DURABLE, FOREIGN_KEYS
from .committed import Disk
from .forked import FOREIGN_CONNECTION, FORKED_WITHIN, absolute, is_file, is_there
from .rules.aio_settling import ack_all, give_back
from .rules.batch import Results, split
from .rules.pruning import Pruning, Stream
from .transaction import Processed, refuse_foreign_keys

T = TypeVar("T")

AsyncHandler: TypeAlias = Callable[[aiosqlite.Connection, AsyncMessage], Awaitable[object]]
"""Called with the connection, inside the open transaction, and the message. It returns the result (or None)."""


class _OpenTransaction:
    """A transaction of an inbox, visible to the task that runs it and to the tasks which that task starts."""

    def __init__(self, inbox: AsyncInbox) -> None:
        self.inbox = inbox
        self.ended = False


_transactions: ContextVar[tuple[_OpenTransaction, ...]] = ContextVar("eoq_transactions", default=())


class AsyncInbox:
    """The inbox for asyncio, over aiosqlite. See `Inbox`. Use it with ``async with``, or call `close` at the end.

    ``database`` is the path of the application's file, which the inbox opens at the first use and closes, or an open
    `aiosqlite.Connection`, which remains the application's. Such a connection must be the inbox's alone while a message
    is processed: what another task does on it meanwhile becomes part of the message's transaction. ``keep``,
    ``foreign_keys`` and ``clock`` are those of `Inbox`.

    Tasks may share an inbox; its transactions run one after the other. A task that is cancelled while it processes
    a message rolls back before it ends. The message is delivered again when its lease ends.
    """

    def __init__(
        self,
        database: str | os.PathLike[str] | aiosqlite.Connection,
        *,
        keep: float | None = None,
        foreign_keys: bool = False,
        clock: Callable[[], float] = time.time,
    ) -> None:
        refuse_foreign_keys(foreign_keys and isinstance(database, aiosqlite.Connection))
        self._foreign_keys = foreign_keys
        self._pruning = Pruning(keep)
        self._clock = clock
        self._disk = Disk()
        self._owned = not isinstance(database, aiosqlite.Connection)
        self._path = None if isinstance(database, aiosqlite.Connection) else absolute(database)
        self._database = database if isinstance(database, aiosqlite.Connection) else None
        self._processed: Processed | None = None
        self._lock = asyncio.Lock()
        self._queries = 0
        """Calls of `seen`, which do not wait for the lock."""
        self._closed = False
        self._refusal: str | None = None
        """Why this process cannot use the inbox."""
        close_before_forks(self)

    async def __aenter__(self) -> AsyncInbox:
        async with self._lock:
            await self._ensure_open()
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Wait for the open transaction, and close the file, if the inbox has opened it."""
        async with self._lock:
            if self._owned and self._database is not None and not self._closed and self._refusal is None:
                await complete(self._database.close())
            self._closed = True

    # ── forks ───────────────────────────────────────────────────────────────────────────────────────────

    def close_before_fork(self) -> bool:
        """Close the file before a fork, unless a message is being processed. See ``system/forks.py``."""
        idle = not self._lock.locked() and not self._queries
        if idle and self._owned and self._processed is not None and not self._closed and is_file(self._path or ""):
            self._processed = None
            aio_sqlite.shut(self._connection)
        return False

    def after_fork(self) -> None:
        """Do nothing: the parent opens the file again at the next use."""

    def forked(self) -> None:
        """Start anew in the child, or refuse to."""
        self._lock, self._queries = asyncio.Lock(), 0
        if self._processed is not None:
            self._refusal = FORKED_WITHIN if self._owned else FOREIGN_CONNECTION
            if self._owned:
                aio_sqlite.leak(self._connection)
        elif self._owned:
            self._database = None
        else:
            self._refusal = FOREIGN_CONNECTION
        self._processed = None

    # ── processing ──────────────────────────────────────────────────────────────────────────────────────

    async def process(self, message: AsyncMessage, handler: AsyncHandler) -> bytes | None:
        """Apply a message once, and ack it. Return the handler's result as bytes, from now or from the first time.

        The handler is awaited. If it raises, its writes are rolled back, the message is given back with the error's
        text (or as `Reject` and `Retry` say), and the exception reaches the caller.

        Raises `LeaseLost` if the lease ended before the ack. The effect is then committed; the message is delivered
        again, and is then only acked. Raises `LeaseLost`, and runs no handler, if the delivery is older than ``keep``
        and its id may have been pruned.
        """
        try:
            async with self._transaction([message]) as processed:
                if processed.was_processed(message):
                    result = processed.result(message)
                else:

                    def prepare() -> None:
                        processed.refuse_late(message)
                        processed.savepoint()

                    await self._run(prepare)
                    returned = await handler(self._connection, message)
                    result = await self._run(partial(processed.accept, message, returned))
        except Exception as error:
            await give_back(message, error)
            raise
        await message.ack(result=result)
        return result

    async def process_many(
        self, messages: Iterable[AsyncMessage], handler: AsyncHandler
    ) -> list[bytes | Exception | None]:
        """Apply many messages in one transaction, each in a savepoint of its own, and ack them together.

        The handlers are awaited one after the other. Return a list with one entry for each message: what `process`
        would return, or the exception that its handler raised. A message whose handler raises undoes only its own
        writes, and is given back.

        Raises `LeaseLost` if some leases ended before the acks; the other messages are acked all the same. If the whole
        transaction fails, each message is processed again in one of its own. If that fails because the file is locked,
        say, or its disk is full, raises the error, and gives back all messages that are left.
        """
        batch = list(messages)
        results: Results = []
        try:
            async with self._transaction(batch) as processed:
                for message in batch:
                    if processed.was_processed(message):
                        results.append(processed.result_or_refusal(message))
                    else:
                        results.append(await self._apply_alone(processed, message, handler))
        except Exception as error:
            if len(batch) > 1 and (results or not outcomes.is_outage(error)):
                return await self._one_by_one(batch, handler)
            for message in batch:
                await give_back(message, error)
            raise
        acks, failed = split(batch, results)
        for message, reason in failed:
            await give_back(message, reason)
        await ack_all(acks)
        return results

    async def _one_by_one(self, batch: Sequence[AsyncMessage], handler: AsyncHandler) -> list[bytes | Exception | None]:
        """Process each message in a transaction of its own, since they could not be committed together."""
        results: Results = []
        for index, message in enumerate(batch):
            try:
                results.append(await self.process(message, handler))
            except Exception as error:
                if outcomes.is_outage(error):
                    for other in batch[index + 1 :]:
                        await give_back(other, error)
                    raise
                results.append(error)
        return results

    async def _apply_alone(
        self, processed: Processed, message: AsyncMessage, handler: AsyncHandler
    ) -> bytes | Exception | None:
        await self._run(processed.savepoint)
        try:
            if processed.is_old(message):
                await self._run(partial(processed.refuse_late, message))
            returned = await handler(self._connection, message)
            return await self._run(partial(processed.accept, message, returned))
        except Exception as error:  # noqa: BLE001 # whatever the handler raised is this message's result
            await self._run(partial(processed.rollback_to_savepoint, error))
            return error

    # ── queries and pruning ─────────────────────────────────────────────────────────────────────────────

    async def seen(self, queue: str, id: str) -> bool:
        """Return whether the file has the id of this message: it was processed, and its id was not pruned since."""
        # Without the lock, so that a handler may call it. Ids are stored and committed in one call on the thread, so
        # that no id is found before its commit.
        processed = self._processed
        if processed is None or self._closed:
            async with self._lock:
                processed = await self._ensure_open()
        self._queries += 1
        try:
            return await self._run(partial(processed.seen, queue, id))
        finally:
            self._queries -= 1

    async def prune(self) -> int:
        """Delete all ids that can be deleted. Return how many were deleted.

        An inbox that processes messages prunes by itself. Call this from a cron job of an application that processes
        no more messages, or after ``keep`` was made shorter. It uses the watermarks of the last deliveries, and makes
        transactions of a few rows each. Between them other tasks process messages.
        """
        async with self._exclusive() as processed:
            await self._run(processed.refuse_open_transaction)
            streams = await self._run(processed.streams)
        count = 0
        for stream in streams:
            from_start, ended = True, False
            while not ended:
                async with self._exclusive() as processed:
                    deleted, ended = await self._run(partial(_prune_alone, processed, stream, from_start))
                count += deleted
                from_start = False
        return count

    # ── the connection and its thread ───────────────────────────────────────────────────────────────────

    async def _ensure_open(self) -> Processed:
        """Open what is not open yet. The caller has the lock."""
        if self._refusal is not None:
            raise InvalidRequest(self._refusal)
        if self._closed:
            raise InvalidRequest("this inbox is closed; make a new one")
        if self._processed is not None and self._processed.file.lost and is_there(self._path):
            self._processed = None
        if self._processed is None:
            if not self._owned:
                self._processed = await self._prepare(self._connection)
            else:
                if self._database is not None:  # its file was replaced, or closed for a fork, and its thread remains
                    await complete(self._database.close())
                    self._database = None
                self._processed = await self._open()
        return self._processed

    async def _open(self) -> Processed:
        assert self._path is not None  # noqa: S101 # there is a path where there is no connection
        # Any thread may close it, since the thread that forks does.
        connection = aiosqlite.connect(self._path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)
        try:
            await complete(connection)
            processed = await self._prepare(connection)
        except BaseException:
            await complete(connection.close())
            raise
        self._database = connection
        return processed

    async def _prepare(self, connection: aiosqlite.Connection) -> Processed:
        def prepare(database: sqlite3.Connection) -> Processed:
            if self._owned:
                database.execute(DURABLE)
                if self._foreign_keys:
                    database.execute(FOREIGN_KEYS)
            processed = Processed(
                database, self._pruning, self._clock, owned=self._owned, disk=self._disk, in_tasks=True
            )
            processed.create()
            return processed

        try:
            return await aio_sqlite.run(connection, prepare)
        except ValueError as error:
            raise InvalidRequest("the aiosqlite connection is not open: await it, or use `async with`") from error

    @property
    def _connection(self) -> aiosqlite.Connection:
        assert self._database is not None  # noqa: S101 # it is not, once it is open
        return self._database

    async def _run(self, function: Callable[[], T]) -> T:
        """Run a function of `Processed` on the connection's thread, after those that were passed before."""
        return await aio_sqlite.run(self._connection, lambda _database: function())

    @asynccontextmanager
    async def _exclusive(self) -> AsyncIterator[Processed]:
        if any(open.inbox is self and not open.ended for open in _transactions.get()):
            raise InvalidRequest("a handler is inside the inbox's transaction already; process other messages after it")
        async with self._lock:
            transaction = _OpenTransaction(self)
            before = _transactions.set((*_transactions.get(), transaction))
            try:
                yield await self._ensure_open()
            finally:
                transaction.ended = True
                _transactions.reset(before)

    @asynccontextmanager
    async def _transaction(self, messages: Sequence[AsyncMessage]) -> AsyncIterator[Processed]:
        async with self._exclusive() as processed:
            try:
                # Even if this task is cancelled now, the call runs on the thread. The rollback follows it, and does
                # nothing if no transaction has begun: one of the application's may be open.
                await complete(self._run(partial(processed.begin, messages)))
            except BaseException as error:
                await self._roll_back(processed, error)
                raise
            try:
                yield processed
                await self._run(processed.finish)
            except BaseException as error:
                # If this task was cancelled, the thread may still run its last call. The rollback follows that call.
                await self._roll_back(processed, error)
                raise

    async def _roll_back(self, processed: Processed, error: BaseException) -> None:
        try:
            await complete(self._run(partial(processed.rollback, error)))
        except ValueError:  # the application has closed its connection
            processed.abandon()


def _prune_alone(processed: Processed, stream: Stream, from_start: bool) -> tuple[int, bool]:
    return processed.transaction((), partial(processed.prune, stream, from_start))
