"""Databases that are set up in other ways: another encoding, another default isolation, a limit of time.

The inbox, the outbox and the bridge are right there, or refuse with a sentence that says what to do.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TypeVar

import psycopg
import pytest

import eoq
from eoq.bridge.postgres.ingest import ClaimedRows
from eoq.bridge.postgres.publish import RowPublisher
from eoq.message import AsyncMessage, Outgoing
from tests.postgres import Server
from tests.support import Daemon

T = TypeVar("T")

DAY = 86400.0
LOST = """
    select pg_terminate_backend(pid)
    from pg_stat_activity
    where pid <> pg_backend_pid() and datname = current_database()
    """
"""It cuts all other connections of a database."""
SETTINGS = {
    "utf8": "",
    "latin1": "",
    "serializable": "default_transaction_isolation = 'serializable'",
    "repeatable": "default_transaction_isolation = 'repeatable read'",
    "lazy": "synchronous_commit = off",
}


@pytest.fixture(params=list(SETTINGS))
def odd(request: pytest.FixtureRequest, postgres: Server) -> Iterator[str]:
    """Return the URL of a database of its own, with other settings."""
    yield from _database(postgres, "LATIN1" if request.param == "latin1" else "UTF8", SETTINGS[request.param])


@pytest.fixture
def ascii(postgres: Server) -> Iterator[str]:
    """Return the URL of a database that takes any bytes as text."""
    yield from _database(postgres, "SQL_ASCII", "")


def _database(postgres: Server, encoding: str, setting: str) -> Iterator[str]:
    name = f"d{uuid.uuid4().hex}"
    with psycopg.connect(postgres.conninfo(), autocommit=True) as connection:
        connection.execute(
            f"create database {name} encoding '{encoding}' lc_collate 'C' lc_ctype 'C' template template0"
        )
        if setting:
            connection.execute(f"alter database {name} set {setting}")
    yield postgres.conninfo().replace("/postgres?", f"/{name}?")
    with psycopg.connect(postgres.conninfo(), autocommit=True) as connection:
        connection.execute(f"drop database {name} with (force)")


def _publish(url: str, *messages: AsyncMessage) -> dict[str, str]:
    async def run() -> dict[str, str]:
        publisher = RowPublisher(url)
        try:
            return await publisher.publish("q", messages, origin="o")
        finally:
            await publisher.close()

    return asyncio.run(run())


def _message(id: str, **more: object) -> AsyncMessage:
    fields = {"headers": {}, "attempt": 1, "priority": 0, "group": None, "enqueued_at": 0.0, "body": b"\xff", **more}
    message = object.__new__(AsyncMessage)
    for name, value in {"id": id, "queue": "q", "digest": "d", "expires_at": None, **fields}.items():
        setattr(message, name, value)
    return message


@pytest.mark.slow
def test_the_bridge_is_right_whatever_the_database_has_set(odd: str) -> None:
    headers = {"name": "Å 5 €"}
    assert _publish(odd, _message("ü", headers=headers), _message("b", group="g")) == {}
    with psycopg.connect(odd) as connection:
        ((encoding,),) = connection.execute("show server_encoding").fetchall()
    refused = _publish(odd, _message("c"), _message("€"), _message("ü", headers=headers))
    if encoding == "UTF8":
        assert refused == {}
    else:
        assert list(refused) == ["€"]
        assert "has no equivalent in encoding" in refused["€"]
    machine = ClaimedRows(odd, "q", "m", "m", 3 * DAY, lambda: None, lambda _ids: None)
    machine.room = 10
    try:
        rows = machine.read(250, 1 << 20, resend_within=DAY)
        assert [row.key.decode() for row in rows] == ["ü", "b", "c", *(["€"] if encoding == "UTF8" else [])]
        first = rows[0].message
        assert isinstance(first, Outgoing)
        assert (first.id, first.body, first.headers) == ("ü", b"\xff", headers)
        left, _since = machine.mark(rows)
        machine.remove(left[:-1])
        machine.set_aside(left[-1], "its price is 5 €")
        assert machine.list_set_aside(1)[0].error in ("its price is 5 €", "its price is 5 \\u20ac")
    finally:
        machine.close()


@pytest.mark.slow
def test_an_inbox_is_right_whatever_the_database_has_set(odd: str, shared_daemon: Daemon, queue: str) -> None:
    with eoq.connect(shared_daemon.socket) as client, eoq.PgInbox(odd) as inbox:
        client.send_many(queue, [eoq.Outgoing("ü", id=id) for id in ("a", "ü")])
        for _ in range(2):
            for message in client.receive(queue, 2):
                assert inbox.process(message, lambda _tx, one: f"done {one.id}") == f"done {message.id}".encode()
        assert inbox.seen(queue, "ü")
        client.send(queue, "x", id="€")
        (message,) = client.receive(queue)
        with psycopg.connect(odd) as connection:
            ((encoding,),) = connection.execute("show server_encoding").fetchall()
        if encoding == "UTF8":
            assert inbox.process(message, lambda _tx, _one: "done") == b"done"
        else:
            with pytest.raises(UnicodeEncodeError, match=r"latin-1.*can't encode"):
                inbox.process(message, lambda _tx, _one: "done")
            assert client.peek(queue)[0]["id"] == "€"


@pytest.mark.slow
def test_a_database_that_takes_any_bytes_as_text_is_refused(ascii: str, shared_daemon: Daemon, queue: str) -> None:
    with pytest.raises(eoq.InvalidRequest, match="SQL_ASCII"):
        _publish(ascii, _message("a"))
    machine = ClaimedRows(ascii, "q", "m", "m", 3 * DAY, lambda: None)
    with pytest.raises(eoq.InvalidRequest, match="SQL_ASCII"):
        machine.read(250, 1 << 20, resend_within=DAY)
    with eoq.connect(shared_daemon.socket) as client:
        client.send(queue, "x", id="a")
        (message,) = client.receive(queue)
        with pytest.raises(eoq.InvalidRequest, match="SQL_ASCII"), eoq.PgInbox(ascii) as inbox:
            inbox.process(message, lambda _tx, _one: "done")


@pytest.mark.slow
@pytest.mark.parametrize("setting", ["statement_timeout = '1500ms'", "lock_timeout = '1500ms'"])
def test_a_limit_of_time_is_an_outage_and_what_waits_goes_on(postgres: Server, setting: str) -> None:
    url = next(databases := _database(postgres, "UTF8", setting))
    machine = ClaimedRows(url, "q", "m", "m", 3 * DAY, lambda: None)
    machine.room = 10
    try:
        assert _publish(url, _message("a")) == {}
        with _locked(url), pytest.raises(eoq.StorageFailed, match=r"timeout|open transactions"):
            _publish(url, _message("b"))
        assert _publish(url, _message("b")) == {}
        rows = machine.read(250, 1 << 20, resend_within=DAY)
        with _locked(url), pytest.raises(eoq.StorageFailed, match=r"timeout|open transactions"):
            machine.remove(rows)
        again = machine.read(250, 1 << 20, resend_within=DAY)
        assert [row.key for row in again] == [row.key for row in rows] == [b"a", b"b"]
        machine.remove(again)
        assert machine.read(250, 1 << 20, resend_within=DAY) == []
    finally:
        machine.close()
        next(databases, None)


@contextmanager
def _locked(url: str) -> Iterator[None]:
    with psycopg.connect(url) as connection:
        connection.execute("set statement_timeout = 0")
        connection.execute("lock table eoq_forward in access exclusive mode")
        yield


@pytest.mark.slow
def test_a_connection_that_is_lost_between_any_two_steps_is_opened_again(postgres: Server) -> None:
    url = next(databases := _database(postgres, "UTF8", ""))
    machine = ClaimedRows(url, "q", "m", "m", 3 * DAY, lambda: None, lambda _ids: None)
    machine.room = 10

    def insist(step: Callable[[], T]) -> T:
        """Cut the connection, and return what a step returns, as the relay repeats it."""
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute(LOST)
        for _ in range(3):
            with suppress(eoq.StorageFailed):
                return step()
        return step()

    try:
        assert _publish(url, _message("a"), _message("b")) == {}
        rows = insist(lambda: machine.read(250, 1 << 20, resend_within=DAY))
        left, since = insist(lambda: machine.mark(rows))
        assert (len(left), since > 0) == (2, True)
        insist(lambda: machine.unmark(left))
        left, _since = insist(lambda: machine.mark(rows))
        assert len(left) == 2
        insist(lambda: machine.remove(left[:1]))
        (row,) = insist(lambda: machine.read(250, 1 << 20, resend_within=DAY))
        insist(lambda: machine.set_aside(row, "no"))
        assert insist(machine.count_set_aside) == 1
    finally:
        machine.close()
        next(databases, None)


@pytest.mark.slow
def test_a_constraint_that_the_user_has_added_refuses_one_message_alone(postgres: Server) -> None:
    """Also one on the table of results."""
    url = next(databases := _database(postgres, "UTF8", ""))
    try:
        assert _publish(url, _message("a")) == {}
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute("create table shop (id text primary key)")
            connection.execute("insert into shop values ('a'), ('c')")
            connection.execute("alter table eoq_forward add constraint sold foreign key (id) references shop")
            connection.execute("alter table eoq_forward_result add constraint asked check (id <> 'c')")
        refused = _publish(url, _message("b"), _message("c"), _message("a"))
        assert sorted(refused) == ["b", "c"]
        assert 'constraint "sold"' in refused["b"]
        assert 'constraint "asked"' in refused["c"]
    finally:
        next(databases, None)
