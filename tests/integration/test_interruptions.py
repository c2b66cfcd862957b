"""Ctrl-C, at any moment, in a program that goes on: no message is lost, and other clients notice nothing."""

from __future__ import annotations

import gc
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

import eoq
from tests.support import PATIENCE, Daemon, eventually

# A connection that is interrupted while it is made has no owner: Python closes it, and warns.
left_to_python = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
few_or_many_rounds = pytest.mark.parametrize("rounds", [100, pytest.param(300, marks=pytest.mark.slow)])


class _Interrupt(BaseException):
    """Raised by the handler of a signal, as by Ctrl-C."""


@contextmanager
def _interrupted_after(seconds: float) -> Iterator[None]:
    """Interrupt the main thread once, unless the block ends before."""
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


@pytest.fixture(autouse=True)
def _signals() -> Iterator[None]:
    def interrupt(_number: int, _frame: object) -> None:
        raise _Interrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    yield
    signal.signal(signal.SIGALRM, before)


def _again_and_again(call: Callable[[], object], then: Callable[[], object], rounds: int, longest: float) -> int:
    """Interrupt ``call`` at ``rounds`` random moments, and call ``then`` after each. Return how many interrupted it."""
    moments = random.Random(11)
    interrupted = 0
    for _ in range(rounds):
        try:
            with _interrupted_after(moments.uniform(0.00005, longest)):
                call()
        except _Interrupt:
            interrupted += 1
        then()
    gc.collect()
    assert interrupted > rounds / 20
    return interrupted


def test_a_send_interrupted_within_its_line_does_not_spoil_the_next(daemon: Daemon) -> None:
    """The daemon is stopped, so that only a part of the line fits into the socket."""
    with eoq.connect(daemon.socket) as client:
        client.ask("status")
        daemon.signal(signal.SIGSTOP)
        with pytest.raises(_Interrupt), _interrupted_after(0.3):
            client.send("q", b"x" * 900_000)
        daemon.signal(signal.SIGCONT)
        assert client.send("q", "next", id="m") == eoq.Sent("m", duplicate=False)
        assert client.ask("queues")["queues"][0]["ready"] == 1


@pytest.mark.parametrize("bound", [False, True])
def test_an_interrupted_receive_loses_no_message(daemon: Daemon, bound: bool) -> None:
    with eoq.connect(daemon.socket) as client, eoq.connect(daemon.socket) as other:
        with pytest.raises(_Interrupt), _interrupted_after(0.3):
            client.receive("q", wait=60, bound=bound)
        other.send("q", "x")
        (message,) = other.receive("q", wait=PATIENCE)
        assert message.attempt == 1
        eventually(lambda: client.ask("status")["waiting"] == 0, PATIENCE / 3)  # it would wait longer by itself


def test_messages_on_their_way_to_an_interrupted_receive_are_given_back(daemon: Daemon) -> None:
    """The daemon is stopped while the request is interrupted, and answers it afterwards."""
    with eoq.connect(daemon.socket) as client, eoq.connect(daemon.socket) as other:
        client.send("q", "x")
        other.ask("status")
        daemon.signal(signal.SIGSTOP)
        with pytest.raises(_Interrupt), _interrupted_after(0.3):
            client.receive("q", lease=3600)
        daemon.signal(signal.SIGCONT)
        (message,) = other.receive("q", wait=PATIENCE)
        assert message.attempt == 1


def test_a_client_that_is_gone_when_the_daemon_reads_its_receive_is_given_no_message(daemon: Daemon) -> None:
    """The daemon was stopped meanwhile. It may handle the last requests before it is told of the end."""
    with daemon.wire() as other:
        for number in range(10):
            queue = f"q{number}"
            assert other.ask({"op": "send", "queue": queue, "body": "x"})["ok"]
            with daemon.wire() as gone:
                assert gone.ask({"op": "status"})["ok"]
                daemon.signal(signal.SIGSTOP)
                gone.send({"op": "receive", "queue": queue, "lease": 3600}, {"op": "status"})
            daemon.signal(signal.SIGCONT)
            (message,) = other.ask({"op": "receive", "queue": queue, "wait": PATIENCE})["messages"]
            assert message["attempt"] == 1


def test_an_interrupted_thread_leaves_the_leases_of_others_alone(daemon: Daemon) -> None:
    with eoq.connect(daemon.socket) as client:
        client.send("q", "x", id="m")
        (message,) = client.receive("q", bound=True)
        with pytest.raises(_Interrupt), _interrupted_after(0.2):
            client.receive("empty", wait=60, bound=True)
        message.ack()
        result = client.result("q", "m")
        assert result is not None
        assert result.outcome == "done"


@pytest.mark.slow
@left_to_python
@few_or_many_rounds
def test_large_replies_may_be_interrupted_at_any_moment(daemon: Daemon, rounds: int) -> None:
    with eoq.connect(daemon.socket, timeout=PATIENCE) as client:
        client.send_many("big", [b"x" * 4000] * 200)
        _again_and_again(
            lambda: [client.ask("peek", queue="big", limit=200) for _ in range(5)],
            lambda: client.send("q", "after"),
            rounds=rounds,
            longest=0.02,
        )


@pytest.mark.slow
@left_to_python
@few_or_many_rounds
def test_other_threads_do_not_notice_an_interruption(daemon: Daemon, rounds: int) -> None:
    sent = 0
    failed: list[BaseException] = []
    ended = threading.Event()

    def send() -> None:
        nonlocal sent
        while not ended.is_set():
            try:
                client.send("q", "x")
                sent += 1
            except BaseException as error:  # noqa: BLE001 # it is reported below
                failed.append(error)

    with eoq.connect(daemon.socket, timeout=PATIENCE) as client:
        client.send_many("big", [b"x" * 4000] * 200)
        thread = threading.Thread(target=send)
        thread.start()
        _again_and_again(
            lambda: [client.ask("peek", queue="big", limit=200) for _ in range(5)],
            lambda: None,
            rounds=rounds,
            longest=0.02,
        )
        ended.set()
        thread.join(PATIENCE)
        assert not thread.is_alive()
        assert not failed
        assert client.ask("queues")["queues"][1]["ready"] == sent


def test_a_caller_interrupted_while_it_waits_for_a_key_does_not_get_it(daemon: Daemon) -> None:
    running, finish = threading.Event(), threading.Event()

    def fail() -> None:
        running.set()
        finish.wait(PATIENCE)
        raise ValueError

    def first() -> None:
        with eoq.connect(daemon.socket) as client, pytest.raises(ValueError, match=r"^$"):
            client.once("key", fail)

    thread = threading.Thread(target=first)
    thread.start()
    running.wait(PATIENCE)
    with eoq.connect(daemon.socket) as client, eoq.connect(daemon.socket) as other:
        with pytest.raises(_Interrupt), _interrupted_after(0.3):
            client.once("key", lambda: "never")
        finish.set()
        thread.join(PATIENCE)
        start = time.monotonic()
        assert other.once("key", lambda: "the other's", wait=PATIENCE) == b"the other's"
        assert time.monotonic() - start < PATIENCE / 2
        assert eventually(lambda: client.once("key", lambda: "again") == b"the other's")
