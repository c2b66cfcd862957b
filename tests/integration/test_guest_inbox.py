"""The guest inbox inside transactions of another library, here SQLAlchemy's sessions: one commit, then the ack."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias, cast

import pytest
from sqlalchemy import Engine, create_engine, event, text
from sqlalchemy.exc import DatabaseError, IntegrityError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker

import eoq
from tests.support import PATIENCE

Inbox: TypeAlias = eoq.GuestInbox[Session]


class Base(DeclarativeBase):
    """The application's tables."""


class Payment(Base):
    __tablename__ = "payment"
    number: Mapped[int] = mapped_column(primary_key=True)
    id: Mapped[str]
    unique: Mapped[str | None] = mapped_column(unique=True)


def _connection(session: Session) -> sqlite3.Connection:
    return cast(sqlite3.Connection, session.connection().connection.driver_connection)


def _apply(session: Session, message: eoq.Message) -> str:
    session.add(Payment(id=message.id))
    return f"did {message.id}"


def _plain(file: Path) -> Engine:
    return create_engine(f"sqlite:///{file}")


def _autocommit(file: Path) -> Engine:
    return create_engine(f"sqlite:///{file}", isolation_level="AUTOCOMMIT")


def _explicit(file: Path) -> Engine:
    """Return an engine by the recipe of SQLAlchemy's manual: an event begins the transactions, not the driver."""
    engine = _plain(file)

    @event.listens_for(engine, "connect")
    def connect(connection: Any, _record: object) -> None:
        connection.isolation_level = None

    @event.listens_for(engine, "begin")
    def begin(connection: Any) -> None:
        connection.exec_driver_sql("begin")

    return engine


@pytest.fixture
def file(folder: Path) -> Path:
    return folder / "app.db"


@pytest.fixture(params=[_plain, _autocommit, _explicit])
def engine(request: pytest.FixtureRequest, file: Path) -> Iterator[Engine]:
    """Return an engine in each of the usual modes."""
    make: Callable[[Path], Engine] = request.param
    with closing(sqlite3.connect(file)) as database:
        database.execute("pragma journal_mode = wal")
    engine = make(file)
    Base.metadata.create_all(engine)
    yield engine
    engine.dispose()


@pytest.fixture
def inbox(engine: Engine) -> Inbox:
    return eoq.GuestInbox(sessionmaker(engine).begin, _connection)


def _payments(file: Path) -> list[str]:
    with closing(sqlite3.connect(file)) as database:
        return [id for (id,) in database.execute("select id from payment order by number")]


def _delivered(client: eoq.Client, queue: str, id: str = "m", lease: float | None = None) -> eoq.Message:
    client.send(queue, "x", id=id)
    (message,) = client.receive(queue, wait=PATIENCE, lease=lease)
    return message


def _again(client: eoq.Client, queue: str) -> eoq.Message:
    (message,) = client.receive(queue, wait=PATIENCE)
    return message


def test_objects_of_a_session_and_the_id_commit_together(
    blocking: eoq.Client, queue: str, inbox: Inbox, file: Path
) -> None:
    assert not inbox.seen(queue, "m")
    assert inbox.process(_delivered(blocking, queue), _apply) == b"did m"
    assert inbox.seen(queue, "m")
    assert _payments(file) == ["m"]
    assert blocking.result(queue, "m") == eoq.Result("done", b"did m")


def test_a_redelivered_message_is_only_acked(blocking: eoq.Client, queue: str, inbox: Inbox, file: Path) -> None:
    message = _delivered(blocking, queue, lease=0.02)
    again = _again(blocking, queue)
    with pytest.raises(eoq.LeaseLost):
        inbox.process(message, _apply)
    assert inbox.process(again, _apply) == b"did m"
    assert _payments(file) == ["m"]


def test_it_is_acked_only_after_the_commit(blocking: eoq.Client, queue: str, inbox: Inbox, file: Path) -> None:
    """If the session's writes at its commit fail, nothing is stored, and the message is given back."""

    def handler(session: Session, message: eoq.Message) -> None:
        session.add_all([Payment(id=message.id, unique="same"), Payment(id=message.id, unique="same")])

    with pytest.raises(IntegrityError):
        inbox.process(_delivered(blocking, queue), handler)
    assert _payments(file) == []
    assert not inbox.seen(queue, "m")
    assert blocking.result(queue, "m") is None
    inbox.process(_again(blocking, queue), _apply)
    assert _payments(file) == ["m"]


def test_a_handler_that_raises_is_rolled_back(blocking: eoq.Client, queue: str, inbox: Inbox, file: Path) -> None:
    def handler(session: Session, message: eoq.Message) -> None:
        _apply(session, message)
        session.flush()
        raise OSError("the bank is closed")

    with pytest.raises(OSError, match="closed"):
        inbox.process(_delivered(blocking, queue), handler)
    assert _payments(file) == []
    inbox.process(_again(blocking, queue), _apply)
    assert _payments(file) == ["m"]


@pytest.mark.parametrize(
    "ending",
    [Session.commit, Session.rollback, lambda session: session.execute(text("commit"))],
    ids=["commit", "rollback", "text"],
)
@pytest.mark.parametrize("ignores", [False, True])
def test_a_handler_cannot_end_the_transaction(
    blocking: eoq.Client,
    queue: str,
    inbox: Inbox,
    file: Path,
    ending: Callable[[Session], object],
    ignores: bool,
) -> None:
    def handler(session: Session, message: eoq.Message) -> None:
        _apply(session, message)
        session.flush()
        with suppress(*([Exception] if ignores else [])):
            ending(session)

    with suppress(Exception):
        inbox.process(_delivered(blocking, queue), handler)
    assert len(_payments(file)) == inbox.seen(queue, "m")
    if not inbox.seen(queue, "m"):
        inbox.process(_again(blocking, queue), _apply)
    assert _payments(file) == ["m"]


def test_a_refused_commit_is_an_error_of_the_database(blocking: eoq.Client, queue: str, inbox: Inbox) -> None:
    with pytest.raises((DatabaseError, sqlite3.DatabaseError), match="not authorized"):
        inbox.process(_delivered(blocking, queue), lambda session, _message: session.execute(text("commit")))


def test_a_handler_may_use_savepoints(blocking: eoq.Client, queue: str, inbox: Inbox, file: Path) -> None:
    def handler(session: Session, message: eoq.Message) -> None:
        _apply(session, message)
        with suppress(OSError), session.begin_nested():
            session.add(Payment(id="undone"))
            session.flush()
            raise OSError

    inbox.process(_delivered(blocking, queue), handler)
    assert _payments(file) == ["m"]


def test_the_same_message_twice_at_once_takes_effect_once(
    blocking: eoq.Client, queue: str, inbox: Inbox, file: Path
) -> None:
    """A slow worker has lost its lease, and the next one runs. The second to commit finds it processed, or fails."""

    def process(message: eoq.Message) -> None:
        with suppress(eoq.LeaseLost, DatabaseError, sqlite3.DatabaseError):
            inbox.process(message, _apply)

    for number in range(10):
        old = _delivered(blocking, queue, f"{number}", lease=0.02)
        new = _again(blocking, queue)
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(process, (old, new)))
        for left in blocking.receive(queue):  # the file was locked for the one whose lease lasted
            process(left)
        assert _payments(file).count(f"{number}") == 1


def test_the_handler_does_not_run_for_a_delivery_that_is_older_than_keep(
    blocking: eoq.Client, queue: str, engine: Engine, file: Path
) -> None:
    inbox: Inbox = eoq.GuestInbox(sessionmaker(engine).begin, _connection, keep=100)
    first, second = _delivered(blocking, queue, "0"), _delivered(blocking, queue, "1")
    inbox.process(second, _apply)
    with pytest.raises(eoq.LeaseLost, match="may have been processed and pruned"):
        inbox.process(replace(first, received_at=first.received_at - 101), _apply)
    assert _payments(file) == ["1"]
    assert inbox.process(_again(blocking, queue), _apply) == b"did 0"


def test_prune_deletes_what_is_below_the_watermark(blocking: eoq.Client, queue: str, engine: Engine) -> None:
    inbox: Inbox = eoq.GuestInbox(sessionmaker(engine).begin, _connection, keep=0)
    for id in "abc":
        inbox.process(_delivered(blocking, queue, id), _apply)
    assert inbox.prune() == 2
    assert [inbox.seen(queue, id) for id in "abc"] == [False, False, True]


def test_a_connection_of_another_database_is_refused(blocking: eoq.Client, queue: str, engine: Engine) -> None:
    inbox: Inbox = eoq.GuestInbox(sessionmaker(engine).begin, cast(Any, lambda session: session.connection()))
    with pytest.raises(eoq.InvalidRequest, match=r"not the sqlite3\.Connection"):
        inbox.process(_delivered(blocking, queue), _apply)


def test_a_pooled_connection_is_returned_as_it_was(
    blocking: eoq.Client, queue: str, inbox: Inbox, engine: Engine, file: Path
) -> None:
    inbox.process(_delivered(blocking, queue), _apply)
    with sessionmaker(engine).begin() as session:
        session.add(Payment(id="own"))
    assert _payments(file) == ["m", "own"]
