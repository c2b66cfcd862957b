"""Messages that leave for another machine: they are `forwarded`, and `show` and `result` say where they went."""

from __future__ import annotations

import pytest

import eoq
from eoq.protocol.forwarding import forwarded, results
from tests.support import PATIENCE, Daemon, Shell

PLACE = "postgresql://db/shop"


def _forward(client: eoq.Client, *messages: eoq.Message) -> None:
    client.channel.run(forwarded(messages, PLACE))


def _receive(client: eoq.Client, queue: str, limit: int = 1, lease: float | None = None) -> list[eoq.Message]:
    messages = client.receive(queue, limit, wait=PATIENCE, lease=lease)
    assert messages
    return messages


def test_show_and_result_say_where_it_went(blocking: eoq.Client, shell: Shell, queue: str) -> None:
    blocking.send_many(queue, [eoq.Outgoing("x", id=id) for id in "abc"])
    _forward(blocking, *_receive(blocking, queue, 3))
    assert blocking.result(queue, "a") == eoq.Result("forwarded", None, PLACE, PLACE)
    shown = blocking.show(queue, "b")
    assert (shown["state"], shown["error"]) == ("forwarded", PLACE)
    assert [row["id"] for row in blocking.peek(queue, "forwarded")] == ["c", "b", "a"]
    ran = shell.run(f"eoq result {queue} c")
    assert ran.status == 65
    assert f"c was forwarded: {PLACE}" in ran.errors


def test_it_is_a_duplicate_when_it_is_sent_again(blocking: eoq.Client, queue: str) -> None:
    blocking.send(queue, "x", id="m")
    _forward(blocking, *_receive(blocking, queue))
    assert blocking.send(queue, "x", id="m").duplicate
    with pytest.raises(eoq.IdConflict):
        blocking.send(queue, "other", id="m")
    assert blocking.receive(queue) == []


def test_a_repeated_request_changes_nothing_and_a_lost_lease_is_refused(blocking: eoq.Client, queue: str) -> None:
    blocking.send(queue, "x", id="m")
    (late,) = _receive(blocking, queue, lease=0.02)
    (message,) = _receive(blocking, queue)
    with pytest.raises(eoq.LeaseLost):
        _forward(blocking, late)
    _forward(blocking, message)
    _forward(blocking, message)
    with pytest.raises(eoq.LeaseLost):
        _forward(blocking, late)


def test_it_stays_forwarded_after_the_daemon_was_killed(daemon: Daemon) -> None:
    with eoq.connect(daemon.socket) as client:
        client.send("q", "x", id="m", group="g")
        client.send("q", "y", id="n", group="g")
        _forward(client, *_receive(client, "q"))
        daemon.restart()
        assert client.result("q", "m") == eoq.Result("forwarded", None, PLACE, PLACE)
        assert [message.id for message in _receive(client, "q")] == ["n"]


def test_a_wait_for_the_result_ends(blocking: eoq.Client, shared_daemon: Daemon, queue: str) -> None:
    blocking.send(queue, "x", id="m")
    (message,) = _receive(blocking, queue)
    with shared_daemon.wire() as wire:
        wire.send({"op": "result", "queue": queue, "id": "m", "wait": PATIENCE})
        _forward(blocking, message)
        reply = wire.read()
    assert (reply["outcome"], reply["error"]) == ("forwarded", PLACE)


@pytest.mark.slow
def test_many_long_reasons_come_in_parts_and_dead_letters_last(blocking: eoq.Client, queue: str) -> None:
    ids = [f"{n:02}" for n in range(80)]
    blocking.send_many(queue, [eoq.Outgoing("x", id=id) for id in (*ids, "settled")])
    for message in _receive(blocking, queue, 81):
        if message.id == "settled":
            message.ack("paid")
        else:
            message.reject("😀" * 4096)
    left = ["settled", *ids]
    first, unknown = blocking.channel.run(results(queue, left, 0.0))
    assert (first[0].id, first[0].result, unknown) == ("settled", b"paid", [])
    while left:
        ends, _unknown = blocking.channel.run(results(queue, left, 0.0))
        assert 0 < len(ends) < 70
        assert sum(len((end.error or "").encode()) for end in ends) <= 1024 * 1024
        left = [id for id in left if id not in {end.id for end in ends}]


@pytest.mark.parametrize("more", [{"send": [{"queue": "q", "body": "x"}]}, {"forwarded": 1}, {"forwarded": "x" * 5000}])
def test_what_makes_no_sense_is_refused(
    blocking: eoq.Client, shared_daemon: Daemon, queue: str, more: dict[str, object]
) -> None:
    blocking.send(queue, "x", id="m")
    (message,) = _receive(blocking, queue)
    reply = shared_daemon.ask(op="settle", acks=[{"receipt": message.receipt}], **{"forwarded": PLACE, **more})
    assert reply["error"]["code"] == "invalid_request"
    reply = shared_daemon.ask(op="settle", acks=[{"receipt": message.receipt, "result": "r"}], forwarded=PLACE)
    assert reply["error"]["code"] == "invalid_request"
    _forward(blocking, message)
