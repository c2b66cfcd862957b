"""A message is found by its id, in all queues or in some, by both clients."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

import eoq
from eoq.protocol.admin_calls import SHOWN_TOGETHER
from eoq.protocol.limits import MAX_BODY
from tests.integration.clients import AnyClient
from tests.support import Daemon


def test_an_id_is_found_in_each_state_by_the_names_of_the_queues(client: AnyClient, queue: str) -> None:
    before = time.time()
    for state in ("cancelled", "dead", "delayed", "done", "leased", "ready"):
        delay = 1000 if state == "delayed" else None
        client.send(f"{queue}.{state}", "x", id=queue, delay=delay)
        if state not in ("ready", "delayed", "cancelled"):
            (message,) = client.receive(f"{queue}.{state}", lease=1000)
            if state == "dead":
                client.reject(message, "no such account")
            elif state == "done":
                client.ack(message, "paid")
    client.cancel(f"{queue}.cancelled", queue)
    client.send(f"{queue}.other", "x", id="other")
    found = client.find(queue)
    assert [(one.queue, one.id) for one in found] == [(f"{queue}.{one.state}", queue) for one in found]
    assert [one.state for one in found] == ["cancelled", "dead", "delayed", "done", "leased", "ready"]
    for one in found:
        ended = one.state in ("cancelled", "done")
        moment, absent = (one.settled_at, one.enqueued_at) if ended else (one.enqueued_at, one.settled_at)
        assert moment is not None and before - 1 < moment < time.time() + 1 and absent is None
    with pytest.raises(AttributeError):
        found[0].state = "ready"  # type: ignore[misc] # what a program without types may do


def test_an_id_is_found_in_the_queues_that_are_named(client: AnyClient, queue: str) -> None:
    names = [f"{queue}{number:02}" for number in range(SHOWN_TOGETHER * 2 + 1)]
    for name in names[::2]:
        client.send(name, "x", id="i")
    assert [one.queue for one in client.find("i", names)] == names[::2]
    assert [one.queue for one in client.find("i", iter([names[4], names[1], names[4], names[2]]))] == names[4:1:-2]
    assert client.find("i", names[0]) == client.find("i", [names[0]]) != []
    assert client.find("i", []) == client.find("i", [f"{queue}-unknown"]) == client.find("j", names) == []


def test_a_message_to_a_topic_is_found_in_each_bound_queue(client: AnyClient, queue: str) -> None:
    for number in range(3):
        client.bind(f"{queue}.topic", f"{queue}.{number}")
    client.send(f"{queue}.topic", "x", id=f"{queue}-7")
    assert [one.queue for one in client.find(f"{queue}-7")] == [f"{queue}.{number}" for number in range(3)]


def test_an_id_is_found_although_the_messages_are_large(client: AnyClient, queue: str) -> None:
    for number in range(3):
        client.send(f"{queue}.{number}", b"\xff" * MAX_BODY, id=queue)
    assert [one.state for one in client.find(queue)] == ["ready"] * 3


@pytest.mark.parametrize("id", ["", "a\0b", "x" * 201, "\ud800", "\u202e", "a\n", 7, None])
def test_what_is_no_id_is_refused(client: AnyClient, id: str) -> None:
    with pytest.raises(eoq.InvalidRequest, match="printable characters"):
        client.find(id)


@pytest.mark.parametrize("name", ["no/queue", "", "a\0b", "x" * 129, "\ud800", 7])
def test_what_is_no_queue_is_refused(client: AnyClient, name: str) -> None:
    with pytest.raises(eoq.InvalidRequest, match="no queue name"):
        client.find("i", ["good", name])


@pytest.mark.parametrize(
    "id",
    ["' or 1=1 --", '"', "%", "_", "a\\", "{}", "é€𐍈", "null", " ", pytest.param("x" * 200, id="long")],
)
def test_an_id_is_taken_as_it_is(client: AnyClient, queue: str, id: str) -> None:
    client.send(queue, "x", id=id)
    client.send(f"{queue}.other", "x", id="innocent")
    assert [one.queue for one in client.find(id, [queue, f"{queue}.other"])] == [queue]


@pytest.mark.slow
def test_an_id_is_found_after_the_connection_broke(daemon: Daemon, connect: Callable[..., AnyClient]) -> None:
    client = connect(daemon.socket)
    client.send("q", "x", id="i")
    assert client.find("i")
    daemon.restart()
    assert [one.queue for one in client.find("i")] == ["q"]


@pytest.mark.slow
def test_an_id_is_found_in_more_queues_than_one_page_has(daemon: Daemon, connect: Callable[..., AnyClient]) -> None:
    client = connect(daemon.socket)
    with daemon.wire() as wire:
        names = [f"q{number:03}" for number in range(450)]
        wire.send(*({"op": "send", "queue": name, "body": "", "id": f"i{name[-1]}"} for name in names))
        for _ in names:
            wire.read()
    assert [one.queue for one in client.find("i7")] == names[7::10]
    assert client.find("unknown") == []
