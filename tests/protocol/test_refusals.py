"""Bad lines: each is answered with what is wrong with it, and the connection stays open."""

from __future__ import annotations

import pytest

from tests.support import Wire, error_of

BAD_LINES = {
    "empty": b"",
    "blank": b"   ",
    "carriage return only": b"\r",
    "no JSON": b"hello",
    "broken JSON": b'{"op": "status"',
    "two objects": b'{"op": "status"}{"op": "status"}',
    "trailing text": b'{"op": "status"} x',
    "array": b'[{"op": "status"}]',
    "number": b"1",
    "null": b"null",
    "string": b'"status"',
    "single quotes": b"{'op': 'status'}",
    "NaN": b'{"op": "receive", "queue": "q", "wait": NaN}',
    "Infinity": b'{"op": "receive", "queue": "q", "wait": Infinity}',
    "bad UTF-8": b'{"op": "send", "queue": "q", "body": "\xff"}',
    "cut UTF-8": b'{"op": "send", "queue": "q", "body": "\xe2\x82"}',
    "overlong UTF-8": b'{"op": "send", "queue": "q", "body": "\xc0\xaf"}',
    "UTF-8 surrogate": b'{"op": "send", "queue": "q", "body": "\xed\xa0\x80"}',
    "UTF-16": '{"op": "status"}'.encode("utf-16"),
    "byte order mark": b'\xef\xbb\xbf{"op": "status"}',
    "zero byte": b"\x00",
    "zero byte in a string": b'{"op": "send", "queue": "q", "body": "\x00"}',
    "lone high surrogate": b'{"op": "send", "queue": "q", "body": "\\ud800"}',
    "lone low surrogate": b'{"op": "send", "queue": "q", "body": "\\udc00"}',
    "surrogate as id": b'{"op": "send", "queue": "q", "body": "", "id": "\\ud800"}',
    "surrogate as header": b'{"op": "send", "queue": "q", "body": "", "headers": {"\\ud800": ""}}',
    "surrogate as rid": b'{"op": "status", "rid": "\\udfff"}',
    "deep array": b'{"op": ' + b"[" * 100_000,
    "deep object": b'{"a":' * 100_000,
    "deep array in an unknown field": b'{"op": "status", "x": ' + b"[" * 5000 + b"]" * 5000 + b"}",
    "deep array before the op": b'{"rid": 1, "x": ' + b"[" * 50_000 + b"]" * 50_000 + b', "op": "status"}',
    "no op": b'{"rid": 1}',
    "empty object": b"{}",
    "unknown op": b'{"op": "fly"}',
    "op of a wrong type": b'{"op": 1}',
    "op of another case": b'{"op": "SEND", "queue": "q", "body": ""}',
    "HTTP": b"GET / HTTP/1.1",
    "a huge integer": b'{"op": "receive", "queue": "q", "limit": ' + b"9" * 100_000 + b"}",
    "a huge rid": b'{"op": "status", "rid": ' + b"9" * 100_000 + b"}",
    "a huge exponent": b'{"op": "receive", "queue": "q", "wait": 1e999999}',
    "a long number": b'{"op": "receive", "queue": "q", "wait": ' + b"0." + b"1" * 100_000 + b"e99}",
}


@pytest.mark.parametrize("line", BAD_LINES.values(), ids=BAD_LINES.keys())
def test_a_bad_line_is_answered_and_the_connection_stays_open(wire: Wire, line: bytes) -> None:
    assert error_of(wire.ask_line(line)) == "invalid_request"
    assert wire.ask({"op": "status", "rid": "after"})["rid"] == "after"


@pytest.mark.parametrize(
    ("request_", "what"),
    [
        ({"op": "send", "queue": "a b", "body": "x"}, "'a b'"),
        ({"op": "receive", "queue": "a b"}, "`$.queue`"),
        ({"op": "bind", "topic": "a b", "queue": "q"}, "`$.topic`"),
        ({"op": "settle", "send": [{"queue": "q", "body": ""}, {"queue": "-", "body": ""}]}, "`$.send[1].queue`"),
    ],
)
def test_a_bad_queue_name_is_answered_with_what_a_name_is(wire: Wire, request_: dict[str, object], what: str) -> None:
    reply = wire.ask(request_)
    assert error_of(reply) == "invalid_request"
    assert reply["error"]["message"].startswith(f"{what} is no queue name: use 1 to 128 letters, digits, dots")


BAD_REQUESTS: list[tuple[dict[str, object], str]] = [
    # missing fields
    ({"op": "send", "body": "x"}, "queue"),
    ({"op": "send", "queue": "q"}, "body"),
    ({"op": "send_many", "queue": "q"}, "messages"),
    ({"op": "receive"}, "queue"),
    ({"op": "ack"}, "receipt"),
    ({"op": "nack"}, "receipt"),
    ({"op": "reject"}, "receipt"),
    ({"op": "extend", "receipt": "x"}, "seconds"),
    ({"op": "release"}, "receipts"),
    ({"op": "result", "queue": "q"}, "id"),
    ({"op": "peek"}, "queue"),
    ({"op": "show", "queue": "q"}, "id"),
    ({"op": "settle", "send": [{"body": "x"}]}, "queue"),
    ({"op": "settle", "acks": [{}]}, "receipt"),
    # wrong types
    ({"op": "send", "queue": 1, "body": "x"}, "queue"),
    ({"op": "send", "queue": None, "body": "x"}, "queue"),
    ({"op": "send", "queue": "q", "body": 1}, "body"),
    ({"op": "send", "queue": "q", "body": {"a": 1}}, "body"),
    ({"op": "send", "queue": "q", "body": "x", "id": 1}, "id"),
    ({"op": "send", "queue": "q", "body": "x", "headers": []}, "headers"),
    ({"op": "send", "queue": "q", "body": "x", "headers": {"a": 1}}, "headers"),
    ({"op": "send", "queue": "q", "body": "x", "priority": "1"}, "priority"),
    ({"op": "send", "queue": "q", "body": "x", "priority": 1.5}, "priority"),
    ({"op": "send", "queue": "q", "body": "x", "priority": True}, "priority"),
    ({"op": "send", "queue": "q", "body": "x", "group": 1}, "group"),
    ({"op": "send", "queue": "q", "body": "x", "delay": "1"}, "delay"),
    ({"op": "send", "queue": "q", "body": "x", "at": "2030-01-01"}, "at"),
    ({"op": "receive", "queue": "q", "bound": 1}, "bound"),
    ({"op": "receive", "queue": "q", "limit": None}, "limit"),
    ({"op": "ack", "receipt": "x", "result": 1}, "result"),
    ({"op": "send_many", "queue": "q", "messages": {}}, "messages"),
    ({"op": "send_many", "queue": "q", "messages": ["x"]}, "messages"),
    ({"op": "release", "receipts": "x"}, "receipts"),
    ({"op": "peek", "queue": "q", "state": "asleep"}, "state"),
    # out of bounds
    ({"op": "send", "queue": "", "body": "x"}, "queue"),
    ({"op": "send", "queue": "q\n", "body": "x"}, "queue"),
    ({"op": "send", "queue": "-q", "body": "x"}, "queue"),
    ({"op": "send", "queue": "a b", "body": "x"}, "queue"),
    ({"op": "send", "queue": "ä", "body": "x"}, "queue"),
    ({"op": "send", "queue": "q" * 129, "body": "x"}, "queue"),
    ({"op": "send", "queue": "q", "body": "x", "id": ""}, "id"),
    ({"op": "send", "queue": "q", "body": "x", "id": "i" * 201}, "id"),
    ({"op": "send", "queue": "q", "body": "x", "id": "a\nb"}, "id"),
    ({"op": "send", "queue": "q", "body": "x", "id": "a\x00b"}, "id"),
    ({"op": "send", "queue": "q", "body": "x", "group": ""}, "group"),
    ({"op": "send", "queue": "q", "body": "x", "group": "a\tb"}, "group"),
    ({"op": "send", "queue": "q", "body": "x", "priority": 2**31}, "priority"),
    ({"op": "send", "queue": "q", "body": "x", "priority": -(2**63)}, "priority"),
    ({"op": "send", "queue": "q", "body": "x", "priority": 2**64}, "priority"),
    ({"op": "send", "queue": "q", "body": "x", "delay": -1}, "delay"),
    ({"op": "send", "queue": "q", "body": "x", "delay": 1e12}, "delay"),
    ({"op": "send", "queue": "q", "body": "x", "at": -1}, "at"),
    ({"op": "send", "queue": "q", "body": "x", "at": 1e300}, "at"),
    ({"op": "send", "queue": "q", "body": "x", "delay": 1, "at": 1}, "delay"),
    ({"op": "send", "queue": "q", "body": "x", "body_base64": "eA=="}, "body"),
    ({"op": "send", "queue": "q", "body_base64": "no base64!"}, "body_base64"),
    ({"op": "send", "queue": "q", "body_base64": "eA"}, "body_base64"),
    ({"op": "send", "queue": "q", "body_base64": "eA==\n"}, "body_base64"),
    ({"op": "send", "queue": "q", "body_base64": "é"}, "body_base64"),
    ({"op": "send_many", "queue": "q", "messages": []}, "messages"),
    ({"op": "send_many", "queue": "q", "messages": [{"body": "x"}] * 1001}, "messages"),
    ({"op": "receive", "queue": "q", "limit": 0}, "limit"),
    ({"op": "receive", "queue": "q", "limit": 1001}, "limit"),
    ({"op": "receive", "queue": "q", "limit": 2**70}, "limit"),
    ({"op": "receive", "queue": "q", "wait": -0.1}, "wait"),
    ({"op": "receive", "queue": "q", "wait": 3601}, "wait"),
    ({"op": "receive", "queue": "q", "lease": 0}, "lease"),
    ({"op": "receive", "queue": "q", "lease": 1e9}, "lease"),
    ({"op": "ack", "receipt": ""}, "receipt"),
    ({"op": "ack", "receipt": "r" * 101}, "receipt"),
    ({"op": "nack", "receipt": "x", "delay": -1}, "delay"),
    ({"op": "nack", "receipt": "x", "error": "e" * 4097}, "error"),
    ({"op": "extend", "receipt": "x", "seconds": 0}, "seconds"),
    ({"op": "peek", "queue": "q", "limit": 1001}, "limit"),
    # unknown fields: a misspelt option must not be ignored
    ({"op": "send", "queue": "q", "body": "x", "prio": 1}, "prio"),
    ({"op": "send", "queue": "q", "body": "x", "Id": "a"}, "Id"),
    ({"op": "receive", "queue": "q", "timeout": 1}, "timeout"),
    ({"op": "ack", "receipt": "x", "queue": "q"}, "queue"),
    ({"op": "status", "x": 1}, "x"),
    ({"op": "settle", "acks": [{"receipt": "x", "y": 1}]}, "y"),
    ({"op": "send_many", "queue": "q", "messages": [{"body": "x", "queue": "r"}]}, "queue"),
]


@pytest.mark.parametrize(("request_", "field"), BAD_REQUESTS)
def test_the_reply_to_a_bad_request_names_the_field(wire: Wire, request_: dict[str, object], field: str) -> None:
    reply = wire.ask(request_)
    assert error_of(reply) == "invalid_request"
    assert field in reply["error"]["message"]
    assert wire.ask({"op": "status"})["ok"]


def test_nothing_of_a_refused_batch_is_stored(wire: Wire, queue: str) -> None:
    messages = [{"id": "a", "body": "x"}, {"id": "b", "body": 1}]
    assert error_of(wire.ask({"op": "send_many", "queue": queue, "messages": messages})) == "invalid_request"
    assert error_of(wire.ask({"op": "show", "queue": queue, "id": "a"})) == "not_found"


def test_refusals_within_a_pipeline_do_not_stop_it(wire: Wire, queue: str) -> None:
    good = b'{"op":"send","queue":"%s","body":"x"}\n' % queue.encode()
    wire.write((good + b"nonsense\n" + good + b"\n") * 100)
    replies = [wire.read()["ok"] for _ in range(400)]
    assert replies.count(True) == replies.count(False) == 200
    assert len(wire.ask({"op": "receive", "queue": queue, "limit": 1000})["messages"]) == 200


def test_a_carriage_return_before_the_line_feed_is_white_space(wire: Wire) -> None:
    assert wire.ask_line(b'{"op": "status"}\r')["ok"]


def test_a_repeated_field_is_refused_or_its_last_value_counts(wire: Wire, queue: str) -> None:
    """JSON leaves this open. The daemon must not mix the two."""
    reply = wire.ask_line(b'{"op":"send","queue":"%s","body":"1","body":"2"}' % queue.encode())
    if reply["ok"]:
        assert wire.ask({"op": "receive", "queue": queue})["messages"][0]["body"] == "2"
