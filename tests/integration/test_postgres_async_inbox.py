"""The asyncio inbox in PostgreSQL, the source of the blocking one: what waiting and cancelling do (G5)."""

from __future__ import annotations

import asyncio
from typing import Any

import psycopg
import pytest

import eoq
from tests.integration.stores import Store
from tests.support import PATIENCE, Daemon

Connection = psycopg.AsyncConnection[Any]


@pytest.fixture
def store(database: str) -> Store:
    return Store("postgres", database)


async def _apply(tx: Connection, message: eoq.AsyncMessage) -> str:
    await tx.execute("insert into payment (id) values (%s)", (message.id,))
    return f"did {message.id}"


async def _delivered(
    client: eoq.AsyncClient, queue: str, id: str = "m", lease: float | None = None
) -> eoq.AsyncMessage:
    await client.send(queue, "x", id=id)
    (message,) = await client.receive(queue, wait=PATIENCE, lease=lease)
    return message


@pytest.mark.parametrize("kind", ["url", "connection", "autocommit"])
@pytest.mark.slow
async def test_a_message_takes_effect_once(
    shared_daemon: Daemon, queue: str, database: str, store: Store, kind: str
) -> None:
    async with eoq.connect_async(shared_daemon.socket) as client:
        connection = await psycopg.AsyncConnection.connect(database, autocommit=kind == "autocommit")
        async with connection, eoq.AsyncPgInbox(database if kind == "url" else connection) as inbox:
            message = await _delivered(client, queue, lease=0.02)
            (again,) = await client.receive(queue, wait=PATIENCE)
            with pytest.raises(eoq.LeaseLost):
                await inbox.process(message, _apply)
            assert await inbox.process(again, _apply) == b"did m"
            assert await inbox.seen(queue, "m")
            assert await client.result(queue, "m") == eoq.Result("done", b"did m")
    assert store.payments() == ["m"]


async def test_of_many_a_bad_one_undoes_only_itself(
    shared_daemon: Daemon, queue: str, database: str, store: Store
) -> None:
    async def picky(tx: Connection, message: eoq.AsyncMessage) -> object:
        result = await _apply(tx, message)
        if message.id == "1":
            await tx.execute("select no_such_function()")
        return result

    async with eoq.connect_async(shared_daemon.socket) as client, eoq.AsyncPgInbox(database) as inbox:
        await client.send_many(queue, [eoq.Outgoing("x", id=f"{n}") for n in range(3)])
        results = await inbox.process_many(await client.receive(queue, 3, wait=PATIENCE), picky)
        assert [type(result) for result in results] == [bytes, psycopg.errors.UndefinedFunction, bytes]
    assert store.payments() == ["0", "2"]


@pytest.mark.parametrize("kind", ["url", "connection"])
async def test_a_task_that_is_cancelled_rolls_back(
    shared_daemon: Daemon, queue: str, database: str, store: Store, kind: str
) -> None:
    inside = asyncio.Event()

    async def stuck(tx: Connection, message: eoq.AsyncMessage) -> None:
        await _apply(tx, message)
        inside.set()
        await tx.execute("select pg_sleep(60)")

    async with eoq.connect_async(shared_daemon.socket) as client:
        connection = await psycopg.AsyncConnection.connect(database)
        async with connection, eoq.AsyncPgInbox(database if kind == "url" else connection) as inbox:
            message = await _delivered(client, queue)
            task = asyncio.create_task(inbox.process(message, stuck))
            await asyncio.wait_for(inside.wait(), PATIENCE)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            # The driver closes a connection whose statement does not end in time. Another one then shows the same.
            async with await psycopg.AsyncConnection.connect(database) as other, eoq.AsyncPgInbox(other) as again:
                usable = again if connection.closed else inbox
                assert not await usable.seen(queue, "m")
                assert await usable.process(message, _apply) == b"did m"
    assert store.payments() == ["m"]


async def test_tasks_share_an_inbox(shared_daemon: Daemon, queue: str, database: str, store: Store) -> None:
    async with eoq.connect_async(shared_daemon.socket) as client, eoq.AsyncPgInbox(database) as inbox:
        await client.send_many(queue, [eoq.Outgoing("x", id=f"{n}") for n in range(40)])
        summary = await client.work(queue, _apply, inbox=inbox, concurrency=4, until_empty=True)
        assert summary.done == 40
    assert sorted(store.payments(), key=int) == [f"{n}" for n in range(40)]
