"""Sending with both clients: single, many, streamed, in transactions; duplicates, conflicts and limits."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import eoq
from eoq.message import Delivery, SendOptions
from eoq.worker.options import WorkKeywords
from tests.integration.clients import AnyClient
from tests.support import PATIENCE, Daemon, python_process, read_line_of

MEBIBYTE = 1024 * 1024


def _only(client: AnyClient, queue: str) -> Delivery:
    (message,) = client.receive(queue, 10)
    return message


def test_a_message_arrives_with_all_its_options(client: AnyClient, queue: str) -> None:
    before = time.time()
    sent = client.send(queue, "body", id="m", headers={"k": "v"}, priority=7, group="g")
    assert sent == eoq.Sent("m", duplicate=False)
    message = _only(client, queue)
    assert (message.id, message.queue, message.text, message.attempt) == ("m", queue, "body", 1)
    assert (message.headers, message.priority, message.group) == ({"k": "v"}, 7, "g")
    assert before <= message.enqueued_at <= time.time()
    assert message.seq == message.watermark


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b"\x00\xff", b"\x00\xff"),
        (b"", b""),
        (bytearray(b"ab"), b"ab"),
        (memoryview(b"ab"), b"ab"),
        ("grüße 🦆", "grüße 🦆".encode()),
        ("", b""),
    ],
)
def test_bytes_and_text_are_sent_as_they_are(client: AnyClient, queue: str, body: object, expected: bytes) -> None:
    client.send(queue, body)
    message = _only(client, queue)
    assert message.body == expected
    assert message.headers == {}


@pytest.mark.parametrize("body", [{"a": [1, None, "é"]}, [], 5, 1.5, True, None])
def test_anything_else_is_sent_as_json(client: AnyClient, queue: str, body: object) -> None:
    client.send(queue, body)
    message = _only(client, queue)
    assert message.json() == body
    assert message.headers == {"content-type": "application/json"}


def test_a_content_type_that_the_caller_gives_stays(client: AnyClient, queue: str) -> None:
    client.send(queue, {"a": 1}, headers={"content-type": "application/x-mine"})
    assert _only(client, queue).headers == {"content-type": "application/x-mine"}


@pytest.mark.parametrize("body", [object(), {1, 2}, float("nan"), "\ud800", {"a": b"bytes"}])
def test_bodies_that_cannot_be_sent_are_refused(client: AnyClient, queue: str, body: object) -> None:
    with pytest.raises(eoq.InvalidRequest):
        client.send(queue, body)
    assert client.receive(queue) == []


def test_the_same_id_is_stored_once(client: AnyClient, queue: str) -> None:
    assert client.send(queue, "x", id="m").duplicate is False
    assert client.send(queue, "x", id="m").duplicate is True
    assert client.send(queue, "x", id="m", priority=5, delay=60).duplicate is True
    client.ack(_only(client, queue))
    assert client.send(queue, "x", id="m").duplicate is True
    assert client.receive(queue) == []


def test_the_same_id_with_other_content_is_a_conflict(client: AnyClient, queue: str) -> None:
    client.send(queue, "first", id="m")
    with pytest.raises(eoq.IdConflict, match="'m'") as caught:
        client.send(queue, "second", id="m")
    assert caught.value.code == "id_conflict"
    assert _only(client, queue).text == "first"


def test_a_body_of_the_limit_is_sent_and_one_byte_more_is_not(client: AnyClient, queue: str) -> None:
    body = b"\xff" * MEBIBYTE
    client.send(queue, body)
    with pytest.raises(eoq.MessageTooLarge, match="1,048,577"):
        client.send(queue, body + b"x", id="m")
    assert _only(client, queue).body == body


def test_a_result_over_the_limit_is_refused_and_the_lease_stays(client: AnyClient, queue: str) -> None:
    client.send(queue, "x", id="m")
    message = _only(client, queue)
    with pytest.raises(eoq.MessageTooLarge):
        client.ack(message, b"x" * (MEBIBYTE + 1))
    client.ack(message, b"x" * MEBIBYTE)
    result = client.result(queue, "m")
    assert result is not None
    assert result.body == b"x" * MEBIBYTE


@pytest.mark.parametrize("name", ["", "a b", "-a", "ä", "a" * 129, "a\n", "a/b", None, 5])
def test_a_bad_name_of_a_queue_is_refused(client: AnyClient, name: str) -> None:
    with pytest.raises(eoq.InvalidRequest, match="queue name"):
        client.send(name, "x")
    with pytest.raises(eoq.InvalidRequest, match="queue name"):
        client.receive(name)


@pytest.mark.parametrize("id", ["", "i" * 201, "a\nb", "a\x00b"])
def test_a_bad_id_is_refused(client: AnyClient, queue: str, id: str) -> None:
    with pytest.raises(eoq.InvalidRequest):
        client.send(queue, "x", id=id)


def test_bad_options_are_refused(client: AnyClient, queue: str) -> None:
    several: list[dict[str, Any]] = [
        {"delay": -1.0},
        {"at": -1.0},
        {"priority": 2**40},
        {"group": ""},
        {"delay": 1.0, "at": 1.0},
    ]
    for options in several:
        with pytest.raises(eoq.InvalidRequest):
            client.send(queue, "x", **options)
    assert client.receive(queue) == []


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_numbers_that_json_does_not_have_are_refused(client: AnyClient, queue: str, number: float) -> None:
    with pytest.raises(eoq.InvalidRequest):
        client.send(queue, "x", delay=number)
    with pytest.raises(eoq.InvalidRequest):
        client.receive(queue, lease=number)


@pytest.mark.parametrize("client_class", [eoq.Client, eoq.AsyncClient])
def test_the_help_of_send_and_work_explains_each_option(client_class: type[Any]) -> None:
    for method, options in ((client_class.send, SendOptions), (client_class.work, WorkKeywords)):
        for option in options.__annotations__:
            assert f"- ``{option}``: " in str(inspect.getdoc(method))


def test_an_unknown_option_is_refused(client: AnyClient, queue: str) -> None:
    options: dict[str, Any] = {"prio": 1}
    with pytest.raises(TypeError, match="prio"):
        client.send(queue, "x", **options)


def test_send_many_stores_messages_in_their_order(client: AnyClient, queue: str) -> None:
    items: list[object] = [eoq.Outgoing(b"0", id="a"), b"1", {"any": "json"}, "3", eoq.Outgoing("4", queue=queue)]
    sent = client.send_many(queue, items)
    assert sent[0] == eoq.Sent("a", duplicate=False)
    received = client.receive(queue, 10)
    assert [message.body for message in received] == [b"0", b"1", b'{"any":"json"}', b"3", b"4"]
    assert [message.id for message in received] == [one.id for one in sent]


BODIES = [b"\x00\xff", b"", b'"\\\n\r\t/', "grüße 🦆".encode(), b"\x00", "\u2028\x7f".encode(), b"x" * 500, b"<&>"]


@pytest.mark.parametrize("count", [1, len(BODIES), 50 * len(BODIES)])
def test_any_bytes_travel_in_small_and_in_large_requests(client: AnyClient, queue: str, count: int) -> None:
    # From a certain size on, another library writes and reads the lines.
    bodies = (BODIES * count)[:count]
    headers = {"quote": '"', "duck": "🦆"}
    sent = client.send_many(queue, [eoq.Outgoing(body, headers=headers, priority=1) for body in bodies])
    received = client.receive(queue, 1000)
    assert [message.body for message in received] == bodies
    assert all((message.headers, message.priority) == (headers, 1) for message in received)
    client.ack_many([(message, message.body) for message in received])
    assert client.result(queue, sent[-1].id) == eoq.Result("done", bodies[-1])


STEADY = """
import sys, eoq
with eoq.connect(sys.argv[2]) as client:
    for number in range(150):
        body = ["null", "gr\u00fc\u00dfe", b"\\0\\xff", {"of": None}][number % 4]
        client.send(sys.argv[1], body, id=str(number), priority=-number)
        if number == 0:
            assert not {"msgspec", "asyncio", "sqlite3", "logging"} & set(sys.modules)
    assert "msgspec" in sys.modules
    for number in (float("nan"), float("inf")):
        try:
            client.receive(sys.argv[1], wait=number)
        except eoq.InvalidRequest:
            continue
        raise AssertionError(number)
    received = [client.receive(sys.argv[1])[0] for _ in range(150)]
    print(*[message.body for message in received[-4:]])
"""


def test_after_many_requests_a_faster_library_reads_and_writes_the_same(shared_daemon: Daemon, queue: str) -> None:
    """A shell command that sends one message does not wait for the import of that library."""
    with python_process(STEADY, queue, str(shared_daemon.socket)) as process:
        assert read_line_of(process) == b"b'\\x00\\xff' b'{\"of\":null}' b'null' b'gr\\xc3\\xbc\\xc3\\x9fe'\n"


class Text(str):
    """A kind of text, as a library may have to recognise its own texts."""

    __slots__ = ()


class Name(str):
    """A kind of text that cannot be a key of a dictionary."""

    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        return str.__eq__(self, other)


class Seconds(float):
    """A kind of number, as numpy has."""


def test_any_kind_of_text_may_name_a_queue(client: AnyClient, queue: str) -> None:
    client.send(Name(queue), "x")
    assert client.receive(Name(queue))[0].text == "x"
    with pytest.raises(eoq.InvalidRequest):
        client.send(Name("no queue"), "x")


@pytest.mark.parametrize("count", [1, 100])
def test_subclasses_of_text_and_numbers_are_sent_like_their_bases(client: AnyClient, queue: str, count: int) -> None:
    headers: dict[str, str] = {Text("key"): Text("value")}
    message = eoq.Outgoing(Text("body"), id=Text("id"), headers=headers, group=Text("g"), delay=Seconds(0.0))
    sent = client.send_many(queue, [message, *[b"x"] * (count - 1)])
    assert sent[0] == eoq.Sent("id", duplicate=False)
    (first, *_) = client.receive(queue, 1)
    assert (first.id, first.text, first.headers, first.group) == ("id", "body", {"key": "value"}, "g")


@pytest.mark.parametrize("count", [1, 100])
def test_bodies_that_cannot_be_sent_are_refused_in_small_and_in_large_requests(
    client: AnyClient, queue: str, count: int
) -> None:
    for bad in (
        eoq.Outgoing(b"x", headers={"lone": "\ud800"}),
        eoq.Outgoing(b"x", delay=float("nan")),
        eoq.Outgoing(b"x", ttl=float("inf")),
        eoq.Outgoing(b"x", id="\ud800"),
    ):
        with pytest.raises(eoq.InvalidRequest):
            client.send_many(queue, [*[b"x"] * (count - 1), bad])
    assert client.receive(queue) == []


def test_send_many_says_which_messages_were_duplicates(client: AnyClient, queue: str) -> None:
    client.send(queue, "1", id="1")
    sent = client.send_many(queue, [eoq.Outgoing(f"{number}", id=f"{number}") for number in range(3)])
    assert [one.duplicate for one in sent] == [False, True, False]


def test_send_many_without_messages_sends_nothing(client: AnyClient, queue: str) -> None:
    assert client.send_many(queue, []) == []


def test_messages_of_several_requests_all_arrive(client: AnyClient, queue: str) -> None:
    sent = client.send_many(queue, (f"{number}" for number in range(3000)))
    assert len({one.id for one in sent}) == 3000
    received = [message for _ in range(3) for message in client.receive(queue, 1000)]
    assert [message.text for message in received] == [f"{number}" for number in range(3000)]


@pytest.mark.slow
def test_many_large_messages_are_divided_into_requests_that_fit(client: AnyClient, queue: str) -> None:
    client.send_many(queue, [b"\x01" * MEBIBYTE] * 12)
    received = [message for _ in range(12) for message in client.receive(queue, 1)]
    assert [len(message.body) for message in received] == [MEBIBYTE] * 12


def test_a_message_for_another_queue_is_refused_by_send_many(client: AnyClient, queue: str) -> None:
    with pytest.raises(eoq.InvalidRequest, match="other"):
        client.send_many(queue, [eoq.Outgoing("x", queue="other")])


def test_nothing_of_a_refused_batch_is_stored(client: AnyClient, queue: str) -> None:
    client.send(queue, "first", id="m")
    with pytest.raises(eoq.IdConflict):
        client.send_many(queue, ["a", eoq.Outgoing("second", id="m"), "b"])
    assert [message.text for message in client.receive(queue, 10)] == ["first"]


def test_a_source_is_read_only_as_far_as_it_is_sent(client: AnyClient, queue: str) -> None:
    taken = 0

    def source() -> Iterator[str]:
        nonlocal taken
        while True:
            taken += 1
            yield f"{taken}"

    stream = client.send_stream(queue, source())
    confirmed = [next(stream) for _ in range(10)]
    assert len({sent.id for sent in confirmed}) == 10
    assert taken < 10_000
    stream.close()  # type: ignore[attr-defined] # it is a generator, which the annotation does not say


def test_an_error_of_the_source_reaches_the_caller(client: AnyClient, queue: str) -> None:
    def source() -> Iterator[str]:
        yield from ("a", "b")
        raise OSError("the disk with the input broke")

    with pytest.raises(OSError, match="the input broke"):
        list(client.send_stream(queue, source()))


@pytest.mark.slow
def test_a_stream_of_100_000_needs_bounded_memory(shared_daemon: Daemon, queue: str) -> None:
    code = """
import resource, sys, eoq
def rss():
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most // 1024 if sys.platform == "darwin" else most
with eoq.connect() as client:
    stream = client.send_stream(sys.argv[1], (b"x" * 100 for _ in range(100_000)))
    for _ in range(5000): next(stream)
    before = rss()
    print(5000 + sum(1 for _ in stream), rss() - before, flush=True)
"""
    with python_process(code, queue, socket=shared_daemon.socket) as process:
        count, grown = read_line_of(process, PATIENCE * 3).split()
    assert int(count) == 100_000
    assert int(grown) < 8 * 1024


# ── transactions ────────────────────────────────────────────────────────────────────────────────────────────


def test_a_transaction_happens_as_a_whole(client: AnyClient, queue: str) -> None:
    client.send_many(queue, [eoq.Outgoing("a", id="a"), eoq.Outgoing("b", id="b")])
    a, b = client.receive(queue, 2)
    with client.transaction() as tx:
        tx.ack(a, result="ok")
        tx.ack(b)
        tx.send(queue + ".next", {"joined": True}, id="n")
        assert client.receive(queue + ".next") == []
    assert tx.sent == [eoq.Sent("n", duplicate=False)]
    assert client.result(queue, "a") == eoq.Result("done", b"ok")
    assert client.result(queue, "b") == eoq.Result("done")
    assert _only(client, queue + ".next").json() == {"joined": True}


def test_a_transaction_that_raises_does_nothing(client: AnyClient, queue: str) -> None:
    client.send(queue, "x", id="m")
    message = _only(client, queue)
    with pytest.raises(ZeroDivisionError), client.transaction() as tx:
        tx.ack(message)
        tx.send(queue + ".next", "x")
        raise ZeroDivisionError
    assert client.result(queue, "m") is None
    assert client.receive(queue + ".next") == []
    client.ack(message)


def test_a_transaction_with_a_lost_lease_does_nothing(client: AnyClient, queue: str) -> None:
    client.send_many(queue, ["a", "b"])
    kept, lost = client.receive(queue, 2)
    client.nack(lost)
    with pytest.raises(eoq.LeaseLost), client.transaction() as tx:
        tx.ack(kept)
        tx.ack(lost)
        tx.send(queue + ".next", "x")
    assert client.receive(queue + ".next") == []
    client.ack(kept)


def test_a_transaction_with_a_conflict_does_nothing(client: AnyClient, queue: str) -> None:
    client.send(queue + ".next", "first", id="n")
    client.send(queue, "x")
    message = _only(client, queue)
    with pytest.raises(eoq.IdConflict), client.transaction() as tx:
        tx.ack(message)
        tx.send(queue + ".next", "second", id="n")
    client.ack(message)


def test_a_transaction_stores_messages_that_name_their_queues(client: AnyClient, queue: str) -> None:
    messages = [eoq.Outgoing(name, id=name, queue=f"{queue}.{name}", priority=1) for name in ("a", "b")]
    with client.transaction() as tx:
        tx.send_many(messages)
    assert tx.sent == [eoq.Sent("a", duplicate=False), eoq.Sent("b", duplicate=False)]
    assert [_only(client, f"{queue}.{name}").priority for name in ("a", "b")] == [1, 1]
    with pytest.raises(eoq.InvalidRequest, match="queue"), client.transaction() as tx:
        tx.send_many([eoq.Outgoing("without a queue")])


def test_an_empty_transaction_is_no_request(client: AnyClient) -> None:
    with client.transaction() as tx:
        pass
    assert tx.sent == []


def test_an_ack_stores_the_messages_sent_with_it(client: AnyClient, queue: str) -> None:
    client.send(queue, "x", id="m")
    message = _only(client, queue)
    client.ack(message, "paid", [eoq.Outgoing({"to": "x"}, queue=queue + ".receipts", id="r")])
    assert client.result(queue, "m") == eoq.Result("done", b"paid")
    assert _only(client, queue + ".receipts").json() == {"to": "x"}


def test_an_ack_whose_send_has_no_queue_is_refused(client: AnyClient, queue: str) -> None:
    client.send(queue, "x")
    message = _only(client, queue)
    with pytest.raises(eoq.InvalidRequest, match="queue"):
        client.ack(message, None, [eoq.Outgoing("x")])
    client.ack(message)


# ── durability ──────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.first_by_default
def test_confirmed_messages_survive_a_kill(daemon: Daemon, connect: Callable[..., AnyClient]) -> None:
    client = connect(daemon.socket)
    sent = client.send_many("q", (f"{number}" for number in range(1000)))
    daemon.restart()
    received = client.receive("q", 1000)
    assert [message.id for message in received] == [one.id for one in sent]


def test_every_kind_of_send_to_a_topic_tells_the_number_of_queues(client: eoq.Client, queue: str) -> None:
    topic, low, high = f"{queue}-topic", f"{queue}-low", f"{queue}-high"
    client.ask("bind", topic=topic, queue=low)
    client.ask("bind", topic=topic, queue=high, headers={"risk": "high"})
    risky = {"risk": "high"}
    assert client.send(topic, "x").queues == 1
    assert client.send(topic, "x", id="a", headers=risky) == eoq.Sent("a", duplicate=False, queues=2)
    assert client.send(topic, "x", id="a", headers=risky) == eoq.Sent("a", duplicate=True, queues=2)
    messages: list[object] = ["x", eoq.Outgoing("x", headers=risky)]
    assert [sent.queues for sent in client.send_many(topic, messages)] == [1, 2]
    with client.transaction() as tx:
        tx.send(topic, "x", headers=risky)
        tx.send(queue, "x")
    assert [sent.queues for sent in tx.sent] == [2, 1]
    client.ask("unbind", topic=topic, queue=low)
    assert client.send(topic, "x", id="nowhere") == eoq.Sent("nowhere", duplicate=False, queues=0)
    assert client.send(queue, "x").queues is None
