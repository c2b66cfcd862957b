"""The asyncio inbox over aiosqlite: the twin of ``inbox.py``, on the same tables and the same ``processed.py``.

What is not the application's handler runs as one call on the connection's thread each time (a begin with its
search, a record with its commit), since each call is a hop to that thread and back.
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
from itertools import chain
from typing import TypeAlias, TypeVar

import aiosqlite

from .. import outcomes as verdicts
from ..errors import EoqError, InvalidRequest, LeaseLost, MessageTooLarge
from ..message import AsyncMessage
from ..outcomes import Retry, error_text
from ..protocol.calls import portions
from ..system import aio_sqlite
from ..system.sqlite import BUSY_SECONDS, DURABLE
from .pruning import KEEP_SECONDS, Pruning
from .tables import Processed

T = TypeVar("T")

AsyncHandler: TypeAlias = Callable[[aiosqlite.Connection, AsyncMessage], Awaitable[object]]
"""Gets the connection, inside the open transaction, and the message; returns the result (or None)."""


class _Turn:
    """One transaction of an inbox, known to the task that runs in it and to those that this one starts."""

    def __init__(self, inbox: AsyncInbox) -> None:
        self.inbox = inbox
        self.over = False


_turns: ContextVar[tuple[_Turn, ...]] = ContextVar("eoq_turns", default=())


class AsyncInbox:
    """The asyncio twin of `Inbox`. Use it with ``async with``, or `close` it.

    ``database`` is the path of the application's file, which is opened at the first use and closed here, or an open
    `aiosqlite.Connection`, which stays the application's. Such a connection must be the inbox's alone while a
    message is processed: what another task does on it meanwhile becomes part of the message's transaction.
    ``keep`` is that of `Inbox`.

    Tasks may share an inbox; its transactions run one after the other. A task that is cancelled while it processes
    rolls back before it ends; its message comes again when its lease ends.
    """

    def __init__(
        self,
        database: str | os.PathLike[str] | aiosqlite.Connection,
        *,
        keep: float = KEEP_SECONDS,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._forgetting = Pruning(keep)
        self._clock = clock
        self._owned = not isinstance(database, aiosqlite.Connection)
        self._database = database
        self._processed: Processed | None = None
        self._lock = asyncio.Lock()
        self._closed = False

    async def __aenter__(self) -> AsyncInbox:
        async with self._lock:
            await self._opened()
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Closes the file, if it was opened here; waits for a transaction under way."""
        async with self._lock:
            if self._owned and self._processed is not None and not self._closed:
                await _to_its_end(self._connection.close())
            self._closed = True

    # ── processing ──────────────────────────────────────────────────────────────────────────────────────

    async def process(self, message: AsyncMessage, handler: AsyncHandler) -> bytes | None:
        """See `Inbox.process`; the handler is awaited."""
        try:
            async with self._transaction([message]) as processed:
                if processed.known(message):
                    result = processed.result(message)
                else:

                    def ready() -> None:
                        processed.refuse_late(message)
                        processed.mark()

                    await self._run(ready)
                    returned = await handler(self._connection, message)
                    result = await self._run(partial(processed.accept, message, returned))
        except Exception as error:
            await _give_back(message, error)
            raise
        await message.ack(result=result)
        return result

    async def process_many(
        self, messages: Iterable[AsyncMessage], handler: AsyncHandler
    ) -> list[bytes | Exception | None]:
        """See `Inbox.process_many`; the handler is awaited for one message after the other."""
        batch = list(messages)
        outcomes: list[bytes | Exception | None] = []
        try:
            async with self._transaction(batch) as processed:
                for message in batch:
                    if processed.known(message):
                        outcomes.append(processed.result(message))
                    else:
                        outcomes.append(await self._apply_alone(processed, message, handler))
        except Exception as error:
            for index, message in enumerate(batch):
                # What a handler says (`Reject`, say) it says of its own message alone.
                await _give_back(message, error if index == len(outcomes) else Retry(reason=error_text(error)))
            raise
        acks: list[tuple[AsyncMessage, bytes | None]] = []
        for message, outcome in zip(batch, outcomes, strict=True):
            if isinstance(outcome, Exception):
                await _give_back(message, outcome)
            else:
                acks.append((message, outcome))
        await _ack_all(acks)
        return outcomes

    async def _apply_alone(
        self, processed: Processed, message: AsyncMessage, handler: AsyncHandler
    ) -> bytes | Exception | None:
        await self._run(processed.mark)
        try:
            if processed.is_old(message):
                await self._run(partial(processed.refuse_late, message))
            returned = await handler(self._connection, message)
            return await self._run(partial(processed.accept, message, returned))
        except Exception as error:  # noqa: BLE001 # whatever the handler raised is this message's outcome
            await self._run(partial(processed.back_to_mark, error))
            return error

    # ── looking and forgetting ──────────────────────────────────────────────────────────────────────────

    async def seen(self, queue: str, id: str) -> bool:
        """See `Inbox.seen`."""
        # Without the lock, so that a handler may ask: ids are recorded and committed in one call.
        processed = self._processed
        if processed is None or self._closed:
            async with self._lock:
                processed = await self._opened()
        return await self._run(partial(processed.seen, queue, id))

    async def prune(self) -> int:
        """See `Inbox.prune`. Other tasks' messages are processed between its steps."""
        async with self._locked() as processed:
            await self._run(processed.refuse_open_transaction)
            queues = await self._run(processed.forgettable)
        count = 0
        for queue in queues:
            after: int | None = None
            while True:
                async with self._locked() as processed:
                    forgotten, after = await self._run(partial(processed.forget, queue, after))
                count += forgotten
                if after is None:
                    break
        return count

    # ── the connection and its thread ───────────────────────────────────────────────────────────────────

    async def _opened(self) -> Processed:
        """Opens what is not open yet. Called with the lock held."""
        if self._closed:
            raise InvalidRequest("this inbox is closed; make a new one")
        if self._processed is None:
            if isinstance(self._database, aiosqlite.Connection):
                self._processed = await self._prepare(self._database)
            else:
                self._processed = await self._open(self._database)
        return self._processed

    async def _open(self, path: str | os.PathLike[str]) -> Processed:
        # Two threads use it, never at once.
        database = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)
        try:
            database.execute(DURABLE)
        except BaseException:
            database.close()
            raise
        connection = aiosqlite.Connection(lambda: database, 64)
        try:
            await _to_its_end(connection)
            processed = await self._prepare(connection)
        except BaseException:
            await _to_its_end(connection.close())
            raise
        self._database = connection
        return processed

    async def _prepare(self, connection: aiosqlite.Connection) -> Processed:
        def prepare(database: sqlite3.Connection) -> Processed:
            processed = Processed(database, self._forgetting, self._clock, owned=self._owned)
            processed.create()
            return processed

        try:
            return await aio_sqlite.run(connection, prepare)
        except ValueError as error:
            raise InvalidRequest("the aiosqlite connection is not open: await it, or use `async with`") from error

    @property
    def _connection(self) -> aiosqlite.Connection:
        assert isinstance(self._database, aiosqlite.Connection)  # noqa: S101 # it is, once it is opened
        return self._database

    async def _run(self, function: Callable[[], T]) -> T:
        return await aio_sqlite.run(self._connection, lambda _database: function())

    @asynccontextmanager
    async def _locked(self) -> AsyncIterator[Processed]:
        if any(turn.inbox is self and not turn.over for turn in _turns.get()):
            raise InvalidRequest("a handler is inside the inbox's transaction already; process other messages after it")
        async with self._lock:
            turn = _Turn(self)
            before = _turns.set((*_turns.get(), turn))
            try:
                yield await self._opened()
            finally:
                turn.over = True
                _turns.reset(before)

    @asynccontextmanager
    async def _transaction(self, messages: Sequence[AsyncMessage]) -> AsyncIterator[Processed]:
        async with self._locked() as processed:
            begun = asyncio.ensure_future(self._run(partial(processed.begin, messages)))
            try:
                # Begun or refused, also if we are cancelled now: what was refused is not ours to undo.
                await _to_its_end(begun)
            except asyncio.CancelledError:
                if begun.exception() is None:
                    await _to_its_end(self._run(processed.undo))
                raise
            try:
                yield processed
                await self._run(processed.finish)
            except BaseException:
                # It waits in line behind whatever the thread still does for a task that was cancelled.
                await _to_its_end(self._run(processed.undo))
                raise


async def _to_its_end(work: Awaitable[T]) -> T:
    """Waits for ``work`` even if this task is cancelled meanwhile; then raises the cancellation."""
    future = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    while not future.done():
        try:
            await asyncio.wait({future})
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        raise cancelled
    return future.result()


async def _give_back(message: AsyncMessage, error: Exception) -> None:
    """Rejects or nacks a message, as what its handler raised says."""
    try:
        await verdicts.give_back_async(message, error)
    except EoqError as failure:
        # The lease ends by itself; what the handler raised is the news.
        error.add_note(f"eoq: the message {message.id!r} could not be given back: {failure}")


async def _ack_all(acks: Sequence[tuple[AsyncMessage, bytes | None]]) -> None:
    """Acks together where the client can; one by one where a lease was lost, so that it stops no other."""
    lost: LeaseLost | None = None
    by_settler: dict[int, list[tuple[AsyncMessage, bytes | None]]] = {}
    for message, result in acks:
        by_settler.setdefault(id(message.settler), []).append((message, result))
    for group in chain.from_iterable(portions(acks) for acks in by_settler.values()):
        try:
            await group[0][0].settler.ack_many(group)
        except (LeaseLost, MessageTooLarge):
            for message, result in group:
                try:
                    await message.ack(result=result)
                except LeaseLost as error:
                    lost = error
    if lost is not None:
        raise lost
