"""Administration and queries with both clients: dead letters, pauses, topics, schedules, and what is shown of them."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

import eoq
from tests.integration.clients import AnyClient
from tests.support import Daemon, eventually, running_daemon

only_the_daemon = pytest.mark.parametrize("kind", ["blocking"], indirect=True)
"""Marks a test of what the daemon decides alone: it need not run with each client."""


def _kill_off(client: AnyClient, queue: str, *ids: str, error: str = "no such account") -> None:
    """Make dead letters."""
    client.send_many(queue, [eoq.Outgoing(id, id=id) for id in ids])
    for _ in ids:
        (message,) = client.receive(queue)
        client.reject(message, error)


# ── dead letters ────────────────────────────────────────────────────────────────────────────────────────────


def test_a_redriven_dead_letter_is_delivered_again_with_its_id_and_all_its_attempts(
    client: AnyClient, queue: str
) -> None:
    _kill_off(client, queue, "a", "b")
    assert client.redrive(queue, ["a", "unknown"]) == (["a"], ["unknown"])
    (message,) = client.receive(queue)
    assert (message.id, message.text, message.attempt) == ("a", "a", 1)
    client.ack(message, "now it works")
    result = client.result(queue, "a")
    assert result is not None and result.text == "now it works"
    assert client.send(queue, "a", id="a").duplicate
    assert [dead["id"] for dead in client.peek(queue, "dead")] == ["b"]


@pytest.mark.slow
def test_all_dead_letters_or_those_of_an_age_are_redriven_in_steps(client: AnyClient, queue: str) -> None:
    ids = [f"m{number}" for number in range(1200)]
    client.send_many(queue, [eoq.Outgoing(b"", id=id) for id in ids])
    messages = [*client.receive(queue, 1000), *client.receive(queue, 1000)]
    for message in messages:
        client.reject(message)
    assert client.redrive(queue, failed_before=time.time() - 3600) == ([], [])
    changed = client.redrive(queue, failed_before=time.time() + 1)
    assert changed == (ids, [])
    (state,) = [state for state in client.queues() if state["name"] == queue]
    assert (state["ready"], state["dead"]) == (1200, 0)


def test_a_dropped_dead_letter_is_removed_but_its_id_is_known(client: AnyClient, queue: str) -> None:
    _kill_off(client, queue, "a", "b", "c")
    assert client.drop(queue, ["b"]) == (["b"], [])
    assert client.drop(queue, everything=True) == (["a", "c"], [])
    assert client.drop(queue, everything=True) == ([], [])
    shown = client.show(queue, "a")
    assert shown["state"] == "dropped" and "body" not in shown
    result = client.result(queue, "a")
    assert result is not None and result.outcome == "dropped"
    assert client.send(queue, "a", id="a").duplicate
    assert client.redrive(queue, ["a"]) == ([], ["a"])


@pytest.mark.parametrize("op", ["redrive", "drop"])
def test_an_id_with_a_nul_character_names_no_other_dead_letter(client: AnyClient, queue: str, op: str) -> None:
    _kill_off(client, queue, "a")
    with pytest.raises(eoq.InvalidRequest, match="cannot be printed"):
        client.ask(op, queue=queue, ids=["a\0b"])
    assert client.show(queue, "a")["state"] == "dead"


def test_a_redriven_message_has_its_old_position_in_its_group(client: AnyClient, queue: str) -> None:
    _kill_off(client, queue, "first")
    client.send_many(queue, [eoq.Outgoing(b"", id=id, group="g") for id in ("1", "2", "3", "4")])
    (one,) = client.receive(queue, limit=10)
    client.reject(one)
    (two,) = client.receive(queue, limit=10)
    client.redrive(queue, ["1"])
    assert client.receive(queue, limit=10) == []  # "2" is still leased
    client.nack(two, delay=0)
    order = []
    while messages := client.receive(queue, limit=10):
        order += [message.id for message in messages]
        client.ack_many([(message, None) for message in messages])
    assert order == ["1", "2", "3", "4"]


def test_a_redrive_of_a_queue_that_does_not_exist_is_refused(client: AnyClient) -> None:
    for change in (client.redrive, client.drop):
        with pytest.raises(eoq.NotFound, match="no-such-queue"):
            change("no-such-queue", everything=True)
        with pytest.raises(eoq.InvalidRequest, match="which dead letters"):
            change("no-such-queue")
    with pytest.raises(eoq.NotFound):
        client.purge("no-such-queue")
    with pytest.raises(eoq.NotFound):
        client.resume("no-such-queue")


@only_the_daemon
def test_a_redrive_does_not_repeat_an_effect(daemon: Daemon, connect: Callable[..., eoq.Client]) -> None:
    """The ack was lost, so the message became a dead letter. An operator redrives it: the inbox knows its id."""
    client = connect(daemon.socket)
    client.send("payments", {"amount": 5}, id="order-17")
    with eoq.Inbox(daemon.folder / "ledger.db") as inbox:

        def book(tx: object, message: object) -> str:
            done.append(1)
            return "booked"

        done: list[int] = []
        (message,) = client.receive("payments", lease=0.05)
        eventually(lambda: client.show("payments", "order-17")["state"] == "ready")
        with pytest.raises(eoq.LeaseLost):
            inbox.process(message, book)
        (message,) = client.receive("payments")
        message.reject("something went wrong after the booking")
        daemon.kill()
        daemon.restart()
        assert client.redrive("payments", everything=True).ids == ["order-17"]
        (message,) = client.receive("payments")
        assert inbox.process(message, book) == b"booked"
        assert done == [1]


# ── pause and purge ─────────────────────────────────────────────────────────────────────────────────────────


def test_a_paused_queue_stores_messages_and_delivers_none(client: AnyClient, queue: str) -> None:
    client.send(queue, "leased", id="leased")
    (leased,) = client.receive(queue)
    assert client.pause(queue) is True
    assert client.pause(queue) is False
    client.send(queue, "waits", id="waits")
    assert client.receive(queue, wait=0.1) == []
    client.ack(leased)  # a leased message can be settled
    (state,) = [state for state in client.queues() if state["name"] == queue]
    assert (state["paused"], state["ready"]) == (True, 1)
    assert client.resume(queue) is True
    assert client.resume(queue) is False
    assert [message.id for message in client.receive(queue)] == ["waits"]


@only_the_daemon
def test_a_waiting_receiver_gets_its_message_when_the_pause_ends(
    client: AnyClient, blocking: eoq.Client, shared_daemon: Daemon, queue: str
) -> None:
    blocking.pause(queue)
    blocking.send(queue, "waits")
    with ThreadPoolExecutor(1) as thread:
        received = thread.submit(client.receive, queue, wait=60)
        eventually(lambda: shared_daemon.ask(op="status")["waiting"] == 1)
        blocking.resume(queue)
        assert [message.text for message in received.result(20)] == ["waits"]


@only_the_daemon
def test_messages_too_large_for_one_reply_go_to_the_next_receiver(
    client: AnyClient, blocking: eoq.Client, shared_daemon: Daemon, queue: str
) -> None:
    blocking.pause(queue)
    blocking.send_many(queue, [b"x" * 900_000] * 4)
    with ThreadPoolExecutor(2) as threads, eoq.connect(shared_daemon.socket) as another:
        received = [threads.submit(one.receive, queue, 1000, wait=60) for one in (client, another)]
        eventually(lambda: shared_daemon.ask(op="status")["waiting"] == 2)
        blocking.resume(queue)
        assert [len(future.result(20)) for future in received] == [2, 2]


@only_the_daemon
def test_a_pause_survives_a_restart(daemon: Daemon, connect: Callable[..., AnyClient]) -> None:
    client = connect(daemon.socket)
    client.pause("q")
    client.send("q", b"")
    daemon.kill()
    daemon.restart()
    assert client.receive("q") == []
    client.resume("q")
    assert len(client.receive("q")) == 1


def test_a_purge_drops_only_waiting_messages(client: AnyClient, queue: str) -> None:
    _kill_off(client, queue, "dead")
    client.send(queue, "leased", id="leased")
    (leased,) = client.receive(queue)
    client.send_many(queue, [eoq.Outgoing(b"", id=f"m{number}") for number in range(1500)])
    client.send_many(queue, [eoq.Outgoing(b"", id=f"g{number}", group="g") for number in range(700)])
    client.send(queue, b"", id="later", delay=600)
    assert client.purge(queue) == 2201
    assert client.purge(queue) == 0
    assert client.receive(queue) == []
    (state,) = [state for state in client.queues() if state["name"] == queue]
    assert [state[name] for name in ("ready", "leased", "delayed", "blocked", "dead")] == [0, 1, 0, 0, 1]
    client.ack(leased)
    assert client.show(queue, "g699")["state"] == "dropped"
    assert client.send(queue, b"", id="m7").duplicate


# ── topics ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_send_to_a_topic_stores_a_message_in_each_bound_queue(client: AnyClient, queue: str) -> None:
    topic, mail, fraud = f"{queue}.topic"[-100:], f"{queue}.mail"[-100:], f"{queue}.fraud"[-100:]
    topic, mail, fraud = (name.lstrip("-._") for name in (topic, mail, fraud))
    client.bind(topic, mail)
    client.bind(topic, fraud, {"risk": "high"})
    assert not client.send(topic, "one", id="1", headers={"risk": "low"}).duplicate
    sent = client.send_many(topic, [eoq.Outgoing("two", id="2", headers={"risk": "high"}), eoq.Outgoing("one", id="3")])
    assert [one.duplicate for one in sent] == [False, False]
    assert client.send(topic, "two", id="2", headers={"risk": "high"}).duplicate
    assert [message.id for message in client.receive(mail, 10)] == ["1", "2", "3"]
    assert [message.id for message in client.receive(fraud, 10)] == ["2"]
    assert client.receive(topic) == []
    with pytest.raises(eoq.IdConflict):
        client.send(topic, "something else", id="2", headers={"risk": "high"})
    mine = [binding for binding in client.topics() if binding["topic"] == topic]
    assert mine == [
        {"topic": topic, "queue": fraud, "headers": {"risk": "high"}},
        {"topic": topic, "queue": mail},
    ]
    client.unbind(topic, mail)
    client.unbind(topic, fraud)
    with pytest.raises(eoq.NotFound):
        client.unbind(topic, fraud)
    client.send(topic, "a queue again", id="4")
    assert [message.id for message in client.receive(topic)] == ["4"]


@only_the_daemon
def test_a_topic_sent_to_from_a_transaction_is_all_or_nothing(client: AnyClient, queue: str) -> None:
    client.bind("orders", "orders.a")
    client.bind("orders", "orders.b")
    client.send("orders.b", "taken", id="x")
    client.send(queue, b"")
    (message,) = client.receive(queue)
    with pytest.raises(eoq.IdConflict):
        client.ack(message, send=[eoq.Outgoing("other", id="x", queue="orders")])
    assert client.receive("orders.a") == []
    client.ack(message, send=[eoq.Outgoing("fine", id="y", queue="orders")])
    assert [m.id for m in client.receive("orders.a")] == ["y"]
    for bound in ("orders.a", "orders.b"):
        client.unbind("orders", bound)


def test_names_that_cannot_be_topics_are_refused(client: AnyClient, queue: str) -> None:
    client.send(queue, b"")
    with pytest.raises(eoq.InvalidRequest, match="is a queue with messages"):
        client.bind(queue, "elsewhere")
    client.bind("t1", "q1")
    with pytest.raises(eoq.InvalidRequest, match="is a topic itself"):
        client.bind("t2", "t1")
    with pytest.raises(eoq.InvalidRequest, match="is a topic itself"):
        client.bind("q1", "q2")
    with pytest.raises(eoq.InvalidRequest, match="is a topic itself"):
        client.bind("t3", "t3")
    client.unbind("t1", "q1")


@only_the_daemon
def test_a_request_to_a_topic_with_too_many_queues_is_refused(client: AnyClient, queue: str) -> None:
    bound = [f"wide.{number}" for number in range(30)]
    for name in bound:
        client.bind("wide", name)
    with pytest.raises(eoq.InvalidRequest, match="send fewer at once"):
        client.ask("send_many", queue="wide", messages=[{"body": ""}] * 1000)
    assert len(client.send_many("wide", [b""] * 250)) == 250
    assert len(client.receive("wide.29", 1000)) == 250
    with pytest.raises(eoq.InvalidRequest, match="characters at most"):
        client.bind("wide", "wide.0", {"k": "v" * 5000})
    for name in bound:
        client.unbind("wide", name)


@only_the_daemon
def test_bindings_of_a_topic_survive_a_restart(daemon: Daemon, connect: Callable[..., AnyClient]) -> None:
    client = connect(daemon.socket)
    client.bind("t", "q", {"k": "v"})
    daemon.kill()
    daemon.restart()
    client.send("t", "1", id="1", headers={"k": "v", "more": "m"})
    client.send("t", "2", id="2", headers={"k": "w"})
    assert [message.id for message in client.receive("q", 10)] == ["1"]
    # A topic without a matching binding keeps no message.
    assert client.receive("t") == []


@only_the_daemon
def test_waiting_receivers_of_all_queues_of_a_topic_are_woken(
    client: AnyClient, shared_daemon: Daemon, queue: str
) -> None:
    bound = [f"woken.{number}" for number in range(3)]
    for name in bound:
        client.bind("wake", name)
    with ThreadPoolExecutor(3) as threads:

        def receive(name: str) -> list[str]:
            with eoq.connect(shared_daemon.socket) as another:
                return [message.text for message in another.receive(name, wait=60)]

        received = [threads.submit(receive, name) for name in bound]
        eventually(lambda: shared_daemon.ask(op="status")["waiting"] == 3)
        client.send("wake", "up")
        assert [future.result(20) for future in received] == [["up"]] * 3


# ── schedules ───────────────────────────────────────────────────────────────────────────────────────────────


def test_a_schedule_sends_each_occurrence(client: AnyClient, queue: str) -> None:
    name = queue[:60]
    begin = time.time()
    next_at = client.schedule(name, queue, {"tick": True}, every=1, at=begin - 3600, group="g", ttl=60)
    assert next_at is not None and begin - 1 <= next_at <= time.time() + 2
    (first,) = client.receive(queue, wait=20)
    assert first.json() == {"tick": True} and first.group == "g" and first.id.startswith(f"{name}@")
    assert first.headers == {"content-type": "application/json"}
    client.ack(first)
    assert [row["every"] for row in client.schedules() if row["name"] == name] == [1]
    with pytest.raises(eoq.IdConflict):
        client.schedule(name, queue, "another", every=1)
    client.schedule(name, queue, "another", cron="0 0 1 1 *", timezone="Europe/Berlin", replace=True)
    client.unschedule(name)
    with pytest.raises(eoq.NotFound):
        client.unschedule(name)
    with pytest.raises(eoq.InvalidRequest):
        client.schedule(name, queue, cron="every now and then")


# ── looking ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_show_returns_the_whole_life_of_a_message(client: AnyClient, queue: str) -> None:
    before = time.time()
    client.send(queue, "x", id="m", ttl=3600)
    (first,) = client.receive(queue)
    client.nack(first, delay=0, error="printer out of paper")
    (second,) = client.receive(queue)
    client.nack(second, delay=0)
    (third,) = client.receive(queue)
    leased = client.show(queue, "m")
    assert (leased["state"], leased["attempts"], leased["deliveries"]) == ("leased", 3, 3)
    assert [delivery["delivery"] for delivery in leased["history"]] == [1, 2, 3]
    assert leased["expires_at"] == pytest.approx(leased["enqueued_at"] + 3600, abs=1)
    client.ack(third, "printed")
    shown = client.show(queue, "m")
    moments = [leased["enqueued_at"]]
    assert [delivery["delivery"] for delivery in shown["history"]] == [1, 2]
    for delivery in shown["history"]:
        moments += [delivery["delivered_at"], delivery.get("failed_at", delivery["delivered_at"])]
        assert delivery["consumer"].startswith("pid ")
    moments.append(shown["settled_at"])
    moments.append(time.time())
    assert [before, *moments] == sorted([before, *moments])
    assert [delivery.get("error") for delivery in shown["history"]] == ["printer out of paper", None]
    assert (shown["state"], shown["result"], shown["seq"]) == ("done", "printed", leased["seq"])


@only_the_daemon
def test_the_newest_hundred_failures_are_kept(client: AnyClient, queue: str) -> None:
    with running_daemon("--max-attempts", "1000") as daemon, eoq.connect(daemon.socket) as client:
        client.send(queue, "x", id="m")
        for number in range(150):
            (message,) = client.receive(queue)
            message.nack(delay=0, error=str(number))
        history = client.show(queue, "m")["history"]
        assert [delivery["error"] for delivery in history] == [str(number) for number in range(50, 150)]


def test_peek_finds_by_group_header_and_text(client: AnyClient, queue: str) -> None:
    client.send_many(
        queue,
        [
            eoq.Outgoing("an apple", id="1", group="g", headers={"kind": "fruit", "size": "s"}),
            eoq.Outgoing("a pear", id="2", headers={"kind": "fruit"}),
            eoq.Outgoing("a nail", id="3", priority=5),
            eoq.Outgoing(b"\xff\x00apple", id="4"),
        ],
    )

    def peek(**wanted: object) -> list[str]:
        return [message["id"] for message in client.peek(queue, **wanted)]  # type: ignore[arg-type] # they differ

    assert peek() == ["3", "1", "2", "4"]
    assert peek(group="g") == ["1"]
    assert peek(headers={"kind": "fruit"}) == ["1", "2"]
    assert peek(headers={"kind": "fruit", "size": "m"}) == []
    assert peek(contains="apple") == ["1", "4"]
    assert peek(contains="a", limit=2) == ["3", "1"]
    (message,) = client.receive(queue)
    client.ack(message)
    assert [message["id"] for message in client.peek(queue, "done")] == ["3"]
    with pytest.raises(eoq.InvalidRequest):
        client.peek(queue, "nonsense")


def test_tail_follows_stored_messages(client: AnyClient, blocking: eoq.Client, queue: str) -> None:
    blocking.send_many(queue, [eoq.Outgoing(str(number), id=str(number)) for number in range(5)])
    blocking.send("another", b"")
    following = client.tail(queue, last=2)
    assert [next(following)["id"] for _ in range(2)] == ["3", "4"]
    with ThreadPoolExecutor(1) as thread:
        coming = thread.submit(lambda: [next(following)["id"] for _ in range(3)])
        for number in range(5, 8):
            blocking.send("another", b"")
            blocking.send(queue, b"", id=str(number), delay=600 if number == 6 else None)
        assert coming.result(20) == ["5", "6", "7"]
    following.close()  # type: ignore[attr-defined] # it is a generator


@pytest.mark.slow
@only_the_daemon
def test_throughput_is_of_the_last_minute(client: AnyClient, queue: str) -> None:
    client.send_many(queue, [b""] * 120)
    client.ack_many([(message, None) for message in client.receive(queue, 60)])
    (state,) = [state for state in client.queues() if state["name"] == queue]
    assert state["sent_rate"] == pytest.approx(2.0, rel=0.2)
    assert state["done_rate"] == pytest.approx(1.0, rel=0.2)
