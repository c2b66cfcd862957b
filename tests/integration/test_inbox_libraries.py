"""Inboxes on connections in every mode, and in the blocks of libraries: the handler's own error counts, and an ack
comes only after a commit that is proved."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any, cast

import aiosqlite
import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session, sessionmaker

import eoq
from tests.support import Daemon

AUTOCOMMIT = pytest.mark.skipif(sys.version_info < (3, 12), reason="sqlite3 has autocommit since Python 3.12")


@pytest.fixture
def file(folder: Path) -> Path:
    with closing(sqlite3.connect(folder / "app.db")) as database:
        database.execute("create table payment (id text)")
        database.execute("create table account (name text primary key)")
        database.execute("insert into account values ('alice')")
        database.commit()
    return folder / "app.db"


def _payments(file: Path) -> list[str]:
    with closing(sqlite3.connect(file)) as database:
        return [id for (id,) in database.execute("select id from payment order by id")]


def _delivered(client: eoq.Client, queue: str) -> eoq.Message:
    client.send(queue, "x", id="m")
    return client.receive(queue)[0]


def _state(client: eoq.Client, queue: str) -> tuple[str, str]:
    shown = client.ask("show", queue=queue, id="m")["message"]
    return shown["state"], shown.get("error", "")


def _apply(tx: sqlite3.Connection, message: eoq.Message) -> None:
    tx.execute("insert into payment values (?)", (message.id,))


def _undo_within(tx: Any, message: eoq.Message) -> None:
    """Run the same statement before and after one that rolls back the whole transaction."""
    tx.execute("insert into payment values (?)", (message.id,))
    with suppress(sqlite3.IntegrityError):
        tx.execute("insert or rollback into account values ('alice')")
    tx.execute("insert into payment values (?)", (message.id,))


def _connect(file: Path, **options: Any) -> sqlite3.Connection:
    connection: sqlite3.Connection = sqlite3.connect(file, **options)
    return connection


@pytest.mark.parametrize(
    "options", [{}, {"isolation_level": None}, pytest.param({"autocommit": True}, marks=AUTOCOMMIT)], ids=str
)
def test_no_effect_is_committed_without_its_id(
    blocking: eoq.Client, queue: str, file: Path, options: dict[str, Any]
) -> None:
    with closing(_connect(file, **options)) as database:
        with pytest.raises(sqlite3.DatabaseError, match="not authorized"):
            eoq.Inbox(database).process(_delivered(blocking, queue), _undo_within)
        assert _payments(file) == []
        database.execute("insert into payment values ('own')")
        assert database.in_transaction == (options == {})


@AUTOCOMMIT
async def test_no_effect_of_an_asyncio_inbox_is_committed_without_its_id(
    shared_daemon: Daemon, queue: str, file: Path
) -> None:
    async def handler(tx: aiosqlite.Connection, message: eoq.AsyncMessage) -> None:
        await tx.execute("insert into payment values (?)", (message.id,))
        with suppress(sqlite3.IntegrityError):
            await tx.execute("insert or rollback into account values ('alice')")
        await tx.execute("insert into payment values (?)", (message.id,))

    options: dict[str, Any] = {"autocommit": True}
    async with aiosqlite.connect(file, **options) as database, eoq.connect_async(shared_daemon.socket) as client:
        await client.send(queue, "x")
        (message,) = await client.receive(queue)
        with pytest.raises(sqlite3.DatabaseError, match="not authorized"):
            await eoq.AsyncInbox(database).process(message, handler)
    assert _payments(file) == []


def _connection(session: Session) -> sqlite3.Connection:
    return cast(sqlite3.Connection, session.connection().connection.driver_connection)


@contextmanager
def _by_hand(database: sqlite3.Connection) -> Iterator[sqlite3.Connection]:
    database.execute("begin immediate")
    try:
        yield database
    except BaseException:
        database.execute("rollback")
        raise
    database.execute("commit")


def test_no_effect_in_the_block_of_a_library_is_committed_without_its_id(
    blocking: eoq.Client, queue: str, file: Path
) -> None:
    with closing(_connect(file, isolation_level=None)) as database:
        inbox = eoq.GuestInbox(lambda: _by_hand(database), lambda connection: connection)
        with pytest.raises(sqlite3.DatabaseError, match="not authorized"):
            inbox.process(_delivered(blocking, queue), _undo_within)
        assert _payments(file) == []
        assert database.isolation_level is None


@AUTOCOMMIT
@pytest.mark.parametrize("autocommit", [True, False])
def test_a_library_with_the_modes_of_python_3_12_is_refused(
    blocking: eoq.Client, queue: str, file: Path, autocommit: bool
) -> None:
    @contextmanager
    def begin() -> Iterator[sqlite3.Connection]:
        yield database

    with closing(_connect(file, autocommit=autocommit)) as database:
        inbox = eoq.GuestInbox(begin, lambda connection: connection)
        with pytest.raises(eoq.InvalidRequest, match="autocommit"):
            inbox.process(_delivered(blocking, queue), _undo_within)
    assert _payments(file) == []


def test_what_the_handler_raised_counts_and_not_what_the_rollback_of_the_library_raises(
    blocking: eoq.Client, queue: str, file: Path
) -> None:
    def handler(tx: sqlite3.Connection, message: eoq.Message) -> None:
        tx.execute("insert into payment values (?)", (message.id,))
        raise eoq.Reject("no such account")

    with closing(_connect(file, isolation_level=None)) as database:
        inbox = eoq.GuestInbox(lambda: _by_hand(database), lambda connection: connection)
        with pytest.raises(eoq.Reject, match="no such account") as raised:
            inbox.process(_delivered(blocking, queue), handler)
    assert "no transaction is active" in raised.value.__notes__[0]
    assert _state(blocking, queue) == ("dead", "no such account")
    assert _payments(file) == []


@pytest.mark.parametrize("catches", [False, True])
def test_a_violated_constraint_in_a_session_is_the_error_of_the_message(
    blocking: eoq.Client, queue: str, file: Path, catches: bool
) -> None:
    def handler(session: Session, message: eoq.Message) -> None:
        session.execute(text("insert into payment values (:id)"), {"id": message.id})
        try:
            session.execute(text("insert into account values ('alice')"))
            session.flush()
        except IntegrityError as error:
            session.rollback()
            if catches:
                raise eoq.Reject("alice is there already") from error
            raise

    engine = create_engine(f"sqlite:///{file}")
    inbox = eoq.GuestInbox(sessionmaker(engine).begin, _connection)
    with pytest.raises(eoq.Reject if catches else IntegrityError):
        inbox.process(_delivered(blocking, queue), handler)
    engine.dispose()
    state, error = _state(blocking, queue)
    assert ("alice is there already" if catches else "UNIQUE constraint failed") in error
    assert state == ("dead" if catches else state)
    assert _payments(file) == []


def _discards(database: sqlite3.Connection) -> Iterator[sqlite3.Connection]:
    database.execute("begin")
    yield database
    database.execute("rollback")


def _is_inside(database: sqlite3.Connection) -> Iterator[sqlite3.Connection]:
    if not database.in_transaction:
        database.execute("begin")
    yield database


def _discards_and_closes(database: sqlite3.Connection) -> Iterator[sqlite3.Connection]:
    yield from _discards(database)
    database.close()


@pytest.mark.parametrize("block", [_discards, _is_inside, _discards_and_closes])
def test_a_block_that_ends_without_a_commit_is_not_acked(
    blocking: eoq.Client, queue: str, file: Path, block: Callable[[sqlite3.Connection], Iterator[sqlite3.Connection]]
) -> None:
    with closing(_connect(file, isolation_level=None)) as database:
        database.execute("pragma journal_mode = wal")
        inbox = eoq.GuestInbox(lambda: contextmanager(block)(database), lambda connection: connection)
        with pytest.raises(eoq.InvalidRequest, match="did not commit"):
            inbox.process(_delivered(blocking, queue), _apply)
    assert _payments(file) == []
    assert blocking.result(queue, "m") is None
    assert "did not commit" in _state(blocking, queue)[1]


def test_a_block_that_closes_its_connection_after_the_commit_is_acked(
    blocking: eoq.Client, queue: str, file: Path
) -> None:
    @contextmanager
    def begin() -> Iterator[sqlite3.Connection]:
        with closing(_connect(file)) as database, database:
            yield database

    inbox = eoq.GuestInbox(begin, lambda connection: connection)
    inbox.process(_delivered(blocking, queue), _apply)
    assert _payments(file) == ["m"]
    assert blocking.result(queue, "m") is not None


@pytest.mark.slow
def test_a_block_of_django_that_is_discarded_without_an_exception_is_not_acked(
    shared_daemon: Daemon, queue: str, file: Path
) -> None:
    pytest.importorskip("django")
    program = """
import functools, sys
import django
from django.conf import settings
settings.configure(DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": sys.argv[1]}})
django.setup()
from django.db import IntegrityError, connection, transaction
import eoq

def book(_transaction, message):
    with connection.cursor() as cursor:
        cursor.execute("insert into payment values (%s)", [message.id])
        if message.id == "bad":
            try:
                with transaction.atomic(savepoint=False):
                    cursor.execute("insert into account values ('alice')")
            except IntegrityError:
                pass

inbox = eoq.GuestInbox(functools.partial(transaction.atomic, durable=True), lambda _: connection.connection)
with eoq.connect(sys.argv[2]) as client:
    client.send_many(sys.argv[3], [eoq.Outgoing("x", id="good"), eoq.Outgoing("x", id="bad")])
    for message in client.receive(sys.argv[3], 2):
        try:
            inbox.process(message, book)
        except eoq.InvalidRequest as error:
            print(error)
    print([client.result(sys.argv[3], id) is not None for id in ("good", "bad")])
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(file), str(shared_daemon.socket), queue],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "did not commit" in done.stdout
    assert done.stdout.splitlines()[-1] == "[True, False]"
    assert _payments(file) == ["good"]


def test_a_statement_that_is_left_unfinished_is_named_as_the_reason(
    blocking: eoq.Client, queue: str, file: Path
) -> None:
    cursors: list[sqlite3.Cursor] = []

    def handler(tx: sqlite3.Connection, _message: eoq.Message) -> None:
        cursors.append(tx.execute("insert into payment values ('m') returning id"))

    with eoq.Inbox(file) as inbox, pytest.raises(eoq.InvalidRequest, match="left a statement unfinished"):
        inbox.process(_delivered(blocking, queue), handler)
    assert _payments(file) == []


def test_an_inbox_enforces_foreign_keys_where_it_is_asked_for(blocking: eoq.Client, queue: str, file: Path) -> None:
    with closing(sqlite3.connect(file)) as database:
        database.execute("create table booking (account text references account (name))")

    def handler(tx: sqlite3.Connection, _message: eoq.Message) -> None:
        tx.execute("insert into booking values ('nobody')")

    with eoq.Inbox(file, foreign_keys=True) as inbox, pytest.raises(sqlite3.IntegrityError, match="FOREIGN KEY"):
        inbox.process(_delivered(blocking, queue), handler)
    with closing(sqlite3.connect(file)) as database, pytest.raises(eoq.InvalidRequest, match="pragma foreign_keys"):
        eoq.Inbox(database, foreign_keys=True)


async def test_an_asyncio_inbox_enforces_foreign_keys_where_it_is_asked_for(
    shared_daemon: Daemon, queue: str, file: Path
) -> None:
    with closing(sqlite3.connect(file)) as database:
        database.execute("create table booking (account text references account (name))")

    async def handler(tx: aiosqlite.Connection, _message: eoq.AsyncMessage) -> None:
        await tx.execute("insert into booking values ('nobody')")

    async with eoq.connect_async(shared_daemon.socket) as client, eoq.AsyncInbox(file, foreign_keys=True) as inbox:
        await client.send(queue, "x")
        with pytest.raises(sqlite3.IntegrityError, match="FOREIGN KEY"):
            await inbox.process((await client.receive(queue))[0], handler)
    async with aiosqlite.connect(file) as connection:
        with pytest.raises(eoq.InvalidRequest, match="pragma foreign_keys"):
            eoq.AsyncInbox(connection, foreign_keys=True)
