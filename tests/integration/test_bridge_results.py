"""Results that come back over the bridge: a sender waits on its own machine for what another machine did."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import psycopg
import pytest

import eoq
from tests.integration.bridges import bridge, bridging
from tests.postgres import Server
from tests.support import PATIENCE, Daemon, eventually, running_daemon

pytestmark = pytest.mark.slow


@pytest.fixture
def machines() -> Iterator[list[Daemon]]:
    """Run two daemons: the first sends."""
    with ExitStack() as stack:
        yield [stack.enter_context(running_daemon()) for _ in range(2)]


def _rows(database: str, statement: str, *values: object) -> list[tuple[Any, ...]]:
    with psycopg.connect(database) as connection:
        cursor = connection.execute(statement, values or None)
        return cursor.fetchall() if cursor.description else []


def _forward(origin: Daemon, database: str) -> None:
    ran = bridge(origin, f"forward q --to '{database}' --results --until-empty")
    assert ran.status == 0, ran.errors


def _ingest(other: Daemon, database: str) -> None:
    ran = bridge(other, f"ingest q --from '{database}' --as b --results --until-empty")
    assert ran.status == 0, ran.errors


def test_a_wait_goes_on_until_the_result_is_back(machines: list[Daemon], database: str) -> None:
    origin, other = machines
    with (
        bridging(origin, f"forward q --to '{database}' --results"),
        bridging(other, f"ingest q --from '{database}' --as b --results"),
        eoq.connect(origin.socket) as client,
        eoq.connect(other.socket) as there,
    ):
        client.send("q", "5", id="m")
        found: list[eoq.Result | None] = []
        waiting = threading.Thread(target=lambda: found.append(client.result("q", "m", wait=PATIENCE * 3)))
        waiting.start()
        (message,) = there.receive("q", wait=PATIENCE)
        eventually(lambda: client.show("q", "m")["state"] == "forwarded")
        assert client.show("q", "m")["awaits"] == 1
        with eoq.connect(origin.socket) as another:
            assert another.result("q", "m") is None
        ran = origin.shell().run("eoq result q m")
        assert (ran.status, ran.text) == (1, "")
        assert "its result has not come back yet" in ran.errors
        message.ack("paid")
        waiting.join(PATIENCE * 3)
        (result,) = found
        assert result is not None
        assert (result.outcome, result.text, result.error) == ("done", "paid", None)
        assert str(result.forwarded_to).startswith("postgresql://")
        assert origin.shell().run("eoq result q m").text == "paid\n"
        eventually(lambda: _rows(database, "select count(*) from eoq_forward_result") == [(0,)])
        shown = client.show("q", "m")
        assert (shown["state"], shown["outcome"], shown["result"]) == ("forwarded", "done", "paid")
        assert shown["forwarded_to"].startswith("postgresql://")
        assert origin.shell().run("eoq send q 6 --id n --wait 0").status == 1


def test_each_way_to_end_comes_back_and_a_dead_letter_may_end_again(machines: list[Daemon], database: str) -> None:
    origin, other = machines
    with eoq.connect(origin.socket) as client, eoq.connect(other.socket) as there:
        client.send_many("q", [eoq.Outgoing("x", id=id) for id in ("rejected", "cancelled", "silent")])
        _forward(origin, database)
        _ingest(other, database)
        rejected, cancelled, silent = there.receive("q", 3)
        rejected.reject("no such account")
        cancelled.nack(delay=60)
        there.cancel("q", "cancelled")
        silent.ack()
        _ingest(other, database)
        _forward(origin, database)
        ends = {id: client.result("q", id) for id in ("rejected", "cancelled", "silent")}
        assert {id: end and (end.outcome, end.body) for id, end in ends.items()} == {
            "rejected": ("dead", None), "cancelled": ("cancelled", None), "silent": ("done", None),
        }  # fmt: skip
        assert ends["rejected"] is not None
        assert ends["rejected"].error == "no such account"
        there.redrive("q", ["rejected"])
        (again,) = there.receive("q")
        again.ack("in the end")
        _ingest(other, database)
        _forward(origin, database)
        result = client.result("q", "rejected")
        assert result is not None
        assert (result.outcome, result.text, result.error) == ("done", "in the end", None)
        assert _rows(database, "select count(*) from eoq_forward_result") == [(0,)]


def test_a_dead_letter_behind_a_thousand_newer_ones_may_end_again(machines: list[Daemon], database: str) -> None:
    origin, other = machines
    with eoq.connect(origin.socket) as client, eoq.connect(other.socket) as there:
        client.send("q", "x", id="m")
        _forward(origin, database)
        _ingest(other, database)
        (message,) = there.receive("q")
        message.reject("not yet")
        _ingest(other, database)
        _rows(
            database,
            "insert into eoq_forward_result (queue, id, origin, owner, outcome) "
            "select 'q', n, 'o', 'b', 'dead' from generate_series(1, 2500) as n",
        )
        there.redrive("q", ["m"])
        (again,) = there.receive("q")
        again.ack("in the end")
        _ingest(other, database)
        _forward(origin, database)
        result = client.result("q", "m")
    assert result is not None
    assert (result.outcome, result.text) == ("done", "in the end")


def test_only_a_record_that_awaits_a_result_takes_one(machines: list[Daemon], database: str) -> None:
    origin, _ = machines
    with eoq.connect(origin.socket) as client:
        client.send("q", "x", id="plain")
        bridge(origin, f"forward q --to '{database}' --until-empty")
        client.send_many("q", [eoq.Outgoing("x", id=id) for id in ("here", "waits", "away")])
        messages = {message.id: message for message in client.receive("q", 3)}
        messages["here"].ack("here")
        take = [{"id": id, "outcome": "done", "result": "forged"} for id in ("plain", "here", "waits", "unknown")]
        assert client.ask("take_results", queue="q", results=take)["early"] == ["waits"]
        messages["waits"].nack(delay=60)
        messages["away"].nack(delay=0)
        _forward(origin, database)
        first = [{"id": "away", "outcome": "done", "result": "first"}]
        for result in (first, first, [{"id": "away", "outcome": "dead", "error": "second"}]):
            assert client.ask("take_results", queue="q", results=result)["early"] == []
        ends = {id: client.result("q", id) for id in ("plain", "here", "waits", "away")}
    assert {id: end and (end.outcome, end.body) for id, end in ends.items()} == {
        "plain": ("forwarded", None), "here": ("done", b"here"), "waits": None, "away": ("done", b"first"),
    }  # fmt: skip


def test_each_step_may_be_repeated_after_a_kill(machines: list[Daemon], database: str) -> None:
    origin, other = machines
    with eoq.connect(origin.socket) as client, eoq.connect(other.socket) as there:
        client.send("q", "x", id="m")
        # Killed between the insert and the settling: it is inserted again, and the wish for its result is there once.
        with eoq.connect(origin.socket) as killed:
            (leased,) = killed.receive("q", bound=True)
            _ingest(other, database)
            _rows(
                database, "insert into eoq_forward (queue, id, body, digest) values ('q', 'm', 'x', %s)", leased.digest
            )
        eventually(lambda: client.show("q", "m")["state"] == "ready")
        _forward(origin, database)
        # Killed when the message was stored, and before its row was marked: it is marked, and its result is owed.
        _ingest(other, database)
        _rows(database, "update eoq_forward set taken_at = null")
        _rows(database, "update eoq_forward_result set owner = null")
        _ingest(other, database)
        (message,) = there.receive("q")
        message.ack("done")
        _ingest(other, database)
        assert _rows(database, "select outcome, result from eoq_forward_result") == [("done", b"done")]
        # Killed when the result was stored at the origin, and before its row was removed.
        rows = _rows(database, "select queue, id, origin from eoq_forward_result")
        _forward(origin, database)
        insert = "insert into eoq_forward_result (queue, id, origin, outcome) values (%s, %s, %s, 'done')"
        _rows(database, insert, *rows[0])
        _forward(origin, database)
        assert _rows(database, "select count(*) from eoq_forward_result") == [(0,)]
        result = client.result("q", "m")
        assert result is not None
        assert (result.outcome, result.text) == ("done", "done")


def test_an_application_reads_the_result_of_its_insert(machines: list[Daemon], database: str) -> None:
    _origin, other = machines
    _ingest(other, database)
    with psycopg.connect(database) as connection:
        connection.execute("insert into eoq_forward (queue, id, body) values ('q', 'm', '{}')")
        connection.execute("insert into eoq_forward_result (queue, id, origin) values ('q', 'm', 'shop')")
    with bridging(other, f"ingest q --from '{database}' --as b --results"), eoq.connect(other.socket) as there:
        (message,) = there.receive("q", wait=PATIENCE)
        message.ack("paid")
        eventually(lambda: _rows(database, "select outcome, result from eoq_forward_result") == [("done", b"paid")])
    _rows(database, "update eoq_forward_result set asked_at = asked_at - 2 * 86400")
    assert bridge(other, f"ingest q --from '{database}' --as b --results --keep 1d --until-empty").status == 0
    assert _rows(database, "select count(*) from eoq_forward_result") == [(0,)]


def test_what_was_taken_before_results_were_told_comes_back(machines: list[Daemon], database: str) -> None:
    origin, other = machines
    with eoq.connect(origin.socket) as client, eoq.connect(other.socket) as there:
        client.send("q", "x", id="m")
        _forward(origin, database)
        assert bridge(other, f"ingest q --from '{database}' --as b --until-empty").status == 0
        (message,) = there.receive("q")
        message.ack("paid")
        _ingest(other, database)
        _forward(origin, database)
        result = client.result("q", "m")
    assert result is not None
    assert (result.outcome, result.text) == ("done", "paid")


def test_a_message_that_is_forwarded_again_gets_the_result_that_was_read(machines: list[Daemon], database: str) -> None:
    origin, other = machines
    with eoq.connect(origin.socket) as client, eoq.connect(other.socket) as there:
        client.send("q", "x", id="m")
        _forward(origin, database)
        _ingest(other, database)
        there.receive("q")[0].reject("no such account")
        _ingest(other, database)
        _forward(origin, database)
        assert origin.shell().run("eoq queue delete q --forget-ids").status == 0
        client.send("q", "x", id="m")
        _forward(origin, database)
        result = client.result("q", "m")
    assert result is not None
    assert (result.outcome, result.error) == ("dead", "no such account")


def test_what_the_other_machine_has_forgotten_is_said(machines: list[Daemon], database: str) -> None:
    origin, other = machines
    with eoq.connect(origin.socket) as client, eoq.connect(other.socket) as there:
        client.send("q", "x", id="m")
        _forward(origin, database)
        _ingest(other, database)
        (message,) = there.receive("q")
        message.ack("paid")
        assert other.shell().run("eoq queue delete q --forget-ids").status == 0
        _ingest(other, database)
        _forward(origin, database)
        result = client.result("q", "m")
    assert result is not None
    assert (result.outcome, result.error) == ("forwarded", "how it ended is no longer known there")


def test_results_come_back_after_the_engine_was_away(machines: list[Daemon], restarted: Server) -> None:
    origin, other = machines
    database = restarted.conninfo()
    with (
        bridging(origin, f"forward q --to '{database}' --results"),
        bridging(other, f"ingest q --from '{database}' --as b --results"),
        eoq.connect(origin.socket) as client,
        eoq.connect(other.socket) as there,
    ):
        client.send("q", "x", id="m")
        (message,) = there.receive("q", wait=PATIENCE)
        restarted.kill()
        message.ack("paid")
        starting = threading.Timer(1.0, restarted.start)
        starting.start()
        result = client.result("q", "m", wait=PATIENCE * 3)
        starting.join()
    assert result is not None
    assert result.text == "paid"
