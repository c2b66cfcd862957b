"""A handler inside an inbox's transaction cannot settle what is not committed yet."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import aiosqlite
import pytest

import eoq
from tests.support import Daemon

WAYS = ["message.ack", "message.nack", "message.reject", "receipt", "many", "transaction"]


@pytest.fixture
def file(folder: Path) -> Path:
    with closing(sqlite3.connect(folder / "app.db")) as database:
        database.execute("create table payment (id text)")
    return folder / "app.db"


def _payments(file: Path) -> list[str]:
    with closing(sqlite3.connect(file)) as database:
        return [id for (id,) in database.execute("select id from payment order by id")]


def _settle(client: eoq.Client, message: eoq.Message, way: str) -> None:
    match way:
        case "message.ack":
            message.ack("paid", send=[eoq.Outgoing("x", queue="out")])
        case "message.nack":
            message.nack()
        case "message.reject":
            message.reject("no")
        case "receipt":
            client.ack(message.receipt)
        case "many":
            client.ack_many([(message, None)])
        case _:
            with client.transaction() as tx:
                tx.ack(message)


async def _settle_async(client: eoq.AsyncClient, message: eoq.AsyncMessage, way: str) -> None:
    match way:
        case "message.ack":
            await message.ack("paid")
        case "message.nack":
            await message.nack()
        case "message.reject":
            await message.reject("no")
        case "receipt":
            await client.ack(message.receipt)
        case "many":
            await client.ack_many([(message, None)])
        case _:
            async with client.transaction() as tx:
                tx.ack(message)


@contextmanager
def _any_inbox(kind: str, file: Path) -> Iterator[Any]:
    with closing(sqlite3.connect(file)) as database:

        @contextmanager
        def begin() -> Iterator[sqlite3.Connection]:
            with database:
                yield database

        if kind == "path":
            with eoq.Inbox(file) as inbox:
                yield inbox
        elif kind == "connection":
            yield eoq.Inbox(database)
        else:
            yield eoq.GuestInbox(begin, lambda connection: connection)


@pytest.mark.parametrize("kind", ["path", "connection", "library"])
@pytest.mark.parametrize("way", WAYS)
def test_a_handler_cannot_settle_its_message(blocking: eoq.Client, queue: str, file: Path, kind: str, way: str) -> None:
    def handler(tx: sqlite3.Connection, message: eoq.Message) -> None:
        tx.execute("insert into payment values (?)", (message.id,))
        message.extend(30)
        _settle(blocking, message, way)

    blocking.send(queue, "x", id="m")
    (message,) = blocking.receive(queue)
    with _any_inbox(kind, file) as inbox, pytest.raises(eoq.InvalidRequest, match="after its transaction"):
        inbox.process(message, handler)
    assert _payments(file) == []
    shown = blocking.ask("show", queue=queue, id="m")["message"]
    assert shown["state"] in ("ready", "delayed")
    assert "a handler cannot settle it" in shown["error"]


@pytest.mark.parametrize("kind", ["path", "connection"])
@pytest.mark.parametrize("way", WAYS)
def test_a_handler_cannot_settle_another_message_of_its_batch(
    blocking: eoq.Client, queue: str, file: Path, kind: str, way: str
) -> None:
    blocking.send_many(queue, [eoq.Outgoing("x", id="a"), eoq.Outgoing("x", id="b")])
    first, second = blocking.receive(queue, 2)

    def handler(tx: sqlite3.Connection, message: eoq.Message) -> None:
        tx.execute("insert into payment values (?)", (message.id,))
        if message.id == "b":
            _settle(blocking, first, way)

    with _any_inbox(kind, file) as inbox:
        results = inbox.process_many([first, second], handler)
    assert results[0] is None
    assert isinstance(results[1], eoq.InvalidRequest)
    assert _payments(file) == ["a"]
    assert blocking.result(queue, "a") == eoq.Result("done")
    assert blocking.result(queue, "b") is None


@pytest.mark.parametrize("many", [False, True])
@pytest.mark.parametrize("way", WAYS)
async def test_an_asyncio_handler_cannot_settle_its_message(
    shared_daemon: Daemon, queue: str, file: Path, many: bool, way: str
) -> None:
    async def handler(tx: aiosqlite.Connection, message: eoq.AsyncMessage) -> None:
        await tx.execute("insert into payment values (?)", (message.id,))
        await message.extend(30)
        await _settle_async(client, message, way)

    async with eoq.connect_async(shared_daemon.socket) as client, eoq.AsyncInbox(file) as inbox:
        await client.send(queue, "x", id="m")
        messages = await client.receive(queue)
        if many:
            assert isinstance((await inbox.process_many(messages, handler))[0], eoq.InvalidRequest)
        else:
            with pytest.raises(eoq.InvalidRequest, match="after its transaction"):
                await inbox.process(messages[0], handler)
        assert _payments(file) == []
        assert await client.result(queue, "m") is None


@pytest.mark.parametrize("batch", [1, 5])
@pytest.mark.slow
def test_a_worker_with_an_inbox_refuses_a_handler_that_settles(
    blocking: eoq.Client, queue: str, file: Path, batch: int
) -> None:
    def handler(tx: sqlite3.Connection, message: eoq.Message) -> None:
        tx.execute("insert into payment values (?)", (message.id,))
        if message.attempt == 1:
            message.ack()

    blocking.send_many(queue, [eoq.Outgoing("x", id="a"), eoq.Outgoing("x", id="b")])
    with eoq.Inbox(file) as inbox:
        summary = blocking.work(queue, handler, inbox=inbox, batch=batch, prefetch=5, until_empty=True, idle=3)
    assert summary == eoq.Summary(done=2, retried=2)
    assert _payments(file) == ["a", "b"]


def test_a_handler_may_settle_messages_that_are_not_in_the_transaction(
    blocking: eoq.Client, queue: str, file: Path
) -> None:
    blocking.send_many(queue, [eoq.Outgoing("x", id="a"), eoq.Outgoing("x", id="b")])
    first, second = blocking.receive(queue, 2)
    with eoq.Inbox(file) as inbox:
        inbox.process(first, lambda _tx, _message: second.ack("by the other"))
    assert blocking.result(queue, "b") == eoq.Result("done", b"by the other")
