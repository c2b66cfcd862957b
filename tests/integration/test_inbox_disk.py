"""A sync of the application's file that fails: an inbox acks nothing more, since a loss of power could take it."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import aiosqlite
import pytest

import eoq
from tests.support import Daemon


class FailingSync(sqlite3.Connection):
    """A connection to a disk that fails to sync what a commit has written to the log."""

    fails = False

    def execute(self, sql: str, *parameters: Any) -> sqlite3.Cursor:
        done = super().execute(sql, *parameters)
        if self.fails and sql.startswith("commit"):
            self.fails = False
            error = sqlite3.OperationalError("disk I/O error")
            error.sqlite_errorcode = sqlite3.SQLITE_IOERR_FSYNC
            raise error
        return done


@pytest.fixture
def file(folder: Path) -> Path:
    with closing(sqlite3.connect(folder / "app.db")) as database:
        database.execute("pragma journal_mode = wal")
        database.execute("create table payment (id text)")
    return folder / "app.db"


def _pay(tx: sqlite3.Connection, message: eoq.Message) -> None:
    tx.execute("insert into payment values (?)", (message.id,))


def _check(client: eoq.Client, queue: str, file: Path) -> None:
    """Check that nothing was acked and no attempt used, and that an inbox on a good disk goes on."""
    assert [client.show(queue, id)["attempts"] for id in ("a", "b")] == [0, 0]
    with eoq.Inbox(file) as inbox:
        for message in client.receive(queue, 10):
            inbox.process(message, _pay)
    with closing(sqlite3.connect(file)) as database:
        assert database.execute("select id from payment order by id").fetchall() == [("a",), ("b",)]


@pytest.mark.parametrize("kind", ["connection", "library"])
def test_after_a_failed_sync_no_message_is_processed(blocking: eoq.Client, queue: str, file: Path, kind: str) -> None:
    @contextmanager
    def block() -> Iterator[sqlite3.Connection]:
        database.execute("begin")
        yield database
        database.execute("commit")

    blocking.send_many(queue, [eoq.Outgoing("x", id=id) for id in ("a", "b")])
    first, second = blocking.receive(queue, 2)
    with closing(sqlite3.connect(file, factory=FailingSync, isolation_level=None)) as database:
        inbox: Any = eoq.Inbox(database)
        if kind == "library":
            inbox = eoq.GuestInbox(block, lambda connection: connection)
        database.fails = True
        with pytest.raises(sqlite3.OperationalError, match="disk I/O"):
            inbox.process(first, _pay)
        with pytest.raises(eoq.StorageFailed, match="sync"):
            inbox.process(second, _pay)
    _check(blocking, queue, file)


@pytest.mark.parametrize("kind", ["connection", "library"])
async def test_after_a_failed_sync_no_message_is_processed_by_asyncio(
    shared_daemon: Daemon, queue: str, file: Path, kind: str
) -> None:
    from collections.abc import AsyncIterator
    from contextlib import asynccontextmanager

    @asynccontextmanager
    async def block() -> AsyncIterator[aiosqlite.Connection]:
        await database.execute("begin")
        yield database
        await database.execute("commit")

    async def itself(tx: aiosqlite.Connection) -> aiosqlite.Connection:
        return tx

    async def pay(tx: aiosqlite.Connection, message: eoq.AsyncMessage) -> None:
        await tx.execute("insert into payment values (?)", (message.id,))

    async with (
        eoq.connect_async(shared_daemon.socket) as client,
        aiosqlite.connect(file, factory=FailingSync, isolation_level=None) as database,
    ):
        await client.send_many(queue, [eoq.Outgoing("x", id=id) for id in ("a", "b")])
        first, second = await client.receive(queue, 2)
        inbox: Any = eoq.AsyncInbox(database)
        if kind == "library":
            inbox = eoq.AsyncGuestInbox(block, itself)
        else:
            await inbox.seen(queue, "a")  # makes the tables
        database._conn.fails = True  # type: ignore[attr-defined] # the planted connection
        with pytest.raises(sqlite3.OperationalError, match="disk I/O"):
            await inbox.process(first, pay)
        with pytest.raises(eoq.StorageFailed, match="sync"):
            await inbox.process(second, pay)
    with eoq.connect(shared_daemon.socket) as blocking:
        _check(blocking, queue, file)


def test_the_log_is_not_moved_into_the_file_when_the_connection_is_closed(folder: Path) -> None:
    """The pages that this would read may not be those that were written. The next opening goes by checksums."""
    code = """
import sqlite3, sys
from pathlib import Path
import eoq
from eoq.inbox.committed import Disk

database = sqlite3.connect(sys.argv[1])
database.execute("pragma journal_mode = wal")
database.execute("create table t (a)")
database.commit()
error = sqlite3.OperationalError("disk I/O error")
error.sqlite_errorcode = sqlite3.SQLITE_IOERR_FSYNC
Disk().note(error, database)
database.close()
"""
    file = folder / "app.db"
    subprocess.run([sys.executable, "-c", code, str(file)], check=True, timeout=60)
    assert file.with_name("app.db-wal").stat().st_size > 0
