"""Every operation of the wire over a raw socket: each field of the request and of the reply."""

from __future__ import annotations

import json
import time
from contextlib import ExitStack
from functools import partial

import pytest

from tests.support import PATIENCE, Daemon, Fields, Wire, error_of, eventually


def _send(wire: Wire, queue: str, id: str, body: str = "hi", **more: object) -> Fields:
    return wire.ask({"op": "send", "queue": queue, "id": id, "body": body, **more})


def _receive(wire: Wire, queue: str, **more: object) -> Fields:
    """Receive one message and return it."""
    reply = wire.ask({"op": "receive", "queue": queue, **more})
    assert len(reply["messages"]) == 1, reply
    message: Fields = reply["messages"][0]
    return message


def test_send_answers_the_id_and_whether_it_was_stored_before(wire: Wire, queue: str) -> None:
    assert _send(wire, queue, "a") == {"ok": True, "id": "a", "duplicate": False}
    assert _send(wire, queue, "a") == {"ok": True, "id": "a", "duplicate": True}


def test_send_without_an_id_makes_one(wire: Wire, queue: str) -> None:
    request = {"op": "send", "queue": queue, "body": ""}
    first, second = wire.ask(request), wire.ask(request)
    assert len(first["id"]) == 36
    assert first["id"] != second["id"]


def test_the_same_id_with_other_content_is_refused_and_changes_nothing(wire: Wire, queue: str) -> None:
    _send(wire, queue, "a", "first")
    assert error_of(_send(wire, queue, "a", "second")) == "id_conflict"
    assert error_of(_send(wire, queue, "a", "first", headers={"k": "v"})) == "id_conflict"
    assert error_of(_send(wire, queue, "a", "first", group="g")) == "id_conflict"
    assert _receive(wire, queue)["body"] == "first"
    assert wire.ask({"op": "receive", "queue": queue})["messages"] == []


def test_headers_are_not_confused_with_a_body_that_looks_like_them(wire: Wire, queue: str) -> None:
    headers = json.dumps([2, json.dumps({"k": "v"}, separators=(",", ":")), None])
    for number, body in enumerate([f"hi{headers}", f"{headers}hi"]):
        _send(wire, queue, str(number), "hi", headers={"k": "v"})
        assert error_of(_send(wire, queue, str(number), body)) == "id_conflict"


def test_the_same_id_in_another_queue_is_another_message(wire: Wire, queue: str) -> None:
    _send(wire, queue, "a", "first")
    assert _send(wire, queue + ".other", "a", "second")["duplicate"] is False


def test_send_many_answers_ids_and_the_positions_of_duplicates(wire: Wire, queue: str) -> None:
    _send(wire, queue, "b")
    messages = [{"id": "a", "body": "1"}, {"id": "b", "body": "hi"}, {"body_base64": "AP8="}]
    reply = wire.ask({"op": "send_many", "queue": queue, "messages": messages})
    assert reply["ids"][:2] == ["a", "b"]
    assert len(reply["ids"]) == 3
    assert reply["duplicates"] == [1]


def test_send_many_stores_all_or_nothing(wire: Wire, queue: str) -> None:
    _send(wire, queue, "b", "other")
    messages = [{"id": "a", "body": "1"}, {"id": "b", "body": "2"}]
    assert error_of(wire.ask({"op": "send_many", "queue": queue, "messages": messages})) == "id_conflict"
    assert error_of(wire.ask({"op": "show", "queue": queue, "id": "a"})) == "not_found"


def test_send_many_with_the_same_id_twice_stores_it_once(wire: Wire, queue: str) -> None:
    message = {"id": "a", "body": "1"}
    assert wire.ask({"op": "send_many", "queue": queue, "messages": [message, message]})["duplicates"] == [1]
    _receive(wire, queue, limit=10)


@pytest.mark.parametrize("op", ["send", "send_many", "settle"])
def test_a_message_that_comes_after_its_time_is_refused_and_stores_nothing(wire: Wire, queue: str, op: str) -> None:
    def send(id: str, not_after: float) -> Fields:
        message = {"id": id, "body": "", "not_after": not_after}
        if op == "send":
            return wire.ask({"op": op, "queue": queue, **message})
        if op == "send_many":
            return wire.ask({"op": op, "queue": queue, "messages": [{"body": ""}, message]})
        return wire.ask({"op": op, "acks": [], "send": [{**message, "queue": queue}]})

    assert error_of(send("late", time.time() - 1)) == "too_late"
    assert wire.ask({"op": "receive", "queue": queue})["messages"] == []
    assert send("in-time", time.time() + 100)["ok"]


def test_a_delivery_carries_its_digest_the_file_and_the_retention(wire: Wire, queue: str) -> None:
    _send(wire, queue, "a")
    _send(wire, queue, "b")
    _send(wire, queue, "c", headers={"k": "v"})
    _send(wire, queue, "d", group="g")
    reply = wire.ask({"op": "receive", "queue": queue, "limit": 10, "handles": 1})
    digests = {message["id"]: message["digest"] for message in reply["messages"]}
    assert digests["a"] == digests["b"]
    assert len(set(digests.values())) == 3
    status = wire.ask({"op": "status"})
    assert reply["source"] == status["identity"]
    assert len(reply["source"]) == 32
    assert reply["retention"] == 7 * 86400
    assert (status["protocol"], {"digest", "forwarded", "handles", "not_after"} <= set(status["features"])) == (2, True)


def test_receive_returns_all_fields_of_a_message(wire: Wire, queue: str) -> None:
    before = time.time()
    _send(wire, queue, "a", "hi", headers={"k": "v"}, priority=-3, group="g")
    reply = wire.ask({"op": "receive", "queue": queue})
    message = reply["messages"][0]
    assert before <= message.pop("enqueued_at") <= time.time()
    assert message.pop("receipt")
    assert len(message.pop("digest")) == 32
    assert message.pop("seq") == reply["watermark"]
    assert message == {"id": "a", "body": "hi", "attempt": 1, "headers": {"k": "v"}, "priority": -3, "group": "g"}


def test_receive_leaves_out_options_that_were_not_given(wire: Wire, queue: str) -> None:
    _send(wire, queue, "a")
    assert _receive(wire, queue).keys() == {"id", "body", "attempt", "receipt", "seq", "enqueued_at", "digest"}


def test_receive_returns_as_many_messages_as_the_limit_allows(wire: Wire, queue: str) -> None:
    messages = [{"id": f"{number}", "body": "x"} for number in range(5)]
    wire.ask({"op": "send_many", "queue": queue, "messages": messages})
    taken = [
        [message["id"] for message in wire.ask({"op": "receive", "queue": queue, "limit": limit})["messages"]]
        for limit in (1, 3, 1000, 1)
    ]
    assert taken == [["0"], ["1", "2", "3"], ["4"], []]


def test_receive_from_a_queue_that_does_not_exist_returns_nothing(wire: Wire, queue: str) -> None:
    assert wire.ask({"op": "receive", "queue": queue})["messages"] == []


def test_receive_waits_for_a_message(shared_daemon: Daemon, wire: Wire, queue: str) -> None:
    wire.send({"op": "receive", "queue": queue, "wait": 60})
    eventually(lambda: shared_daemon.ask(op="status")["waiting"] == 1)
    shared_daemon.ask(op="send", queue=queue, id="late", body="x")
    assert wire.read()["messages"][0]["id"] == "late"


def _waiting(daemon: Daemon, count: int) -> bool:
    """Return whether so many requests wait."""
    return int(daemon.ask(op="status")["waiting"]) == count


@pytest.mark.parametrize("ready", ["sent", "together", "delayed", "nacked", "released", "unblocked", "resumed"])
def test_each_of_the_receives_that_wait_gets_what_becomes_ready(
    shared_daemon: Daemon, wire: Wire, queue: str, ready: str
) -> None:
    """The later ones do not look into the file: the first one has found nothing."""
    ids = ["a", "b", "c"]
    grouped: Fields = {"group": "g"} if ready == "unblocked" else {}
    delayed: Fields = {"delay": 0.05} if ready == "delayed" else {}
    receipts = []
    if ready in ("nacked", "released", "unblocked"):
        for id in ids:
            _send(wire, queue, id, **grouped)
        count = 1 if grouped else 3
        receipts = [_receive(wire, queue)["receipt"] for _ in range(count)]
    if ready == "resumed":
        wire.ask({"op": "pause", "queue": queue})
        for id in ids:
            _send(wire, queue, id)
    with ExitStack() as stack:
        waiting = [stack.enter_context(shared_daemon.wire()) for _ in range(2 if grouped else 3)]
        for number, one in enumerate(waiting, 1):
            one.send({"op": "receive", "queue": queue, "wait": PATIENCE})
            eventually(partial(_waiting, shared_daemon, number))
        if ready == "together":
            wire.ask({"op": "send_many", "queue": queue, "messages": [{"id": id, "body": "x"} for id in ids]})
        elif ready in ("sent", "delayed"):
            for id in ids:
                _send(wire, queue, id, **delayed)
        elif ready == "released":
            wire.ask({"op": "release", "receipts": receipts})
        elif ready == "resumed":
            wire.ask({"op": "resume", "queue": queue})
        else:
            for receipt in receipts:
                wire.ask({"op": "ack" if grouped else "nack", "receipt": receipt})
        got = []
        for one in waiting:
            (message,) = one.read()["messages"]
            got.append(message["id"])
            if grouped:
                one.ask({"op": "ack", "receipt": message["receipt"]})
    assert sorted(got) == (ids[1:] if grouped else ids)


def test_receive_answers_empty_when_its_wait_is_over(wire: Wire, queue: str) -> None:
    start = time.monotonic()
    assert wire.ask({"op": "receive", "queue": queue, "wait": 0.2})["messages"] == []
    assert 0.19 <= time.monotonic() - start < PATIENCE


def test_ack_settles_with_a_result(wire: Wire, queue: str) -> None:
    _send(wire, queue, "a")
    receipt = _receive(wire, queue)["receipt"]
    ask = {"op": "result", "queue": queue, "id": "a"}
    assert wire.ask(ask) == {"ok": True, "outcome": None}
    assert wire.ask({"op": "ack", "receipt": receipt, "result": "paid"}) == {"ok": True}
    assert wire.ask(ask) == {"ok": True, "outcome": "done", "result": "paid"}


def test_a_result_that_is_not_text_travels_in_base64(wire: Wire, queue: str) -> None:
    _send(wire, queue, "a")
    receipt = _receive(wire, queue)["receipt"]
    assert wire.ask({"op": "ack", "receipt": receipt, "result_base64": "AP8="})["ok"]
    assert wire.ask({"op": "result", "queue": queue, "id": "a"})["result_base64"] == "AP8="


def test_an_ack_without_a_result_is_done_with_none(wire: Wire, queue: str) -> None:
    _send(wire, queue, "a")
    wire.ask({"op": "ack", "receipt": _receive(wire, queue)["receipt"]})
    assert wire.ask({"op": "result", "queue": queue, "id": "a"}) == {"ok": True, "outcome": "done"}


def test_a_repeated_ack_is_answered_like_the_first(wire: Wire, queue: str) -> None:
    _send(wire, queue, "a")
    request = {"op": "ack", "receipt": _receive(wire, queue)["receipt"]}
    assert wire.ask(request) == wire.ask(request) == {"ok": True}


def test_a_settled_message_is_remembered_as_a_duplicate(wire: Wire, queue: str) -> None:
    _send(wire, queue, "a")
    wire.ask({"op": "ack", "receipt": _receive(wire, queue)["receipt"]})
    assert _send(wire, queue, "a")["duplicate"] is True
    assert error_of(_send(wire, queue, "a", "other")) == "id_conflict"
    assert wire.ask({"op": "receive", "queue": queue})["messages"] == []


def test_settle_acks_and_sends_in_one(wire: Wire, queue: str) -> None:
    for id in ("a", "b"):
        _send(wire, queue, id)
    acks = [{"receipt": _receive(wire, queue)["receipt"], "result": "r"} for _ in range(2)]
    send = [{"queue": queue + ".next", "id": "n", "body": "1"}, {"queue": queue, "id": "a", "body": "hi"}]
    reply = wire.ask({"op": "settle", "acks": acks, "send": send})
    assert reply == {"ok": True, "ids": ["n", "a"], "duplicates": [1]}
    assert _receive(wire, queue + ".next")["id"] == "n"
    assert wire.ask({"op": "result", "queue": queue, "id": "b"})["result"] == "r"


def test_a_repeated_settle_is_answered_as_the_first_was(wire: Wire, queue: str) -> None:
    wire.ask({"op": "bind", "topic": queue + ".topic", "queue": queue + ".next"})
    _send(wire, queue + ".next", "known", "1")
    _send(wire, queue, "a")
    sends = [("next", "n"), ("next", "n"), ("topic", "n"), ("topic", "m"), ("next", "m"), ("next", "known")]
    request = {
        "op": "settle",
        "acks": [{"receipt": _receive(wire, queue)["receipt"]}],
        "send": [{"queue": f"{queue}.{name}", "id": id, "body": "1"} for name, id in sends],
    }
    first = wire.ask(request)
    assert first["duplicates"] == [1, 2, 4, 5]
    assert wire.ask(request) == first


def test_a_receipt_that_is_twice_in_a_settle_counts_once(wire: Wire, queue: str) -> None:
    _send(wire, queue, "a")
    receipt = _receive(wire, queue)["receipt"]
    acks = [{"receipt": receipt, "result": f"{number}"} for number in range(600)]
    wire.send({"op": "result", "queue": queue, "id": "a", "wait": 60, "rid": 1}, {"op": "settle", "acks": acks})
    told = next(reply for reply in (wire.read(), wire.read()) if "rid" in reply)
    assert told["result"] == wire.ask({"op": "result", "queue": queue, "id": "a"})["result"]
    (found,) = (found for found in wire.ask({"op": "queues"})["queues"] if found["name"] == queue)
    assert 0 < found["done_rate"] <= 1 / 60 + 0.001


def test_settle_does_nothing_if_one_lease_is_lost(wire: Wire, queue: str) -> None:
    for id in ("a", "b"):
        _send(wire, queue, id)
    first, second = (_receive(wire, queue)["receipt"] for _ in range(2))
    wire.ask({"op": "nack", "receipt": second})
    send = [{"queue": queue + ".next", "body": "1"}]
    request = {"op": "settle", "acks": [{"receipt": first}, {"receipt": second}], "send": send}
    refused = wire.ask(request)
    assert error_of(refused) == "lease_lost"
    assert second in refused["error"]["message"]
    assert first not in refused["error"]["message"]
    assert wire.ask({"op": "show", "queue": queue, "id": "a"})["message"]["state"] == "leased"
    assert wire.ask({"op": "receive", "queue": queue + ".next"})["messages"] == []
    assert wire.ask({"op": "ack", "receipt": first})["ok"]


def test_settle_does_nothing_if_one_send_conflicts(wire: Wire, queue: str) -> None:
    _send(wire, queue, "a")
    _send(wire, queue + ".next", "n", "first")
    receipt = _receive(wire, queue)["receipt"]
    send = [{"queue": queue + ".next", "id": "m", "body": "1"}, {"queue": queue + ".next", "id": "n", "body": "2"}]
    assert error_of(wire.ask({"op": "settle", "acks": [{"receipt": receipt}], "send": send})) == "id_conflict"
    assert error_of(wire.ask({"op": "show", "queue": queue + ".next", "id": "m"})) == "not_found"
    assert wire.ask({"op": "ack", "receipt": receipt})["ok"]


def test_settle_may_only_send(wire: Wire, queue: str) -> None:
    reply = wire.ask({"op": "settle", "send": [{"queue": queue, "id": "a", "body": "1"}]})
    assert reply == {"ok": True, "ids": ["a"], "duplicates": []}


def test_nack_gives_the_message_back_with_its_error(wire: Wire, queue: str) -> None:
    _send(wire, queue, "a")
    assert wire.ask({"op": "nack", "receipt": _receive(wire, queue)["receipt"], "error": "busy"}) == {"ok": True}
    assert wire.ask({"op": "show", "queue": queue, "id": "a"})["message"]["error"] == "busy"
    assert _receive(wire, queue)["attempt"] == 2


def test_nack_with_a_delay_delays_the_message(wire: Wire, queue: str) -> None:
    for id, delay in (("long", 600), ("short", 0.3)):
        _send(wire, queue, id)
        receipt = _receive(wire, queue)["receipt"]
        start = time.monotonic()
        wire.ask({"op": "nack", "receipt": receipt, "delay": delay})
    assert wire.ask({"op": "show", "queue": queue, "id": "long"})["message"]["state"] == "delayed"
    again = _receive(wire, queue, wait=30)
    assert (again["id"], again["attempt"]) == ("short", 2)
    assert time.monotonic() - start >= 0.29


def test_reject_makes_a_dead_letter(wire: Wire, queue: str) -> None:
    _send(wire, queue, "a", "payload")
    receipt = _receive(wire, queue)["receipt"]
    assert wire.ask({"op": "reject", "receipt": receipt, "error": "no account"}) == {"ok": True}
    reply = wire.ask({"op": "result", "queue": queue, "id": "a"})
    assert reply == {"ok": True, "outcome": "dead", "error": "no account"}
    dead = wire.ask({"op": "peek", "queue": queue, "state": "dead"})["messages"]
    assert [(message["id"], message["body"], message["error"]) for message in dead] == [("a", "payload", "no account")]


def test_extend_lets_a_lease_end_later(wire: Wire, queue: str) -> None:
    _send(wire, queue, "a")
    receipt = _receive(wire, queue, lease=2)["receipt"]
    assert wire.ask({"op": "extend", "receipt": receipt, "seconds": 60}) == {"ok": True}
    assert wire.ask({"op": "receive", "queue": queue, "wait": 2.1})["messages"] == []
    assert wire.ask({"op": "ack", "receipt": receipt})["ok"]


def test_release_gives_messages_back_without_counting_an_attempt(wire: Wire, queue: str) -> None:
    _send(wire, queue, "a")
    receipt = _receive(wire, queue)["receipt"]
    assert wire.ask({"op": "release", "receipts": [receipt]}) == {"ok": True}
    assert _receive(wire, queue)["attempt"] == 1


def test_a_lease_that_ended_is_lost_for_every_operation(wire: Wire, queue: str) -> None:
    _send(wire, queue, "a")
    old = _receive(wire, queue, lease=0.05)["receipt"]
    assert _receive(wire, queue, wait=30)["attempt"] == 2
    for request in (
        {"op": "ack", "receipt": old},
        {"op": "nack", "receipt": old},
        {"op": "reject", "receipt": old},
        {"op": "extend", "receipt": old, "seconds": 9},
        {"op": "settle", "acks": [{"receipt": old}]},
    ):
        assert error_of(wire.ask(request)) == "lease_lost", request
    assert wire.ask({"op": "show", "queue": queue, "id": "a"})["message"]["state"] == "leased"


def test_a_text_that_is_not_a_receipt_is_refused(wire: Wire) -> None:
    for receipt in ("x", "a.b", "a.b.c.d", "e.zz.1", "e.1.-1", "e.ffffffffffffffffff.1"):
        assert error_of(wire.ask({"op": "ack", "receipt": receipt})) == "invalid_request", receipt


def test_result_waits_for_the_end(shared_daemon: Daemon, wire: Wire, queue: str) -> None:
    _send(wire, queue, "a")
    with shared_daemon.wire() as other:
        receipt = _receive(other, queue)["receipt"]
        wire.send({"op": "result", "queue": queue, "id": "a", "wait": 60})
        assert wire.silent(0.1)
        other.ask({"op": "ack", "receipt": receipt, "result": "now"})
        assert wire.read()["result"] == "now"


def test_the_headers_of_a_trace_are_no_part_of_the_content(wire: Wire, queue: str) -> None:
    traced = {"traceparent": "00-1", "tracestate": "a=1", "baggage": "b=2"}
    _send(wire, queue, "plain")
    _send(wire, queue, "more", headers={"k": "v", **traced})
    for id, headers, expected in (
        ("plain", traced, True),
        ("more", {"k": "v"}, True),
        ("more", {"k": "v", "traceparent": "00-2"}, True),
        ("more", traced, "id_conflict"),
    ):
        reply = wire.ask({"op": "send", "queue": queue, "id": id, "body": "hi", "headers": headers})
        assert (reply["duplicate"] if reply["ok"] else error_of(reply)) == expected
    messages = wire.ask({"op": "receive", "queue": queue, "limit": 2})["messages"]
    assert messages[1]["headers"] == {"k": "v", **traced}


def test_queues_counts_by_state(wire: Wire, queue: str) -> None:
    for id, more in (("r", {}), ("l", {"priority": 9}), ("d", {"delay": 600}), ("g1", {"group": "g"})):
        _send(wire, queue, id, **more)
    _send(wire, queue, "g2", group="g")
    _receive(wire, queue)
    rows = [row for row in wire.ask({"op": "queues"})["queues"] if row["name"] == queue]
    assert len(rows) == 1
    assert 0 < rows[0].pop("oldest") <= rows[0].pop("oldest_ready") <= time.time()
    assert 0 < rows[0].pop("sent_rate") <= 5 / 60 + 0.001
    counts = {"ready": 2, "leased": 1, "delayed": 1, "blocked": 1, "dead": 0}
    totals, since_start = rows[0].pop("totals"), rows[0].pop("since_start")
    assert totals == since_start
    assert {name: count for name, count in totals.items() if count} == {"sent": 5, "delivered": 1}
    assert rows == [{"name": queue, "paused": False, "done_rate": 0.0, "consumers": 1, "waiting": 0, **counts}]


def test_peek_returns_messages_without_leasing_them(wire: Wire, queue: str) -> None:
    for id in ("a", "b", "c"):
        _send(wire, queue, id)
    seen = wire.ask({"op": "peek", "queue": queue, "limit": 2})["messages"]
    assert [(message["id"], message["body"]) for message in seen] == [("a", "hi"), ("b", "hi")]
    assert _receive(wire, queue)["attempt"] == 1


def test_show_returns_all_that_is_known(wire: Wire, queue: str) -> None:
    _send(wire, queue, "a", headers={"k": "v"})
    shown = wire.ask({"op": "show", "queue": queue, "id": "a"})["message"]
    expected = {"queue": queue, "id": "a", "state": "ready", "body": "hi", "headers": {"k": "v"}, "attempts": 0}
    assert shown.items() >= expected.items()
    assert error_of(wire.ask({"op": "show", "queue": queue, "id": "none"})) == "not_found"


def test_status_names_the_process_and_its_files(shared_daemon: Daemon, wire: Wire) -> None:
    status = wire.ask({"op": "status"})
    assert status["pid"] == shared_daemon.pid
    assert status["database"] == str(shared_daemon.db)
    assert status["socket"] == str(shared_daemon.socket)
    assert status["connections"] >= 1


def test_a_repeated_settle_answers_as_the_first_did(wire: Wire, queue: str) -> None:
    _send(wire, queue, "a")
    _send(wire, queue + ".next", "old")
    receipt = _receive(wire, queue)["receipt"]
    send = [{"queue": queue + ".next", "id": "new", "body": "1"}, {"queue": queue + ".next", "id": "old", "body": "hi"}]
    request = {"op": "settle", "acks": [{"receipt": receipt}], "send": send}
    first = wire.ask(request)
    assert first["duplicates"] == [1]
    assert wire.ask(request) == first


def test_cancel_ends_the_wait_of_a_receive_and_nothing_else(wire: Wire, shared_daemon: Daemon, queue: str) -> None:
    _send(wire, queue, "a")
    delivery = _receive(wire, queue)
    wire.send({"rid": "w", "op": "receive", "queue": queue, "wait": 60})
    wire.send({"rid": 1, "op": "result", "queue": queue, "id": "a", "wait": 60})
    eventually(lambda: shared_daemon.ask(op="status")["waiting"] == 1)
    for target in (1, 2, "unknown"):
        assert wire.ask({"rid": "c", "op": "cancel", "request": target}) == {"rid": "c", "ok": True}
    with shared_daemon.wire() as other:
        other.ask({"op": "cancel", "request": "w"})
    assert shared_daemon.ask(op="status")["waiting"] == 1
    wire.send({"rid": "c", "op": "cancel", "request": "w"})
    assert wire.read() == {"rid": "c", "ok": True}
    reply = wire.read()
    assert (reply["rid"], reply["ok"], reply["messages"]) == ("w", True, [])
    wire.send({"rid": 2, "op": "ack", "receipt": delivery["receipt"], "result": "r"})
    assert {reply["rid"]: reply.get("outcome") for reply in (wire.read(), wire.read())} == {1: "done", 2: None}


@pytest.mark.parametrize("request_of", [{}, {"request": 1.5}, {"request": None}, {"request": [1]}])
def test_cancel_needs_a_rid(wire: Wire, request_of: dict[str, object]) -> None:
    assert error_of(wire.ask({"op": "cancel", **request_of})) == "invalid_request"
