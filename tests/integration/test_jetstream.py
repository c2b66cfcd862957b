"""The bridge over NATS JetStream, with real daemons and a real server: each message arrives on one machine, once."""

from __future__ import annotations

import asyncio
import base64
import re
import time
from typing import Any

import pytest

import eoq
from eoq.bridge.jetstream.wire.content import size_of
from eoq.bridge.jetstream.wire.names import partition_of
from tests.integration.bridges import bridge, bridging
from tests.integration.streams import change_record, forward, ingest, send, stored, take
from tests.nats_server import NatsServer
from tests.support import PATIENCE, Daemon, eventually, python_process


@pytest.mark.slow
def test_a_message_arrives_with_all_it_has(machines: list[Daemon], nats_server: NatsServer) -> None:
    origin, other, _ = machines
    headers = {"traceparent": "00-1-2-03", "h": "ü"}
    send(
        origin,
        eoq.Outgoing(b"\xff\x00", id="bi nary", headers=headers, priority=3, group="g ü", ttl=3600),
        eoq.Outgoing({"a": 1}, id="json"),
        queue="mail.out",
    )
    url = nats_server.url()
    ran = bridge(origin, f"forward mail.out --to {url} --until-empty --json")
    assert ran.rows == [{"queue": "mail.out", "to": url, "forwarded": 2, "rejected": 0}], ran.errors
    assert "sync_interval: always" in ran.errors
    with eoq.connect(origin.socket) as client:
        result = client.result("mail.out", "json")
    assert result is not None
    assert (result.outcome, result.error) == ("forwarded", url)
    ids = {stored(nats_server, seq)[1]["Nats-Msg-Id"] for seq in (1, 2)}
    assert ids == {"bi%20nary", "json"}
    ran = bridge(other, f"ingest mail.out --from '{url}?synced=yes' --until-empty --json")
    assert (ran.rows, ran.errors) == ([{"queue": "mail.out", "taken": 2, "set_aside": 0}], "")
    by_id = {message.id: message for message in take(other, "mail.out")}
    message = by_id["bi nary"]
    assert (message.body, message.headers, message.priority, message.group) == (b"\xff\x00", headers, 3, "g ü")
    assert message.expires_at is not None
    assert 3000 < message.expires_at - time.time() < 3601
    assert by_id["json"].json() == {"a": 1}


@pytest.mark.slow
def test_it_is_woken_and_each_partition_goes_to_its_machine(machines: list[Daemon], nats_server: NatsServer) -> None:
    origin, *others = machines
    url = nats_server.url()
    got: list[list[eoq.Message]] = [[], []]
    with (
        bridging(origin, f"forward q --to {url} --partitions 4"),
        bridging(others[0], f"ingest q --from {url} --partitions 4 --partition 0-1 --limit 50"),
        bridging(others[1], f"ingest q --from {url} --partitions 4 --partition 2,3 --limit 50"),
    ):
        for start in range(0, 300, 100):
            send(origin, *[eoq.Outgoing("x", id=f"{n}", group=f"g{n % 7}") for n in range(start, start + 100)])

            def all_there(wanted: int = start + 100) -> bool:
                for messages, machine in zip(got, others, strict=True):
                    messages.extend(take(machine))
                return sum(map(len, got)) >= wanted

            eventually(all_there, PATIENCE * 3)
    assert sorted(int(message.id) for messages in got for message in messages) == list(range(300))
    for messages, own in zip(got, ((0, 1), (2, 3)), strict=True):
        assert {partition_of(str(message.group), 4) for message in messages} <= set(own)
        for group in {message.group for message in messages}:
            ids = [int(message.id) for message in messages if message.group == group]
            assert ids == sorted(ids)


@pytest.mark.slow
def test_two_queues_of_one_stream_may_have_the_same_ids(machines: list[Daemon], nats_server: NatsServer) -> None:
    """The server knows an id once for the whole stream; eoq once for each queue."""
    origin, other, _ = machines
    for queue in ("a", "b"):
        send(origin, eoq.Outgoing(queue, id="m"), queue=queue)
        ran = bridge(origin, f"forward {queue} --to {nats_server.url()} --until-empty --json")
        assert ran.rows[0]["forwarded"] == 1, ran.errors
        bridge(other, f"ingest {queue} --from {nats_server.url()} --until-empty")
    assert [take(other, queue)[0].text for queue in ("a", "b")] == ["a", "b"]


@pytest.mark.slow
def test_a_repeat_and_other_content_are_told_apart(machines: list[Daemon], nats_server: NatsServer) -> None:
    origin, repeating, other = machines
    url = nats_server.url()
    for machine, body, rejected in ((origin, "same", 0), (repeating, "same", 0), (other, "other", 1)):
        send(machine, eoq.Outgoing(body, id="m"))
        ran = bridge(machine, f"forward q --to {url} --until-empty --json")
        assert ran.rows[0]["rejected"] == rejected, ran.errors
    assert nats_server.messages() == 1
    with eoq.connect(other.socket) as client:
        result = client.result("q", "m")
    assert result is not None
    assert (result.outcome, "id_conflict" in str(result.error)) == ("dead", True)


@pytest.mark.slow
def test_a_copy_in_a_wrong_partition_does_not_count(machines: list[Daemon], nats_server: NatsServer) -> None:
    """The machine that reads it sets it aside, so it is published where it belongs."""
    origin, other, _ = machines
    url = nats_server.url()
    ingest(other, url, partitions=2)
    nats_server.ask(f"PAY.q.{1 - partition_of('m', 2)}", b"x", {"Nats-Msg-Id": "m"})
    send(origin, eoq.Outgoing("x", id="m"))
    forward(origin, url)
    ran = bridge(other, f"ingest q --from {url} --until-empty --json")
    assert ran.rows[0]["set_aside"] == 1, ran.errors
    assert [message.id for message in take(other)] == ["m"]


@pytest.mark.slow
def test_other_content_is_set_aside_where_only_the_receiving_machine_knows_the_id(
    machines: list[Daemon], nats_server: NatsServer
) -> None:
    origin, second, _ = machines
    url = nats_server.url()
    send(origin, eoq.Outgoing("same", id="m"))
    forward(origin, url)
    ran = bridge(second, f"ingest q --from {url} --until-empty")
    assert [message.text for message in take(second)] == ["same"]
    nats_server.ask("PAY.q.0", b"same", {"Eoq-Id": "m"})
    nats_server.ask("PAY.q.0", b"other", {"Eoq-Id": "m"})
    nats_server.ask("PAY.q.0", b"next", {"Nats-Msg-Id": "n"})
    ran = bridge(second, f"ingest q --from {url} --until-empty --json")
    assert (ran.status, ran.rows) == (65, [{"queue": "q", "taken": 2, "set_aside": 1}]), ran.errors
    assert "PAY_aside" in ran.errors
    assert [message.text for message in take(second)] == ["next"]
    found, headers = stored(nats_server, 1, "PAY_aside")
    assert re.fullmatch(r"PAY_aside\.q\.0\.\d+-3", found["subject"]), "when the stream was made, and the place there"
    assert base64.b64decode(found["data"]) == b"other"
    assert headers["Eoq-Id"] == "m"
    assert "other content" in headers["Eoq-Error"]


@pytest.mark.slow
def test_what_was_stored_and_not_noted_is_read_again_and_known(machines: list[Daemon], nats_server: NatsServer) -> None:
    """The ingester was killed between the two, or the records were restored from a backup."""
    origin, other, _ = machines
    url = nats_server.url()
    send(origin, *[eoq.Outgoing("x", id=f"{n}") for n in range(5)])
    forward(origin, url)
    ingest(other, url, 3)
    assert sorted(message.id for message in take(other)) == ["0", "1", "2"]
    change_record(nats_server, taken=0, taken_id="")
    ran = bridge(other, f"ingest q --from {url} --until-empty --json")
    assert ran.rows[0]["taken"] == 5, ran.errors
    assert sorted(message.id for message in take(other)) == ["3", "4"]


@pytest.mark.slow
def test_a_partition_belongs_to_one_file(machines: list[Daemon], nats_server: NatsServer) -> None:
    origin, other, third = machines
    url = nats_server.url()
    send(origin, *[eoq.Outgoing("x", id=id) for id in "abc"])
    forward(origin, url, 2)
    with bridging(other, f"ingest q --from {url} --partition 0-1 --as b --limit 1"):
        eventually(lambda: len(_waiting(other)) == 1)
        ran = bridge(third, f"ingest q --from {url} --partition 1 --as c --until-empty")
        assert (ran.status, "belongs to 'b'" in ran.errors) == (65, True), ran.errors
    ran = bridge(third, f"ingest q --from {url} --partition 1 --as c")
    assert "eoq ingest q --release b" in ran.errors, "also while that machine is away"
    taken = [message.id for message in take(other)]
    claims = bridge(third, f"ingest --from {url} --claims --json").rows
    assert [(row["partition"], row["owner"]) for row in claims] == [(0, "b"), (1, "b")]
    assert sum(row["claimed"] for row in claims) == 2
    assert bridge(third, f"ingest q --from {url} --release b").status == 2, "it asks"
    ran = bridge(third, f"ingest q --from {url} --release b --yes")
    assert ran.text == "2\n", ran.errors
    assert bridge(third, f"ingest q --from {url} --release b --yes").status == 1, "it has none any more"
    assert bridge(third, f"ingest q --from {url} --as c --until-empty").status == 0
    assert sorted(taken + [message.id for message in take(third)]) == list("abc")
    ran = bridge(other, f"ingest q --from {url} --as b --until-empty")
    assert "belongs to 'c'" in ran.errors


def _waiting(daemon: Daemon) -> list[dict[str, Any]]:
    with eoq.connect(daemon.socket) as client:
        return client.peek("q", "ready")


@pytest.mark.slow
def test_a_partition_is_read_by_one_ingester_of_a_machine(machines: list[Daemon], nats_server: NatsServer) -> None:
    _, other, _ = machines
    url = nats_server.url()
    with bridging(other, f"ingest q --from {url} --partitions 1") as first:
        eventually(lambda: nats_server.api("CONSUMER.INFO.PAY.eoq-q-0").get("num_waiting"))
        ran = bridge(other, f"ingest q --from {url} --until-empty")
        assert (ran.status, "another `eoq ingest` of this daemon's file" in ran.errors) == (65, True), ran.errors
        # A frozen one that is taken for dead finds out: it stores nothing more than the daemon knows.
        change_record(nats_server, instance="another")
        nats_server.ask("PAY.q.0", b"x", {"Nats-Msg-Id": "m"})
        assert first.wait(PATIENCE) == 65
    assert "was taken away" in (other.folder / "bridge.err").read_text()
    assert len(_waiting(other)) == 1


@pytest.mark.slow
def test_the_number_of_partitions_never_changes(machines: list[Daemon], nats_server: NatsServer) -> None:
    origin, other, _ = machines
    url = nats_server.url()
    send(origin, eoq.Outgoing("x", id="m"))
    ran = bridge(other, f"ingest q --from {url} --until-empty")
    assert (ran.status, "--partitions" in ran.errors) == (1, True), ran.errors
    ran = bridge(other, f"ingest q --from {url} --partitions 2 --partition 2")
    assert ran.status == 65
    assert bridge(other, f"ingest q --from {url} --partitions 2 --until-empty").status == 0
    ran = bridge(origin, f"forward q --to {url} --partitions 3 --until-empty")
    assert (ran.status, "has 2 partitions" in ran.errors) == (65, True), ran.errors
    with eoq.connect(origin.socket) as client:
        assert client.show("q", "m")["state"] == "ready"
    assert bridge(origin, f"forward q --to {url} --until-empty").status == 0
    ingest(other, url)
    assert [message.id for message in take(other)] == ["m"]


@pytest.mark.slow
def test_what_nats_cannot_take_is_rejected_alone(machines: list[Daemon], nats_server: NatsServer) -> None:
    origin, other, _ = machines
    send(
        origin,
        eoq.Outgoing("x", id="before"),
        eoq.Outgoing(b"x" * 1_048_570, id="body"),
        # Without the header that names the stream, it would have just room.
        eoq.Outgoing(b"x" * (1_048_576 - size_of({"Nats-Msg-Id": "edge", "Eoq-Digest": "0" * 32})), id="edge"),
        eoq.Outgoing("x", id="headers", headers={"h": "ü" * 30_000}),
        *[eoq.Outgoing(b"x" * 900_000, id=f"large{n}") for n in range(4)],
        eoq.Outgoing("x", id="behind"),
    )
    url = nats_server.url()
    ran = bridge(origin, f"forward q --to {url} --until-empty --json")
    assert (ran.rows[0]["forwarded"], ran.rows[0]["rejected"]) == (6, 3), ran.errors
    with eoq.connect(origin.socket) as client:
        dead = {id: client.show("q", id)["error"] for id in ("body", "edge", "headers")}
    assert "max_payload" in dead["body"]
    assert "max_payload" in dead["edge"]
    assert "65,000" in dead["headers"]
    ran = bridge(other, f"ingest q --from {url} --until-empty --json")
    assert ran.rows[0]["taken"] == 6, ran.errors
    assert [message.id for message in take(other)] == ["before", *[f"large{n}" for n in range(4)], "behind"]


@pytest.mark.slow
def test_a_forward_whose_results_cannot_come_back_leaves_no_task(daemon: Daemon) -> None:
    async def left() -> set[object]:
        bridge = eoq.Bridge.forward("q", "nats://127.0.0.1:1/PAY", results=True, socket=daemon.socket)
        with pytest.raises(eoq.InvalidRequest, match="over PostgreSQL only"):
            await bridge.run_async()
        return {task.get_name() for task in asyncio.all_tasks() if task is not asyncio.current_task()}

    assert asyncio.run(left()) == set()


@pytest.mark.slow
def test_without_the_driver_a_sentence_says_what_to_install() -> None:
    code = """
import sys
sys.modules["nats"] = sys.modules["psycopg"] = None
import eoq
try:
    eoq.Bridge.forward("q", "nats://localhost/PAY")
except eoq.InvalidRequest as error:
    print(error)
"""
    with python_process(code) as process:
        stdout, _ = process.communicate(timeout=PATIENCE)
    assert b"pip install 'eoq[jetstream]'" in stdout
