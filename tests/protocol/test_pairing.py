"""Requests and their replies: ``rid`` pairs them, replies come in any order, and a half-closed connection is enough."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.support import Daemon, Wire, error_of, eventually


@pytest.mark.parametrize("rid", [0, 1, -1, 2**53, 2**63, 2**64 - 1, "", "a", 'quote"', "é", "x" * 1000])
def test_a_rid_comes_back_as_it_was(wire: Wire, rid: int | str) -> None:
    reply = wire.ask({"op": "status", "rid": rid})
    assert reply["rid"] == rid
    assert type(reply["rid"]) is type(rid)


def test_without_a_rid_the_reply_has_none(wire: Wire) -> None:
    assert "rid" not in wire.ask({"op": "status"})
    assert "rid" not in wire.ask({"op": "status", "rid": None})
    assert "rid" not in wire.ask({"op": "nonsense"})


@pytest.mark.parametrize(
    "request_",
    [
        {"op": "nonsense"},
        {},
        {"op": "send", "queue": "bad name", "body": ""},
        {"op": "send", "queue": "q"},
        {"op": "send", "queue": "q", "body": 1},
        {"op": "ack", "receipt": "x"},
        {"op": "show", "queue": "none", "id": "none"},
    ],
)
def test_a_refusal_carries_the_rid_as_well(wire: Wire, request_: dict[str, object]) -> None:
    reply = wire.ask({**request_, "rid": 7})
    assert error_of(reply)
    assert reply["rid"] == 7


@pytest.mark.parametrize("rid", [True, 1.5, [1], {"a": 1}])
def test_a_rid_of_another_type_is_refused(wire: Wire, rid: object) -> None:
    assert error_of(wire.ask({"op": "status", "rid": rid})) == "invalid_request"
    assert wire.ask({"op": "status"})["ok"]


def test_a_reply_overtakes_one_that_waits(wire: Wire, queue: str) -> None:
    wire.send(
        {"op": "receive", "queue": queue, "wait": 60, "rid": "waits"},
        {"op": "status", "rid": "quick"},
        {"op": "send", "queue": queue, "id": "m", "body": "x", "rid": "wakes"},
    )
    replies = [wire.read() for _ in range(3)]
    assert replies[0]["rid"] == "quick"
    assert {reply["rid"] for reply in replies[1:]} == {"waits", "wakes"}
    waited = next(reply for reply in replies if reply["rid"] == "waits")
    assert [message["id"] for message in waited["messages"]] == ["m"]


def test_the_same_rid_twice_is_answered_twice(wire: Wire) -> None:
    wire.send({"op": "status", "rid": 1}, {"op": "status", "rid": 1})
    assert [wire.read()["rid"], wire.read()["rid"]] == [1, 1]


@pytest.mark.slow
def test_thousands_of_requests_in_one_write_are_all_answered(wire: Wire, queue: str) -> None:
    """The client reads while it writes: the daemon reads no more from one that leaves its replies unread."""
    requests = [{"op": "send", "queue": queue, "id": f"{n}", "body": "x", "rid": n} for n in range(10_000)]
    with ThreadPoolExecutor(1) as writer:
        written = writer.submit(wire.send, *requests)
        assert sorted(wire.read()["rid"] for _ in requests) == list(range(10_000))
        written.result()
    assert wire.silent(0.05)


def test_requests_of_one_connection_are_stored_in_their_order(wire: Wire, queue: str) -> None:
    wire.send(*({"op": "send", "queue": queue, "id": f"{n}", "body": "x"} for n in range(500)))
    for _ in range(500):
        assert wire.read()["ok"]
    messages = wire.ask({"op": "receive", "queue": queue, "limit": 1000})["messages"]
    assert [message["id"] for message in messages] == [f"{n}" for n in range(500)]


def test_after_half_a_close_the_reply_still_comes(wire: Wire, queue: str) -> None:
    wire.send({"op": "send", "queue": queue, "id": "m", "body": "x"})
    wire.half_close()
    assert wire.read()["id"] == "m"
    assert wire.ended()


def test_after_half_a_close_even_a_waiting_reply_comes(shared_daemon: Daemon, wire: Wire, queue: str) -> None:
    wire.send({"op": "receive", "queue": queue, "wait": 60})
    wire.half_close()
    eventually(lambda: shared_daemon.ask(op="status")["waiting"] == 1)
    shared_daemon.ask(op="send", queue=queue, id="m", body="x")
    assert wire.read()["messages"][0]["id"] == "m"
    assert wire.ended()


def test_half_a_close_with_many_requests_in_flight_answers_all(wire: Wire, queue: str) -> None:
    wire.send(*({"op": "send", "queue": queue, "body": "x", "rid": n} for n in range(2000)))
    wire.half_close()
    assert sorted(wire.read()["rid"] for _ in range(2000)) == list(range(2000))
    assert wire.ended()


def test_half_a_close_without_a_request_ends_the_connection(wire: Wire) -> None:
    wire.half_close()
    assert wire.ended()


def test_a_last_line_without_its_line_feed_is_not_a_request(shared_daemon: Daemon, wire: Wire, queue: str) -> None:
    """It may be half a request: a sender that is killed while it writes must store nothing."""
    wire.write(b'{"op":"send","queue":"%s","id":"m","body":"x"}' % queue.encode())
    wire.half_close()
    assert wire.ended()
    assert error_of(shared_daemon.ask(op="show", queue=queue, id="m")) == "not_found"
