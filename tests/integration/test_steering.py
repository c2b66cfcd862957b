"""One message is cancelled or edited, and schedules are paused, resumed and run by hand."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress

import pytest

import eoq
from tests.integration.clients import AnyClient
from tests.support import Daemon, eventually


def _outcome(client: AnyClient, queue: str, id: str, wait: float = 0.0) -> str | None:
    result = client.result(queue, id, wait)
    return None if result is None else result.outcome


# ── cancel ──────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("state", ["ready", "delayed", "blocked", "dead"])
def test_a_message_that_waits_is_cancelled_and_its_id_is_known(client: AnyClient, queue: str, state: str) -> None:
    client.send(queue, "1", id="first", group="g")
    if state == "dead":
        client.reject(client.receive(queue)[0])
        id = "first"
    elif state == "blocked":
        client.send(queue, "2", id="second", group="g")
        id = "second"
    else:
        id = client.send(queue, "2", id="other", delay=60 if state == "delayed" else None).id
    assert client.show(queue, id)["state"] == state
    assert client.cancel(queue, id) == ("cancelled", True, state == "dead")
    assert _outcome(client, queue, id) == "cancelled"
    assert client.cancel(queue, id) == ("cancelled", False, False)
    assert [message["id"] for message in client.peek(queue, "cancelled")] == [id]
    with pytest.raises(eoq.NotFound):
        client.cancel(queue, "unknown")


def test_the_next_of_a_group_goes_on_when_its_first_is_cancelled(client: AnyClient, queue: str) -> None:
    for id in ("a", "b"):
        client.send(queue, id, id=id, group="g")
    client.cancel(queue, "a")
    assert [message.id for message in client.receive(queue, 2)] == ["b"]


def test_a_consumer_learns_that_its_message_was_cancelled(client: AnyClient, queue: str) -> None:
    client.send(queue, "1", id="a")
    (message,) = client.receive(queue)
    assert client.extend(message, 60) is False
    assert client.cancel(queue, "a") == ("leased", True, True)
    assert client.cancel(queue, "a") == ("leased", False, True)
    assert client.extend(message, 60) is True
    assert "cancelled_at" in client.show(queue, "a")
    assert _outcome(client, queue, "a") is None


ENDS: dict[str, Callable[[AnyClient, object], object]] = {
    "nack": lambda client, message: client.nack(message),  # type: ignore[arg-type] # a delivery
    "reject": lambda client, message: client.reject(message, "bad"),  # type: ignore[arg-type] # a delivery
}


@pytest.mark.parametrize("end", ENDS.values(), ids=ENDS.keys())
def test_whatever_else_ends_the_delivery_it_is_cancelled(
    client: AnyClient, queue: str, end: Callable[[AnyClient, object], object]
) -> None:
    client.send(queue, "1", id="a")
    (message,) = client.receive(queue)
    client.cancel(queue, "a")
    end(client, message)
    assert _outcome(client, queue, "a") == "cancelled"
    assert client.receive(queue) == []
    (row,) = [row for row in client.queues() if row["name"] == queue]
    assert (row["dead"], row["totals"]["cancelled"], row["totals"]["dead"]) == (0, 1, 0)


def test_an_ack_wins(client: AnyClient, queue: str) -> None:
    client.send(queue, "1", id="a")
    (message,) = client.receive(queue)
    client.cancel(queue, "a")
    client.ack(message, "done all the same")
    assert _outcome(client, queue, "a") == "done"


def test_a_lease_or_a_connection_that_ends_cancels_it(daemon: Daemon) -> None:
    with eoq.connect(daemon.socket) as client:
        client.send("q", "1", id="lease")
        client.receive("q", lease=0.2)
        client.cancel("q", "lease")
        assert client.result("q", "lease", wait=20).outcome == "cancelled"  # type: ignore[union-attr] # it ends in time
        client.send("q", "1", id="connection")
        with eoq.connect(daemon.socket) as other:
            other.receive("q", bound=True)
            client.cancel("q", "connection")
        assert client.result("q", "connection", wait=20).outcome == "cancelled"  # type: ignore[union-attr] # as above


@pytest.mark.parametrize("end", ["kill", "stop"])
def test_it_is_cancelled_after_the_daemon_has_ended(daemon: Daemon, end: str) -> None:
    with eoq.connect(daemon.socket) as client:
        for id in ("a", "b"):
            client.send("q", "1", id=id, group="g")
        client.receive("q")
        client.cancel("q", "a")
        daemon.kill() if end == "kill" else daemon.terminate()
        daemon.start()
        assert client.result("q", "a").outcome == "cancelled"  # type: ignore[union-attr] # it has ended
        assert [message.id for message in client.receive("q", 2)] == ["b"]


def test_the_handler_of_a_worker_sees_it(daemon: Daemon) -> None:
    seen: list[bool] = []
    with eoq.connect(daemon.socket) as client, eoq.connect(daemon.socket) as other:
        client.send("q", "1", id="a")

        def handler(message: eoq.Message) -> None:
            other.cancel("q", "a")
            eventually(lambda: message.cancelled)
            seen.append(message.cancelled)
            raise eoq.Retry(0)

        client.work("q", handler, until_empty=True, lease=2)
        assert seen == [True]
        assert client.result("q", "a").outcome == "cancelled"  # type: ignore[union-attr] # it has ended


# ── edit ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_waiting_message_is_edited_and_stays_the_one_that_was_sent(client: AnyClient, queue: str) -> None:
    client.send(queue, "old", id="a")
    client.send(queue, "other", id="b")
    digest = None
    assert client.edit(queue, "b", body={"new": 1}, priority=5) == ("ready", False)
    first, second = client.receive(queue, 2)
    assert [(first.id, first.json(), first.priority), second.id] == [("b", {"new": 1}, 5), "a"]
    digest = first.digest
    assert client.send(queue, "other", id="b").duplicate
    with pytest.raises(eoq.IdConflict):
        client.send(queue, {"new": 1}, id="b")
    with pytest.raises(eoq.InvalidRequest, match="is leased"):
        client.edit(queue, "b", priority=1)
    client.nack(first, delay=0)
    assert client.edit(queue, "b", body="newer") == ("ready", True)
    (again,) = client.receive(queue)
    assert (again.text, again.digest) == ("newer", digest)
    client.ack(again)
    with pytest.raises(eoq.InvalidRequest, match="settled as done"):
        client.edit(queue, "b", priority=1)
    with pytest.raises(eoq.NotFound):
        client.edit(queue, "unknown", priority=1)


def test_a_delay_is_changed_in_both_directions(client: AnyClient, queue: str) -> None:
    client.send(queue, "1", id="late", delay=600)
    client.send(queue, "2", id="now")
    assert client.edit(queue, "now", at=time.time() + 600) == ("delayed", False)
    assert client.receive(queue) == []
    assert client.edit(queue, "late", delay=0.2) == ("delayed", False)
    (message,) = client.receive(queue, wait=20)
    assert message.id == "late"
    assert client.edit(queue, "now", delay=0) == ("ready", False)
    (message,) = client.receive(queue)
    assert message.id == "now"


def test_an_edit_that_makes_a_message_ready_wakes_who_waits(daemon: Daemon) -> None:
    with eoq.connect(daemon.socket) as client, daemon.wire() as wire:
        client.send("q", "1", id="a", delay=600)
        wire.send({"op": "receive", "queue": "q", "wait": 60})
        eventually(lambda: client.queues()[0]["waiting"] == 1)
        client.edit("q", "a", delay=0)
        assert wire.read()["messages"][0]["id"] == "a"


def test_a_blocked_and_a_dead_message_are_edited(client: AnyClient, queue: str) -> None:
    client.send(queue, "1", id="a", group="g")
    client.send(queue, "2", id="b", group="g")
    assert client.edit(queue, "b", body="two", delay=0.1) == ("blocked", False)
    client.reject(client.receive(queue)[0])
    (message,) = client.receive(queue, wait=20)
    assert message.text == "two"
    assert client.edit(queue, "a", body="mended") == ("dead", True)
    with pytest.raises(eoq.InvalidRequest, match="redrive"):
        client.edit(queue, "a", delay=1)
    client.ack(message)
    client.redrive(queue, ["a"])
    assert client.receive(queue)[0].text == "mended"


def test_an_edit_says_what_to_change(client: AnyClient, queue: str) -> None:
    client.send(queue, "1", id="a")
    with pytest.raises(eoq.InvalidRequest, match="what to change"):
        client.edit(queue, "a")
    with pytest.raises(eoq.InvalidRequest, match="not both"):
        client.edit(queue, "a", delay=1, at=1)
    with pytest.raises(eoq.MessageTooLarge):
        client.edit(queue, "a", body=b"x" * (1024 * 1024 + 1))


# ── schedules ───────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.slow
def test_a_paused_schedule_sends_nothing_until_it_is_resumed(daemon: Daemon, connect: Callable[..., AnyClient]) -> None:
    client = connect(daemon.socket)
    client.schedule("tick", "ticks", "tick", every=1)
    assert client.receive("ticks", wait=20)
    assert (client.pause_schedule("tick"), client.pause_schedule("tick")) == (True, False)
    daemon.terminate()
    daemon.start()
    with suppress(IndexError):
        client.receive("ticks", 10)
    paused_at = time.time()
    assert client.schedules()[0]["paused"] is True
    assert client.receive("ticks", wait=1.5) == []
    sent = client.run_schedule("tick", id="by hand")
    assert (sent.id, sent.duplicate) == ("by hand", False)
    assert client.run_schedule("tick", id="by hand").duplicate
    assert [message.id for message in client.receive("ticks", 10)] == ["by hand"]
    assert (client.resume_schedule("tick"), client.resume_schedule("tick")) == (True, False)
    (message,) = client.receive("ticks", wait=20)
    assert message.id.startswith("tick@")
    assert message.enqueued_at > paused_at + 1.4, "what was missed while it was paused is not sent"
    for call in (client.pause_schedule, client.resume_schedule, client.run_schedule):
        with pytest.raises(eoq.NotFound):
            call("unknown")
