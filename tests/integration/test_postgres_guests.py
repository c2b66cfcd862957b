"""Guest inboxes in PostgreSQL, inside transactions of SQLAlchemy and Django: one commit, then the ack."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Any, TypeAlias, cast

import psycopg
import pytest
from sqlalchemy import Engine, create_engine, text
from sqlalchemy.exc import DBAPIError, IntegrityError, InvalidRequestError
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker

import eoq
from tests.integration.stores import Store
from tests.postgres import Server
from tests.support import PATIENCE, Daemon, eventually

Inbox: TypeAlias = eoq.PgGuestInbox[Session]


class Base(DeclarativeBase):
    """The application's tables."""


class Payment(Base):
    __tablename__ = "payment"
    number: Mapped[int] = mapped_column(primary_key=True)
    id: Mapped[str]


def _connection(session: Session) -> psycopg.Connection[Any]:
    return cast("psycopg.Connection[Any]", session.connection().connection.driver_connection)


def _apply(session: Session, message: eoq.Message) -> str:
    session.add(Payment(id=message.id))
    return f"did {message.id}"


@pytest.fixture
def store(database: str) -> Store:
    return Store("postgres", database)


def _url(database: str) -> str:
    return database.replace("postgresql://", "postgresql+psycopg://")


@pytest.fixture
def engine(database: str, store: Store) -> Iterator[Engine]:
    engine = create_engine(_url(database))
    yield engine
    engine.dispose()


@pytest.fixture
def inbox(engine: Engine) -> Inbox:
    return eoq.PgGuestInbox(sessionmaker(engine).begin, _connection)


def _delivered(client: eoq.Client, queue: str, id: str = "m", lease: float | None = None) -> eoq.Message:
    client.send(queue, "x", id=id)
    (message,) = client.receive(queue, wait=PATIENCE, lease=lease)
    return message


def _again(client: eoq.Client, queue: str) -> eoq.Message:
    (message,) = client.receive(queue, wait=PATIENCE)
    return message


def test_the_tables_are_looked_for_once(
    blocking: eoq.Client, queue: str, store: Store, database: str, postgres: Server
) -> None:
    look = "where pg_class.oid = to_regclass"
    before = postgres.said.count(look)
    engine = create_engine(f"{_url(database)}%20-c%20log_statement%3Dall")
    inbox = eoq.PgGuestInbox(sessionmaker(engine).begin, _connection)
    for id in "abc":
        inbox.process(_delivered(blocking, queue, id), _apply)
    engine.dispose()
    looks = postgres.said.count(look) - before
    assert 1 <= looks <= 3, "before and after the tables are made, and to see that they are committed"


@pytest.mark.slow
def test_objects_of_a_session_and_the_id_commit_together(
    blocking: eoq.Client, queue: str, inbox: Inbox, store: Store
) -> None:
    assert not inbox.seen(queue, "m")
    assert inbox.process(_delivered(blocking, queue), _apply) == b"did m"
    assert inbox.seen(queue, "m")
    assert store.payments() == ["m"]
    assert blocking.result(queue, "m") == eoq.Result("done", b"did m")


def test_a_redelivered_message_is_only_acked(blocking: eoq.Client, queue: str, inbox: Inbox, store: Store) -> None:
    message = _delivered(blocking, queue, lease=0.02)
    again = _again(blocking, queue)
    with pytest.raises(eoq.LeaseLost):
        inbox.process(message, _apply)
    assert inbox.process(again, _apply) == b"did m"
    assert store.payments() == ["m"]


def test_what_fails_at_the_commit_is_given_back(blocking: eoq.Client, queue: str, inbox: Inbox, store: Store) -> None:
    store.execute("create unique index on payment (id)")
    store.execute("insert into payment (id) values ('same')")

    def handler(session: Session, message: eoq.Message) -> None:
        session.add_all([Payment(id=message.id), Payment(id="same")])

    with pytest.raises(IntegrityError):
        inbox.process(_delivered(blocking, queue), handler)
    assert store.payments() == ["same"]
    assert not inbox.seen(queue, "m")
    inbox.process(_again(blocking, queue), _apply)
    assert store.payments() == ["same", "m"]


def _recovers(session: Session) -> None:
    """Do what many do after an error: roll back, go on, and commit."""
    with suppress(DBAPIError):
        session.execute(text("select no_such_function()"))
    session.rollback()
    session.add(Payment(id="after"))
    session.flush()


@pytest.mark.parametrize(
    "ending",
    [Session.commit, Session.rollback, lambda session: session.execute(text("commit")), _recovers],
    ids=["commit", "rollback", "text", "recovers"],
)
@pytest.mark.parametrize("ignores", [False, True])
@pytest.mark.first_by_default
def test_a_handler_cannot_end_the_transaction(
    blocking: eoq.Client,
    queue: str,
    inbox: Inbox,
    store: Store,
    ending: Callable[[Session], object],
    ignores: bool,
) -> None:
    def handler(session: Session, message: eoq.Message) -> None:
        _apply(session, message)
        session.flush()
        with suppress(*([Exception] if ignores else [])):
            ending(session)

    inbox.seen(queue, "m")  # makes the tables
    with pytest.raises((DBAPIError, eoq.InvalidRequest, InvalidRequestError)):
        inbox.process(_delivered(blocking, queue), handler)
    assert store.payments() == []
    assert not inbox.seen(queue, "m")
    inbox.process(_again(blocking, queue), _apply)
    assert store.payments() == ["m"]


def test_a_block_that_suppresses_the_error_and_commits_is_refused(
    blocking: eoq.Client, queue: str, database: str, store: Store
) -> None:
    @contextmanager
    def forgiving() -> Iterator[psycopg.Connection[Any]]:
        with psycopg.connect(database) as connection:
            with suppress(OSError):
                yield connection
            connection.commit()

    def handler(tx: psycopg.Connection[Any], message: eoq.Message) -> None:
        tx.execute("insert into payment (id) values (%s)", (message.id,))
        raise OSError("the bank is closed")

    inbox = eoq.PgGuestInbox(forgiving, lambda tx: tx)
    inbox.seen(queue, "m")  # makes the tables
    with pytest.raises(OSError, match="closed"):
        inbox.process(_delivered(blocking, queue), handler)
    assert store.payments() == []


def test_a_block_that_commits_nothing_is_not_acked(
    blocking: eoq.Client, queue: str, database: str, store: Store
) -> None:
    @contextmanager
    def discarding() -> Iterator[psycopg.Connection[Any]]:
        with psycopg.connect(database) as connection:
            yield connection
            if not read_only:
                connection.rollback()

    read_only = True
    inbox = eoq.PgGuestInbox(discarding, lambda tx: tx)
    inbox.seen(queue, "m")  # makes the tables
    read_only = False
    with pytest.raises(eoq.InvalidRequest, match="did not commit"):
        inbox.process(
            _delivered(blocking, queue),
            lambda tx, m: tx.execute("insert into payment (id) values (%s)", (m.id,)) and None,
        )
    assert store.payments() == []
    eventually(lambda: blocking.ask("show", queue=queue, id="m")["message"]["state"] == "ready")


def test_an_engine_in_autocommit_mode_is_refused(blocking: eoq.Client, queue: str, database: str, store: Store) -> None:
    engine = create_engine(_url(database), isolation_level="AUTOCOMMIT")
    inbox: Inbox = eoq.PgGuestInbox(sessionmaker(engine).begin, _connection)
    with pytest.raises((eoq.InvalidRequest, DBAPIError)):
        inbox.process(_delivered(blocking, queue), _apply)
    assert store.payments() == []
    engine.dispose()


def test_a_connection_of_another_database_is_refused(blocking: eoq.Client, queue: str, engine: Engine) -> None:
    inbox: Inbox = eoq.PgGuestInbox(sessionmaker(engine).begin, cast(Any, lambda session: session.connection()))
    with pytest.raises(eoq.InvalidRequest, match="not psycopg's connection"):
        inbox.process(_delivered(blocking, queue), _apply)


def test_prune_deletes_what_is_below_the_watermark(blocking: eoq.Client, queue: str, engine: Engine) -> None:
    inbox: Inbox = eoq.PgGuestInbox(sessionmaker(engine).begin, _connection, keep=0)
    for id in "abc":
        inbox.process(_delivered(blocking, queue, id), _apply)
    assert inbox.prune() == 2
    assert [inbox.seen(queue, id) for id in "abc"] == [False, False, True]


DJANGO = """
import functools, sys
import django
from django.conf import settings
host, schema, socket, queue, case = sys.argv[1:]
settings.configure(DATABASES={"default": {
    "ENGINE": "django.db.backends.postgresql", "NAME": "postgres", "USER": "eoq", "HOST": host,
    "OPTIONS": {"options": f"-c search_path={schema}"}}})
django.setup()
from django.db import IntegrityError, connection, transaction
import eoq

def write(id):
    with connection.cursor() as cursor:
        cursor.execute("insert into payment (id) values (%s)", [id])

def fails(where):
    try:
        with where, connection.cursor() as cursor:
            cursor.execute("insert into account values ('alice')")
    except IntegrityError:
        pass

def book(_transaction, message):
    write(message.id)
    if message.id != "bad":
        with transaction.atomic():
            write(message.id + " nested")
        fails(transaction.atomic())
    elif case == "swallowed":
        fails(transaction.atomic(savepoint=False))
    elif case == "set_rollback":
        transaction.set_rollback(True)
    elif case == "commit":
        connection.commit()
    elif case == "raw commit":
        connection.connection.commit()
    elif case == "raw rollback":
        connection.connection.rollback()
    elif case == "sql commit":
        with connection.cursor() as cursor:
            cursor.execute("commit")
    elif case == "raises":
        raise eoq.Reject("no such account")

durable = case != "around, not durable"
inbox = eoq.PgGuestInbox(functools.partial(transaction.atomic, durable=durable), lambda _: connection.connection)
inbox.seen(queue, "good")

def process(client):
    for message in client.receive(queue, 3, wait=5):
        try:
            inbox.process(message, book)
        except Exception as error:
            print(type(error).__name__, error, file=sys.stderr)

with eoq.connect(socket) as client:
    client.send_many(queue, [eoq.Outgoing("x", id=id) for id in ("good", "bad", "last")])
    if case.startswith("around"):
        try:
            with transaction.atomic():
                process(client)
                raise OSError
        except OSError:
            pass
    else:
        process(client)
    results = {id: client.result(queue, id) for id in ("good", "bad", "last")}
    print([id for id, result in results.items() if result and result.outcome == "done"])
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "case",
    [
        "swallowed",
        "raw commit",
        "set_rollback",
        "commit",
        "raw rollback",
        "sql commit",
        "raises",
        "around",
        "around, not durable",
    ],
)
def test_django(shared_daemon: Daemon, queue: str, store: Store, case: str) -> None:
    pytest.importorskip("django")
    store.execute("create table account (name text primary key)")
    store.execute("insert into account values ('alice')")
    host, schema = (
        store.execute(f"select {what}")[0][0]
        for what in ("current_setting('unix_socket_directories')", "current_schema()")
    )
    done = subprocess.run(
        [sys.executable, "-c", DJANGO, host, schema, str(shared_daemon.socket), queue, case],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    acked = [] if case.startswith("around") else ["good", "last"]
    assert done.stdout.splitlines()[-1] == str(acked), done.stderr
    assert sorted(store.payments()) == sorted([*acked, *[f"{id} nested" for id in acked]]), done.stderr
    if case == "raises":
        assert "Reject no such account" in done.stderr


# ── asyncio ─────────────────────────────────────────────────────────────────────────────────────────────────


@asynccontextmanager
async def _sessions(database: str) -> AsyncIterator[async_sessionmaker[AsyncSession]]:
    engine = create_async_engine(_url(database))
    try:
        yield async_sessionmaker(engine)
    finally:
        await engine.dispose()


async def _async_connection(session: AsyncSession) -> psycopg.AsyncConnection[Any]:
    raw = await (await session.connection()).get_raw_connection()
    return cast("psycopg.AsyncConnection[Any]", raw.driver_connection)


async def test_an_asyncio_session_and_the_id_commit_together(
    shared_daemon: Daemon, queue: str, database: str, store: Store
) -> None:
    async def book(session: AsyncSession, message: eoq.AsyncMessage) -> str:
        session.add(Payment(id=message.id))
        if message.id == "commits":
            await session.commit()
        return f"did {message.id}"

    async with _sessions(database) as sessions, eoq.connect_async(shared_daemon.socket) as client:
        inbox = eoq.AsyncPgGuestInbox(sessions.begin, _async_connection)
        await inbox.seen(queue, "m")  # makes the tables
        await client.send(queue, "x", id="m")
        (message,) = await client.receive(queue, wait=PATIENCE, lease=0.02)
        (again,) = await client.receive(queue, wait=PATIENCE)
        with pytest.raises(eoq.LeaseLost):
            await inbox.process(message, book)
        assert await inbox.process(again, book) == b"did m"
        await client.send(queue, "x", id="commits")
        (message,) = await client.receive(queue, wait=PATIENCE)
        with pytest.raises(Exception, match="a handler must not commit"):
            await inbox.process(message, book)
        assert [await inbox.seen(queue, id) for id in ("m", "commits")] == [True, False]
    assert store.payments() == ["m"]
