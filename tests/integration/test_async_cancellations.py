"""Cancellation at each await of the asyncio inboxes: each effect is there once, and the next message is processed."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Generator
from contextlib import AsyncExitStack, asynccontextmanager, closing, suppress
from pathlib import Path
from types import coroutine
from typing import Any, TypeAlias

import aiosqlite
import pytest

import eoq
from tests.support import Daemon

Process: TypeAlias = Callable[[eoq.AsyncMessage], Coroutine[Any, Any, bytes | None]]


class Awaits:
    """Runs a coroutine in the current task, and cancels the task at one of its awaits. Counts them."""

    def __init__(self, at: int) -> None:
        self._at = at
        self.count = 0

    @coroutine
    def run(self, work: Coroutine[Any, Any, Any]) -> Generator[Any, None, None]:
        """Run ``work`` to its end."""
        step: Callable[[], Any] = lambda: work.send(None)  # noqa: E731 # the next step may be another one
        while True:
            try:
                waits_for = step()
            except StopIteration:
                return
            self.count += 1
            task = asyncio.current_task()
            if self.count == self._at and task is not None:
                task.cancel()
            try:
                yield waits_for
            except BaseException as error:  # noqa: BLE001 # it is raised in the coroutine
                step = _raising(work, error)
            else:
                step = lambda: work.send(None)  # noqa: E731 # as above


def _raising(work: Coroutine[Any, Any, Any], error: BaseException) -> Callable[[], Any]:
    return lambda: work.throw(error)


@pytest.fixture
def file(folder: Path) -> Path:
    with closing(sqlite3.connect(folder / "app.db")) as database:
        database.execute("pragma journal_mode = wal")
        database.execute("create table payment (id text)")
    return folder / "app.db"


async def _book(tx: aiosqlite.Connection, message: eoq.AsyncMessage) -> None:
    await tx.execute("insert into payment values (?)", (message.id,))


async def _itself(tx: aiosqlite.Connection) -> aiosqlite.Connection:
    return tx


async def _processing(kind: str, file: Path, stack: AsyncExitStack) -> Process:
    """Return what processes a message with an inbox of this kind."""
    if kind == "path":
        own = eoq.AsyncInbox(file)
        stack.push_async_callback(own.close)
        return lambda message: own.process(message, _book)
    if kind == "sessions of SQLAlchemy":
        return await _sessions(file, stack)
    # It is opened here: aiosqlite leaks a connection if it is cancelled while it opens it.
    database = await stack.enter_async_context(aiosqlite.connect(file, isolation_level=None))
    if kind == "connection":
        on_connection = eoq.AsyncInbox(database)
        return lambda message: on_connection.process(message, _book)

    @asynccontextmanager
    async def block() -> AsyncIterator[aiosqlite.Connection]:
        try:
            await database.execute("begin")
            yield database
            await database.execute("commit")
        except BaseException:
            await asyncio.shield(database.rollback())
            raise

    guest = eoq.AsyncGuestInbox(block, _itself)
    return lambda message: guest.process(message, _book)


async def _sessions(file: Path, stack: AsyncExitStack) -> Process:
    pytest.importorskip("greenlet")
    from sqlalchemy import text
    from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
    from sqlalchemy.pool import StaticPool

    async def connection(session: AsyncSession) -> Any:
        return (await (await session.connection()).get_raw_connection()).driver_connection

    async def book(session: AsyncSession, message: eoq.AsyncMessage) -> None:
        await session.execute(text("insert into payment values (:id)"), {"id": message.id})

    engine = create_async_engine(f"sqlite+aiosqlite:///{file}", poolclass=StaticPool)
    stack.push_async_callback(engine.dispose)
    inbox = eoq.AsyncGuestInbox(async_sessionmaker(engine).begin, connection)
    return lambda message: inbox.process(message, book)


async def _is_cancelled(work: Awaitable[None]) -> bool:
    task = asyncio.ensure_future(work)
    with suppress(asyncio.CancelledError):
        await task
    return task.cancelled()


@pytest.mark.parametrize("kind", ["path", "connection", "library", "sessions of SQLAlchemy"])
@pytest.mark.first_by_default
async def test_after_a_cancellation_at_any_await_the_effects_are_there_once(
    shared_daemon: Daemon, queue: str, file: Path, at_end: AsyncExitStack, kind: str
) -> None:
    async with eoq.connect_async(shared_daemon.socket) as client:
        process = await _processing(kind, file, at_end)
        await client.send(queue, "x", id="first")
        await process((await client.receive(queue))[0])
        ids, at, cancelled = ["first"], 0, True
        while cancelled:
            at += 1
            await client.send(queue, "x", id=f"{at}")
            (message,) = await client.receive(queue)
            cancelled = await _is_cancelled(Awaits(at).run(process(message)))
            await client.send(queue, "x", id=f"next to {at}")
            (following,) = await client.receive(queue)
            await process(following)
            await process(message)
            ids += [f"{at}", f"next to {at}"]
            assert await client.result(queue, f"{at}") == eoq.Result("done", None)
    assert at > 5
    with closing(sqlite3.connect(file)) as database:
        assert [id for (id,) in database.execute("select id from payment order by id")] == sorted(ids)
