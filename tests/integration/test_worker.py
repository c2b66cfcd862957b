"""``client.work`` of both clients: leases, concurrency, time-outs, exceptions of handlers, a clean stop."""

from __future__ import annotations

import asyncio
import inspect
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiosqlite
import pytest

import eoq
from eoq.worker.options import MAX_PIPELINED, RECHECK_SECONDS
from tests.integration.clients import AnyClient, AsyncFace, Kind
from tests.support import PATIENCE, Daemon, clean_environment, eventually, read_line_of

Handler = Callable[[Any], Any]
Work = Callable[..., eoq.Summary]


def _run(client: AnyClient, queue: str, handler: Handler, stop: threading.Event | None, **options: Any) -> eoq.Summary:
    """Call ``client.work`` of either kind. With asyncio the handler runs in a thread, so that it may block as well."""
    if isinstance(client, eoq.Client):
        return client.work(queue, handler, stop=stop, **options)
    assert isinstance(client, AsyncFace)

    async def handle(*arguments: Any) -> Any:
        result = await asyncio.to_thread(handler, *arguments)
        return await result if inspect.isawaitable(result) else result

    async def work() -> eoq.Summary:
        event = asyncio.Event()
        if stop is None:
            return await client.client.work(queue, handle, **options)
        over = threading.Event()

        def watch() -> None:
            while not over.is_set() and not stop.wait(0.01):
                pass
            loop.call_soon_threadsafe(event.set)

        loop = asyncio.get_running_loop()
        watching = loop.run_in_executor(None, watch)
        try:
            return await client.client.work(queue, handle, stop=event, **options)
        finally:
            over.set()
            await watching

    return client.run(work())


@pytest.fixture
def work(client: AnyClient, queue: str) -> Work:
    """Call ``client.work`` on the queue of the test, until the queue is empty unless there is a ``stop``."""

    def work(handler: Handler, *, stop: threading.Event | None = None, **options: Any) -> eoq.Summary:
        return _run(client, queue, handler, stop, **{"until_empty": stop is None, **options})

    return work


@pytest.fixture
def put(blocking: eoq.Client, queue: str) -> Callable[..., None]:
    """Send messages whose ids are their bodies."""

    def put(*ids: str, **options: Any) -> None:
        blocking.send_many(queue, [eoq.Outgoing(id, id=id, **options) for id in ids])

    return put


@pytest.fixture
def show(blocking: eoq.Client, queue: str) -> Callable[[str], dict[str, Any]]:
    """Return what the daemon knows of a message."""

    def show(id: str) -> dict[str, Any]:
        message: dict[str, Any] = blocking.ask("show", queue=queue, id=id)["message"]
        return message

    return show


def _many(*numbers: int) -> list[str]:
    return [f"m{number}" for number in range(*numbers)]


many_acks = pytest.mark.parametrize(
    ("prefetch", "most", "with_inbox", "batch"),
    [
        (0, 1, False, 1),
        (5, 6, True, 1),
        (100, MAX_PIPELINED + 1, False, 1),
        (40, 20, True, 10),
        pytest.param(0, 1, True, 1, marks=pytest.mark.slow),
        pytest.param(5, 6, False, 1, marks=pytest.mark.slow),
        pytest.param(100, MAX_PIPELINED + 1, True, 1, marks=pytest.mark.slow),
    ],
)
"""How many messages are prefetched, and how many are handled at most while the daemon confirms no ack.

With batches, one batch is handled while the acks of another are in flight.
"""


# ── results ─────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("options", [{}, {"prefetch": 20}, {"concurrency": 4}, {"concurrency": 3, "prefetch": 5}])
def test_each_message_is_handled_and_acked_with_its_result(
    work: Work, put: Callable[..., None], blocking: eoq.Client, queue: str, options: dict[str, int]
) -> None:
    put(*_many(50))
    seen: list[str] = []

    def handler(message: Any) -> str:
        seen.append(message.id)
        return f"did {message.text}"

    assert work(handler, **options) == eoq.Summary(done=50)
    assert sorted(seen) == sorted(_many(50))
    assert blocking.result(queue, "m7") == eoq.Result("done", b"did m7")


def test_a_handler_that_returns_none_stores_no_result(
    work: Work, put: Callable[..., None], blocking: eoq.Client, queue: str
) -> None:
    put("a")
    work(lambda message: None)
    assert blocking.result(queue, "a") == eoq.Result("done", None)


def test_an_empty_queue_gives_an_empty_summary(work: Work) -> None:
    assert work(lambda message: None) == eoq.Summary()


def test_a_handler_may_settle_its_message_itself(
    kind: Kind, work: Work, put: Callable[..., None], blocking: eoq.Client, queue: str, show: Callable[[str], Any]
) -> None:
    put("a", "r", "n")

    def handler(message: Any) -> object:
        if message.id == "a":
            return message.ack("mine", send=[eoq.Outgoing("on", id="a", queue=queue + ".next")])
        if message.id == "r":
            return message.reject("bad")
        return message.nack(60, "later")

    assert work(handler) == eoq.Summary(done=1, retried=1, rejected=1)
    assert blocking.result(queue, "a") == eoq.Result("done", b"mine")
    assert [message.id for message in blocking.receive(queue + ".next")] == ["a"]
    assert (show("r")["state"], show("n")["state"]) == ("dead", "delayed")


def test_a_group_is_handled_in_order_whatever_the_concurrency(work: Work, put: Callable[..., None], queue: str) -> None:
    put(*_many(20), group="g")
    seen: list[str] = []
    assert work(lambda message: seen.append(message.id), concurrency=4, prefetch=4).done == 20
    assert seen == _many(20)


def test_exactly_concurrency_handlers_run_at_once(work: Work, put: Callable[..., None]) -> None:
    put(*_many(12))
    together = threading.Barrier(4)
    running = 0
    most = 0
    lock = threading.Lock()

    def handler(_message: Any) -> None:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        together.wait(PATIENCE)  # four of them must be here at once
        with lock:
            running -= 1

    assert work(handler, concurrency=4, prefetch=8).done == 12
    assert most == 4


@pytest.mark.parametrize("prefetch", [0, 3])
def test_no_more_messages_are_leased_than_asked_for(
    work: Work, put: Callable[..., None], shared_daemon: Daemon, queue: str, prefetch: int
) -> None:
    put(*_many(10))
    leased: list[int] = []

    def handler(_message: Any) -> None:
        with eoq.connect(shared_daemon.socket) as other:
            eventually(lambda: _leased(other, queue) >= min(1 + prefetch, 10 - len(leased)))
            leased.append(_leased(other, queue))

    work(handler, prefetch=prefetch)
    assert max(leased) == 1 + prefetch


def _leased(client: eoq.Client, queue: str) -> int:
    return next(int(row["leased"]) for row in client.ask("queues")["queues"] if row["name"] == queue)


# ── failures ────────────────────────────────────────────────────────────────────────────────────────────────


def test_an_exception_of_a_handler_settles_its_message_and_does_not_end_the_loop(
    work: Work, put: Callable[..., None], show: Callable[[str], Any], caplog: pytest.LogCaptureFixture
) -> None:
    put("good", "bad", "never", "later", "unable")

    def handler(message: Any) -> object:
        match message.id:
            case "bad" if message.attempt == 1:
                raise ValueError("cannot read it")
            case "never":
                raise eoq.Reject("no such account")
            case "later":
                raise eoq.Retry(60, "the bank is closed")
            case "unable":
                return object()
        return None

    assert work(handler) == eoq.Summary(done=2, retried=2, rejected=2)
    assert (show("never")["state"], show("never")["error"]) == ("dead", "no such account")
    later = show("later")
    assert (later["state"], later["error"]) == ("delayed", "the bank is closed")
    assert 50 < later["due_at"] - time.time() < 61
    said = [record.getMessage() for record in caplog.records if record.name == "eoq.worker"]
    assert any("'bad'" in line and "ValueError: cannot read it" in line for line in said)
    assert any("'unable'" in line and "neither bytes, text nor JSON" in line for line in said)


def test_the_error_text_is_kept_with_the_message(
    work: Work, put: Callable[..., None], show: Callable[[str], Any]
) -> None:
    put("m")

    def handler(message: Any) -> None:
        if message.attempt < 3:
            raise LookupError("no such thing")
        raise eoq.Retry

    work(handler)
    assert (show("m")["state"], show("m")["error"]) == ("delayed", "LookupError: no such thing")


def test_a_retry_out_of_bounds_is_an_error_of_the_handler(
    work: Work, put: Callable[..., None], show: Callable[[str], Any]
) -> None:
    put("m")

    def handler(message: Any) -> None:
        if message.attempt == 1:
            raise eoq.Retry(-1)

    assert work(handler) == eoq.Summary(done=1, retried=1)


@pytest.mark.parametrize("prefetch", [0, 5])
@pytest.mark.parametrize(
    ("returned", "reason"),
    [
        (b"x" * (2**20 + 1), "1,048,577 bytes"),
        (object(), "neither bytes, text nor JSON"),
        (float("nan"), "neither bytes, text nor JSON"),
        ("\ud800", "not valid Unicode"),
        ((part for part in "ab"), "generator"),
    ],
    ids=["large", "object", "nan", "surrogate", "generator"],
)
def test_a_message_whose_result_can_never_be_stored_is_dead_at_once(
    work: Work, put: Callable[..., None], show: Callable[[str], Any], returned: object, reason: str, prefetch: int
) -> None:
    put("m")
    runs: list[int] = []

    def handler(message: Any) -> object:
        runs.append(message.attempt)
        return returned

    assert work(handler, prefetch=prefetch) == eoq.Summary(rejected=1)
    assert runs == [1]
    assert show("m")["state"] == "dead"
    assert reason in show("m")["error"]


@pytest.mark.parametrize(
    "options",
    [{"concurrency": 0}, {"prefetch": -1}, {"lease": 0}, {"lease": 1e9}, {"timeout": 0}, {"idle": -1}],
)
def test_wrong_arguments_are_refused_at_once(work: Work, options: dict[str, Any]) -> None:
    with pytest.raises(eoq.InvalidRequest):
        work(lambda message: None, **options)


# ── leases ──────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.slow
def test_leases_of_running_and_waiting_messages_are_extended(
    work: Work, put: Callable[..., None], show: Callable[[str], Any]
) -> None:
    put("a", "b", "c")
    attempts: list[int] = []

    def handler(message: Any) -> None:
        attempts.append(message.attempt)
        if message.id == "a":
            time.sleep(3.5)  # longer than the lease, which is what the test is about

    assert work(handler, lease=2.5, prefetch=5) == eoq.Summary(done=3)
    assert attempts == [1, 1, 1]
    assert not any("history" in show(id) for id in ("a", "b", "c")), "no delivery has failed"


@pytest.mark.first_by_default
def test_a_lost_lease_is_logged_and_the_message_is_delivered_again(
    work: Work, put: Callable[..., None], blocking: eoq.Client, queue: str, caplog: pytest.LogCaptureFixture
) -> None:
    put("m")
    stolen: list[eoq.Message] = []

    def handler(message: Any) -> str:
        if message.attempt == 1:
            # Given back as if its lease had ended. Another consumer has it now.
            blocking.nack(message.receipt, delay=0)
            stolen.extend(blocking.receive(queue, wait=PATIENCE))
            eventually(lambda: any("lost" in record.getMessage() for record in caplog.records))
            stolen[0].nack(delay=0)
            return "too late"
        return "again"

    assert work(handler, lease=2.0) == eoq.Summary(done=1, lost=1)
    assert blocking.result(queue, "m") == eoq.Result("done", b"again")


@pytest.mark.first_by_default
def test_a_kill_of_the_daemon_during_work_loses_nothing(daemon: Daemon, connect: Callable[..., AnyClient]) -> None:
    with eoq.connect(daemon.socket) as sender:
        sender.send_many("q", [eoq.Outgoing(id, id=id) for id in _many(30)])
        handled: list[str] = []

        def handler(message: eoq.Message) -> str:
            handled.append(message.id)
            if len(handled) in (3, 11):
                daemon.restart()
            return message.id.upper()

        summary = _run(connect(daemon.socket), "q", handler, None, until_empty=True, prefetch=5)
        assert summary.done == 30
        assert summary.lost >= 2
        assert set(handled) == set(_many(30))
        assert len(handled) <= 30 + 2 * 6, "only what ran or was not confirmed when the daemon was killed may run again"
        assert sender.result("q", "m29") == eoq.Result("done", b"M29")


@pytest.mark.first_by_default
@many_acks
def test_acks_are_confirmed_while_waiting_messages_are_handled(
    daemon: Daemon, folder: Path, prefetch: int, most: int, with_inbox: bool, batch: int
) -> None:
    handled: list[str] = []

    def handler(*arguments: Any) -> None:
        if not handled:
            # The loop has all messages that it has room for before the daemon stops answering.
            eventually(lambda: daemon.ask(op="status")["leased"] == batch + prefetch)
            daemon.ask(op="status")  # the reply with the last of them was written before this one
            daemon.signal(signal.SIGSTOP)
        handled.append(arguments[-1].id)
        if len(handled) == most:
            waking.start()

    def wake() -> None:
        threading.Event().wait(0.3)  # only time can show that no more messages are handled
        stopped_at.append(len(handled))
        daemon.signal(signal.SIGCONT)

    waking = threading.Thread(target=wake)
    stopped_at: list[int] = []
    with eoq.connect(daemon.socket) as client, eoq.Inbox(folder / "app.db") as inbox:
        client.send_many("q", [eoq.Outgoing(id, id=id) for id in _many(150)])
        inbox_or_none: Any = inbox if with_inbox else None
        summary = client.work("q", handler, inbox=inbox_or_none, until_empty=True, prefetch=prefetch, batch=batch)
        assert summary == eoq.Summary(done=150)
        waking.join()
        assert stopped_at == [most]
        assert handled == _many(150)
        assert all(client.result("q", id) is not None for id in _many(150))


@pytest.mark.parametrize("options", [{}, {"prefetch": 10}, {"concurrency": 2}])
def test_a_loop_that_ends_when_the_queue_is_empty_notices_the_end_of_its_handlers_at_once(
    work: Work, put: Callable[..., None], options: dict[str, int]
) -> None:
    def seconds(number: int) -> float:
        put(f"m{number}")
        start = time.monotonic()
        assert work(lambda _message: None, **options) == eoq.Summary(done=1)
        return time.monotonic() - start

    assert any(seconds(number) < RECHECK_SECONDS / 2 for number in range(20))


@pytest.mark.slow
def test_an_idle_loop_takes_the_next_message_at_once(blocking: eoq.Client, queue: str, work: Work) -> None:
    stop = threading.Event()

    def seconds(number: int) -> float:
        start = time.monotonic()
        blocking.send(queue, "x", id=f"m{number}")
        assert blocking.result(queue, f"m{number}", wait=PATIENCE)
        return time.monotonic() - start

    def send() -> bool:
        try:
            seconds(0)  # the loop may have begun meanwhile
            return any(seconds(number) < RECHECK_SECONDS / 2 for number in range(1, 20))
        finally:
            stop.set()

    with ThreadPoolExecutor(1) as pool:
        at_once = pool.submit(send)
        assert work(lambda _message: None, stop=stop, idle=PATIENCE).done >= 2
        assert at_once.result()


class _Translating:
    """An inbox whose handler gets another body than was delivered."""

    def __init__(self, inbox: eoq.Inbox) -> None:
        self._inbox = inbox

    def process(self, message: eoq.Message, handler: Callable[..., object]) -> object:
        outcome = self._inbox.process(message, self._translated(handler))
        if message.id == "raises":
            raise OSError("after the ack was sent")
        return outcome

    def process_many(self, messages: Iterable[eoq.Message], handler: Callable[..., object]) -> Sequence[object]:
        return self._inbox.process_many(messages, self._translated(handler))

    def _translated(self, handler: Callable[..., object]) -> Callable[..., object]:
        return lambda tx, message: handler(tx, replace(message, body=message.body.upper()))


@pytest.mark.parametrize("batch", [1, 2])
def test_an_inbox_may_change_the_message_of_its_handler(
    blocking: eoq.Client, queue: str, put: Callable[..., None], folder: Path, batch: int
) -> None:
    put("a", "b", "raises")
    bodies: list[str] = []

    def handler(_tx: sqlite3.Connection, message: eoq.Message) -> None:
        bodies.append(message.text)
        if message.id == "a":
            message.extend(60)  # through the settler of the loop

    with eoq.Inbox(folder / "app.db") as inbox:
        summary = blocking.work(queue, handler, inbox=_Translating(inbox), batch=batch, until_empty=True)
    assert bodies == ["A", "B", "RAISES"]
    assert summary == eoq.Summary(done=3), "a message that was acked is not given back as well"


def test_a_lease_that_was_lost_before_the_ack_was_confirmed_is_logged(
    daemon: Daemon, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The daemon is killed while acks are in flight: the loop does not know whether they were stored."""
    effects: list[str] = []

    def handler(_tx: sqlite3.Connection, message: eoq.Message) -> None:
        effects.append(message.id)
        if message.id == "m2" and len(effects) == 3:
            # The acks of the messages before are in flight; whether they were stored is not known here.
            daemon.kill()
            daemon.start()

    with eoq.connect(daemon.socket) as client, eoq.Inbox(folder / "app.db") as inbox:
        client.send_many("q", [eoq.Outgoing(id, id=id) for id in _many(10)])
        summary = client.work("q", handler, inbox=inbox, until_empty=True, prefetch=20)
        assert effects == _many(10), "each ran once, although some were delivered again"
        assert summary.done == 10
        assert summary.lost >= 7
        assert "it is delivered again" in caplog.text


@pytest.mark.first_by_default
def test_a_daemon_that_stays_away_ends_the_loop_after_running_handlers(
    daemon: Daemon, connect: Callable[..., AnyClient]
) -> None:
    with eoq.connect(daemon.socket) as sender:
        sender.send("q", "x")
    finished = []

    def handler(_message: Any) -> None:
        daemon.kill()
        time.sleep(2.5)  # longer than the timeout of the client
        finished.append(True)

    with pytest.raises(eoq.Unavailable):
        _run(connect(daemon.socket, timeout=2.0), "q", handler, None, concurrency=2)
    assert finished


def test_without_a_daemon_work_is_unavailable_at_once(folder: Path, connect: Callable[..., AnyClient]) -> None:
    start = time.monotonic()
    with pytest.raises(eoq.Unavailable):
        _run(connect(folder / "none"), "q", lambda message: None, None)
    assert time.monotonic() - start < 20  # the timeout of the client is longer


# ── time-outs ───────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.first_by_default
def test_a_handler_that_takes_too_long_loses_its_message_and_its_result(
    kind: Kind, work: Work, put: Callable[..., None], show: Callable[[str], Any], blocking: eoq.Client, queue: str
) -> None:
    put("slow", "fast")
    given_back = []

    def handler(message: Any) -> object:
        if message.id == "slow" and message.attempt == 1:
            if kind == "asyncio":
                return asyncio.sleep(60)
            eventually(lambda: any("failed_at" in one for one in show("slow").get("history", ())))
            given_back.append(show("slow"))
            return "too late"
        return "in time"

    assert work(handler, timeout=2.0, concurrency=2) == eoq.Summary(done=2, retried=1)
    assert blocking.result(queue, "slow") == eoq.Result("done", b"in time")
    assert len(show("slow")["history"]) == 1


def test_a_time_out_is_kept_as_the_error_of_the_message(
    work: Work, put: Callable[..., None], show: Callable[[str], Any]
) -> None:
    put("m", "n")

    def handler(message: Any) -> object:
        if message.id == "m" and message.attempt == 1:
            eventually(lambda: "error" in show("m"))
            return None
        if message.id == "m":
            raise eoq.Retry(60)
        return None

    work(handler, timeout=0.1)
    assert show("m")["error"] == "TimeoutError: the handler took longer than 0.1 s"


# ── the stop ────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_stop_waits_for_running_handlers_and_gives_back_waiting_messages_without_counting_an_attempt(
    work: Work, put: Callable[..., None], show: Callable[[str], Any]
) -> None:
    put(*_many(6))
    stop = threading.Event()

    def handler(_message: Any) -> str:
        eventually(lambda: [show(id)["state"] for id in _many(5)] == ["leased"] * 5)
        stop.set()
        eventually(lambda: [show(id)["state"] for id in _many(1, 5)] == ["ready"] * 4)
        return "finished"

    assert work(handler, stop=stop, prefetch=4) == eoq.Summary(done=1)
    assert show("m0")["result"] == "finished"
    assert [(show(id)["state"], show(id)["attempts"]) for id in _many(1, 6)] == [("ready", 0)] * 5


def test_a_stop_ends_an_idle_loop_at_once(work: Work, shared_daemon: Daemon) -> None:
    stop = threading.Event()

    def stop_it() -> None:
        eventually(lambda: shared_daemon.ask(op="status")["waiting"])
        stop.set()

    thread = threading.Thread(target=stop_it)
    thread.start()
    start = time.monotonic()
    assert work(lambda message: None, stop=stop) == eoq.Summary()
    assert time.monotonic() - start < PATIENCE
    thread.join()
    assert eventually(lambda: shared_daemon.ask(op="status")["waiting"] == 0)


def test_messages_delivered_to_an_ending_loop_are_given_back_without_counting_an_attempt(
    kind: Kind,
    shared_daemon: Daemon,
    blocking: eoq.Client,
    queue: str,
    put: Callable[..., None],
    show: Callable[[str], Any],
) -> None:
    # The message is delivered at once to the same loop, which has room for it and is about to end.
    def work() -> eoq.Summary:
        stop = threading.Event()

        def handler(message: eoq.Message) -> None:
            message.nack(delay=0)
            stop.set()

        return blocking.work(queue, handler, stop=stop, prefetch=1)

    async def async_work() -> eoq.Summary:
        stop = asyncio.Event()

        async def handler(message: eoq.AsyncMessage) -> None:
            await message.nack(delay=0)
            stop.set()

        async with eoq.connect_async(shared_daemon.socket) as client:
            return await client.work(queue, handler, stop=stop, prefetch=1)

    put("m")
    for attempt in range(1, 9):
        assert (work() if kind == "blocking" else asyncio.run(async_work())) == eoq.Summary(retried=1)
        eventually(lambda: show("m")["state"] == "ready")
        assert show("m")["attempts"] == attempt


def test_with_a_stop_that_is_set_already_nothing_is_handled(
    work: Work, put: Callable[..., None], show: Callable[[str], Any], kind: Kind
) -> None:
    put("m")
    stop = threading.Event()
    stop.set()
    if kind == "blocking":
        assert work(lambda message: None, stop=stop) == eoq.Summary()
        assert show("m")["deliveries"] == 0


@pytest.mark.first_by_default
def test_idle_is_how_long_an_empty_queue_is_waited_for(
    work: Work, put: Callable[..., None], shared_daemon: Daemon, blocking: eoq.Client, queue: str
) -> None:
    stop = threading.Event()

    def handler(message: Any) -> None:
        if message.id == "b":
            stop.set()

    def send() -> None:
        eventually(lambda: blocking.result(queue, "a"))
        eventually(lambda: shared_daemon.ask(op="status")["waiting"])
        put("b")

    put("a")
    sender = threading.Thread(target=send)
    sender.start()
    assert work(handler, stop=stop, until_empty=True, idle=PATIENCE).done == 2
    sender.join()
    assert work(handler, idle=0.3) == eoq.Summary(), "it ends by itself"


def test_until_empty_does_not_wait_for_delayed_messages(work: Work, put: Callable[..., None]) -> None:
    put("now")
    put("later", delay=60)
    assert work(lambda message: None) == eoq.Summary(done=1)


def test_a_waiting_worker_handles_a_message_sent_meanwhile(
    work: Work, blocking: eoq.Client, queue: str, shared_daemon: Daemon
) -> None:
    stop = threading.Event()

    def send() -> None:
        eventually(lambda: shared_daemon.ask(op="status")["waiting"])
        blocking.send(queue, "x")

    thread = threading.Thread(target=send)
    thread.start()
    assert work(lambda message: stop.set(), stop=stop) == eoq.Summary(done=1)
    thread.join()


PROGRAM = """
import asyncio, sys, threading, time
import eoq

kind, queue, log = sys.argv[1:4]

def say(text):
    print(text, flush=True)

def handler(message):
    say("begun")
    for _ in range(1000):
        if not sys.stdin.readline():
            break
        say("finished")
        return "finished"

async def async_handler(message):
    return await asyncio.to_thread(handler, message)

async def main():
    async with eoq.connect_async() as client:
        say(await client.work(queue, async_handler, prefetch=3))

import signal
before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
if kind == "blocking":
    with eoq.connect() as client:
        say(client.work(queue, handler, prefetch=3))
else:
    asyncio.run(main())
assert before == [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
say("restored")
"""


@pytest.fixture
def program(kind: Kind, shared_daemon: Daemon, queue: str) -> Iterator[subprocess.Popen[bytes]]:
    """A worker in a process of its own. Its handler ends when it reads a line."""
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, kind, queue, os.devnull],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=clean_environment(EOQ_SOCKET=str(shared_daemon.socket)),
        cwd=shared_daemon.folder,
        bufsize=0,
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize("number", [15, 2])
@pytest.mark.first_by_default
def test_a_signal_stops_the_loop_cleanly_and_its_handler_is_restored(
    program: subprocess.Popen[bytes], put: Callable[..., None], show: Callable[[str], Any], number: int
) -> None:
    put("a", "b")
    assert read_line_of(program) == b"begun\n"
    eventually(lambda: show("b")["state"] == "leased")
    program.send_signal(number)
    eventually(lambda: show("b")["state"] == "ready")
    assert show("a")["state"] == "leased"
    assert program.stdin is not None
    program.stdin.write(b"go on\n")
    assert read_line_of(program) == b"finished\n"
    assert read_line_of(program) == b"Summary(done=1, retried=0, rejected=0, lost=0)\n"
    assert read_line_of(program) == b"restored\n"
    assert program.wait(PATIENCE) == 0
    assert (show("a")["state"], show("a")["result"]) == ("done", "finished")
    assert (show("b")["state"], show("b")["attempts"]) == ("ready", 0)


def test_a_second_sigterm_ends_the_process(
    program: subprocess.Popen[bytes], put: Callable[..., None], show: Callable[[str], Any]
) -> None:
    put("a", "b")
    assert read_line_of(program) == b"begun\n"
    eventually(lambda: show("b")["state"] == "leased")
    program.terminate()
    eventually(lambda: show("b")["state"] == "ready")
    program.terminate()
    assert program.wait(PATIENCE) == -15
    eventually(lambda: show("a")["state"] == "ready")


# ── with an inbox ───────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def file(folder: Path) -> Path:
    """The database of the application."""
    with closing(sqlite3.connect(folder / "app.db")) as database:
        database.execute("pragma journal_mode = wal")
        database.execute("create table effect (id text)")
    return folder / "app.db"


def _effects(file: Path) -> list[str]:
    with closing(sqlite3.connect(file)) as database:
        return [id for (id,) in database.execute("select id from effect order by id")]


def _apply(tx: sqlite3.Connection, message: eoq.Message) -> str:
    tx.execute("insert into effect values (?)", (message.id,))
    return "applied"


@pytest.mark.parametrize("options", [{}, {"batch": 7}, {"concurrency": 3, "batch": 5, "prefetch": 20}])
def test_the_inbox_applies_each_message_once(
    blocking: eoq.Client, queue: str, put: Callable[..., None], file: Path, options: dict[str, Any]
) -> None:
    put(*_many(60))
    with eoq.Inbox(file) as inbox:
        assert blocking.work(queue, _apply, inbox=inbox, until_empty=True, **options) == eoq.Summary(done=60)
    assert _effects(file) == sorted(_many(60))
    assert blocking.result(queue, "m3") == eoq.Result("done", b"applied")


def test_an_inbox_may_use_a_connection_of_the_calling_thread(
    blocking: eoq.Client, queue: str, put: Callable[..., None], file: Path
) -> None:
    put("a")
    with closing(sqlite3.connect(file)) as database:
        blocking.work(queue, _apply, inbox=eoq.Inbox(database), until_empty=True)
    assert _effects(file) == ["a"]


@pytest.mark.parametrize("batch", [1, 10])
def test_reject_and_retry_through_the_inbox_roll_back(
    blocking: eoq.Client, queue: str, put: Callable[..., None], file: Path, show: Callable[[str], Any], batch: int
) -> None:
    put("good", "never", "later", "bad")

    def handler(tx: sqlite3.Connection, message: eoq.Message) -> None:
        _apply(tx, message)
        match message.id:
            case "never":
                raise eoq.Reject("no such account")
            case "later":
                raise eoq.Retry(60, "closed")
            case "bad" if message.attempt == 1:
                raise ValueError("broken")

    with eoq.Inbox(file) as inbox:
        summary = blocking.work(queue, handler, inbox=inbox, batch=batch, until_empty=True)
    assert summary == eoq.Summary(done=2, retried=2, rejected=1)
    assert _effects(file) == ["bad", "good"]
    assert (show("never")["state"], show("never")["error"]) == ("dead", "no such account")
    assert (show("later")["state"], show("later")["error"]) == ("delayed", "closed")
    assert show("later")["due_at"] > time.time() + 50


@pytest.mark.slow
def test_a_message_that_fails_its_whole_batch_costs_the_others_no_attempt(
    blocking: eoq.Client, queue: str, put: Callable[..., None], file: Path, show: Callable[[str], Any]
) -> None:
    with closing(sqlite3.connect(file)) as database:
        database.execute(
            """
            create trigger no_poison before insert on effect when new.id = 'poison'
            begin select raise(rollback, 'poison'); end
            """
        )
    put(*_many(5), "poison", *_many(5, 10))
    stop = threading.Event()

    def handler(tx: sqlite3.Connection, message: eoq.Message) -> None:
        if message.id == "poison" and message.attempt > 2:
            stop.set()  # it came back after a delay, behind all others
            raise eoq.Reject("enough")
        _apply(tx, message)

    with eoq.Inbox(file) as inbox:
        blocking.work(queue, handler, inbox=inbox, batch=100, stop=stop)
        blocking.work(queue, handler, inbox=inbox, batch=100, until_empty=True)
    assert _effects(file) == sorted(_many(10))
    assert show("poison")["state"] == "dead"
    assert not any("history" in show(id) for id in _many(10)), "no other delivery has failed"


def test_a_message_that_was_tried_before_shares_no_transaction(
    blocking: eoq.Client, queue: str, put: Callable[..., None], file: Path, show: Callable[[str], Any]
) -> None:
    put("tried")
    (message,) = blocking.receive(queue)
    message.nack(delay=0)
    put("new 1", "new 2", priority=1)
    put("new 3")
    batches: list[list[str]] = []

    class Watched:
        def process(self, message: eoq.Message, handler: Callable[..., Any]) -> object:
            batches.append([message.id])
            return inbox.process(message, handler)

        def process_many(self, messages: Iterable[eoq.Message], handler: Callable[..., Any]) -> Sequence[object]:
            batch = list(messages)
            batches.append([message.id for message in batch])
            return inbox.process_many(batch, handler)

    with eoq.Inbox(file) as inbox:
        blocking.work(queue, _apply, inbox=Watched(), batch=10, until_empty=True)
    assert batches == [["new 1", "new 2", "new 3"], ["tried"]]


def test_a_lease_that_was_lost_in_a_batch_costs_the_others_nothing(
    shared_daemon: Daemon, blocking: eoq.Client, queue: str, put: Callable[..., None], file: Path
) -> None:
    put(*_many(6))

    def handler(tx: sqlite3.Connection, message: eoq.Message) -> str:
        if message.id == "m1" and message.attempt == 1:
            shared_daemon.ask(op="nack", receipt=message.receipt, delay=0)
        return _apply(tx, message)

    with eoq.Inbox(file) as inbox:
        summary = blocking.work(queue, handler, inbox=inbox, batch=3, until_empty=True)
    assert summary == eoq.Summary(done=6, lost=1)
    assert _effects(file) == _many(6)


def test_a_lease_that_was_lost_in_a_batch_of_the_asyncio_loop_costs_the_others_nothing(
    shared_daemon: Daemon, queue: str, put: Callable[..., None], file: Path
) -> None:
    put(*_many(6))

    async def handler(tx: Any, message: eoq.AsyncMessage) -> None:
        if message.id == "m1" and message.attempt == 1:
            await asyncio.to_thread(shared_daemon.ask, op="nack", receipt=message.receipt, delay=0)
        await tx.execute("insert into effect values (?)", (message.id,))

    async def main() -> eoq.Summary:
        async with eoq.AsyncInbox(file) as inbox, eoq.connect_async(shared_daemon.socket) as client:
            return await client.work(queue, handler, inbox=inbox, batch=3, until_empty=True)

    assert asyncio.run(main()) == eoq.Summary(done=6, lost=1)
    assert _effects(file) == _many(6)


def test_a_batch_needs_an_inbox(blocking: eoq.Client, queue: str) -> None:
    with pytest.raises(eoq.InvalidRequest):
        blocking.work(queue, lambda message: None, batch=2)  # type: ignore[call-overload] # types refuse it as well


@pytest.mark.parametrize("batch", [1, 2])
def test_a_late_commit_after_a_time_out_is_found_processed(
    blocking: eoq.Client, queue: str, put: Callable[..., None], file: Path, show: Callable[[str], Any], batch: int
) -> None:
    put("m")
    runs: list[int] = []

    def handler(tx: sqlite3.Connection, message: eoq.Message) -> str:
        runs.append(message.attempt)
        eventually(lambda: show("m")["state"] == "ready")
        return _apply(tx, message)

    with eoq.Inbox(file) as inbox:
        summary = blocking.work(queue, handler, inbox=inbox, timeout=0.2, batch=batch, until_empty=True)
    assert summary == eoq.Summary(done=1, retried=1)
    assert (runs, _effects(file)) == ([1], ["m"])
    assert blocking.result(queue, "m") == eoq.Result("done", b"applied")


class _AsyncInbox:
    """An inbox of the application's own: the loop needs only these methods."""

    def __init__(self, file: Path) -> None:
        self.database = sqlite3.connect(file)

    async def process(self, message: eoq.AsyncMessage, handler: Callable[..., Any]) -> object:
        with self.database:
            result = await handler(self.database, message)
        await message.ack(result)
        return result

    async def process_many(self, messages: Iterable[eoq.AsyncMessage], handler: Callable[..., Any]) -> Sequence[object]:
        return [await self.process(message, handler) for message in messages]


def test_the_asyncio_client_accepts_any_inbox(
    shared_daemon: Daemon, blocking: eoq.Client, queue: str, put: Callable[..., None], file: Path
) -> None:
    put("a", "b")

    async def apply(tx: sqlite3.Connection, message: eoq.AsyncMessage) -> str:
        tx.execute("insert into effect values (?)", (message.id,))
        return "applied"

    async def main() -> eoq.Summary:
        inbox = _AsyncInbox(file)
        with closing(inbox.database):
            async with eoq.connect_async(shared_daemon.socket) as client:
                return await client.work(queue, apply, inbox=inbox, until_empty=True)

    assert asyncio.run(main()) == eoq.Summary(done=2)
    assert _effects(file) == ["a", "b"]
    assert blocking.result(queue, "a") == eoq.Result("done", b"applied")


@pytest.mark.parametrize("options", [{}, {"batch": 7}, {"concurrency": 3, "batch": 5, "prefetch": 20}])
def test_the_asyncio_inbox_applies_each_message_once(
    shared_daemon: Daemon, blocking: eoq.Client, queue: str, put: Callable[..., None], file: Path, options: Any
) -> None:
    put(*_many(60))
    transactions: set[int] = set()

    async def apply(tx: Any, message: eoq.AsyncMessage) -> str:
        await tx.execute("insert into effect values (?)", (message.id,))
        (count,) = await (await tx.execute("select count(*) from eoq_processed")).fetchone()
        transactions.add(count)
        if message.id == "m30" and message.attempt == 1:
            raise ValueError("only this message is rolled back")
        return "applied"

    async def main() -> eoq.Summary:
        async with eoq.AsyncInbox(file) as inbox, eoq.connect_async(shared_daemon.socket) as client:
            return await client.work(queue, apply, inbox=inbox, until_empty=True, **options)

    assert asyncio.run(main()) == eoq.Summary(done=60, retried=1)
    assert _effects(file) == sorted(_many(60))
    assert blocking.result(queue, "m3") == eoq.Result("done", b"applied")
    if options.get("batch"):
        assert len(transactions) < 60, "many messages shared a transaction"


@pytest.mark.first_by_default
@many_acks
def test_acks_of_the_asyncio_loop_are_confirmed_while_waiting_messages_are_handled(
    daemon: Daemon, folder: Path, prefetch: int, most: int, with_inbox: bool, batch: int
) -> None:
    handled: list[str] = []
    stopped_at: list[int] = []

    async def wake() -> None:
        await asyncio.sleep(0.3)  # only time can show that no more messages are handled
        stopped_at.append(len(handled))
        daemon.signal(signal.SIGCONT)

    async def main() -> eoq.Summary:
        tasks: list[asyncio.Task[None]] = []

        async def handler(*arguments: Any) -> None:
            if not handled:
                await asyncio.to_thread(eventually, lambda: daemon.ask(op="status")["leased"] == batch + prefetch)
                await asyncio.to_thread(daemon.ask, op="status")  # as above
                daemon.signal(signal.SIGSTOP)
            handled.append(arguments[-1].id)
            if len(handled) == most:
                tasks.append(asyncio.create_task(wake()))

        async with eoq.connect_async(daemon.socket) as client, eoq.AsyncInbox(folder / "app.db") as inbox:
            mine: Any = inbox if with_inbox else None
            return await client.work("q", handler, inbox=mine, until_empty=True, prefetch=prefetch, batch=batch)

    with eoq.connect(daemon.socket) as client:
        client.send_many("q", [eoq.Outgoing(id, id=id) for id in _many(150)])
        assert asyncio.run(main()) == eoq.Summary(done=150)
        assert stopped_at == [most]
        assert handled == _many(150)
        assert all(client.result("q", id) is not None for id in _many(150))


def test_cancelling_the_asyncio_loop_ends_its_leases(
    shared_daemon: Daemon, queue: str, put: Callable[..., None], show: Callable[[str], Any]
) -> None:
    put("a", "b")
    begun: list[str] = []
    ended: list[str] = []

    async def handler(message: eoq.AsyncMessage) -> None:
        begun.append(message.id)
        try:
            await asyncio.sleep(60)
        finally:
            ended.append(message.id)

    async def main() -> None:
        async with eoq.connect_async(shared_daemon.socket) as client:
            task = asyncio.create_task(client.work(queue, handler, prefetch=1))
            await asyncio.to_thread(eventually, lambda: begun and show("b")["state"] == "leased")
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    asyncio.run(main())
    assert ended == ["a"]
    eventually(lambda: (show("a")["state"], show("b")["state"]) == ("ready", "ready"))


# ── not the fault of a handler ──────────────────────────────────────────────────────────────────────────────


@pytest.mark.slow
def test_the_wait_for_the_inbox_does_not_count_as_time_of_the_handler(
    blocking: eoq.Client, queue: str, put: Callable[..., None], shared_daemon: Daemon, file: Path
) -> None:
    """Eight handlers wait for one database. Each takes far less than the timeout; the last begins long after it."""
    put(*_many(8))

    def handler(tx: sqlite3.Connection, message: eoq.Message) -> None:
        other.receive("nothing-here", wait=0.4)
        _apply(tx, message)

    with eoq.Inbox(file) as inbox, eoq.connect(shared_daemon.socket) as other:
        summary = blocking.work(queue, handler, inbox=inbox, concurrency=8, timeout=2.0, until_empty=True)
    assert summary == eoq.Summary(done=8)
    assert _effects(file) == sorted(_many(8))


@pytest.mark.slow
async def test_the_wait_for_the_asyncio_inbox_does_not_count_as_time_of_the_handler(
    shared_daemon: Daemon, queue: str, put: Callable[..., None], file: Path
) -> None:
    put(*_many(8))
    async with eoq.connect_async(shared_daemon.socket) as client, eoq.AsyncInbox(file) as inbox:

        async def handler(tx: aiosqlite.Connection, message: eoq.AsyncMessage) -> None:
            await client.receive("nothing-here", wait=0.4)
            await tx.execute("insert into effect values (?)", (message.id,))

        summary = await client.work(queue, handler, inbox=inbox, concurrency=8, timeout=2.0, until_empty=True)
    assert summary == eoq.Summary(done=8)
    assert _effects(file) == sorted(_many(8))


@pytest.mark.parametrize("raised", [eoq.Reject(ValueError("why")), eoq.Retry(60, KeyError("why"))])
def test_a_reason_may_be_an_exception(
    work: Work, put: Callable[..., None], show: Callable[[str], Any], raised: Exception
) -> None:
    def handler(message: Any) -> None:
        raise raised

    put("m")
    work(handler)
    assert "why" in show("m")["error"]


def test_an_exception_without_a_text_does_not_end_the_loop(
    work: Work, put: Callable[..., None], show: Callable[[str], Any]
) -> None:
    class Odd(Exception):
        def __str__(self) -> str:
            raise ValueError

    def handler(message: Any) -> None:
        if message.id == "odd":
            raise Odd

    put("odd", "m")
    assert work(handler).done == 1
    assert "Odd" in show("odd")["error"]


@pytest.mark.first_by_default
def test_idle_counts_from_the_end_of_the_last_handler(
    work: Work, put: Callable[..., None], blocking: eoq.Client
) -> None:
    ended: list[float] = []

    def handler(message: Any) -> None:
        blocking.receive("nothing-here", wait=0.6)
        blocking.ack(message)
        ended.append(time.monotonic())

    put("m")
    work(handler, idle=0.5, until_empty=False)
    assert time.monotonic() - ended[0] >= 0.5


def test_thousands_of_waiting_messages_are_given_back_without_counting_an_attempt(
    blocking: eoq.Client, queue: str
) -> None:
    blocking.send_many(queue, ["x"] * 2500)
    stop = threading.Event()

    def handler(message: eoq.Message) -> None:
        eventually(lambda: blocking.queues()[-1]["ready"] == 0 or blocking.ask("status")["leased"] >= 2500)
        stop.set()

    blocking.work(queue, handler, prefetch=3000, stop=stop)
    attempts = {message.attempt for _ in range(3) for message in blocking.receive(queue, 1000)}
    assert attempts == {1}


@pytest.mark.first_by_default
def test_a_loop_that_is_stopped_while_the_daemon_is_away_ends(
    daemon: Daemon, connect: Callable[..., AnyClient]
) -> None:
    client = connect(daemon.socket, timeout=3.0)
    client.send("q", "x")
    stop = threading.Event()

    def handler(message: Any) -> None:
        daemon.kill()
        stop.set()

    assert _run(client, "q", handler, stop) == eoq.Summary()


async def test_a_cancelled_task_of_a_handler_is_a_failure_of_the_handler(shared_daemon: Daemon, queue: str) -> None:
    async with eoq.connect_async(shared_daemon.socket) as client:
        await client.send(queue, "x", id="m")
        attempts: list[int] = []

        async def handler(message: eoq.AsyncMessage) -> None:
            attempts.append(message.attempt)
            if message.attempt == 1:
                inner = asyncio.create_task(asyncio.sleep(PATIENCE))
                inner.cancel()
                await inner

        summary = await client.work(queue, handler, idle=1.0)
        assert attempts == [1, 2]
        assert (summary.done, summary.retried) == (1, 1)


async def test_a_base_exception_of_a_handler_ends_the_asyncio_loop(shared_daemon: Daemon, queue: str) -> None:
    class Stop(BaseException):
        pass

    async with eoq.connect_async(shared_daemon.socket) as client:
        await client.send(queue, "x")

        async def handler(message: eoq.AsyncMessage) -> None:
            raise Stop

        with pytest.raises(Stop):
            await client.work(queue, handler)


def test_an_asyncio_client_in_another_event_loop_is_an_error(shared_daemon: Daemon, queue: str) -> None:
    client = eoq.connect_async(shared_daemon.socket)
    with asyncio.Runner() as first, asyncio.Runner() as second:
        first.run(_send(client, queue))
        with pytest.raises(eoq.InvalidRequest, match="event loop"):
            second.run(_send(client, queue))
        first.run(client.close())


async def _send(client: eoq.AsyncClient, queue: str) -> None:
    await client.send(queue, "x")


@pytest.mark.first_by_default
def test_a_message_is_never_handled_twice_at_once_in_one_loop(
    daemon: Daemon, connect: Callable[..., AnyClient]
) -> None:
    """The lease is lost with the daemon, and the message is delivered again while its first handler still runs."""
    client = connect(daemon.socket)
    client.send("q", "x", id="m")
    lock = threading.Lock()
    seen: list[int] = []
    redelivered = threading.Event()

    def handler(message: Any) -> None:
        assert lock.acquire(blocking=False)
        seen.append(message.attempt)
        if message.attempt == 1:
            daemon.restart()
            with eoq.connect(daemon.socket) as other:
                eventually(lambda: other.ask("status")["leased"] == 1)
                redelivered.set()
                other.receive("empty", wait=0.3)  # time in which it would be handled
        lock.release()

    summary = _run(client, "q", handler, None, concurrency=2, until_empty=True, idle=1.0)
    assert redelivered.is_set()
    assert seen == [1, 2]
    assert summary.done == 1


def test_a_guest_inbox_does_not_accept_a_batch(blocking: eoq.Client, queue: str) -> None:
    inbox: Any = eoq.GuestInbox(lambda: closing(sqlite3.connect(":memory:")), lambda connection: connection)
    with pytest.raises(eoq.InvalidRequest, match="one message at a time"):
        blocking.work(queue, _apply, inbox=inbox, batch=2)
