"""URLs of streams, names and partitions, and messages as NATS has them: without a server."""

from __future__ import annotations

import pytest

import eoq
from eoq.bridge.jetstream.wire.address import read_address
from eoq.bridge.jetstream.wire.content import headers_of, parse_headers, read_content, size_of
from eoq.bridge.jetstream.wire.names import Names, Partitions, partition_of
from eoq.client.aio import AsyncClient
from eoq.message import AsyncMessage


def test_a_url_is_shown_without_its_secrets() -> None:
    address = read_address("tls://me:sec%40ret@a:4222,[::1]:4223/PAY?creds=/etc/x.creds&synced=yes")
    assert address.name == "tls://a:4222,[::1]:4223/PAY"
    assert (address.user, address.password, address.synced) == ("me", "sec@ret", True)
    assert "sec" not in repr(address)
    with pytest.raises(eoq.InvalidRequest, match="creds=FILE"):
        address.refuse_password()
    read_address("nats://a/PAY?creds=/x").refuse_password()


def test_a_token_is_a_secret_as_well() -> None:
    address = read_address("nats://s3cret@a/PAY")
    assert "s3cret" in address.options().values()
    with pytest.raises(eoq.InvalidRequest, match="token"):
        address.refuse_password()


@pytest.mark.parametrize(
    "url",
    [
        "nats://a:4222",
        "nats://a:4222/",
        "nats://a:4222/two/parts",
        "nats://a:4222/PAY.x",
        "nats:///PAY",
        "nats://u:sec/ret@a/PAY",
        "nats://u:sec@ret@a b/PAY",
        "nats://a:70000000/PAY",
        "nats://a/PAY?secret=1",
        "nats://a/PAY?creds=",
        "nats://a/PAY?synced=no",
        "nats://a/PAY#sec",
        "http://a/PAY",
        "nats://a/PAY\n",
    ],
)
def test_a_url_that_cannot_be_read_is_not_repeated(url: str) -> None:
    with pytest.raises(eoq.InvalidRequest) as refusal:
        read_address(url)
    assert "nats://HOST:4222/STREAM" in str(refusal.value)
    assert "sec" not in str(refusal.value)
    assert refusal.value.__cause__ is None


@pytest.mark.parametrize(
    ("text", "numbers"), [("0", (0,)), ("0-3", (0, 1, 2, 3)), ("6,1-2, 2", (1, 2, 6)), ("7-7", (7,))]
)
def test_partitions_are_numbers_and_ranges(text: str, numbers: tuple[int, ...]) -> None:
    assert Partitions.read(8, text).own == numbers


@pytest.mark.parametrize("text", ["", "x", "3-", "-3", "3-1", "8", "0-8", "1000", "²", "1,,2"])
def test_what_names_no_partitions_is_refused(text: str) -> None:
    with pytest.raises(eoq.InvalidRequest):
        Partitions.read(8, text)
    for count in (0, 257):
        with pytest.raises(eoq.InvalidRequest):
            Partitions.read(count, None)


def test_the_partition_of_a_key_never_changes() -> None:
    """Other programs compute it as well: CRC-32 of the group or the id, in UTF-8, modulo the number of partitions."""
    assert [partition_of(key, 8) for key in ("order-17", "alice", "ü", "")] == [4, 7, 5, 0]


def test_a_dot_in_a_queue_is_no_dot_in_nats() -> None:
    names = Names("PAY", "mail.out..x.")
    assert names.subject(3) == "PAY.mail=out==x=.3"
    assert names.reader(3) == "eoq-mail=out==x=-3"
    assert names.owner_key(3) == "mail=out==x=.3"


def _message(**more: object) -> AsyncMessage:
    fields = {"id": "m", "queue": "q", "body": b"x", "receipt": "r", "settler": AsyncClient("/nowhere"), **more}
    return AsyncMessage(**fields)  # type: ignore[arg-type] # by name


@pytest.mark.parametrize("text", ["plain-1", " two  words ", "50%", "ü€😀", "a:b/c?d=e&f", "=?utf-8?q?x?="])
def test_an_id_and_a_group_come_back_as_they_were(text: str) -> None:
    headers = headers_of(_message(id=text, group=text, headers={text: text, "traceparent": "00-1"}, priority=-3))
    assert all(value.isascii() and value == value.strip() for value in headers.values())
    back = read_content(Names("PAY", "q"), partition_of(text, 8), 8, headers, b"x")
    assert isinstance(back, eoq.Outgoing)
    assert (back.id, back.group, back.priority) == (text, text, -3)
    assert back.headers == {text: text, "traceparent": "00-1"}


def test_an_ordinary_id_is_the_id_of_nats() -> None:
    assert headers_of(_message(id="order-17")) == {"Nats-Msg-Id": "order-17"}


def test_a_message_expires_at_its_moment_or_at_once() -> None:
    names = Names("PAY", "q")
    past = read_content(names, 0, 1, {"Nats-Msg-Id": "m", "Eoq-Expires-At": "12.5"}, b"x")
    assert isinstance(past, eoq.Outgoing)
    assert past.ttl is not None
    assert 0 < past.ttl <= 0.001


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Nats-Msg-Id": "%ff\x00"},
        {"Nats-Msg-Id": "x" * 201},
        {"Nats-Msg-Id": "m", "Eoq-Priority": "high"},
        {"Nats-Msg-Id": "m", "Eoq-Expires-At": "nan"},
        {"Nats-Msg-Id": "m", "Eoq-Expires-At": "1e999"},
        {"Nats-Msg-Id": "m", "Eoq-Headers": "[1]"},
        {"Nats-Msg-Id": "m", "Eoq-Headers": "[" * 100_000},
        {"Nats-Msg-Id": "m", "Eoq-Group": "%00"},
        {"Nats-Msg-Id": "m", "Eoq-Priority": "9" * 5000},
    ],
)
def test_what_any_program_may_have_published_is_an_error_and_no_fault(headers: dict[str, str]) -> None:
    assert isinstance(read_content(Names("PAY", "q"), 0, 1, headers, b"x"), eoq.EoqError)


def test_a_message_in_the_wrong_partition_is_refused() -> None:
    """The right partition may belong to another machine, whose daemon may know the id."""
    wrong = (partition_of("m", 8) + 1) % 8
    found = read_content(Names("PAY", "q"), wrong, 8, {"Nats-Msg-Id": "m"}, b"x")
    assert isinstance(found, eoq.InvalidRequest)
    assert "belongs to" in str(found)


def test_headers_of_a_stored_message_are_read() -> None:
    block = b"NATS/1.0\r\nNats-Msg-Id: a: b\r\nbroken\r\n\xff: x\r\nEoq-Group:g \r\nEoq-Digest: \xff\r\n\r\n"
    assert parse_headers(block) == {"Nats-Msg-Id": "a: b", "Eoq-Group": "g", "Eoq-Digest": "\ufffd"}
    assert size_of({"a": "b"}) > len(b"NATS/1.0\r\na: b\r\n\r\n")
