"""Guest inboxes in Django, peewee and SQLAlchemy's older styles: an effect that is acked is committed, once."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.orm import scoped_session, sessionmaker

import eoq
from tests.support import PATIENCE, Daemon


@pytest.fixture
def file(folder: Path) -> Path:
    with closing(sqlite3.connect(folder / "app.db")) as database:
        database.execute("pragma journal_mode = wal")
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
    return client.receive(queue, wait=PATIENCE)[0]


# ── blocks written by hand ──────────────────────────────────────────────────────────────────────────────────


def _deferred(file: Path, timeout: float = 30) -> Callable[[], AbstractContextManager[sqlite3.Connection]]:
    """Return a block that begins as Django's do by default."""

    @contextmanager
    def block() -> Iterator[sqlite3.Connection]:
        with closing(sqlite3.connect(file, timeout=timeout, isolation_level=None)) as database:
            database.execute("begin")
            try:
                yield database
            except BaseException:
                database.execute("rollback")
                raise
            database.execute("commit")

    return block


def test_a_transaction_that_began_deferred_has_the_write_lock_before_the_handler(
    blocking: eoq.Client, queue: str, file: Path
) -> None:
    def check(tx: sqlite3.Connection, message: eoq.Message) -> None:
        with closing(sqlite3.connect(file, timeout=0)) as other, pytest.raises(sqlite3.OperationalError, match="lock"):
            other.execute("insert into payment values ('other')")
        tx.execute("insert into payment values (?)", (message.id,))

    inbox = eoq.GuestInbox(_deferred(file), lambda tx: tx)
    inbox.seen(queue, "m")  # creates the tables
    inbox.process(_delivered(blocking, queue), check)
    assert _payments(file) == ["m"]


def test_transactions_that_begin_deferred_wait_for_each_other(blocking: eoq.Client, queue: str, file: Path) -> None:
    def book(tx: sqlite3.Connection, message: eoq.Message) -> None:
        tx.execute("select count(*) from payment").fetchall()
        tx.execute("insert into payment values (?)", (message.id,))

    inbox = eoq.GuestInbox(_deferred(file), lambda tx: tx)
    blocking.send_many(queue, [eoq.Outgoing(b"x", id=f"{number:02}") for number in range(40)])
    shares = [blocking.receive(queue, 20), blocking.receive(queue, 20)]
    errors: list[Exception] = []

    def process(share: list[eoq.Message]) -> None:
        for message in share:
            try:
                inbox.process(message, book)
            except Exception as error:  # noqa: BLE001 # the test shows it
                errors.append(error)

    threads = [threading.Thread(target=process, args=(share,)) for share in shares]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert _payments(file) == [f"{number:02}" for number in range(40)]


def test_a_redelivery_inside_a_transaction_around_the_block_is_not_acked(
    blocking: eoq.Client, queue: str, file: Path
) -> None:
    """The id is found, but only in the transaction that is still open."""

    @contextmanager
    def inner() -> Iterator[sqlite3.Connection]:
        yield database

    def book(tx: sqlite3.Connection, message: eoq.Message) -> None:
        tx.execute("insert into payment values (?)", (message.id,))

    with closing(sqlite3.connect(file, isolation_level=None)) as database:
        inbox = eoq.GuestInbox(inner, lambda tx: tx)
        database.execute("begin")
        blocking.send(queue, "x", id="m")
        for _ in range(2):
            with pytest.raises(eoq.InvalidRequest, match="did not commit"):
                inbox.process(blocking.receive(queue, wait=PATIENCE)[0], book)
        database.execute("rollback")
    assert _payments(file) == []
    assert blocking.result(queue, "m") is None


# ── SQLAlchemy ──────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("level", [None, "AUTOCOMMIT", "IMMEDIATE"])
@pytest.mark.parametrize("style", ["core", "scoped"])
def test_the_older_styles_of_sqlalchemy(
    blocking: eoq.Client, queue: str, file: Path, style: str, level: str | None
) -> None:
    engine = create_engine(f"sqlite:///{file}", **({"isolation_level": "AUTOCOMMIT"} if level == "AUTOCOMMIT" else {}))
    if level == "IMMEDIATE":
        engine = create_engine(f"sqlite:///{file}", connect_args={"isolation_level": "IMMEDIATE"})
    scoped = scoped_session(sessionmaker(engine))

    @contextmanager
    def session() -> Iterator[Any]:
        try:
            yield scoped()
            scoped.commit()
        except BaseException:
            scoped.rollback()
            raise
        finally:
            scoped.remove()

    def raw(transaction: Any) -> sqlite3.Connection:
        connection = transaction.connection() if style == "scoped" else transaction
        driver: sqlite3.Connection = connection.connection.driver_connection
        return driver

    def book(transaction: Any, message: eoq.Message) -> str:
        transaction.execute(text("insert into payment values (:id)"), {"id": message.id})
        if message.attempt == 1:
            raise eoq.Retry(0)
        return "paid"

    inbox = eoq.GuestInbox[Any](engine.begin if style == "core" else session, raw)
    with pytest.raises(eoq.Retry):
        inbox.process(_delivered(blocking, queue), book)
    assert _payments(file) == []
    assert inbox.process(blocking.receive(queue, wait=PATIENCE)[0], book) == b"paid"
    assert _payments(file) == ["m"]
    engine.dispose()


# ── peewee ──────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("lock", ["", "immediate"])
@pytest.mark.first_by_default
def test_peewee(blocking: eoq.Client, queue: str, file: Path, lock: str) -> None:
    peewee = pytest.importorskip("peewee")
    database = peewee.SqliteDatabase(file)

    def book(_transaction: object, message: eoq.Message) -> str:
        database.execute_sql("insert into payment values (?)", (message.id,))
        if message.attempt == 1:
            with pytest.raises(peewee.IntegrityError), database.atomic():
                database.execute_sql("insert into account values ('alice')")
            raise eoq.Retry(0, "later")
        if message.attempt == 2:
            database.rollback()
            raise eoq.Retry(0, "after a rollback")
        return "paid"

    inbox = eoq.GuestInbox[Any](
        (lambda: database.atomic(lock)) if lock else database.atomic, lambda _transaction: database.connection()
    )
    with pytest.raises(eoq.Retry, match="later"):
        inbox.process(_delivered(blocking, queue), book)
    with pytest.raises(eoq.Retry, match="after a rollback"):
        inbox.process(blocking.receive(queue, wait=PATIENCE)[0], book)
    assert _payments(file) == []
    assert inbox.process(blocking.receive(queue, wait=PATIENCE)[0], book) == b"paid"
    assert _payments(file) == ["m"]
    database.close()


# ── Django ──────────────────────────────────────────────────────────────────────────────────────────────────

DJANGO = """
import functools, sys
import django
from django.conf import settings
file, socket, queue, mode, case = sys.argv[1:]
settings.configure(DATABASES={"default": {
    "ENGINE": "django.db.backends.sqlite3", "NAME": file, "ATOMIC_REQUESTS": True,
    "OPTIONS": {"transaction_mode": mode} if mode else {}}})
django.setup()
from django.db import IntegrityError, connection, transaction
import eoq

def write(id):
    with connection.cursor() as cursor:
        cursor.execute("insert into payment values (%s)", [id])

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
    elif case == "rollback":
        connection.rollback()
    elif case == "raises":
        raise eoq.Reject("no such account")
    elif case == "raw":
        connection.connection.execute("rollback")

durable = case != "around, not durable"
inbox = eoq.GuestInbox(functools.partial(transaction.atomic, durable=durable), lambda _: connection.connection)

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
                raise ZeroDivisionError
        except ZeroDivisionError:
            pass
    else:
        process(client)
    results = {id: client.result(queue, id) for id in ("good", "bad", "last")}
    print([id for id, result in results.items() if result is not None and result.outcome == "done"])
"""


@pytest.mark.parametrize("mode", ["", pytest.param("IMMEDIATE", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "case",
    ["swallowed", "set_rollback", "commit", "rollback", "raises", "raw", "around", "around, not durable"],
)
@pytest.mark.first_by_default
def test_django(shared_daemon: Daemon, queue: str, file: Path, mode: str, case: str) -> None:
    pytest.importorskip("django")
    done = subprocess.run(
        [sys.executable, "-c", DJANGO, str(file), str(shared_daemon.socket), queue, mode, case],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    acked = [] if case.startswith("around") else ["good", "last"]
    assert done.stdout.splitlines()[-1] == str(acked), done.stderr
    assert _payments(file) == sorted([*acked, *[f"{id} nested" for id in acked]]), done.stderr
    if case == "raises":
        assert "Reject no such account" in done.stderr
