"""Streams that are refused, full, away, made anew, or have what any program may have published."""

from __future__ import annotations

import base64
import socket
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import eoq
from tests.integration.bridges import bridge, bridging
from tests.integration.streams import change_record, forward, ingest, send, stored, take
from tests.nats_server import NatsServer
from tests.support import PATIENCE, Daemon, eventually, running_daemon

SECOND = 10**9


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "words", "forwards"),
    [
        ({"retention": "workqueue"}, "has the retention", False),
        ({"retention": "interest"}, "has the retention", False),
        ({"storage": "memory"}, "not in a file", False),
        ({"subjects": ["PAY.other.*"]}, "subjects", False),
        ({"max_bytes": 10**6, "discard": "old"}, "forgets messages", False),
        ({"max_msgs_per_subject": 5}, "forgets messages", False),
        ({"no_ack": True}, "confirms no messages", False),
        ({"max_age": 0}, "keeps messages for ever", True),
        ({"max_age": 7 * 86400 * SECOND}, "would be doubled", True),
    ],
)
def test_a_stream_that_could_lose_or_double_is_refused(
    shared_daemon: Daemon, nats_server: NatsServer, changes: dict[str, Any], words: str, forwards: bool
) -> None:
    usual = {"name": "PAY", "subjects": ["PAY.>"], "storage": "file", "max_age": 86400 * SECOND, "discard": "new"}
    assert "error" not in nats_server.api("STREAM.CREATE.PAY", {**usual, **changes})
    ran = bridge(shared_daemon, f"ingest q --from {nats_server.url()} --partitions 1 --until-empty")
    assert (ran.status, words in ran.errors) == (65, True), ran.errors
    send(shared_daemon, eoq.Outgoing("x", id="m"))
    ran = bridge(shared_daemon, f"forward q --to {nats_server.url()} --until-empty")
    assert (ran.status == 0) is forwards, ran.errors
    if forwards:
        with eoq.connect(shared_daemon.socket) as client:
            client.delete_queue("q", forget_ids=True)


@pytest.mark.slow
def test_a_server_that_is_away_leaves_the_messages_waiting(machines: list[Daemon], nats_server: NatsServer) -> None:
    origin, other, _ = machines
    url = nats_server.url()
    with (
        bridging(origin, f"forward q --to {url}"),
        bridging(other, f"ingest q --from {url} --partitions 1"),
        eoq.connect(other.socket) as client,
    ):
        send(origin, eoq.Outgoing("x", id="before"))
        (message,) = client.receive("q", wait=PATIENCE)
        message.ack()
        nats_server.kill()
        killed_at = time.monotonic()
        send(origin, eoq.Outgoing("x", id="meanwhile"))
        for machine in (origin, other):
            eventually(partial(_complaints, machine), what="it says that the server is away")
        nats_server.start()
        (message,) = client.receive("q", wait=PATIENCE * 2)
        minutes = int((time.monotonic() - killed_at) / 60)
        assert message.id == "meanwhile"
    with eoq.connect(origin.socket) as client:
        eventually(lambda: client.show("q", "meanwhile")["state"] == "forwarded")
        assert client.show("q", "meanwhile").get("attempts", []) == []
    for machine in (origin, other):
        assert _complaints(machine) <= 1 + minutes, "one line a minute"


def _complaints(machine: Daemon) -> int:
    return (machine.folder / "bridge.err").read_text().count("; waiting")


@pytest.mark.slow
def test_a_full_stream_leaves_the_messages_waiting(machines: list[Daemon], nats_server: NatsServer) -> None:
    origin, other, _ = machines
    url = nats_server.url()
    usual = {"name": "PAY", "subjects": ["PAY.>"], "max_age": 86400 * SECOND, "discard": "new"}
    nats_server.api("STREAM.CREATE.PAY", {**usual, "max_msgs": 2})
    send(origin, *[eoq.Outgoing("x", id=f"{n}") for n in range(5)])
    ran = bridge(origin, f"forward q --to {url} --until-empty")
    assert (ran.status, "maximum messages exceeded" in ran.errors) == (75, True), ran.errors
    ingest(other, url)
    nats_server.api("STREAM.UPDATE.PAY", {**usual, "max_msgs": -1})
    assert bridge(origin, f"forward q --to {url} --until-empty").status == 0
    ingest(other, url)
    assert sorted(message.id for message in take(other)) == list("01234")


@pytest.mark.slow
def test_a_full_destination_leaves_the_messages_in_the_stream(machines: list[Daemon], nats_server: NatsServer) -> None:
    origin, other, _ = machines
    url = nats_server.url()
    send(origin, *[eoq.Outgoing("x", id=f"{n}") for n in range(600)])
    forward(origin, url)
    ran = bridge(other, f"ingest q --from {url} --until-empty --limit 300 --json")
    assert ran.rows[0]["taken"] == 300, ran.errors
    ran = bridge(other, f"ingest q --from {url} --until-empty --limit 300 --json")
    assert ran.rows[0]["taken"] == 0, ran.errors
    got = {message.id for message in take(other)}
    with bridging(other, f"ingest q --from {url} --limit 100"):

        def all_there() -> bool:
            got.update(message.id for message in take(other))
            return len(got) == 600

        eventually(all_there, PATIENCE * 2)


@pytest.mark.slow
def test_a_stream_that_was_made_anew_is_read_from_its_beginning(
    machines: list[Daemon], nats_server: NatsServer
) -> None:
    """It was restored from a backup, or has lost its end: its numbers mean other messages now."""
    origin, other, third = machines
    url = nats_server.url()
    send(origin, *[eoq.Outgoing("x", id=f"{n}") for n in range(3)])
    forward(origin, url)
    ingest(other, url)
    for count in (2, 5):  # fewer than were taken, and more
        nats_server.api("STREAM.DELETE.PAY")
        send(third, *[eoq.Outgoing("x", id=f"{n}") for n in range(count, 0, -1)])
        forward(third, url)
        ran = bridge(other, f"ingest q --from {url} --until-empty")
        assert "is not as it was" in ran.errors
        with eoq.connect(third.socket) as client:
            client.delete_queue("q", forget_ids=True)
    assert sorted(message.id for message in take(other)) == list("012345")

    change_record(nats_server, since=1, taken=900)
    ran = bridge(other, f"ingest q --from {url} --until-empty")
    assert (ran.status, "cannot tell what was taken" in ran.errors) == (65, True), ran.errors


def _publish(server: NatsServer, *heads: bytes) -> None:
    """Publish messages whose headers no driver would write."""
    host, port = server.place.split(":")
    with socket.create_connection((host, int(port))) as connection, connection.makefile("rb") as answers:
        connection.sendall(b'CONNECT {"verbose":false,"headers":true}\r\n')
        for head in heads:
            connection.sendall(f"HPUB PAY.q.0 {len(head)} {len(head) + 1}\r\n".encode() + head + b"x\r\n")
        connection.sendall(b"PING\r\n")
        eventually(lambda: answers.readline() == b"PONG\r\n")


@pytest.mark.slow
def test_headers_that_the_driver_cannot_read_stop_nothing(machines: list[Daemon], nats_server: NatsServer) -> None:
    _, other, _ = machines
    url = nats_server.url()
    ingest(other, url, partitions=1)
    heads = [
        b"NATS/1.0 \xff\xff\xff\r\n\r\n",
        b"NATS/1.0",
        b"NATS/1.0 404",
        b"\xff\xfe\x00",
        b"NATS/1.0\r\nno colon\r\n : \r\n\r\n",
        b"NATS/1.0 \xff\xff\xff\r\nNats-Msg-Id: it has an id\r\n\r\n",
    ]
    _publish(nats_server, *heads)
    nats_server.ask("PAY.q.0", b"last", {"Nats-Msg-Id": "last"})
    there = nats_server.messages()
    assert there == len(heads) + 1
    ran = bridge(other, f"ingest q --from {url} --until-empty --json")
    assert ran.rows == [{"queue": "q", "taken": 2, "set_aside": 5}], ran.errors
    assert "it has no id" in ran.errors
    assert [message.id for message in take(other)] == ["it has an id", "last"]
    assert nats_server.messages("PAY_aside") == 5
    ran = bridge(other, f"ingest q --from {url} --until-empty --json")
    assert "is not as it was" not in ran.errors


@pytest.mark.slow
def test_what_was_set_aside_stays_when_the_stream_is_made_anew(machines: list[Daemon], nats_server: NatsServer) -> None:
    """The places of the new stream begin at 1 again."""
    _, other, _ = machines
    url = nats_server.url()
    for body in (b"first", b"second"):
        ingest(other, url, partitions=1)
        nats_server.ask("PAY.q.0", body)
        for _ in range(2):  # the second time it is read again, and is there once
            assert bridge(other, f"ingest q --from {url} --until-empty --json").rows[0]["set_aside"] > 0
            change_record(nats_server, taken=0)
        nats_server.api("STREAM.DELETE.PAY")
    found = [base64.b64decode(stored(nats_server, seq, "PAY_aside")[0]["data"]) for seq in (2, 4)]
    assert (found, nats_server.messages("PAY_aside")) == ([b"first", b"second"], 2)


@pytest.mark.slow
def test_a_place_whose_id_is_no_text_is_found_again(machines: list[Daemon], nats_server: NatsServer) -> None:
    """Any program may have published it."""
    _, other, _ = machines
    url = nats_server.url()
    ingest(other, url, partitions=1)
    _publish(nats_server, b"NATS/1.0\r\nEoq-Id: \xff\r\n\r\n")
    eventually(lambda: nats_server.messages() == 1)
    bridge(other, f"ingest q --from {url} --until-empty")
    ran = bridge(other, f"ingest q --from {url} --until-empty --json")
    assert (ran.rows[0]["taken"], "is not as it was" in ran.errors) == (0, False), ran.errors
    change_record(nats_server, taken_id="")  # as with a driver that gives no such headers
    assert "is not as it was" not in bridge(other, f"ingest q --from {url} --until-empty").errors


@pytest.mark.slow
def test_a_machine_that_was_away_for_too_long_is_told(machines: list[Daemon], nats_server: NatsServer) -> None:
    _, other, _ = machines
    url = nats_server.url()
    ingest(other, url, partitions=1)
    assert "is lost" not in bridge(other, f"ingest q --from {url} --until-empty").errors
    change_record(nats_server, at=time.time() - 7 * 86400)
    assert "what was published before that is lost" in bridge(other, f"ingest q --from {url} --until-empty").errors


@pytest.mark.slow
def test_what_any_program_has_published_delays_nothing_else(nats_server: NatsServer) -> None:
    with running_daemon() as other:
        nats_server.kill()
        conf = nats_server.folder / "nats.conf"
        conf.write_text(conf.read_text() + "max_payload: 4194304\n")
        nats_server.start()
        url = nats_server.url()
        ingest(other, url, partitions=1)
        nats_server.ask("PAY.q.0", b"first", {"Nats-Msg-Id": "first"})
        nats_server.ask("PAY.q.0", b"no id")
        nats_server.ask("PAY.q.0", b"x" * 3_000_000, {"Nats-Msg-Id": "large"})
        nats_server.ask("PAY.q.0", b"x", {"Nats-Msg-Id": "h", "H": "x" * 65_400})
        nats_server.ask("PAY.q.0", b"x", {"Nats-Msg-Id": "s", "Status": "404"})
        nats_server.ask("PAY.q.0", b"x", {"Nats-Msg-Id": "u", "Eoq-Headers": "\u2028ü\x7f"})
        nats_server.ask("PAY.q.0", b"x", {"Nats-Msg-Id": "f" * 30_000, "Eoq-Group": "f" * 30_000})
        nats_server.ask("PAY.q.0", b"last", {"Nats-Msg-Id": "last"})
        ran = bridge(other, f"ingest q --from {url} --until-empty --json")
        assert ran.rows == [{"queue": "q", "taken": 4, "set_aside": 4}], ran.errors
        assert [message.id for message in take(other)] == ["first", "h", "s", "last"]
        nats_server.api("STREAM.PURGE.PAY_aside")
        assert bridge(other, f"ingest q --from {url} --until-empty").status == 0, "somebody has looked"


@pytest.mark.slow
def test_what_the_daemon_has_refused_is_not_noted(folder: Path, nats_server: NatsServer) -> None:
    config = folder / "eoq.toml"
    config.write_text("[queues.q]\nmax_depth = 1\n")
    with running_daemon() as origin, running_daemon(environment={"EOQ_CONFIG": str(config)}) as other:
        url = nats_server.url()
        send(origin, *[eoq.Outgoing("x", id=f"{n}") for n in range(5)])
        forward(origin, url)
        with bridging(other, f"ingest q --from {url}"), eoq.connect(other.socket) as client:
            (message,) = client.receive("q", wait=PATIENCE)
            message.ack()
            (second,) = client.receive("q", wait=PATIENCE)  # it was refused before, so the rest is in hand
            second.ack()
        got = {message.id, second.id}
        with bridging(other, f"ingest q --from {url}"):

            def all_there() -> bool:
                got.update(message.id for message in take(other))
                return len(got) == 5

            eventually(all_there, PATIENCE * 2)
