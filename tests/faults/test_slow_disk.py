"""Test a slow disk: commits run on a thread, all guarantees hold, and other requests do not wait."""

from __future__ import annotations

import select
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from typing import Final

import pytest

import eoq
from tests.faults.crashes import OPERATIONS, Operation, Point, crash
from tests.faults.daemons import (
    PlantedDaemon,
    await_read,
    ids_of,
    left,
    paced_daemon,
    planted_daemon,
    settle_all,
)
from tests.faults.planted_daemon import Plant
from tests.support import PATIENCE, eventually

ON_THREAD: Final = Plant(quick_commit=0.0)
ON_THREAD_TOO: Final = {"send": "written", "settle": "committed"}
"""Operations of `crashes.OPERATIONS` to test on the thread, one that stores and one that settles, and the points at
which the default tests kill them."""
COMMIT: Final = 0.3
SLOW: Final = Plant(commit_seconds=COMMIT)
PROMPT: Final = 0.2
"""Seconds within which a request that needs no disk is answered on a busy machine. Shorter than a commit."""


@pytest.fixture
def on_thread() -> Iterator[PlantedDaemon]:
    """Run a daemon that always commits on its thread."""
    with planted_daemon(ON_THREAD) as daemon:
        yield daemon


@pytest.fixture
def slow() -> Iterator[PlantedDaemon]:
    """Run a daemon whose disk is slow in each commit."""
    with planted_daemon(SLOW) as daemon:
        yield daemon


# ── commits on the thread ───────────────────────────────────────────────────────────────────────────────────────────


def test_a_message_goes_from_send_to_result(on_thread: PlantedDaemon) -> None:
    with eoq.connect(on_thread.socket) as client:
        assert client.send("q", "x", id="a").duplicate is False
        assert client.send("q", "x", id="a").duplicate is True
        with pytest.raises(eoq.IdConflict):
            client.send("q", "y", id="a")
        (message,) = client.receive("q")
        message.nack(delay=0.05, error="why")
        (message,) = client.receive("q", wait=PATIENCE)
        assert message.attempt == 2
        message.ack(result="r", send=[eoq.Outgoing("z", queue="next", id="b")])
        assert client.result("q", "a") == eoq.Result("done", b"r")
        assert ids_of(settle_all(client, "next")) == ["b"]
        assert left(client, "q") == {}
    assert on_thread.terminate() == 0


def test_many_concurrent_clients_lose_and_double_nothing(on_thread: PlantedDaemon) -> None:
    def work(number: int) -> list[str]:
        with eoq.connect(on_thread.socket) as client:
            for index in range(50):
                client.send("q", "x", id=f"{number}-{index}")
            return [_acked(message) for message in client.consume("q", prefetch=10, idle=0.5)]

    with ThreadPoolExecutor(6) as pool:
        settled = [id for ids in pool.map(work, range(6)) for id in ids]
    assert sorted(settled) == sorted(f"{number}-{index}" for number in range(6) for index in range(50))


def _acked(message: eoq.Message) -> str:
    """Ack a message and return its id."""
    message.ack()
    return message.id


@pytest.mark.slow
def test_kills_during_a_stream_lose_and_double_nothing(on_thread: PlantedDaemon) -> None:
    confirmed: list[str] = []
    with eoq.connect(on_thread.socket) as client, ThreadPoolExecutor(1) as pool:

        def stream() -> None:
            for sent in client.send_stream("q", (eoq.Outgoing("x", id=f"{number}") for number in range(3000))):
                confirmed.append(sent.id)
                time.sleep(0)  # lets the other thread kill the daemon

        streaming = pool.submit(stream)
        for reached in (300, 1500):
            eventually(partial(_reached, streaming, confirmed, reached))
            on_thread.restart()
        streaming.result()
        assert sorted(ids_of(settle_all(client, "q"))) == sorted(confirmed)
        assert len(confirmed) == 3000


def _reached(streaming: Future[None], confirmed: list[str], count: int) -> bool:
    """Return whether ``count`` messages are confirmed, or the stream has ended."""
    return streaming.done() or len(confirmed) > count


@pytest.mark.slow
@pytest.mark.parametrize(
    ("operation", "point"),
    [
        pytest.param(operation, point, marks=() if point == quick else pytest.mark.slow, id=f"{operation.name}-{point}")
        for operation in OPERATIONS
        if (quick := ON_THREAD_TOO.get(operation.name))
        for point in ("written", "committed")
    ],
)
def test_a_kill_in_the_middle_of_an_operation_keeps_the_guarantees(operation: Operation, point: Point) -> None:
    crash(operation, point, quick_commit=0.0)


def test_a_stop_finishes_and_answers_started_requests(slow: PlantedDaemon) -> None:
    with slow.wire() as wire:
        wire.send(*({"op": "send", "rid": n, "queue": "q", "body": "x", "id": f"{n}"} for n in range(3)))
        assert wire.read()["ok"]
        assert slow.terminate() == 0
        assert [wire.read()["ok"], wire.read()["ok"]] == [True, True]
        assert wire.ended()
    slow.start_plain()
    with eoq.connect(slow.socket) as client:
        assert ids_of(settle_all(client, "q")) == ["0", "1", "2"]


# ── other requests do not wait ───────────────────────────────────────────────────────────────────────────────────────


def _slow_answer(daemon: PlantedDaemon, busy: Callable[[], bool]) -> float:
    """Return the 90th percentile of the seconds that `status` takes while ``busy`` is true."""
    seconds = []
    with daemon.wire() as wire:
        while busy():
            start = time.monotonic()
            assert wire.ask({"op": "status"})["ok"]
            seconds.append(time.monotonic() - start)
    return sorted(seconds)[len(seconds) * 9 // 10]


@pytest.mark.slow
@pytest.mark.parametrize(
    "receives_between",
    [pytest.param(False, id="sends", marks=pytest.mark.slow), pytest.param(True, id="sends and receives")],
)
def test_status_is_prompt_while_commits_are_slow(slow: PlantedDaemon, receives_between: bool) -> None:
    """The daemon knows that the disk is slow after one commit. A receive, which needs no sync, must not reset that."""
    known = threading.Event()

    def send() -> float:
        start = time.monotonic()
        with eoq.connect(slow.socket) as client:
            for number in range(6):
                client.send("q", "x", id=f"{number}")
                known.set()
                if receives_between:
                    client.receive("q")
        return time.monotonic() - start

    with ThreadPoolExecutor(1) as pool:
        sending = pool.submit(send)
        assert known.wait(PATIENCE)
        slow_answer = _slow_answer(slow, lambda: not sending.done())
        assert sending.result() >= 6 * COMMIT, "the commits were not slow"
    assert slow_answer < PROMPT


def test_requests_that_arrive_during_a_slow_commit_share_the_next_one() -> None:
    with paced_daemon() as (daemon, pace), ExitStack() as stack:
        first, *others = (stack.enter_context(daemon.wire()) for _ in range(20))
        assert first.ask({"op": "send", "queue": "q", "body": "x"})["ok"]
        pace.hold()
        first.send({"op": "send", "queue": "q", "body": "x"})
        await_read(daemon)
        for other in others:
            other.send({"op": "send", "queue": "q", "body": "x"})
        await_read(daemon)
        sockets = [wire.socket for wire in (first, *others)]
        commits = pace.pass_until(lambda: len(select.select(sockets, [], [], 0)[0]) == len(sockets))
        pace.release()
        assert all(wire.read()["ok"] for wire in (first, *others))
        assert commits < 10


def test_a_receive_that_is_cancelled_while_its_messages_are_claimed_is_given_none() -> None:
    """Its client may have gone, and reads no reply. The next receive has the message, and no attempt was used."""
    with paced_daemon() as (daemon, pace), daemon.wire() as wire, daemon.wire() as other:
        assert other.ask({"op": "send", "queue": "q", "body": "x"})["ok"]
        pace.hold()
        wire.send({"rid": 1, "op": "receive", "queue": "q", "lease": 3600})
        await_read(daemon)
        wire.send({"rid": 2, "op": "cancel", "request": 1})
        await_read(daemon)
        pace.release()
        replies = {reply["rid"]: reply for reply in (wire.read(), wire.read())}
        assert replies[1]["messages"] == []
        (message,) = other.ask({"op": "receive", "queue": "q", "wait": PATIENCE})["messages"]
        assert message["attempt"] == 1
