"""A handler that meets the lock of its own inbox's transaction: each try counts, so that it ends as a dead letter.

The lock of another program counts no attempt: see ``test_attempts.py``.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import aiosqlite
import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session, sessionmaker

import eoq
from tests.support import Daemon

HINT = "over the connection that the handler gets"


@pytest.fixture
def file(folder: Path) -> Path:
    with closing(sqlite3.connect(folder / "app.db")) as database:
        database.execute("pragma journal_mode = wal")
        database.execute("create table payment (id text)")
    return folder / "app.db"


def _delivered(client: eoq.Client, queue: str) -> eoq.Message:
    client.send(queue, "x", id="m")
    return client.receive(queue)[0]


def _check(client: eoq.Client, queue: str) -> None:
    """Check that the message waits for its second attempt, and says why."""
    shown = client.show(queue, "m")
    assert shown["state"] in ("ready", "delayed") and shown["attempts"] == 1
    assert "database is locked" in shown["error"] and HINT in shown["error"]


def _over_another_connection(file: Path, message: eoq.Message | eoq.AsyncMessage) -> None:
    with closing(sqlite3.connect(file, timeout=0)) as other, other:
        other.execute("insert into payment values (?)", (message.id,))


@pytest.mark.parametrize("kind", ["path", "connection", "library", "many"])
def test_a_handler_that_waits_for_its_own_lock_uses_an_attempt(
    blocking: eoq.Client, queue: str, file: Path, kind: str
) -> None:
    def pay(_tx: sqlite3.Connection, message: eoq.Message) -> None:
        _over_another_connection(file, message)

    @contextmanager
    def block() -> Iterator[sqlite3.Connection]:
        with database:
            yield database

    with closing(sqlite3.connect(file)) as database:
        inbox = eoq.Inbox(file) if kind in ("path", "many") else eoq.Inbox(database)
        process: Callable[..., object] = inbox.process
        if kind == "library":
            process = eoq.GuestInbox(block, lambda connection: connection).process
        message = _delivered(blocking, queue)
        if kind == "many":
            (outcome,) = inbox.process_many([message], pay)
            assert isinstance(outcome, sqlite3.OperationalError)
        else:
            with pytest.raises(sqlite3.OperationalError, match="locked"):
                process(message, pay)
        inbox.close()
    _check(blocking, queue)


def test_so_does_one_in_a_session_of_sqlalchemy(blocking: eoq.Client, queue: str, file: Path) -> None:
    engine = create_engine(f"sqlite:///{file}", connect_args={"timeout": 0})
    sessions = sessionmaker(engine)

    def connection(session: Session) -> Any:
        return session.connection().connection.driver_connection

    def pay(_session: Session, message: eoq.Message) -> None:
        with sessions.begin() as other:
            other.execute(text("insert into payment values (:id)"), {"id": message.id})

    with pytest.raises(OperationalError, match="locked"):
        eoq.GuestInbox(sessions.begin, connection).process(_delivered(blocking, queue), pay)
    _check(blocking, queue)
    engine.dispose()


async def test_so_does_one_of_asyncio(shared_daemon: Daemon, queue: str, file: Path) -> None:
    async def pay(_tx: aiosqlite.Connection, message: eoq.AsyncMessage) -> None:
        _over_another_connection(file, message)

    with eoq.connect(shared_daemon.socket) as blocking:
        async with eoq.connect_async(shared_daemon.socket) as client, eoq.AsyncInbox(file) as inbox:
            await client.send(queue, "x", id="m")
            (message,) = await client.receive(queue)
            with pytest.raises(sqlite3.OperationalError, match="locked"):
                await inbox.process(message, pay)
        _check(blocking, queue)


def test_a_worker_counts_each_try(shared_daemon: Daemon, queue: str, file: Path) -> None:
    def pay(_tx: sqlite3.Connection, message: eoq.Message) -> None:
        _over_another_connection(file, message)

    with eoq.connect(shared_daemon.socket) as client, eoq.Inbox(file) as inbox:
        client.send(queue, "x", id="m")
        summary = client.work(queue, pay, inbox=inbox, until_empty=True)
        assert summary.done == 0 and client.show(queue, "m")["attempts"] == summary.retried > 0
