"""The application's end of the outbox: it writes in the application's transaction, in each mode of transactions."""

from __future__ import annotations

import asyncio
import sqlite3
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import aiosqlite
import pytest

import eoq
from tests.support import Daemon

MEBIBYTE = 1024 * 1024


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """The application's file."""
    return tmp_path / "app.db"


@pytest.fixture
def database(file: Path) -> Iterator[sqlite3.Connection]:
    """A connection of the application, as Python opens it by default."""
    with closing(sqlite3.connect(file)) as database:
        yield database


def _relay(daemon: Daemon, file: Path) -> None:
    async def flush() -> None:
        async with eoq.connect_async(daemon.socket) as client:
            assert await eoq.Relay(file, client).flush() == 0

    asyncio.run(flush())


def _ids(file: Path) -> list[str]:
    """Return the ids of the rows that are committed."""
    with closing(sqlite3.connect(file)) as database:
        return [id for (id,) in database.execute("select id from eoq_outbox order by seq")]


def test_every_option_arrives(shared_daemon: Daemon, queue: str, file: Path, database: sqlite3.Connection) -> None:
    box = eoq.Outbox(database)
    with database:
        assert box.send(queue, {"a": 1}, id="x", headers={"k": "é"}, priority=5, group="g") == "x"
        later = box.send(queue, b"\x00\xff", delay=3600)
        box.send(queue, "at", id="z", at=4e9)
    _relay(shared_daemon, file)
    with eoq.connect(shared_daemon.socket) as client:
        (message,) = client.receive(queue, 10)
        assert (message.id, message.json(), message.priority, message.group) == ("x", {"a": 1}, 5, "g")
        assert message.headers == {"k": "é", "content-type": "application/json"}
        delayed = client.ask("show", queue=queue, id=later)["message"]
        assert delayed["body_base64"] == "AP8="
        assert delayed["due_at"] - delayed["enqueued_at"] == pytest.approx(3600, abs=60)
        assert client.ask("show", queue=queue, id="z")["message"]["due_at"] == 4e9


def test_a_delay_counts_from_the_send(
    shared_daemon: Daemon, queue: str, file: Path, database: sqlite3.Connection
) -> None:
    box = eoq.Outbox(database)
    with database:
        box.send(queue, "x", delay=60)
        # The row seems to have waited two minutes for a relay.
        database.execute("update eoq_outbox set at = at - 120, created_at = created_at - 120")
    _relay(shared_daemon, file)
    with eoq.connect(shared_daemon.socket) as client:
        assert [message.text for message in client.receive(queue)] == ["x"]


@pytest.mark.parametrize(
    ("arguments", "options", "error"),
    [
        (("no good", b""), {}, eoq.InvalidRequest),
        (("", b""), {}, eoq.InvalidRequest),
        (("q", b"x" * (MEBIBYTE + 1)), {}, eoq.MessageTooLarge),
        (("q", "é" * (MEBIBYTE // 2) + "x"), {}, eoq.MessageTooLarge),
        (("q", object()), {}, eoq.InvalidRequest),
        (("q", "\ud800"), {}, eoq.InvalidRequest),
        (("q", b""), {"id": ""}, eoq.InvalidRequest),
        (("q", b""), {"id": "x" * 201}, eoq.InvalidRequest),
        (("q", b""), {"group": "\n"}, eoq.InvalidRequest),
        (("q", b""), {"priority": 2**31}, eoq.InvalidRequest),
        (("q", b""), {"delay": -1}, eoq.InvalidRequest),
        (("q", b""), {"at": float("nan")}, eoq.InvalidRequest),
        (("q", b""), {"delay": 1, "at": 1}, eoq.InvalidRequest),
        (("q", b""), {"headers": {"k": 1}}, eoq.InvalidRequest),
        (("q", b""), {"headers": {"k": "\ud800"}}, eoq.InvalidRequest),
        (("q", b""), {"headers": {"k": "v" * 70_000}}, eoq.MessageTooLarge),
    ],
)
def test_a_send_refuses_what_the_daemon_would_refuse(
    database: sqlite3.Connection, arguments: Any, options: Any, error: type[Exception]
) -> None:
    box = eoq.Outbox(database)
    with pytest.raises(error):
        box.send(*arguments, **options)
    assert database.execute("select count(*) from eoq_outbox").fetchone() == (0,)
    assert not database.in_transaction


def test_the_largest_allowed_message_is_sent(
    shared_daemon: Daemon, queue: str, file: Path, database: sqlite3.Connection
) -> None:
    headers = {"k": "é" * 65_000}
    with database:
        eoq.Outbox(database).send(queue, b"\xff" * MEBIBYTE, id="i" * 200, headers=headers, group="g" * 200)
    _relay(shared_daemon, file)
    with eoq.connect(shared_daemon.socket) as client:
        (message,) = client.receive(queue)
    assert (message.body, message.headers) == (b"\xff" * MEBIBYTE, headers)


# ── the application's transactions ──────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("level", ["", "DEFERRED", "IMMEDIATE", "EXCLUSIVE"])
def test_a_send_opens_a_transaction_as_any_insert_does(file: Path, level: Any) -> None:
    with closing(sqlite3.connect(file, isolation_level=level)) as database:
        box = eoq.Outbox(database)
        box.send("q", "undone", id="undone")
        assert database.in_transaction
        database.rollback()
        box.send("q", "kept", id="kept")
        database.commit()
    assert _ids(file) == ["kept"]


def test_in_autocommit_mode_a_send_needs_a_transaction(file: Path) -> None:
    with closing(sqlite3.connect(file, isolation_level=None)) as database:
        box = eoq.Outbox(database)
        with pytest.raises(eoq.InvalidRequest, match="begin"):
            box.send("q", "alone")
        database.execute("begin")
        box.send("q", "x", id="kept")
        database.execute("savepoint part")
        box.send("q", "x", id="undone")
        database.execute("rollback to part")
        assert database.in_transaction
        database.execute("commit")
        database.execute("savepoint whole")
        box.send("q", "x", id="of a savepoint")
        database.execute("release whole")
    assert _ids(file) == ["kept", "of a savepoint"]


@pytest.mark.skipif(sys.version_info < (3, 12), reason="these modes came with Python 3.12")
@pytest.mark.parametrize("autocommit", [True, False])
def test_a_send_works_in_the_modes_of_python_3_12(file: Path, autocommit: bool) -> None:
    options: Any = {"autocommit": autocommit}
    with closing(sqlite3.connect(file, **options)) as database:
        box = eoq.Outbox(database)
        if autocommit:
            with pytest.raises(eoq.InvalidRequest, match="begin"):
                box.send("q", "alone")
            database.execute("begin")
        box.send("q", "x", id="kept")
        database.execute("commit") if autocommit else database.commit()
        if not autocommit:
            box.send("q", "x", id="undone")
            database.rollback()
    assert _ids(file) == ["kept"]


@pytest.mark.skipif(sys.version_info < (3, 12), reason="these modes came with Python 3.12")
@pytest.mark.parametrize("autocommit", [True, False])
def test_an_asyncio_send_works_in_the_modes_of_python_3_12(file: Path, autocommit: bool) -> None:
    async def send() -> None:
        options: Any = {"autocommit": autocommit}
        async with aiosqlite.connect(file, **options) as database:
            box = await eoq.AsyncOutbox.open(database)
            if autocommit:
                with pytest.raises(eoq.InvalidRequest, match="begin"):
                    await box.send("q", "alone")
                await database.execute("begin")
            await box.send("q", "x", id="kept")
            await (database.execute("commit") if autocommit else database.commit())
            if not autocommit:
                await box.send("q", "x", id="undone")
                await database.rollback()

    asyncio.run(send())
    assert _ids(file) == ["kept"]


def test_a_new_outbox_leaves_an_open_transaction_open(database: sqlite3.Connection) -> None:
    database.row_factory = lambda cursor, row: {c[0]: v for c, v in zip(cursor.description, row, strict=True)}
    database.execute("create table t (x)")
    database.execute("insert into t values (1)")
    eoq.Outbox(database).send("q", "x")
    assert database.in_transaction
    database.rollback()
    assert database.execute("select * from t").fetchall() == []
    assert database.execute("select name from sqlite_schema where name like 'eoq%'").fetchall() == []


def test_a_send_creates_the_table_again_after_a_rollback(file: Path, database: sqlite3.Connection) -> None:
    database.execute("begin")
    box = eoq.Outbox(database)
    database.rollback()
    with database:
        box.send("q", "x", id="kept")
    assert _ids(file) == ["kept"]


def test_an_existing_outbox_is_opened_without_the_write_lock(file: Path, database: sqlite3.Connection) -> None:
    eoq.Outbox(database)
    with (
        closing(sqlite3.connect(file, isolation_level=None)) as writer,
        closing(sqlite3.connect(file, timeout=0)) as other,
    ):
        writer.execute("begin immediate")
        eoq.Outbox(other)


def test_the_asyncio_outbox(shared_daemon: Daemon, queue: str, file: Path) -> None:
    async def send() -> None:
        async with aiosqlite.connect(file) as database:
            box = eoq.AsyncOutbox(database)
            await box.send(queue, "undone with its table")
            await database.rollback()
            await box.send(queue, "kept", id="k", headers={"a": "b"})
            await database.commit()
            with pytest.raises(eoq.InvalidRequest):
                await box.send("no queue", "x")
        async with aiosqlite.connect(file, isolation_level=None) as database:
            box = await eoq.AsyncOutbox.open(database)
            with pytest.raises(eoq.InvalidRequest, match="begin"):
                await box.send(queue, "alone")

    asyncio.run(send())
    _relay(shared_daemon, file)
    with eoq.connect(shared_daemon.socket) as client:
        (message,) = client.receive(queue, 10)
        assert (message.id, message.text, message.headers) == ("k", "kept", {"a": "b"})
