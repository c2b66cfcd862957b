"""The contents of names, ids and bodies, and their exact limits. All come back as they were sent, to the byte."""

from __future__ import annotations

import base64

import pytest

from tests.support import Daemon, Fields, Wire, error_of

MEBIBYTE = 1024 * 1024

TEXTS = {
    "empty": "",
    "quotes": '"double" \'single\' `back` \\ \\" \\n',
    "newlines": "a\nb\r\nc\rd\u2028e\u2029f\x85",
    "zero bytes": "\x00a\x00",
    "controls": "".join(chr(code) for code in range(32)) + "\x7f",
    "emoji": "🦆👩‍👩‍👧‍👦🏳️‍🌈",
    "outside the basic plane": "\U0010ffff\U00010000",
    "not characters": "\ufffe\uffff\ufdd0",
    "byte order mark": "\ufefftext",
    "combining": "e\u0301 is not é",
    "right to left": "\u202egnirts",
    "SQL": "'; drop table message; --",
    "JSON": '{"op": "status"}\n{"op": "status"}',
    "long": "ä" * 100_000,
}

BYTES = {
    "zero": b"\x00",
    "every byte": bytes(range(256)) * 4,
    "bad UTF-8": b"text \xff\xfe",
    "surrogate": "\ud800".encode(errors="surrogatepass"),
    "gzip": b"\x1f\x8b\x08\x00",
    "line feeds": b"\xff\n\xff\n",
}


def _receive(wire: Wire, queue: str) -> Fields:
    messages = wire.ask({"op": "receive", "queue": queue})["messages"]
    assert len(messages) == 1
    message: Fields = messages[0]
    return message


def _body(message: Fields) -> bytes:
    if "body" in message:
        assert "body_base64" not in message
        return str(message["body"]).encode()
    return base64.b64decode(message["body_base64"], validate=True)


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS.keys())
def test_text_comes_back_as_it_was(wire: Wire, queue: str, text: str) -> None:
    wire.ask({"op": "send", "queue": queue, "body": text, "headers": {"k": text[:1000], text[:1000]: "v"}})
    message = _receive(wire, queue)
    assert message["body"] == text
    assert message["headers"] == {"k": text[:1000], text[:1000]: "v"}
    wire.ask({"op": "ack", "receipt": message["receipt"], "result": text})
    assert wire.ask({"op": "result", "queue": queue, "id": message["id"]})["result"] == text


@pytest.mark.parametrize("data", BYTES.values(), ids=BYTES.keys())
def test_bytes_come_back_as_they_were(wire: Wire, queue: str, data: bytes) -> None:
    wire.ask({"op": "send", "queue": queue, "body_base64": base64.b64encode(data).decode()})
    message = _receive(wire, queue)
    assert _body(message) == data
    request = {"op": "ack", "receipt": message["receipt"], "result_base64": base64.b64encode(data).decode()}
    assert wire.ask(request)["ok"]


def test_text_in_base64_is_the_same_message_as_the_text(wire: Wire, queue: str) -> None:
    text = "grüße"
    wire.ask({"op": "send", "queue": queue, "id": "m", "body": text})
    in_base64 = base64.b64encode(text.encode()).decode()
    reply = wire.ask({"op": "send", "queue": queue, "id": "m", "body_base64": in_base64})
    assert reply["duplicate"] is True
    assert _receive(wire, queue)["body"] == text


@pytest.mark.parametrize(
    "id",
    [
        "x",
        "i" * 200,
        "🦆" * 200,
        'quo"te',
        "apos'trophe",
        "back\\slash",
        "with space",
        "%_*?",
        "../etc",
        "a/b:c",
        "Ω",
        "0",
    ],
)
def test_ids_are_stored_as_they_are(wire: Wire, queue: str, id: str) -> None:
    assert wire.ask({"op": "send", "queue": queue, "id": id, "body": "x"})["id"] == id
    message = _receive(wire, queue)
    assert message["id"] == id
    wire.ask({"op": "ack", "receipt": message["receipt"], "result": "r"})
    assert wire.ask({"op": "result", "queue": queue, "id": id})["result"] == "r"
    assert wire.ask({"op": "show", "queue": queue, "id": id})["message"]["state"] == "done"


def test_ids_that_look_alike_are_different(wire: Wire, queue: str) -> None:
    ids = ["a", "A", "é", "e\u0301", "1", "01", "1.0", "a%", "a_"]
    for id in ids:
        assert wire.ask({"op": "send", "queue": queue, "id": id, "body": id})["duplicate"] is False
    received = wire.ask({"op": "receive", "queue": queue, "limit": 100})["messages"]
    assert [(message["id"], message["body"]) for message in received] == [(id, id) for id in ids]


@pytest.mark.parametrize("name", ["q", "Q", "0", "a.b-c_d", "a" * 128, "select", "null", "a..b", "9-"])
def test_queue_names_may_have_these_characters(wire: Wire, name: str) -> None:
    assert wire.ask({"op": "send", "queue": name, "id": "m", "body": name})["ok"]
    assert _receive(wire, name)["body"] == name


def test_queue_names_are_case_sensitive(wire: Wire, queue: str) -> None:
    wire.ask({"op": "send", "queue": queue, "body": "small"})
    assert wire.ask({"op": "receive", "queue": queue.upper()})["messages"] == []


@pytest.mark.parametrize("letter", ["x", "é", "\x00", "🦆"], ids=["ascii", "two bytes", "escaped", "four bytes"])
def test_a_body_of_exactly_the_limit_is_stored(wire: Wire, queue: str, letter: str) -> None:
    text = letter * (MEBIBYTE // len(letter.encode()))
    assert wire.ask({"op": "send", "queue": queue, "body": text})["ok"]
    assert _receive(wire, queue)["body"] == text


def test_bytes_of_exactly_the_limit_are_stored(wire: Wire, queue: str) -> None:
    data = b"\xff" * MEBIBYTE
    assert wire.ask({"op": "send", "queue": queue, "body_base64": base64.b64encode(data).decode()})["ok"]
    message = _receive(wire, queue)
    assert _body(message) == data
    result = base64.b64encode(data).decode()
    assert wire.ask({"op": "ack", "receipt": message["receipt"], "result_base64": result})["ok"]


@pytest.mark.parametrize("letter", ["x", "é"])
def test_a_body_over_the_limit_is_refused_and_nothing_stored(wire: Wire, queue: str, letter: str) -> None:
    """Bytes count, not characters."""
    text = letter * (MEBIBYTE // len(letter.encode())) + "x"
    reply = wire.ask({"op": "send", "queue": queue, "id": "m", "body": text})
    assert error_of(reply) == "message_too_large"
    assert "1,048,577" in reply["error"]["message"]
    assert error_of(wire.ask({"op": "show", "queue": queue, "id": "m"})) == "not_found"
    assert queue not in [row["name"] for row in wire.ask({"op": "queues"})["queues"]]


def test_bytes_over_the_limit_are_refused(wire: Wire, queue: str) -> None:
    text = base64.b64encode(bytes(MEBIBYTE + 1)).decode()
    assert error_of(wire.ask({"op": "send", "queue": queue, "body_base64": text})) == "message_too_large"


def test_one_body_over_the_limit_refuses_its_whole_batch(wire: Wire, queue: str) -> None:
    messages = [{"id": "a", "body": "x"}, {"id": "b", "body": "x" * (MEBIBYTE + 1)}]
    assert error_of(wire.ask({"op": "send_many", "queue": queue, "messages": messages})) == "message_too_large"
    assert error_of(wire.ask({"op": "show", "queue": queue, "id": "a"})) == "not_found"


def test_a_result_over_the_limit_is_refused_and_the_lease_stays(wire: Wire, queue: str) -> None:
    wire.ask({"op": "send", "queue": queue, "id": "m", "body": "x"})
    receipt = _receive(wire, queue)["receipt"]
    too_large = {"op": "ack", "receipt": receipt, "result": "x" * (MEBIBYTE + 1)}
    assert error_of(wire.ask(too_large)) == "message_too_large"
    assert wire.ask({"op": "ack", "receipt": receipt, "result": "x" * MEBIBYTE})["ok"]
    assert wire.ask({"op": "result", "queue": queue, "id": "m"})["result"] == "x" * MEBIBYTE


def test_headers_over_their_limit_are_refused(wire: Wire, queue: str) -> None:
    reply = wire.ask({"op": "send", "queue": queue, "body": "x", "headers": {"k": "v" * 65536}})
    assert error_of(reply) == "message_too_large"
    assert wire.ask({"op": "send", "queue": queue, "body": "x", "headers": {"k": "v" * 65000}})["ok"]


def test_headers_count_in_the_size_of_a_reply(wire: Wire, queue: str) -> None:
    for _ in range(4):
        messages = [{"body": "", "headers": {"k": "x" * 50_000}}] * 15
        wire.ask({"op": "send_many", "queue": queue, "messages": messages})
    assert 35 < len(wire.ask({"op": "peek", "queue": queue, "limit": 1000})["messages"]) < 45
    assert 35 < len(wire.ask({"op": "tail", "queue": queue, "after": 0})["messages"]) < 45
    received = wire.ask({"op": "receive", "queue": queue, "limit": 1000})["messages"]
    assert 35 < len(received) < 45
    assert len(wire.ask({"op": "receive", "queue": queue, "limit": 1000})["messages"]) == 60 - len(received)


def test_errors_count_in_the_size_of_a_reply(wire: Wire, queue: str) -> None:
    wire.ask({"op": "send_many", "queue": queue, "messages": [{"body": ""}] * 800})
    for message in wire.ask({"op": "receive", "queue": queue, "limit": 800})["messages"]:
        assert wire.ask({"op": "reject", "receipt": message["receipt"], "error": "x" * 4096})["ok"]
    dead = wire.ask({"op": "peek", "queue": queue, "state": "dead", "limit": 1000})
    assert 400 < len(dead["messages"]) < 600 and dead["more"]


@pytest.mark.slow
def test_stored_messages_survive_a_restart_to_the_byte(daemon: Daemon) -> None:
    bodies = [text.encode() for text in TEXTS.values()] + list(BYTES.values())
    with daemon.wire() as wire:
        for number, body in enumerate(bodies):
            in_base64 = base64.b64encode(body).decode()
            assert wire.ask({"op": "send", "queue": "q", "id": f"{number}", "body_base64": in_base64})["ok"]
    daemon.restart()
    with daemon.wire() as wire:
        received = wire.ask({"op": "receive", "queue": "q", "limit": 100})["messages"]
    assert [_body(message) for message in received] == bodies
