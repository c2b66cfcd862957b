"""Queues that are deleted, by an operator or by themselves, and dead letters that are redriven to another queue."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import eoq
from tests.integration.clients import AnyClient
from tests.support import PATIENCE, Daemon, eventually, running_daemon


def _names(client: AnyClient | eoq.Client) -> set[str]:
    return {str(queue["name"]) for queue in client.queues()}


def _settle(client: AnyClient | eoq.Client, queue: str, *ids: str) -> None:
    client.send_many(queue, [eoq.Outgoing(id, id=id) for id in ids])
    for message in client.receive(queue, 1000):
        client.ack(message)


# ── by an operator ──────────────────────────────────────────────────────────────────────────────────────────


def test_a_queue_with_messages_is_not_deleted(client: AnyClient, queue: str) -> None:
    client.send(queue, "waits", id="waits")
    with pytest.raises(eoq.InvalidRequest, match=f"has messages; .*`eoq purge {queue}`"):
        client.delete_queue(queue, forget_ids=True)
    (message,) = client.receive(queue)
    with pytest.raises(eoq.InvalidRequest, match="has messages"):
        client.delete_queue(queue, forget_ids=True)
    client.reject(message)
    with pytest.raises(eoq.InvalidRequest, match="has messages"):
        client.delete_queue(queue, forget_ids=True)
    client.send(queue, "later", delay=1000)
    client.drop(queue, everything=True)
    with pytest.raises(eoq.InvalidRequest, match="has messages"):
        client.delete_queue(queue, forget_ids=True)
    assert client.send(queue, "waits", id="waits").duplicate, "nothing was forgotten"


@pytest.mark.first_by_default
def test_a_queue_that_remembers_ids_is_deleted_only_if_they_may_be_forgotten(client: AnyClient, queue: str) -> None:
    ids = [f"m{number}" for number in range(1000)]  # more than one step deletes
    _settle(client, queue, *ids)
    with pytest.raises(eoq.InvalidRequest, match=r"remembers the ids .*--forget-ids"):
        client.delete_queue(queue)
    assert client.send(queue, "m0", id="m0").duplicate
    assert client.delete_queue(queue, forget_ids=True)
    assert queue not in _names(client)
    assert not client.delete_queue(queue), "there is no such queue any more"
    assert not client.send(queue, "m0", id="m0").duplicate
    assert queue in _names(client)


def test_a_new_queue_with_the_name_of_a_deleted_one_goes_on_above_its_seqs(client: AnyClient, queue: str) -> None:
    """An inbox that knows the watermark of the old queue must not take the new messages for forgotten ones."""
    _settle(client, queue, "a", "b")
    client.send(queue, "c", id="c")
    (message,) = client.receive(queue)
    watermark = message.watermark
    client.ack(message)
    client.delete_queue(queue, forget_ids=True)
    client.send(queue, "d", id="d")
    (message,) = client.receive(queue)
    assert message.seq > watermark


def test_a_queue_that_is_bound_or_has_a_schedule_is_not_deleted(client: AnyClient, queue: str) -> None:
    client.bind(f"{queue}.topic", queue)
    client.send(f"{queue}.topic", "x", id="x")
    client.ack(client.receive(queue)[0])
    with pytest.raises(eoq.InvalidRequest, match="is bound"):
        client.delete_queue(queue, forget_ids=True)
    client.unbind(f"{queue}.topic", queue)
    client.schedule(f"{queue}.often", queue, every=1000)
    with pytest.raises(eoq.InvalidRequest, match="a schedule sends to"):
        client.delete_queue(queue, forget_ids=True)
    client.unschedule(f"{queue}.often")
    assert client.delete_queue(queue, forget_ids=True)


def test_a_deleted_queue_stays_deleted_and_its_number_is_not_used_again() -> None:
    with running_daemon() as daemon, eoq.connect(daemon.socket) as client:
        _settle(client, "first", "a")
        _settle(client, "last", "b")
        client.pause("last")
        assert client.delete_queue("last", forget_ids=True)
        daemon.restart()
        assert _names(client) == {"first"}
        client.send("new", "c")
        assert len(client.receive("new")) == 1, "the new queue is not paused"


def test_a_receiver_that_waits_gets_the_messages_of_a_queue_that_was_deleted(client: AnyClient, queue: str) -> None:
    with running_daemon() as daemon, eoq.connect(daemon.socket) as operator, daemon.wire() as wire:
        _settle(operator, queue, "a")
        wire.send({"op": "receive", "queue": queue, "wait": PATIENCE})
        eventually(lambda: operator.ask("status")["waiting"] == 1)
        assert operator.delete_queue(queue, forget_ids=True)
        operator.send(queue, "b", id="b")
        assert [message["id"] for message in wire.read()["messages"]] == ["b"]


@pytest.mark.slow
def test_names_of_deleted_queues_make_room_for_new_ones(shared_daemon: Daemon) -> None:
    shell = shared_daemon.shell()
    assert shell.run("eoq send gone x --id x && eoq receive gone --json | jq -r .receipt | xargs eoq ack").status == 0
    refused = shell.run("eoq queue delete gone")
    assert (refused.status, "--forget-ids" in refused.errors) == (65, True)
    assert shell.run("eoq queue delete gone --forget-ids").status == 0
    assert shell.run("eoq queue delete gone").status == 1


# ── by itself ───────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def forgetful(tmp_path: Path) -> Iterator[Daemon]:
    """A daemon that forgets the settled messages of some queues at once."""
    config = tmp_path / "eoq.toml"
    config.write_text(
        """
        [queues."short.*"]
        retention = 1
        [[bind]]
        topic = "events"
        queue = "short.configured"
        """
    )
    with running_daemon("--config", str(config)) as daemon:
        yield daemon


@pytest.mark.slow
def test_a_queue_of_which_nothing_is_left_goes_by_itself(forgetful: Daemon) -> None:
    with eoq.connect(forgetful.socket) as client:
        client.bind("topic", "short.bound")
        client.schedule("often", "short.scheduled", every=1000)
        _settle(client, "events", "a")
        for name in ("bound", "scheduled", "paused", "configured", "used", "idle"):
            _settle(client, f"short.{name}", "a")
        for message in client.receive("short.configured", 10):
            client.ack(message)
        client.pause("short.paused")
        client.send("short.used", "waits")
        _settle(client, "long", "a")
        eventually(lambda: "short.idle" not in _names(client))
        stay = {f"short.{name}" for name in ("bound", "scheduled", "paused", "configured", "used")} | {"long"}
        assert _names(client) == stay
        client.resume("short.paused")
        eventually(lambda: "short.paused" not in _names(client))
        assert not client.send("short.idle", "a", id="a").duplicate


# ── redriven to another queue ───────────────────────────────────────────────────────────────────────────────


def _kill_off(client: AnyClient, queue: str, *ids: str) -> None:
    client.send_many(queue, [eoq.Outgoing(id, id=id, headers={"of": id}, group="g", priority=3) for id in ids])
    for _ in ids:
        (message,) = client.receive(queue)
        client.reject(message, "no such account")


def test_dead_letters_are_redriven_to_another_queue_as_they_are(client: AnyClient, queue: str) -> None:
    other = f"{queue}.other"
    _kill_off(client, queue, "a", "b", "c")
    assert client.redrive(queue, ["a", "unknown"], to=other) == (["a"], ["unknown"])
    (message,) = client.receive(other)
    assert (message.id, message.text, message.headers, message.attempt) == ("a", "a", {"of": "a"}, 1)
    assert (message.group, message.priority) == ("g", 3)
    client.ack(message)
    shown = client.show(queue, "a")
    why = f"it was redriven to the queue {other!r}; it was delivered before, so it may have taken effect"
    assert (shown["state"], shown["error"]) == ("dropped", why)
    assert client.redrive(queue, failed_before=time.time() + 1, to=other) == (["b", "c"], [])
    assert client.send(queue, "b", id="b", headers={"of": "b"}, group="g", priority=3).duplicate
    assert client.peek(queue, "dead") == []


def test_a_dead_letter_stays_where_the_other_queue_has_its_id_with_other_content(client: AnyClient, queue: str) -> None:
    other = f"{queue}.other"
    _kill_off(client, queue, "a", "b", "c")
    client.send(other, "something else", id="b")
    with pytest.raises(eoq.IdConflict, match=r"the others were redriven, but these dead letters stay, .*: b$"):
        client.redrive(queue, everything=True, to=other)
    assert [dead["id"] for dead in client.peek(queue, "dead")] == ["b"]
    assert {message.id for message in client.receive(other, 10)} == {"a", "b"}, "c is behind a in its group"


@pytest.mark.first_by_default
def test_large_dead_letters_are_redriven_to_another_queue_in_steps(client: AnyClient, queue: str) -> None:
    other = f"{queue}.other"
    ids = [f"m{number:02}" for number in range(20)]
    for id in ids:
        client.send(queue, b"x" * 1_000_000, id=id)
        client.reject(client.receive(queue)[0])
    with pytest.raises(eoq.InvalidRequest, match="name fewer ids"):
        client.ask("redrive", queue=queue, ids=ids, to=other)
    assert client.redrive(queue, ids[:2], to=other) == (ids[:2], [])
    assert client.redrive(queue, everything=True, to=other) == (ids[2:], [])
    (counts,) = [counts for counts in client.queues() if counts["name"] == other]
    assert counts["ready"] == 20


def test_dead_letters_are_not_redriven_to_a_topic(client: AnyClient, queue: str) -> None:
    _kill_off(client, queue, "a")
    client.bind(f"{queue}.topic", f"{queue}.bound")
    with pytest.raises(eoq.InvalidRequest, match="is a topic"):
        client.redrive(queue, everything=True, to=f"{queue}.topic")
    assert client.show(queue, "a")["state"] == "dead"
