"""The application's file, or its log, is replaced or removed under an inbox: nothing is acked that is in no file."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, closing, contextmanager
from pathlib import Path
from typing import Any, Final

import aiosqlite
import pytest

import eoq
from tests.support import Daemon


@pytest.fixture
def file(folder: Path) -> Path:
    with closing(sqlite3.connect(folder / "app.db")) as database:
        database.execute("pragma journal_mode = wal")
        database.execute("create table payment (id text)")
    shutil.copyfile(folder / "app.db", folder / "backup.db")
    return folder / "app.db"


def _replace(file: Path) -> None:
    file.with_name("backup.db").rename(file)
    for end in ("-wal", "-shm"):
        file.with_name(f"app.db{end}").unlink()


def _remove_log(file: Path) -> None:
    file.with_name("app.db-wal").unlink()


def _remove(file: Path) -> None:
    file.unlink()


HARMS: Final = [_replace, _remove_log, _remove]


def _pay(tx: sqlite3.Connection, message: eoq.Message) -> None:
    tx.execute("insert into payment values (?)", (message.id,))


def _payments(file: Path) -> list[str]:
    with closing(sqlite3.connect(file)) as database:
        return [id for (id,) in database.execute("select id from payment")]


@pytest.mark.parametrize("harm", HARMS)
@pytest.mark.parametrize("kind", ["path", "connection", "library"])
def test_nothing_is_acked_that_is_in_no_file(
    blocking: eoq.Client, queue: str, file: Path, kind: str, harm: Callable[[Path], None]
) -> None:
    @contextmanager
    def block() -> Iterator[sqlite3.Connection]:
        with database:
            yield database

    blocking.send_many(queue, [eoq.Outgoing("x", id=id) for id in ("a", "b")])
    first, second = blocking.receive(queue, 2)
    with closing(sqlite3.connect(file)) as database:
        inbox: Any = eoq.Inbox(file) if kind == "path" else eoq.Inbox(database)
        if kind == "library":
            inbox = eoq.GuestInbox(block, lambda connection: connection)
        inbox.process(first, _pay)
        harm(file)
        with pytest.raises(eoq.StorageFailed, match="replaced or removed"):
            inbox.process(second, _pay)
        shown = blocking.show(queue, "b")
        assert (shown["state"], shown["attempts"]) == ("ready", 0)
        if kind == "path" and harm is _replace:
            inbox.process(*blocking.receive(queue), _pay)
            assert _payments(file) == ["b"], "in the new file"
        if kind != "library":
            inbox.close()


@pytest.mark.parametrize("kind", ["path", "connection", "library"])
async def test_nothing_is_acked_by_asyncio_that_is_in_no_file(
    shared_daemon: Daemon, queue: str, file: Path, kind: str
) -> None:
    @asynccontextmanager
    async def block() -> AsyncIterator[aiosqlite.Connection]:
        yield database
        await database.commit()

    async def itself(tx: aiosqlite.Connection) -> aiosqlite.Connection:
        return tx

    async def pay(tx: aiosqlite.Connection, message: eoq.AsyncMessage) -> None:
        await tx.execute("insert into payment values (?)", (message.id,))

    async with eoq.connect_async(shared_daemon.socket) as client, aiosqlite.connect(file) as database:
        await client.send_many(queue, [eoq.Outgoing("x", id=id) for id in ("a", "b")])
        first, second = await client.receive(queue, 2)
        inbox: Any = eoq.AsyncInbox(file) if kind == "path" else eoq.AsyncInbox(database)
        if kind == "library":
            inbox = eoq.AsyncGuestInbox(block, itself)
        await inbox.process(first, pay)
        _replace(file)
        with pytest.raises(eoq.StorageFailed, match="replaced or removed"):
            await inbox.process(second, pay)
        if kind == "path":
            await inbox.process(*await client.receive(queue), pay)
            await inbox.close()
            assert _payments(file) == ["b"], "in the new file"
