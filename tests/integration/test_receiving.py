"""Receiving with both clients: waiting, the end of leases, attempts, fencing, order, delays, consuming."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import TypeVar

import pytest

import eoq
from eoq.message import Delivery
from tests.integration.clients import AnyClient
from tests.support import Daemon, eventually, python_process, read_line_of, running_daemon

T = TypeVar("T")


only_the_daemon = pytest.mark.parametrize("kind", ["blocking"], indirect=True)
"""Marks a test of what the daemon decides alone: it need not run with each client."""


def _one(client: AnyClient, queue: str, wait: float = 20.0, lease: float | None = None) -> Delivery:
    (message,) = client.receive(queue, wait=wait, lease=lease)
    return message


def _waits(daemon: Daemon, count: int) -> bool:
    """Return whether so many receives wait."""
    return bool(daemon.ask(op="status")["waiting"] == count)


def _later(function: Callable[[], T]) -> Future[T]:
    """Run a function on a thread of its own."""
    executor = ThreadPoolExecutor(1)
    future = executor.submit(function)
    executor.shutdown(wait=False)
    return future


# ── waiting ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_an_empty_queue_gives_nothing(client: AnyClient, queue: str) -> None:
    assert client.receive(queue) == []
    assert client.receive(queue, limit=1000, wait=0.1) == []


def test_a_wait_ends_when_a_message_is_sent(
    client: AnyClient, shared_daemon: Daemon, queue: str, blocking: eoq.Client
) -> None:
    received = _later(lambda: client.receive(queue, wait=60))
    eventually(lambda: _waits(shared_daemon, 1))
    blocking.send(queue, "now")
    assert [message.text for message in received.result(20)] == ["now"]


def test_a_wait_ends_when_a_message_is_given_back(
    client: AnyClient, shared_daemon: Daemon, queue: str, blocking: eoq.Client
) -> None:
    blocking.send(queue, "x")
    (leased,) = blocking.receive(queue)
    received = _later(lambda: client.receive(queue, wait=60))
    eventually(lambda: _waits(shared_daemon, 1))
    leased.nack()
    assert [message.attempt for message in received.result(20)] == [2]


def test_one_message_wakes_one_of_many_waiting_receivers(
    shared_daemon: Daemon, connect: Callable[..., AnyClient], queue: str, blocking: eoq.Client
) -> None:
    waits = [_later(partial(connect(shared_daemon.socket).receive, queue, wait=60)) for _ in range(5)]
    for number in range(5):
        eventually(partial(_waits, shared_daemon, 5 - number))
        blocking.send(queue, f"{number}")
    texts = [message.text for wait in waits for message in wait.result(20)]
    assert sorted(texts) == ["0", "1", "2", "3", "4"]


def test_a_result_can_be_waited_for(client: AnyClient, queue: str, blocking: eoq.Client) -> None:
    blocking.send(queue, "x", id="m")
    (message,) = blocking.receive(queue)
    assert client.result(queue, "m") is None
    assert client.result(queue, "m", wait=0.1) is None
    result = _later(lambda: client.result(queue, "m", wait=60))
    message.ack({"paid": 5})
    found = result.result(20)
    assert found is not None
    assert (found.outcome, found.json(), found.text) == ("done", {"paid": 5}, '{"paid":5}')


# ── the end of a lease ──────────────────────────────────────────────────────────────────────────────────────


def test_a_leased_message_is_not_delivered_to_another_consumer(
    client: AnyClient, queue: str, blocking: eoq.Client
) -> None:
    client.send(queue, "x")
    _one(client, queue)
    assert client.receive(queue) == []
    assert blocking.receive(queue, wait=0.1) == []


def test_a_message_is_delivered_again_when_its_lease_ends(client: AnyClient, queue: str) -> None:
    client.send(queue, "x", id="m")
    first = _one(client, queue, lease=0.2)
    second = _one(client, queue)
    assert (second.id, second.attempt) == ("m", 2)
    assert second.receipt != first.receipt
    client.ack(second)


@only_the_daemon
def test_an_extended_lease_lasts_longer(client: AnyClient, queue: str) -> None:
    client.send(queue, "x")
    message = _one(client, queue, lease=2)
    client.extend(message, 2)
    client.extend(message, 600)
    assert client.receive(queue, wait=2.5) == []
    client.ack(message)


@only_the_daemon
def test_an_extension_may_also_shorten(client: AnyClient, queue: str) -> None:
    client.send(queue, "x")
    client.extend(_one(client, queue, lease=600), 0.05)
    assert _one(client, queue).attempt == 2


def test_a_bound_lease_ends_with_its_connection(
    client: AnyClient, queue: str, shared_daemon: Daemon, connect: Callable[..., AnyClient]
) -> None:
    client.send_many(queue, ["bound", "free"])
    other = connect(shared_daemon.socket)
    assert [message.text for message in other.receive(queue, bound=True, lease=3600)] == ["bound"]
    assert [message.text for message in other.receive(queue, lease=3600)] == ["free"]
    other.close()
    again = _one(client, queue)
    assert (again.text, again.attempt) == ("bound", 2)
    assert client.receive(queue, wait=0.1) == []


CONSUMER = """
import sys, eoq
with eoq.connect() as client:
    for message in client.consume(sys.argv[1], lease=3600):
        print(message.id, flush=True)
        if sys.argv[2] == "hold": sys.stdin.read()
"""


def test_the_message_of_a_killed_worker_comes_again_at_once(
    client: AnyClient, queue: str, shared_daemon: Daemon
) -> None:
    client.send(queue, "x", id="m")
    with python_process(CONSUMER, queue, "hold", socket=shared_daemon.socket) as worker:
        assert read_line_of(worker) == b"m\n"
        worker.send_signal(signal.SIGKILL)
        assert _one(client, queue).attempt == 2  # the lease is longer than this waits


def test_a_worker_killed_while_it_waits_loses_no_message(client: AnyClient, queue: str, shared_daemon: Daemon) -> None:
    with python_process(CONSUMER, queue, "take", socket=shared_daemon.socket) as worker:
        eventually(lambda: _waits(shared_daemon, 1))
        worker.send_signal(signal.SIGKILL)
        # Not waited for: the next sender does not know of the kill either.
        client.send(queue, "x", id="m")
        client.ack(_one(client, queue))  # the lease is longer than this waits


@pytest.mark.first_by_default
def test_leased_messages_are_delivered_again_after_a_restart(daemon: Daemon, connect: Callable[..., AnyClient]) -> None:
    client = connect(daemon.socket)
    client.send("q", "x", id="m")
    old = _one(client, "q", lease=3600)
    daemon.restart()
    with pytest.raises(eoq.LeaseLost):
        client.ack(old)
    again = _one(client, "q")
    assert (again.id, again.attempt) == ("m", 2)
    with pytest.raises(eoq.LeaseLost):
        client.ack(old)
    client.ack(again)


@pytest.mark.first_by_default
def test_a_wait_goes_on_over_a_restart(daemon: Daemon, connect: Callable[..., AnyClient]) -> None:
    client = connect(daemon.socket)
    received = _later(lambda: client.receive("q", wait=60))
    eventually(lambda: _waits(daemon, 1))
    daemon.restart()
    daemon.ask(op="send", queue="q", body="x")
    assert [message.text for message in received.result(20)] == ["x"]


# ── attempts ────────────────────────────────────────────────────────────────────────────────────────────────


@only_the_daemon
def test_attempts_count_deliveries_and_end_in_a_dead_letter(connect: Callable[..., AnyClient]) -> None:
    with running_daemon("--max-attempts", "3") as daemon:
        client = connect(daemon.socket)
        client.send("q", "x", id="m")
        for attempt in (1, 2, 3):
            message = _one(client, "q")
            assert message.attempt == attempt
            client.nack(message, delay=0, error=f"failed {attempt}")
        assert client.receive("q", wait=0.1) == []
        assert client.result("q", "m") == eoq.Result("dead", error="failed 3")
        shown = client.ask("show", queue="q", id="m")["message"]
        assert (shown["state"], shown["attempts"], shown["body"]) == ("dead", 3, "x")


@only_the_daemon
def test_attempts_count_leases_that_ended_and_disconnections(connect: Callable[..., AnyClient]) -> None:
    """A message that kills its worker must not be delivered for ever."""
    with running_daemon("--max-attempts", "3") as daemon:
        client = connect(daemon.socket)
        client.send("q", "x", id="m")
        _one(client, "q", lease=0.05)
        other = connect(daemon.socket)
        assert [message.attempt for message in other.receive("q", wait=20, bound=True)] == [2]
        other.close()
        assert _one(client, "q", lease=0.05).attempt == 3
        result = client.result("q", "m", wait=20)
        assert result is not None
        assert result.outcome == "dead"
        assert result.error


@only_the_daemon
def test_attempts_survive_a_kill_of_the_daemon(connect: Callable[..., AnyClient]) -> None:
    with running_daemon("--max-attempts", "2") as daemon:
        client = connect(daemon.socket)
        client.send("q", "x", id="m")
        assert _one(client, "q").attempt == 1
        daemon.restart()
        message = _one(client, "q")
        assert message.attempt == 2
        client.nack(message)
        assert client.ask("show", queue="q", id="m")["message"]["state"] == "dead"


@only_the_daemon
def test_a_message_does_not_outlive_its_attempts_over_restarts(connect: Callable[..., AnyClient]) -> None:
    """A message that kills the daemon, or is leased each time the machine goes down, becomes a dead letter as well."""
    with running_daemon("--max-attempts", "2") as daemon:
        client = connect(daemon.socket)
        client.send("q", "x", id="m")
        for _ in range(2):
            _one(client, "q")
            daemon.restart()
        assert client.receive("q", wait=0.2) == []
        assert client.ask("show", queue="q", id="m")["message"]["state"] == "dead"


@only_the_daemon
def test_waits_between_retries_grow(client: AnyClient, queue: str) -> None:
    client.send(queue, "x")
    client.nack(_one(client, queue))
    second = _one(client, queue)
    start = time.monotonic()
    client.nack(second)
    assert _one(client, queue).attempt == 3
    assert 0.7 < time.monotonic() - start < 20


def test_a_rejected_message_is_dead_with_its_error(client: AnyClient, queue: str) -> None:
    client.send(queue, "x", id="m")
    client.reject(_one(client, queue), "no such account")
    assert client.receive(queue) == []
    assert client.result(queue, "m") == eoq.Result("dead", error="no such account")
    assert client.send(queue, "x", id="m").duplicate is True


@pytest.mark.parametrize("error", ["é" * 5000, "\ud800", "a\x00b\n", ""])
def test_any_error_text_can_be_given(client: AnyClient, queue: str, error: str) -> None:
    client.send(queue, "x", id="m")
    client.reject(_one(client, queue), error)
    result = client.result(queue, "m")
    assert result is not None
    assert result.outcome == "dead"


# ── fencing ─────────────────────────────────────────────────────────────────────────────────────────────────

LATE: dict[str, Callable[[AnyClient, Delivery], object]] = {
    "ack": lambda client, message: client.ack(message, "late"),
    "ack with a send": lambda client, message: client.ack(message, None, [eoq.Outgoing("x", queue="late")]),
    "ack_many": lambda client, message: client.ack_many([(message, "late")]),
    "nack": lambda client, message: client.nack(message),
    "reject": lambda client, message: client.reject(message, "late"),
    "extend": lambda client, message: client.extend(message, 60),
}


@pytest.mark.parametrize("late", LATE.values(), ids=LATE.keys())
@pytest.mark.parametrize("meanwhile", ["ready", "leased by another", "settled", "dead"])
@pytest.mark.first_by_default
def test_a_consumer_that_lost_its_lease_changes_nothing(
    client: AnyClient, queue: str, late: Callable[[AnyClient, Delivery], None], meanwhile: str
) -> None:
    client.send(queue, "x", id="m")
    old = _one(client, queue, lease=0.02)
    new = _one(client, queue)
    if meanwhile == "ready":
        client.nack(new, delay=0)
    elif meanwhile == "settled":
        client.ack(new, "first")
    elif meanwhile == "dead":
        client.reject(new, "first")
    before = client.ask("show", queue=queue, id="m")["message"]
    with pytest.raises(eoq.LeaseLost) as caught:
        late(client, old)
    assert caught.value.code == "lease_lost"
    assert client.ask("show", queue=queue, id="m")["message"] == before
    assert client.receive("late") == []


def test_an_ack_repeated_by_its_own_delivery_is_no_error(client: AnyClient, queue: str) -> None:
    """Its first reply may have been lost."""
    client.send(queue, "x", id="m")
    message = _one(client, queue)
    client.ack(message, "r")
    client.ack(message, "r")
    with pytest.raises(eoq.LeaseLost):
        client.nack(message)
    assert client.result(queue, "m") == eoq.Result("done", b"r")


def test_a_receipt_may_travel_as_text(client: AnyClient, queue: str, blocking: eoq.Client) -> None:
    client.send(queue, "x", id="m")
    blocking.ack(_one(client, queue).receipt, "r")
    assert client.result(queue, "m") == eoq.Result("done", b"r")


def test_a_text_that_is_not_a_receipt_is_refused(client: AnyClient) -> None:
    with pytest.raises(eoq.InvalidRequest, match="receipt"):
        client.ack("nonsense")


# ── order ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_first_in_first_out(client: AnyClient, queue: str) -> None:
    client.send_many(queue, [f"{number}" for number in range(10)])
    assert [message.text for message in client.receive(queue, 10)] == [f"{number}" for number in range(10)]


@only_the_daemon
def test_higher_priorities_first(client: AnyClient, queue: str) -> None:
    for number, priority in enumerate([0, 5, -5, 5, 2**31 - 1, -(2**31) + 1]):
        client.send(queue, f"{number}", priority=priority)
    assert [message.text for message in client.receive(queue, 10)] == ["4", "1", "3", "0", "2", "5"]


def test_a_group_is_delivered_one_at_a_time_in_order(client: AnyClient, queue: str) -> None:
    for text in ("a1", "b1", "a2", "a3", "b2", "free"):
        client.send(queue, text, group=None if text == "free" else text[0])
    first = client.receive(queue, 10)
    assert [message.text for message in first] == ["a1", "b1", "free"]
    client.ack(first[0])
    second = client.receive(queue, 10)
    assert [message.text for message in second] == ["a2"]
    client.reject(second[0])
    assert [message.text for message in client.receive(queue, 10)] == ["a3"]


@only_the_daemon
def test_a_group_waits_for_its_first_that_failed(client: AnyClient, queue: str) -> None:
    for text in ("1", "2"):
        client.send(queue, text, group="g")
    client.nack(_one(client, queue), delay=2)
    assert client.receive(queue) == []
    again = _one(client, queue)
    assert (again.text, again.attempt) == ("1", 2)
    client.ack(again)
    assert _one(client, queue).text == "2"


@only_the_daemon
def test_priority_does_not_break_the_order_of_a_group(client: AnyClient, queue: str) -> None:
    client.send(queue, "1", group="g")
    client.send(queue, "2", group="g", priority=100)
    message = _one(client, queue)
    assert message.text == "1"
    client.ack(message)
    assert _one(client, queue).text == "2"


def test_the_next_message_of_a_group_goes_to_a_waiting_receiver(
    client: AnyClient, queue: str, blocking: eoq.Client, shared_daemon: Daemon
) -> None:
    for text in ("1", "2"):
        client.send(queue, text, group="g")
    (first,) = blocking.receive(queue)
    second = _later(lambda: client.receive(queue, wait=60))
    eventually(lambda: _waits(shared_daemon, 1))
    first.ack()
    assert [message.text for message in second.result(20)] == ["2"]


def test_a_group_keeps_its_order_with_many_consumers(shared_daemon: Daemon, queue: str, blocking: eoq.Client) -> None:
    blocking.send_many(queue, [eoq.Outgoing(f"{n}", group=f"{n % 3}") for n in range(150)])
    handled: list[int] = []
    in_flight: set[int] = set()
    overlaps: list[int] = []
    lock = threading.Lock()

    def work() -> None:
        with eoq.connect(shared_daemon.socket) as client:
            for message in client.consume(queue, idle=0.3):
                group = int(message.text) % 3
                with lock:
                    overlaps.extend({group} & in_flight)
                    in_flight.add(group)
                    handled.append(int(message.text))
                with lock:
                    in_flight.remove(group)
                message.ack()

    with ThreadPoolExecutor(6) as pool:
        for done in [pool.submit(work) for _ in range(6)]:
            done.result(60)
    assert overlaps == []
    for group in range(3):
        assert [number for number in handled if number % 3 == group] == list(range(group, 150, 3))


@only_the_daemon
def test_a_delayed_message_comes_when_it_is_due(client: AnyClient, queue: str) -> None:
    client.send(queue, "much later", delay=3600)
    client.send(queue, "now")
    client.send(queue, "long past", at=1.0)
    assert [message.text for message in client.receive(queue, 10)] == ["now", "long past"]
    start = time.time()
    client.send(queue, "later", delay=0.4)
    client.send(queue, "at", at=start + 0.2)
    came: dict[str, float] = {}
    while len(came) < 2:
        came |= {message.text: time.time() - start for message in client.receive(queue, 10, wait=20)}
    assert came.keys() == {"at", "later"}
    assert came["at"] >= 0.19
    assert came["later"] >= 0.39


@only_the_daemon
def test_a_delay_survives_a_restart(daemon: Daemon, connect: Callable[..., AnyClient]) -> None:
    client = connect(daemon.socket)
    client.send("q", "soon", delay=0.3)
    client.send("q", "much later", delay=3600)
    daemon.restart()
    assert _one(client, "q").text == "soon"
    assert client.receive("q", wait=0.1) == []


# ── consume ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_consume_ends_when_no_message_came_for_a_while(client: AnyClient, queue: str) -> None:
    client.send_many(queue, ["a", "b", "c"])
    texts = []
    for message in client.consume(queue, idle=0.1):
        texts.append(message.text)
        client.ack(message)
    assert texts == ["a", "b", "c"]


@pytest.mark.parametrize("prefetch", [1, 2, 100])
@pytest.mark.first_by_default
def test_consume_with_prefetch_yields_each_message_once(client: AnyClient, queue: str, prefetch: int) -> None:
    client.send_many(queue, [f"{number}" for number in range(250)])
    texts = []
    for message in client.consume(queue, prefetch=prefetch, idle=0.1):
        assert message.attempt == 1
        texts.append(message.text)
        client.ack(message)
    assert texts == [f"{number}" for number in range(250)]


def test_consume_gives_back_fetched_messages_without_counting_an_attempt(client: AnyClient, queue: str) -> None:
    client.send_many(queue, [f"{number}" for number in range(10)])
    consumer = client.consume(queue, prefetch=10, lease=3600)
    client.ack(next(consumer))
    next(consumer)
    consumer.close()  # type: ignore[attr-defined] # it is a generator, which the annotation does not say
    again = client.receive(queue, 100)
    assert [(message.text, message.attempt) for message in again] == [(f"{number}", 1) for number in range(2, 10)]


@pytest.mark.slow
def test_consume_extends_the_leases_of_fetched_messages(client: AnyClient, queue: str, blocking: eoq.Client) -> None:
    client.send_many(queue, ["a", "b", "c"])
    texts = []
    for message in client.consume(queue, prefetch=3, lease=2.5, idle=0.1):
        texts.append((message.text, message.attempt))
        # A handler takes 1.5 s, with leases of 2.5 s: the last message has waited 3 s.
        assert blocking.receive(queue, wait=1.5) == []
        client.ack(message)
    assert texts == [("a", 1), ("b", 1), ("c", 1)]


@pytest.mark.slow
def test_consume_extends_the_leases_of_messages_asked_for_ahead(
    client: AnyClient, queue: str, blocking: eoq.Client
) -> None:
    """The next four are asked for when the third is yielded, and wait unread for the time of two handlers."""
    client.send_many(queue, [f"{number}" for number in range(7)])
    seen = []
    for message in client.consume(queue, prefetch=4, lease=3.0, idle=0.1):
        seen.append((message.text, message.attempt))
        blocking.receive("empty", wait=0.9)  # the time of a handler; four of them take longer than the lease
        client.ack(message)
    assert seen == [(f"{number}", 1) for number in range(7)]


@pytest.mark.first_by_default
def test_messages_asked_for_ahead_over_a_lost_connection_are_not_yielded(
    daemon: Daemon, connect: Callable[..., AnyClient]
) -> None:
    client = connect(daemon.socket)
    client.send_many("q", [f"{number}" for number in range(8)])
    acked, lost = [], 0
    for number, message in enumerate(client.consume("q", prefetch=4, lease=10.0, idle=0.5)):
        if number == 2:
            daemon.restart()  # one more message is fetched, and others are on their way
        try:
            client.ack(message)
            acked.append(message.text)
        except eoq.LeaseLost:
            lost += 1
    assert sorted(acked) == [f"{number}" for number in range(8)]
    assert lost == 1, "only the message that is being handled"


@pytest.mark.first_by_default
def test_large_messages_may_be_sent_while_large_ones_come_in(client: AnyClient, queue: str) -> None:
    """Megabytes that were asked for ahead are read while the socket has no room for a send."""
    client.send_many(queue, [b"x" * 100_000] * 40)
    count = 0
    for message in client.consume(queue, prefetch=100, idle=0.1):
        client.send(f"{queue}-out"[-128:], b"y" * 900_000)
        client.ack(message)
        count += 1
    assert count == 40


@pytest.mark.first_by_default
def test_consume_yields_no_message_whose_lease_was_lost(client: AnyClient, queue: str, blocking: eoq.Client) -> None:
    client.send_many(queue, ["a", "b"])
    consumer = client.consume(queue, prefetch=2, lease=1.5)
    client.ack(next(consumer))
    # The handler of `a` took so long that `b` went to another consumer.
    (stolen,) = blocking.receive(queue, wait=20)
    assert (stolen.text, stolen.attempt) == ("b", 2)
    client.send(queue, "c")
    assert next(consumer).text == "c"
    stolen.ack()
    consumer.close()  # type: ignore[attr-defined] # it is a generator, which the annotation does not say


@pytest.mark.first_by_default
def test_consume_goes_on_over_a_restart(daemon: Daemon, connect: Callable[..., AnyClient]) -> None:
    client = connect(daemon.socket)
    client.send_many("q", [f"{number}" for number in range(20)])
    done: list[str] = []
    for number, message in enumerate(client.consume("q", prefetch=5, idle=0.4)):
        if number == 7:
            daemon.restart()
        try:
            client.ack(message)
        except eoq.LeaseLost:
            continue
        done.append(message.id)
    assert len(done) == len(set(done)) == 20


def test_a_message_settles_itself(blocking: eoq.Client, queue: str) -> None:
    """The same test for asyncio is in test_concurrency.py."""
    client = blocking
    client.send_many(queue, [eoq.Outgoing(text, id=text) for text in ("ack", "nack", "reject", "extend")])
    messages = {message.id: message for message in blocking.receive(queue, 4)}
    messages["ack"].ack(result={"n": 1}, send=[eoq.Outgoing("x", queue=queue + ".next")])
    messages["nack"].nack(delay=60, error="later")
    messages["reject"].reject(error="never")
    messages["extend"].extend(60)
    states = [client.ask("show", queue=queue, id=id)["message"]["state"] for id in messages]
    assert states == ["done", "delayed", "dead", "leased"]
    assert client.receive(queue + ".next")[0].text == "x"
