"""The asyncio guest inbox, in blocks written by hand over aiosqlite and in sessions of SQLAlchemy."""

from __future__ import annotations

import asyncio
import os
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, closing, suppress
from pathlib import Path
from typing import Any, TypeAlias

import aiosqlite
import pytest

import eoq
from tests.support import PATIENCE, Daemon, eventually

Inbox: TypeAlias = eoq.AsyncGuestInbox[aiosqlite.Connection]
Block: TypeAlias = Callable[[], AbstractAsyncContextManager[aiosqlite.Connection]]


@pytest.fixture
def file(folder: Path) -> Path:
    with closing(sqlite3.connect(folder / "app.db")) as database:
        database.execute("pragma journal_mode = wal")
        database.execute("create table payment (id text)")
    return folder / "app.db"


def _payments(file: Path) -> list[str]:
    with closing(sqlite3.connect(file)) as database:
        return [id for (id,) in database.execute("select id from payment order by id")]


@pytest.fixture
def client(shared_daemon: Daemon, at_end: AsyncExitStack) -> eoq.AsyncClient:
    client = eoq.connect_async(shared_daemon.socket)
    at_end.push_async_callback(client.close)
    return client


async def _delivered(client: eoq.AsyncClient, queue: str, lease: float | None = None) -> eoq.AsyncMessage:
    await client.send(queue, "x", id="m")
    return await _again(client, queue, lease)


async def _again(client: eoq.AsyncClient, queue: str, lease: float | None = None) -> eoq.AsyncMessage:
    (message,) = await client.receive(queue, wait=PATIENCE, lease=lease)
    return message


async def _book(tx: aiosqlite.Connection, message: eoq.AsyncMessage) -> str:
    await tx.execute("insert into payment values (?)", (message.id,))
    return f"did {message.id}"


async def _itself(tx: aiosqlite.Connection) -> aiosqlite.Connection:
    return tx


def _by_hand(file: Path, begin: str = "begin", end: str = "commit") -> Block:
    """Return a block as a library has it: a connection for each transaction."""

    @asynccontextmanager
    async def block() -> AsyncIterator[aiosqlite.Connection]:
        async with aiosqlite.connect(file, isolation_level=None, timeout=PATIENCE) as tx:
            await tx.execute(begin)
            try:
                yield tx
            except BaseException:
                await tx.execute("rollback")
                raise
            await tx.execute(end)

    return block


@pytest.fixture
def inbox(file: Path) -> Inbox:
    return eoq.AsyncGuestInbox(_by_hand(file), _itself)


async def test_effect_and_id_commit_together_and_a_redelivery_is_only_acked(
    client: eoq.AsyncClient, queue: str, inbox: Inbox, file: Path
) -> None:
    message = await _delivered(client, queue, lease=0.02)
    again = await _again(client, queue)
    with pytest.raises(eoq.LeaseLost):
        await inbox.process(message, _book)
    assert await inbox.seen(queue, "m")
    assert await inbox.process(again, _book) == b"did m"
    assert _payments(file) == ["m"]
    assert await client.result(queue, "m") == eoq.Result("done", b"did m")


async def test_what_the_handler_raised_counts_and_undoes_its_writes(
    client: eoq.AsyncClient, queue: str, inbox: Inbox, file: Path
) -> None:
    async def fail(tx: aiosqlite.Connection, message: eoq.AsyncMessage) -> None:
        await _book(tx, message)
        raise eoq.Reject("no such account")

    with pytest.raises(eoq.Reject, match="no such account"):
        await inbox.process(await _delivered(client, queue), fail)
    assert _payments(file) == []
    shown = (await client.ask("show", queue=queue, id="m"))["message"]
    assert (shown["state"], shown["error"]) == ("dead", "no such account")


@pytest.mark.parametrize("statement", ["commit", "insert or rollback into payment values (1, 2)"])
async def test_a_handler_cannot_end_the_transaction(
    client: eoq.AsyncClient, queue: str, inbox: Inbox, file: Path, statement: str
) -> None:
    async def end(tx: aiosqlite.Connection, message: eoq.AsyncMessage) -> None:
        await _book(tx, message)
        with suppress(sqlite3.DatabaseError):
            await tx.execute(statement)
        if statement != "commit":
            raise RuntimeError("failed")

    with pytest.raises((eoq.InvalidRequest, RuntimeError)):
        await inbox.process(await _delivered(client, queue), end)
    assert _payments(file) == []


@pytest.mark.parametrize("end", ["rollback", "select 1"])
async def test_a_block_that_ends_without_a_commit_is_not_acked(
    client: eoq.AsyncClient, queue: str, file: Path, end: str
) -> None:
    inbox = eoq.AsyncGuestInbox(_by_hand(file, end=end), _itself)
    with pytest.raises(eoq.InvalidRequest, match="did not commit"):
        await inbox.process(await _delivered(client, queue), _book)
    assert _payments(file) == []
    assert await client.result(queue, "m") is None


async def test_a_redelivery_inside_a_transaction_around_the_block_is_not_acked(
    client: eoq.AsyncClient, queue: str, file: Path
) -> None:
    async with aiosqlite.connect(file, isolation_level=None) as database:

        @asynccontextmanager
        async def inner() -> AsyncIterator[aiosqlite.Connection]:
            yield database

        inbox = eoq.AsyncGuestInbox(inner, _itself)
        await database.execute("begin")
        await client.send(queue, "x", id="m")
        for _ in range(2):
            with pytest.raises(eoq.InvalidRequest, match="did not commit"):
                await inbox.process(await _again(client, queue), _book)
        await database.execute("rollback")
    assert _payments(file) == []
    assert await client.result(queue, "m") is None


async def test_a_transaction_that_began_deferred_has_the_write_lock_before_the_handler(
    client: eoq.AsyncClient, queue: str, inbox: Inbox, file: Path
) -> None:
    await inbox.seen(queue, "m")  # creates the tables

    async def check(tx: aiosqlite.Connection, message: eoq.AsyncMessage) -> None:
        with closing(sqlite3.connect(file, timeout=0)) as other, pytest.raises(sqlite3.OperationalError, match="lock"):
            other.execute("insert into payment values ('other')")
        await _book(tx, message)

    await inbox.process(await _delivered(client, queue), check)
    assert _payments(file) == ["m"]


@pytest.mark.parametrize("steps", range(1, 30, 2))
@pytest.mark.first_by_default
async def test_a_task_may_be_cancelled_at_any_of_its_steps(
    client: eoq.AsyncClient, queue: str, file: Path, steps: int
) -> None:
    @asynccontextmanager
    async def block() -> AsyncIterator[aiosqlite.Connection]:
        try:
            await database.execute("begin")
            yield database
            await database.execute("commit")
        except BaseException:
            await database.rollback()
            raise

    # It is opened here: aiosqlite leaks a connection if it is cancelled while it opens it.
    async with aiosqlite.connect(file, isolation_level=None) as database:
        inbox = eoq.AsyncGuestInbox(block, _itself)
        message = await _delivered(client, queue, lease=0.3)
        task = asyncio.ensure_future(inbox.process(message, _book))
        for _ in range(steps):
            await asyncio.sleep(0)  # one step of the event loop
        task.cancel()
        with suppress(asyncio.CancelledError, eoq.LeaseLost):
            await task
        if await client.result(queue, "m") is None:
            with suppress(eoq.LeaseLost):
                await inbox.process(await _again(client, queue), _book)
    assert _payments(file) == ["m"]


async def test_a_worker_processes_with_it(client: eoq.AsyncClient, queue: str, file: Path) -> None:
    inbox = eoq.AsyncGuestInbox(_by_hand(file, "begin immediate"), _itself)
    await client.send_many(queue, [eoq.Outgoing(b"x", id=f"{number:03}") for number in range(40)])
    summary = await client.work(queue, _book, inbox=inbox, concurrency=4, until_empty=True)
    assert (summary.done, summary.retried) == (40, 0)
    assert _payments(file) == [f"{number:03}" for number in range(40)]


async def test_prune_deletes_what_is_below_the_watermark(client: eoq.AsyncClient, queue: str, file: Path) -> None:
    inbox = eoq.AsyncGuestInbox(_by_hand(file), _itself, keep=0)
    for id in ("a", "b", "c"):
        await client.send(queue, "x", id=id)
        await inbox.process(await _again(client, queue), _book)
    await inbox.prune()
    assert [await inbox.seen(queue, id) for id in ("a", "c")] == [False, True]


async def test_what_is_no_connection_of_aiosqlite_is_refused(client: eoq.AsyncClient, queue: str, file: Path) -> None:
    async def wrong(_tx: aiosqlite.Connection) -> Any:
        return "a connection"

    inbox = eoq.AsyncGuestInbox(_by_hand(file), wrong)
    with pytest.raises(eoq.InvalidRequest, match=r"not the aiosqlite\.Connection"):
        await inbox.process(await _delivered(client, queue), _book)


async def test_it_is_refused_in_a_child_that_has_the_connection_of_its_parent(
    client: eoq.AsyncClient, queue: str, file: Path
) -> None:
    async with aiosqlite.connect(file, isolation_level=None) as database:

        @asynccontextmanager
        async def block() -> AsyncIterator[aiosqlite.Connection]:
            await database.execute("begin")
            yield database
            await database.execute("commit")

        inbox = eoq.AsyncGuestInbox(block, _itself)
        await inbox.process(await _delivered(client, queue), _book)
        child = os.fork()
        if child == 0:
            status = 1
            with suppress(BaseException):
                try:
                    inbox.seen(queue, "m").send(None)
                except eoq.InvalidRequest as error:
                    status = 0 if "before this process was forked" in str(error) else 2
            os._exit(status)
        _pid, status = await asyncio.to_thread(os.waitpid, child, 0)
        assert os.waitstatus_to_exitcode(status) == 0
    assert _payments(file) == ["m"]


async def test_objects_of_a_session_of_sqlalchemy_and_the_id_commit_together(
    client: eoq.AsyncClient, queue: str, file: Path
) -> None:
    pytest.importorskip("greenlet")
    from sqlalchemy import text
    from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine

    async def connection(session: AsyncSession) -> Any:
        return (await (await session.connection()).get_raw_connection()).driver_connection

    async def book(session: AsyncSession, message: eoq.AsyncMessage) -> str:
        async with session.begin_nested():
            await session.execute(text("insert into payment values (:id)"), {"id": message.id})
        if message.text == "bad":
            raise eoq.Reject("bad")
        if message.text == "commits":
            await session.commit()
        return "paid"

    engine = create_async_engine(f"sqlite+aiosqlite:///{file}", connect_args={"timeout": PATIENCE})
    inbox = eoq.AsyncGuestInbox(async_sessionmaker(engine).begin, connection)
    bodies = ["good", "bad", "commits", *["good"] * 8]
    await client.send_many(queue, [eoq.Outgoing(body, id=f"{n:02}") for n, body in enumerate(bodies)])
    messages = await client.receive(queue, len(bodies))
    results = await asyncio.gather(*(inbox.process(message, book) for message in messages), return_exceptions=True)
    assert [type(result) for result in results[1:3]] != [bytes, bytes]
    assert [*results[:1], *results[3:]] == [b"paid"] * 9
    assert _payments(file) == ["00", *[f"{n:02}" for n in range(3, 11)]]
    await engine.dispose()
    eventually(lambda: not file.with_name("app.db-wal").exists())
