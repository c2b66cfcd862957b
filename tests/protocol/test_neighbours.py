"""Good neighbours: whatever one client does, others are served in between, and the memory of the daemon is bounded."""

from __future__ import annotations

import select
import signal
import time
from contextlib import ExitStack
from functools import partial
from typing import Final

import pytest

from tests.faults.daemons import leased_between_commits, paced_daemon
from tests.support import HAS_PROC, Daemon, Wire, eventually, peak_kilobytes

needs_proc = pytest.mark.skipif(not HAS_PROC, reason="reads the daemon's memory from /proc")

CLIENTS: Final = 60
WAITS: Final = 250
"""Requests of one client that wait, nearly as many as it may have."""
OUTPUT: Final = 8 * 1024 * 1024
MEMORY: Final = 512 * 1024
"""Kilobytes that the daemon may have at most."""


def _waiting(daemon: Daemon) -> int:
    return int(daemon.ask(op="status")["waiting"])


def _ask_among_others(daemon: Daemon, wire: Wire) -> int:
    """Let a stopped daemon go on, and return how many requests wait when it answers a request of ``wire``."""
    wire.send({"op": "status"})
    daemon.signal(signal.SIGCONT)
    return int(wire.read()["waiting"])


def test_a_client_is_answered_while_many_others_begin_to_wait_and_while_they_leave(daemon: Daemon) -> None:
    with daemon.wire() as other, ExitStack() as stack:
        assert other.ask({"op": "status"})["ok"]
        hogs = [stack.enter_context(daemon.wire()) for _ in range(CLIENTS)]
        eventually(lambda: daemon.ask(op="status")["connections"] == CLIENTS + 2)
        daemon.signal(signal.SIGSTOP)
        for hog in hogs:
            hog.send(*[{"op": "receive", "queue": "q", "wait": 900}] * WAITS)
        assert _ask_among_others(daemon, other) < CLIENTS * WAITS / 2
        eventually(lambda: _waiting(daemon) == CLIENTS * WAITS)
        daemon.signal(signal.SIGSTOP)
        for hog in hogs:
            hog.close()
        assert _ask_among_others(daemon, other) > CLIENTS * WAITS / 2
        eventually(lambda: _waiting(daemon) == 0)


@pytest.mark.slow
def test_the_messages_of_a_connection_with_many_leases_come_back_in_steps() -> None:
    count = 4000
    with paced_daemon() as (daemon, pace), daemon.wire() as other, daemon.wire() as hog:
        for start in range(0, count, 1000):
            messages = [{"body": "", "id": f"{start + number}"} for number in range(1000)]
            assert other.ask({"op": "send_many", "queue": "q", "messages": messages})["ok"]
            reply = hog.ask({"op": "receive", "queue": "q", "limit": 1000, "bound": True})
            assert len(reply["messages"]) == 1000
        pace.hold()
        hog.close()
        assert any(0 < leased < count for leased in leased_between_commits(pace, other)), (
            "another client was answered between"
        )
        eventually(lambda: other.ask({"op": "queues"})["queues"][0]["ready"] == count)


@pytest.mark.slow
def test_leases_that_end_together_end_in_steps() -> None:
    count = 3000
    with paced_daemon() as (daemon, pace), daemon.wire() as other:
        for start in range(0, count, 1000):
            messages = [{"body": "", "id": f"{start + number}"} for number in range(1000)]
            assert other.ask({"op": "send_many", "queue": "q", "messages": messages})["ok"]
        end = time.monotonic() + 3
        for _ in range(0, count, 1000):
            assert other.ask({"op": "receive", "queue": "q", "limit": 1000, "lease": end - time.monotonic()})[
                "messages"
            ]
        pace.hold()
        assert any(0 < leased < count for leased in leased_between_commits(pace, other))


def test_a_send_does_not_wait_for_all_large_batches_of_another_client(daemon: Daemon) -> None:
    batches = 14  # what the buffer of a socket takes
    with daemon.wire() as hog, daemon.wire() as other:
        assert hog.ask({"op": "status"})["ok"]
        assert other.ask({"op": "send", "queue": "q", "body": "x"})["ok"]
        daemon.signal(signal.SIGSTOP)
        hog.send(*[{"op": "send_many", "queue": "h", "messages": [{"body": ""}] * 1000}] * batches)
        other.send({"op": "send", "queue": "q", "body": "x"})
        daemon.signal(signal.SIGCONT)
        assert other.read()["ok"]
        assert all(hog.read()["ok"] for _ in range(batches))
        first, second = other.ask({"op": "receive", "queue": "q", "limit": 2})["messages"]
        assert second["seq"] - first["seq"] <= 8001, "so many messages of the other client were stored before"


# ── bytes ───────────────────────────────────────────────────────────────────────────────────────────────────


def _store_output(daemon: Daemon, key: str = "big", size: int = OUTPUT) -> None:
    with daemon.wire() as wire:
        wire.ask({"op": "once", "key": key, "token": "t"})
        assert wire.ask({"op": "once_done", "key": key, "token": "t", "output": "z" * size})["ok"]


def _answered(wire: Wire) -> bool:
    return bool(select.select([wire.socket], [], [], 0)[0])


@needs_proc
@pytest.mark.parametrize("wait", [0, 1])
@pytest.mark.slow
def test_large_replies_to_one_client_are_made_one_after_the_other(daemon: Daemon, wait: int) -> None:
    _store_output(daemon)
    with daemon.wire() as hog, daemon.wire() as other:
        hog.send(*[{"op": "once", "key": "big", "token": "u", "wait": wait}] * 80)
        until = time.monotonic() + 2
        while time.monotonic() < until:
            assert other.ask({"op": "send", "queue": "q", "body": "x"})["ok"]
        assert peak_kilobytes(daemon.pid) < MEMORY
        assert all(len(hog.read()["output"]) == OUTPUT for _ in range(3)), "who reads gets them"


@needs_proc
def test_replies_that_many_clients_leave_unread_are_bounded_together(daemon: Daemon) -> None:
    _store_output(daemon)
    with ExitStack() as stack, daemon.wire() as other:
        hogs = [stack.enter_context(daemon.wire()) for _ in range(60)]
        begun = time.monotonic()
        for hog in hogs:
            hog.send({"op": "once", "key": "big", "token": "u", "wait": 1})
        eventually(lambda: all(map(_answered, hogs)))
        assert "bytes of replies unread" in daemon.said
        assert other.ask({"op": "send", "queue": "q", "body": "x"})["ok"]
        assert peak_kilobytes(daemon.pid) < MEMORY
        most = 2 + time.monotonic() - begun
        assert daemon.said.count("bytes of replies unread") <= most, "it is logged once a second at most"


def test_a_slow_reader_is_not_disconnected_for_those_who_do_not_read(daemon: Daemon) -> None:
    _store_output(daemon)
    _store_output(daemon, "less", OUTPUT - 1024 * 1024)
    with ExitStack() as stack, daemon.wire() as reader:
        reader.send({"op": "once", "key": "big", "token": "u"})
        for _ in range(40):
            assert reader.socket.recv(64 * 1024)
            hog = stack.enter_context(daemon.wire())
            hog.send({"op": "once", "key": "less", "token": "u"})
            eventually(partial(_answered, hog))
        assert "bytes of replies unread" in daemon.said
        while not (data := reader.socket.recv(1024 * 1024)).endswith(b"\n"):
            assert data


@needs_proc
@pytest.mark.slow
def test_a_large_result_for_many_that_wait_is_sent_to_one_after_the_other(daemon: Daemon) -> None:
    daemon.ask(op="send", queue="q", id="m", body="")
    with daemon.wire() as worker, ExitStack() as stack:
        receipt = worker.ask({"op": "receive", "queue": "q"})["messages"][0]["receipt"]
        waiting = [stack.enter_context(daemon.wire()) for _ in range(20)]
        for wire in waiting:
            wire.send(*[{"op": "result", "queue": "q", "id": "m", "wait": 60}] * 50)
            assert wire.ask({"op": "status"})["ok"]
        assert worker.ask({"op": "ack", "receipt": receipt, "result": "x" * 1024 * 1024})["ok"]
        assert worker.ask({"op": "send", "queue": "q", "body": "x"})["ok"]
        for wire in waiting:
            assert {wire.read()["outcome"] for _ in range(50)} == {"done"}
        assert peak_kilobytes(daemon.pid) < MEMORY
