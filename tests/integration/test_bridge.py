"""The bridge with real daemons and PostgreSQL: each message goes to one other machine, once."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import psycopg
import pytest

import eoq
from eoq.bridge.engine import IngestOptions
from eoq.bridge.postgres.ingest import Ingester
from eoq.bridge.room import ROOM_SECONDS
from eoq.client.aio import AsyncClient
from tests.integration.bridges import bridge, bridging
from tests.postgres import Server
from tests.support import PATIENCE, Daemon, eventually, running_daemon


@pytest.fixture
def machines() -> Iterator[list[Daemon]]:
    """Run three daemons: the first sends."""
    with ExitStack() as stack:
        yield [stack.enter_context(running_daemon()) for _ in range(3)]


def _rows(database: str, statement: str, *values: object) -> list[tuple[Any, ...]]:
    with psycopg.connect(database) as connection:
        cursor = connection.execute(statement, values or None)
        return cursor.fetchall() if cursor.description else []


def _send(daemon: Daemon, *messages: eoq.Outgoing) -> None:
    with eoq.connect(daemon.socket) as client:
        client.send_many("q", messages)


def _take(daemon: Daemon) -> list[eoq.Message]:
    with eoq.connect(daemon.socket) as client:
        messages = client.receive("q", 1000)
        for message in messages:
            message.ack(b"done")
        return messages


@pytest.mark.slow
def test_a_message_arrives_with_all_it_has(machines: list[Daemon], database: str) -> None:
    origin, other, _ = machines
    headers = {"traceparent": "00-1-2-03", "h": "ü"}
    _send(
        origin,
        eoq.Outgoing(b"\xff\x00", id="binary", headers=headers, priority=3, group="g", ttl=3600),
        eoq.Outgoing({"a": 1}, id="json"),
    )
    ran = bridge(origin, f"forward q --to '{database}' --until-empty --json")
    assert (ran.rows, ran.errors) == ([{**ran.rows[0], "forwarded": 2, "rejected": 0}], "")
    with eoq.connect(origin.socket) as client:
        result = client.result("q", "json")
    assert result is not None
    assert result.outcome == "forwarded"
    assert result.error is not None
    assert result.error.startswith("postgresql://")
    ran = bridge(other, f"ingest q --from '{database}' --as b --until-empty --json")
    assert ran.rows == [{"queue": "q", "taken": 2, "set_aside": 0}], ran.errors
    by_id = {message.id: message for message in _take(other)}
    message = by_id["binary"]
    assert (message.body, message.headers, message.priority, message.group) == (b"\xff\x00", headers, 3, "g")
    assert message.expires_at is not None
    assert 3000 < message.expires_at - time.time() < 3601
    assert by_id["json"].json() == {"a": 1}


@pytest.mark.slow
def test_it_is_woken_and_each_message_goes_to_one_machine(machines: list[Daemon], database: str) -> None:
    origin, *others = machines
    got: list[str] = []
    with (
        bridging(origin, f"forward q --to '{database}'"),
        bridging(others[0], f"ingest q --from '{database}' --as b --limit 50"),
        bridging(others[1], f"ingest q --from '{database}' --as c --limit 50"),
    ):
        for start in range(0, 300, 100):
            _send(origin, *[eoq.Outgoing("x", id=f"{n}") for n in range(start, start + 100)])

            def all_there(wanted: int = start + 100) -> bool:
                for machine in others:
                    got.extend(message.id for message in _take(machine))
                return len(got) >= wanted

            eventually(all_there, PATIENCE * 3)
    assert sorted(got, key=int) == [f"{n}" for n in range(300)]
    assert {owner for (owner,) in _rows(database, "select distinct owner from eoq_forward")} <= {"b", "c"}


@pytest.mark.slow
def test_messages_of_a_group_go_to_one_machine_in_their_order(machines: list[Daemon], database: str) -> None:
    origin, *others = machines
    _send(origin, *[eoq.Outgoing("x", id=f"{n}", group=f"g{n % 3}", priority=n % 2) for n in range(30)])
    bridge(origin, f"forward q --to '{database}' --until-empty")
    taken: list[list[int]] = [[], []]
    for _ in range(10):
        for machine, name, ids in zip(others, "bc", taken, strict=True):
            ran = bridge(machine, f"ingest q --from '{database}' --as {name} --until-empty --limit 5")
            assert ran.status == 0, ran.errors
            while messages := _take(machine):
                ids.extend(int(message.id) for message in messages)
    assert sorted(taken[0] + taken[1]) == list(range(30))
    for group in range(3):
        own = [[n for n in ids if n % 3 == group] for ids in taken]
        assert sorted(map(len, own)) == [0, 10]
        assert own[0] == sorted(own[0])
        assert own[1] == sorted(own[1])


@pytest.mark.slow
def test_a_repeated_forward_and_other_content_are_told_apart(machines: list[Daemon], database: str) -> None:
    origin, second, other = machines
    for machine, body in ((origin, "same"), (second, "same")):
        _send(machine, eoq.Outgoing(body, id="m"))
        bridge(machine, f"forward q --to '{database}' --until-empty")
    with eoq.connect(second.socket) as client:
        assert client.result("q", "m") is not None
        client.send("q", "x", id="n")
    bridge(second, f"forward q --to '{database}' --until-empty")
    _send(origin, eoq.Outgoing("other", id="n"))
    ran = bridge(origin, f"forward q --to '{database}' --until-empty --json")
    assert ran.rows[0]["rejected"] == 1
    with eoq.connect(origin.socket) as client:
        result = client.result("q", "n")
    assert result is not None
    assert result.outcome == "dead"
    assert "id_conflict" in str(result.error)
    bridge(other, f"ingest q --from '{database}' --as b --until-empty")
    assert [(message.id, message.text) for message in _take(other)] == [("m", "same"), ("n", "x")]


@pytest.mark.slow
def test_what_the_database_cannot_take_is_rejected_alone(machines: list[Daemon], database: str) -> None:
    origin, *_ = machines
    bridge(origin, f"forward q --to '{database}' --until-empty")
    _send(origin, eoq.Outgoing("x", id="first"))
    bridge(origin, f"forward q --to '{database}' --until-empty")
    _rows(database, "alter table eoq_forward add constraint short check (length(body) < 5)")
    _send(origin, *[eoq.Outgoing("x" * (9 if n == 3 else 1), id=f"{n}", group="g") for n in range(7)])
    ran = bridge(origin, f"forward q --to '{database}' --until-empty --json")
    assert (ran.rows[0]["forwarded"], ran.rows[0]["rejected"]) == (6, 1), ran.errors
    with eoq.connect(origin.socket) as client:
        (dead,) = client.peek("q", "dead")
    assert dead["id"] == "3"
    assert 'violates check constraint "short"' in dead["error"]
    assert "xxxxx" not in dead["error"]
    assert _rows(database, "select id from eoq_forward where id <> 'first' order by seq") == [(n,) for n in "012456"]


@pytest.mark.slow
def test_leases_that_end_while_the_database_is_slow_are_no_error(machines: list[Daemon], database: str) -> None:
    origin, *_ = machines
    bridge(origin, f"forward q --to '{database}' --until-empty")
    _send(origin, eoq.Outgoing("x", id="first"))
    bridge(origin, f"forward q --to '{database}' --until-empty")
    _rows(database, "alter table eoq_forward add constraint short check (length(body) < 5)")
    _send(origin, *[eoq.Outgoing("x" * (9 if n == 1 else 1), id=f"{n}") for n in range(3)])
    forward = eoq.Bridge.forward("q", database, socket=origin.socket)
    running = threading.Thread(target=forward.flush)
    with psycopg.connect(database) as connection:
        connection.execute("lock table eoq_forward")
        running.start()
        waiting = "select 1 from pg_locks where locktype = 'relation' and not granted"
        eventually(lambda: connection.execute(waiting).fetchall())
        origin.restart()
    running.join(PATIENCE)
    assert not running.is_alive()
    assert (forward.moved, forward.refused) == (2, 1)
    assert _rows(database, "select id from eoq_forward order by id") == [("0",), ("2",), ("first",)]


@pytest.mark.slow
async def test_an_idle_ingest_leaves_its_daemon_alone(machines: list[Daemon], database: str) -> None:
    asked = 0

    class Counting(AsyncClient):
        async def queues(self, **options: Any) -> list[dict[str, Any]]:
            nonlocal asked
            asked += 1
            return await super().queues(**options)

    _, other, _ = machines
    async with Counting(other.socket) as client:
        running = asyncio.create_task(Ingester(client, "q", database, IngestOptions("b")).run())
        await asyncio.to_thread(eventually, lambda: asked == 1)
        await asyncio.sleep(2 * ROOM_SECONDS)  # long enough for it to ask again
        assert asked == 1
        await asyncio.to_thread(_rows, database, "insert into eoq_forward (queue, id, body) values ('q', 'm', '')")
        (message,) = await client.receive("q", wait=PATIENCE)
        await asyncio.to_thread(eventually, lambda: asked >= 2)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await message.ack()


@pytest.mark.slow
def test_own_open_claims_come_first_and_are_stored_once(machines: list[Daemon], database: str) -> None:
    """The machine was killed after its claim, before and after its daemon had stored the message."""
    origin, other, third = machines
    _send(origin, *[eoq.Outgoing("x", id=id) for id in "abc"])
    bridge(origin, f"forward q --to '{database}' --until-empty")
    bridge(other, f"ingest q --from '{database}' --as b --until-empty --limit 1")
    _rows(database, "update eoq_forward set taken_at = null where id = 'a'")
    _rows(database, "update eoq_forward set owner = 'b', claimed_at = extract(epoch from now()) where id = 'b'")
    assert [message.id for message in _take(other)] == ["a"]
    bridge(third, f"ingest q --from '{database}' --as c --until-empty")
    bridge(other, f"ingest q --from '{database}' --as b --until-empty")
    assert [message.id for message in _take(third)] == ["c"]
    assert [message.id for message in _take(other)] == ["b"]
    assert _rows(database, "select count(*) from eoq_forward where taken_at is null") == [(0,)]


@pytest.mark.slow
def test_a_claim_that_is_older_than_the_memory_of_the_daemon_is_set_aside(
    machines: list[Daemon], database: str
) -> None:
    origin, other, _ = machines
    _send(origin, eoq.Outgoing("x", id="m"))
    bridge(origin, f"forward q --to '{database}' --until-empty")
    ran = bridge(other, f"ingest q --from '{database}' --as b --until-empty --limit 1")
    _rows(database, "update eoq_forward set taken_at = null, tried_at = tried_at - 864000")
    ran = bridge(other, f"ingest q --from '{database}' --as b --until-empty")
    assert ran.status == 65
    assert "no answer was received" in _rows(database, "select error from eoq_forward")[0][0]
    _rows(database, "update eoq_forward set error = null")
    ran = bridge(other, f"ingest q --from '{database}' --as b --until-empty --json")
    assert (ran.status, ran.rows[0]["taken"]) == (0, 1), "it did not arrive, says the operator"


@pytest.mark.slow
def test_a_name_is_used_by_one_machine(machines: list[Daemon], database: str) -> None:
    origin, other, third = machines
    _send(origin, *[eoq.Outgoing("x", id=id) for id in "ab"])
    bridge(origin, f"forward q --to '{database}' --until-empty")
    with bridging(other, f"ingest q --from '{database}' --as b --limit 1"):
        eventually(lambda: _rows(database, "select 1 from eoq_forward where taken_at is not null"))
        ran = bridge(third, f"ingest q --from '{database}' --as b --until-empty")
        assert ran.status == 65
        assert "another `eoq ingest` takes 'q' as 'b'" in ran.errors
        ran = bridge(third, f"ingest q --from '{database}' --release b --yes")
        assert ran.status == 65
    _rows(database, "update eoq_forward set owner = 'b', claimed_at = 1, taken_at = null where id = 'b'")
    ran = bridge(third, f"ingest q --from '{database}' --as b --until-empty")
    assert "claims or groups of another daemon's file" in ran.errors
    (claims,) = bridge(third, f"ingest --from '{database}' --claims --json").rows
    assert (claims["owner"], claims["claimed"], claims["taken"]) == ("b", 1, 1)
    assert bridge(third, f"ingest q --from '{database}' --release b").status == 2, "it asks"
    assert bridge(third, f"ingest q --from '{database}' --release b --yes").text == "1\n"
    bridge(third, f"ingest q --from '{database}' --as c --until-empty")
    assert [message.id for message in _take(third)] == ["b"]


@pytest.mark.slow
def test_a_plain_insert_is_a_send(machines: list[Daemon], database: str) -> None:
    _origin, other, _ = machines
    with bridging(other, f"ingest q --from '{database}' --as b"):
        eventually(lambda: _rows(database, "select to_regclass('eoq_forward')") != [(None,)])
        _rows(database, "insert into eoq_forward (queue, id, body) values ('q', 'm', '{}')")
        with eoq.connect(other.socket) as client:
            (message,) = client.receive("q", wait=PATIENCE)
        assert (message.id, message.json()) == ("m", {})


@pytest.mark.slow
def test_an_engine_that_is_away_leaves_the_messages_waiting(machines: list[Daemon], restarted: Server) -> None:
    origin, other, _ = machines
    database = restarted.conninfo()
    with (
        bridging(origin, f"forward q --to '{database}'"),
        bridging(other, f"ingest q --from '{database}' --as b"),
        eoq.connect(other.socket) as client,
    ):
        _send(origin, eoq.Outgoing("x", id="before"))
        (message,) = client.receive("q", wait=PATIENCE)
        message.ack()
        restarted.kill()
        _send(origin, eoq.Outgoing("x", id="meanwhile"))
        starting = threading.Timer(2.0, restarted.start)
        starting.start()
        (message,) = client.receive("q", wait=PATIENCE * 2)
        starting.join()
        assert message.id == "meanwhile"
    with eoq.connect(origin.socket) as client:
        assert client.show("q", "meanwhile")["state"] == "forwarded"
        assert client.show("q", "meanwhile").get("attempts", []) == []


@pytest.mark.slow
def test_a_password_is_refused_on_the_command_line(machines: list[Daemon]) -> None:
    for command in ("forward q --to", "ingest q --from"):
        ran = bridge(machines[0], f"{command} postgresql://shop:secret@localhost/shop")
        assert ran.status == 65
        assert "PGPASSFILE" in ran.errors
        assert "secret" not in ran.errors


@pytest.mark.slow
def test_a_variable_holds_the_url(machines: list[Daemon], database: str) -> None:
    origin, other, _ = machines
    _send(origin, eoq.Outgoing("x", id="m"))
    url = f"{database}&password=secret"
    assert origin.shell().run("eoq forward q --to-env SHOP_URL --until-empty", SHOP_URL=url).status == 0
    assert other.shell().run("eoq ingest q --from-env SHOP_URL --as b --until-empty", SHOP_URL=url).status == 0
    assert [message.id for message in _take(other)] == ["m"]
    with eoq.connect(origin.socket) as client:
        assert "secret" not in str(client.show("q", "m"))
    ran = origin.shell().run("eoq forward q --to-env SHOP_URL")
    assert (ran.status, "SHOP_URL is not set" in ran.errors) == (65, True)
    ran = origin.shell().run("eoq forward q --to-env SHOP_URL --to postgresql:///shop")
    assert (ran.status, "either --to URL or --to-env NAME" in ran.errors) == (2, True)


def test_a_program_runs_a_bridge(machines: list[Daemon], database: str) -> None:
    origin, other, third = machines
    _send(origin, *[eoq.Outgoing("x", id=id) for id in "ab"])
    forward = eoq.Bridge.forward("q", database, socket=origin.socket)
    assert (forward.flush(), forward.moved, forward.waiting()) == (0, 2, (2, 0))
    ingest = eoq.Bridge.ingest("q", database, name="b", limit=1, socket=other.socket)
    running = threading.Thread(target=ingest.run)
    running.start()
    eventually(lambda: ingest.moved == 1)
    with pytest.raises(eoq.InvalidRequest, match="runs already"):
        ingest.flush()
    with pytest.raises(eoq.InvalidRequest, match="another `eoq ingest` takes 'q' as 'b'"):
        eoq.Bridge.ingest("q", database, name="b", socket=third.socket).flush()
    assert (ingest.error, ingest.waiting()) == (None, (1, 0))
    _take(other)
    eventually(lambda: ingest.moved == 2)
    ingest.stop()
    running.join(PATIENCE)
    assert not running.is_alive()
    assert [message.id for message in _take(other)] == ["b"]
    ingest.run()  # it was stopped


@pytest.mark.slow
def test_a_pattern_forwards_all_queues_that_match_also_later_ones(machines: list[Daemon], database: str) -> None:
    origin, other, _ = machines
    with eoq.connect(origin.socket) as client:
        for queue in ("orders.de", "orders.fr", "bills"):
            client.send_many(queue, [eoq.Outgoing("x", id=f"{n}", group="g") for n in range(5)])
        with bridging(origin, f"forward 'orders.*' --to '{database}' --results"):
            rows = "select queue, array_agg(id order by seq) from eoq_forward group by queue order by queue"
            ids = [f"{n}" for n in range(5)]
            eventually(lambda: _rows(database, "select to_regclass('eoq_forward')") != [(None,)])
            eventually(lambda: _rows(database, rows) == [("orders.de", ids), ("orders.fr", ids)])
            client.send("orders.new", "x", id="later")
            client.send("orders.fr", "x", id="5", delay=0.5)
            eventually(lambda: len(_rows(database, "select id from eoq_forward")) == 12, PATIENCE * 2)
            bridge(other, f"ingest orders.new --from '{database}' --as b --results --until-empty")
            with eoq.connect(other.socket) as there:
                (message,) = there.receive("orders.new")
                message.ack("from afar")
            bridge(other, f"ingest orders.new --from '{database}' --as b --results --until-empty")
            result = client.result("orders.new", "later", wait=PATIENCE * 2)
        assert result is not None
        assert result.text == "from afar"
        assert [row["blocked"] for row in client.queues() if row["name"] == "bills"] == [4]
        client.send("orders.uk", "x")
        for pattern, waits in (("orders.*", 11), ("orders[.]??", 11), ("[!b]rders.[df]?", 11), ("bills*", 0)):
            assert eoq.Bridge.forward(pattern, database, socket=origin.socket).waiting() == (waits, 0)
        ran = bridge(origin, f"forward 'orders.*' --to '{database}' --until-empty --json")
        assert ran.rows[0]["forwarded"] == 1


@pytest.mark.parametrize(("queue", "limit", "keep"), [("no such name!", 1, 1e6), ("q", 0, 1e6), ("q", 1, 60)])
def test_a_bridge_is_checked_before_it_runs(queue: str, limit: int, keep: float) -> None:
    with pytest.raises(eoq.InvalidRequest):
        eoq.Bridge.ingest(queue, "postgresql:///shop", limit=limit, keep=keep)
    with pytest.raises(eoq.InvalidRequest) as refusal:
        eoq.Bridge.forward("q", "postgresql://u:sec/ret@h/shop")
    assert "ret" not in str(refusal.value)


def test_an_ingest_takes_no_pattern() -> None:
    """It would wait for a queue of that very name."""
    with pytest.raises(eoq.InvalidRequest, match=r"'orders\.\*' is a pattern, which only a forward takes"):
        eoq.Bridge.ingest("orders.*", "postgresql:///shop")


@pytest.mark.slow
@pytest.mark.parametrize("option", ["--until-empty", "--claims", "--release b --yes"])
def test_the_command_of_an_ingest_takes_no_pattern(daemon: Daemon, option: str) -> None:
    ran = bridge(daemon, f"ingest 'orders.*' --from postgresql:///shop {option}")
    assert (ran.status, "name each queue" in ran.errors) == (65, True), ran.errors


@pytest.mark.slow
def test_the_tables_need_no_right_to_make_any_once_they_are_there(machines: list[Daemon], database: str) -> None:
    """Also: what is printed for scripts is JSON."""
    bridge(machines[0], f"ingest q --from '{database}' --as b --until-empty")
    ran = bridge(machines[0], f"ingest q --from '{database}' --as b --until-empty --json")
    assert json.loads(ran.text) == {"queue": "q", "taken": 0, "set_aside": 0}
