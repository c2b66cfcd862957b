"""The outbox in PostgreSQL and its relay: sent if and only if the application commits, and once (G6)."""

from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest

import eoq
from eoq.outbox.relay import SWEEP_SECONDS
from eoq.postgres.outbox_table import OutboxTable
from eoq.postgres.sql.common import WAITING
from tests.integration.relays import RelayProcess, bodies, relaying
from tests.postgres import Server
from tests.support import PATIENCE, Daemon, Shell, eventually


@pytest.fixture
def connection(database: str) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(database) as connection:
        yield connection


@pytest.fixture
def relay(shared_daemon: Daemon, database: str, connection: psycopg.Connection[Any]) -> Iterator[RelayProcess]:
    """Run `eoq relay` on an outbox that is there."""
    with pytest.raises(ZeroDivisionError), connection.transaction():
        eoq.PgOutbox(connection).send("q", "undone")
        _ = 1 / 0
    with connection.transaction():
        eoq.PgOutbox(connection).send("first", "x")
    with relaying(shared_daemon, f"'{database}'") as relay:
        eventually(lambda: _waiting(database) == 0)
        yield relay


def _rows(database: str, statement: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(database) as connection:
        return connection.execute(statement).fetchall()


def _waiting(database: str) -> int:
    return int(_rows(database, "select count(*) from eoq_outbox")[0][0])


def _relay_waits(database: str) -> bool:
    """Return whether the relay waits for a notification."""
    return bool(
        _rows(
            database,
            f"select 1 from pg_locks where locktype = 'advisory' and classid = {WAITING} and mode = 'ShareLock'",
        )
    )


@pytest.mark.slow
def test_a_message_is_sent_if_and_only_if_the_transaction_commits(
    blocking: eoq.Client, queue: str, database: str, connection: psycopg.Connection[Any], relay: RelayProcess
) -> None:
    box = eoq.PgOutbox(connection)
    for number in range(10):
        with connection.transaction():
            box.send(queue, f"kept {number}")
        with pytest.raises(ZeroDivisionError), connection.transaction():
            box.send(queue, "undone")
            _ = 1 / 0
        # One after the other, so that each commit has to wake the relay again.
        assert bodies(blocking, queue, 1) == [f"kept {number}"]
    eventually(lambda: _waiting(database) == 0)


@pytest.mark.slow
def test_all_options_arrive(
    blocking: eoq.Client, queue: str, connection: psycopg.Connection[Any], relay: RelayProcess
) -> None:
    with connection.transaction():
        box = eoq.PgOutbox(connection)
        id = box.send(queue, {"a": 1}, id="id", headers={"h": "ü"}, priority=7, group="g", ttl=60)
        box.send(queue, b"\xff\x00", delay=3600)
    (message,) = blocking.receive(queue, wait=PATIENCE)
    assert (message.id, message.json(), message.priority, message.group) == (id, {"a": 1}, 7, "g")
    assert message.headers == {"content-type": "application/json", "h": "ü"}
    (delayed,) = eventually(lambda: blocking.peek(queue, "delayed"))
    assert 3500 < delayed["due_at"] - time.time() < 3700


def test_a_plain_insert_of_any_program_wakes_the_relay(
    blocking: eoq.Client, queue: str, database: str, connection: psycopg.Connection[Any], relay: RelayProcess
) -> None:
    for number in range(5):
        eventually(lambda: _relay_waits(database))
        with connection.transaction():
            connection.execute(
                "insert into eoq_outbox (queue, body) values (%s, convert_to(%s, 'UTF8'))", (queue, f"é {number}")
            )
        start = time.monotonic()
        assert bodies(blocking, queue, 1) == [f"é {number}"]
        assert time.monotonic() - start < SWEEP_SECONDS / 2, "the sweep found it, and not the notification"


def test_nobody_notifies_while_no_relay_waits(database: str, queue: str, connection: psycopg.Connection[Any]) -> None:
    with psycopg.connect(database, autocommit=True) as listening:
        listening.execute("listen eoq_outbox")
        with connection.transaction():
            eoq.PgOutbox(connection).send(queue, "x")
        assert list(listening.notifies(timeout=0.2)) == []


@pytest.mark.slow
def test_rows_that_become_visible_out_of_order_are_all_sent(
    blocking: eoq.Client, queue: str, database: str, relay: RelayProcess
) -> None:
    """Many transactions at the same time commit in another order than that of their numbers."""

    def write(writer: int) -> None:
        order = random.Random(writer)
        with psycopg.connect(database) as connection:
            box = eoq.PgOutbox(connection)
            for number in range(20):
                with connection.transaction():
                    box.send(queue, "x", id=f"{writer}.{number}")
                    connection.execute("select pg_sleep(%s)", (order.random() / 50,))

    with ThreadPoolExecutor(5) as pool:
        list(pool.map(write, range(5)))
    eventually(lambda: _waiting(database) == 0)
    ids = [message.id for message in blocking.receive(queue, 1000, wait=PATIENCE)]
    assert len(ids) == len(set(ids)) == 100


@pytest.mark.slow
def test_a_transaction_that_stays_open_hides_nothing_behind_it(
    blocking: eoq.Client, queue: str, database: str, connection: psycopg.Connection[Any], relay: RelayProcess
) -> None:
    with psycopg.connect(database) as other, other.transaction():
        eoq.PgOutbox(other).send(queue, "late")
        with connection.transaction():
            eoq.PgOutbox(connection).send(queue, "early")
        assert bodies(blocking, queue, 1) == ["early"]
    assert bodies(blocking, queue, 1) == ["late"]


@pytest.mark.slow
def test_two_relays_and_a_killed_one_send_each_message_once(
    shared_daemon: Daemon,
    blocking: eoq.Client,
    queue: str,
    database: str,
    connection: psycopg.Connection[Any],
    relay: RelayProcess,
) -> None:
    with connection.transaction():
        box = eoq.PgOutbox(connection)
        for number in range(1500):
            box.send(queue, "x", id=f"{number}", group=f"{number % 3}")
    relay.process.kill()
    relay.process.wait()
    with relaying(shared_daemon, f"'{database}'"), relaying(shared_daemon, f"'{database}'"):
        eventually(lambda: _waiting(database) == 0)
    assert _rows(database, "select count(*) from eoq_outbox_sending") == [(0,)]
    seen: list[int] = []
    for message in blocking.consume(queue, prefetch=100, idle=1.0):
        seen.append(int(message.id))
        message.ack()
    assert sorted(seen) == list(range(1500))
    assert all([n for n in seen if n % 3 == g] == list(range(g, 1500, 3)) for g in range(3))


@pytest.mark.slow
def test_what_cannot_be_sent_is_set_aside_and_holds_only_its_group(
    shell: Shell, blocking: eoq.Client, queue: str, database: str, connection: psycopg.Connection[Any]
) -> None:
    blocking.send(queue, "another", id="taken")
    with connection.transaction():
        box = eoq.PgOutbox(connection)
        box.send(queue, "conflict", id="taken", group="g")
        box.send(queue, "behind", group="g")
        box.send(queue, "beside")
        connection.execute(
            "insert into eoq_outbox (queue, body, headers) values ('no such name!', '', null), (%s, '', '[1]')",
            (queue,),
        )
    ran = shell.run(f"eoq relay '{database}' --until-empty --json")
    assert (ran.status, ran.rows[0]["sent"], ran.rows[0]["set_aside"]) == (65, 1, 3)
    assert "search_path" not in ran.rows[0]["file"]
    rows = shell.run(f"eoq relay '{database}' --list --json").rows
    assert [row["seq"] for row in rows] == [1, 4, 5]
    with connection.transaction():
        connection.execute("delete from eoq_outbox where seq in (4, 5)")
        connection.execute("update eoq_outbox set id = 'other', error = null where seq = 1")
    ran = shell.run(f"eoq relay '{database}' --until-empty")
    assert ran.status == 0, ran.errors
    assert _waiting(database) == 0


def test_a_read_has_so_many_bytes(database: str, connection: psycopg.Connection[Any]) -> None:
    with connection.transaction():
        for _ in range(4):
            eoq.PgOutbox(connection).send("q", b"x" * 400)
    table = OutboxTable(database)
    for most, rows in ((1000, 2), (100, 1), (10_000, 4)):
        assert len(table.read(250, most, resend_within=1.0)) == rows
    table.close()


@pytest.mark.slow
def test_a_relay_outlives_a_restart_of_the_database(
    shared_daemon: Daemon, blocking: eoq.Client, queue: str, restarted: Server
) -> None:
    database = restarted.conninfo()
    with psycopg.connect(database) as connection:
        eoq.PgOutbox(connection).send(queue, "before")
    with relaying(shared_daemon, f"'{database}'"):
        assert bodies(blocking, queue, 1) == ["before"]
        restarted.kill()
        restarted.start()
        with psycopg.connect(database) as connection:
            eoq.PgOutbox(connection).send(queue, "after")
        assert bodies(blocking, queue, 1) == ["after"]


def test_without_a_transaction_it_is_refused(database: str, queue: str) -> None:
    with psycopg.connect(database, autocommit=True) as connection:
        with pytest.raises(eoq.InvalidRequest, match="no transaction is open"):
            eoq.PgOutbox(connection).send(queue, "x")
        with connection.transaction():
            eoq.PgOutbox(connection).send(queue, "x")
    assert _waiting(database) == 1


def test_several_make_the_table_at_once(database: str, queue: str) -> None:
    barrier = threading.Barrier(4)

    def write(_: int) -> None:
        with psycopg.connect(database) as connection:
            barrier.wait(PATIENCE)
            eoq.PgOutbox(connection).send(queue, "x")

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, range(4)))
    assert _waiting(database) == 4


async def test_an_asyncio_outbox(database: str, queue: str) -> None:
    connection = await psycopg.AsyncConnection.connect(database)
    async with connection:
        box = eoq.AsyncPgOutbox(connection)
        await box.send(queue, {"a": 1}, id="m")
        with pytest.raises(eoq.InvalidRequest):
            await box.send("no such name!", "x")
    assert json.loads(_rows(database, "select body from eoq_outbox")[0][0]) == {"a": 1}


def test_a_password_on_the_command_line_is_refused(shell: Shell) -> None:
    ran = shell.run("eoq relay postgresql://shop:secret@localhost/shop")
    assert ran.status == 65
    assert "PGPASSFILE" in ran.errors
    assert "secret" not in ran.errors


def test_a_database_that_cannot_be_reached_is_named_without_its_user(shell: Shell) -> None:
    ran = shell.run("PGPASSWORD=secret eoq relay 'postgresql://shop@127.0.0.1:1/shop' --until-empty")
    assert ran.status == 75
    assert "postgresql://127.0.0.1:1/shop cannot be reached" in ran.errors
    assert "secret" not in ran.errors
