"""Peers that send too slowly, read too slowly, send too much or are too many: the daemon's memory stays bounded, and
other clients do not notice.
"""

from __future__ import annotations

import json
import resource
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from threading import Event, Thread

import pytest

from tests.support import HAS_PROC, Daemon, Wire, error_of, eventually, running_daemon

MEBIBYTE = 1024 * 1024
LINE_LIMIT = 16 * MEBIBYTE
CONNECTIONS = 4000
MEMORY = 350 * 1024
"""Kilobytes of memory that the daemon may use, whatever one peer does."""
OBSERVED = 0.5
"""Seconds for which the memory of the daemon is watched."""
SLOWEST = 30.0
"""Seconds within which another client must be served: far more than needed, far less than a hang."""

needs_proc = pytest.mark.skipif(not HAS_PROC, reason="reads the daemon's memory from /proc")


def _serve_another(daemon: Daemon) -> None:
    """Check that another client can send, receive and settle without delay."""
    start = time.monotonic()
    with daemon.wire() as wire:
        assert wire.ask({"op": "send", "queue": "another", "body": "x"})["ok"]
        message = wire.ask({"op": "receive", "queue": "another"})["messages"][0]
        assert wire.ask({"op": "ack", "receipt": message["receipt"]})["ok"]
    assert time.monotonic() - start < SLOWEST


@contextmanager
def _memory_watched(daemon: Daemon, limit: int) -> Iterator[Callable[[], int]]:
    """Kill a daemon that grows over ``limit`` kilobytes, to protect the machine. Yield the most that was seen."""
    most = 0
    stop = Event()

    def watch() -> None:
        nonlocal most
        while not stop.wait(0.01):
            with suppress(AssertionError, OSError):  # the process has just ended
                most = max(most, daemon.resident_kilobytes())
            if most > limit:
                daemon.kill()
                return

    thread = Thread(target=watch)
    thread.start()
    try:
        yield lambda: most
    finally:
        stop.set()
        thread.join()


def _fill(wire: Wire, request: bytes, most: int) -> None:
    """Send a request again and again without reading, until the daemon stops reading."""
    wire.socket.settimeout(0.3)
    piece = request * max(1, 256 * 1024 // len(request))
    with suppress(TimeoutError, ConnectionError):
        for _ in range(most // len(piece) + 1):
            wire.write(piece)


# ── slow writers ────────────────────────────────────────────────────────────────────────────────────────────


def test_a_line_may_come_byte_by_byte(wire: Wire, queue: str) -> None:
    for byte in json.dumps({"op": "send", "queue": queue, "id": "m", "body": "é"}).encode():
        wire.write(bytes([byte]))
    assert wire.silent(0.05)
    assert wire.ask_line(b"")["id"] == "m"


def test_a_line_feed_may_come_much_later_and_others_are_served(shared_daemon: Daemon, wire: Wire) -> None:
    wire.write(b'{"op": "sta')
    _serve_another(shared_daemon)
    assert wire.silent(0.2)
    assert wire.ask_line(b'tus"}')["ok"]


def test_one_read_may_have_the_end_of_a_line_whole_lines_and_the_start_of_another(wire: Wire) -> None:
    wire.write(b'{"op":"status","r')
    wire.write(b'id":1}\n{"op":"status","rid":2}\n\n{"op":"status","rid":3}\n{"op":')
    assert [wire.read().get("rid") for _ in range(4)] == [1, 2, None, 3]
    assert wire.ask_line(b'"status","rid":4}')["rid"] == 4


def test_half_lines_that_end_with_the_connection_leave_nothing(shared_daemon: Daemon, queue: str) -> None:
    for _ in range(200):
        with shared_daemon.wire() as wire:
            wire.write(b'{"op":"send","queue":"%s","body":"x"}' % queue.encode())
    eventually(lambda: shared_daemon.ask(op="status")["connections"] <= 2)
    assert shared_daemon.ask(op="receive", queue=queue)["messages"] == []


# ── long lines ──────────────────────────────────────────────────────────────────────────────────────────────


def test_a_line_of_exactly_the_limit_is_read(wire: Wire, queue: str) -> None:
    line = b'{"op":"status"}'
    assert wire.ask_line(line + b" " * (LINE_LIMIT - len(line)))["ok"]
    assert wire.ask({"op": "status"})["ok"]


@pytest.mark.parametrize("ended", [True, False], ids=["with its line feed", "without an end"])
def test_a_line_over_the_limit_is_answered_and_closes_the_connection(
    shared_daemon: Daemon, wire: Wire, ended: bool
) -> None:
    with suppress(BrokenPipeError, ConnectionResetError):  # it may be closed before all is sent
        wire.write(b'{"op":"status"}' + b" " * LINE_LIMIT + (b'\n{"op":"status"}\n' if ended else b""))
    reply = wire.read()
    assert error_of(reply) == "message_too_large"
    assert "rid" not in reply
    assert wire.ended()
    _serve_another(shared_daemon)


def test_requests_before_a_line_over_the_limit_are_carried_out(shared_daemon: Daemon, wire: Wire, queue: str) -> None:
    wire.send({"op": "send", "queue": queue, "id": "m", "body": "x"})
    assert wire.read()["ok"]
    with suppress(BrokenPipeError, ConnectionResetError):
        wire.write(b"x" * (LINE_LIMIT + 1))
    assert error_of(wire.read()) == "message_too_large"
    assert shared_daemon.ask(op="receive", queue=queue)["messages"][0]["id"] == "m"


@needs_proc
def test_an_endless_line_does_not_grow_the_daemon(daemon: Daemon) -> None:
    with _memory_watched(daemon, MEMORY) as most:
        for _ in range(10):
            with daemon.wire() as wire, suppress(BrokenPipeError, ConnectionResetError):
                for _ in range(30):
                    wire.write(b"x" * MEBIBYTE)
        _serve_another(daemon)
        assert most() < 200 * 1024


@pytest.mark.slow
@needs_proc
def test_many_unfinished_long_lines_are_bounded_together(daemon: Daemon) -> None:
    with _memory_watched(daemon, 900 * 1024) as most, ExitStack() as stack:
        wires = [stack.enter_context(daemon.wire()) for _ in range(64)]
        for wire in wires:
            with suppress(BrokenPipeError, ConnectionResetError):
                wire.write(b" " * (15 * MEBIBYTE))
        _serve_another(daemon)
        refused = [wire for wire in wires if not wire.silent(0)]
        assert refused
        assert error_of(refused[0].read()) == "overloaded"
        assert most() < 600 * 1024


# ── slow readers ────────────────────────────────────────────────────────────────────────────────────────────

UNREAD = {
    "status": {"op": "status"},
    "show of large messages": {"op": "show", "queue": "large", "id": "0"},
    "peek at large messages": {"op": "peek", "queue": "large"},
    "receive of large messages": {"op": "receive", "queue": "large", "limit": 2, "lease": 0.001, "wait": 3600},
    "large results": {"op": "result", "queue": "done", "id": "0"},
    "queues": {"op": "queues"},
    "metrics": {"op": "metrics"},
    "overview": {"op": "overview"},
    "send": {"op": "send", "queue": "sent", "id": "0", "body": ""},
    "nonsense": {"op": "nonsense"},
}
UNREAD_BY_DEFAULT = ("status", "show of large messages", "receive of large messages", "send")
"""The requests of the default tests: small and large replies, of requests that read and of those that write."""


def _store_large_messages(daemon: Daemon) -> None:
    with daemon.wire() as wire:
        for number in range(3):
            wire.ask({"op": "send", "queue": "large", "id": f"{number}", "body": "x" * MEBIBYTE})
        wire.ask({"op": "send", "queue": "done", "id": "0", "body": ""})
        receipt = wire.ask({"op": "receive", "queue": "done"})["messages"][0]["receipt"]
        wire.ask({"op": "ack", "receipt": receipt, "result": "x" * MEBIBYTE})


@pytest.mark.first_by_default
@needs_proc
@pytest.mark.parametrize(
    "request_",
    [
        pytest.param(request, marks=() if name in UNREAD_BY_DEFAULT else pytest.mark.slow, id=name)
        for name, request in UNREAD.items()
    ],
)
def test_a_peer_that_never_reads_replies_costs_bounded_memory(request_: dict[str, object]) -> None:
    with running_daemon("--max-attempts", "1000000") as daemon, daemon.wire() as wire:
        _store_large_messages(daemon)
        with _memory_watched(daemon, 2 * MEMORY) as most:
            _fill(wire, json.dumps(request_).encode() + b"\n", 8 * MEBIBYTE)
            until = time.monotonic() + OBSERVED
            while time.monotonic() < until:
                assert daemon.running, f"grew over {2 * MEMORY // 1024} MB"
                _serve_another(daemon)
            assert most() < MEMORY
        wire.close()
        assert daemon.terminate() == 0


@pytest.mark.slow
@needs_proc
def test_many_peers_that_never_read_are_bounded_together(daemon: Daemon) -> None:
    _store_large_messages(daemon)
    with _memory_watched(daemon, 2 * MEMORY) as most, ExitStack() as stack:
        for _ in range(100):
            wire = stack.enter_context(daemon.wire())
            wire.send(*[{"op": "show", "queue": "large", "id": "0"}] * 3)
        _serve_another(daemon)
        assert daemon.running, f"grew over {2 * MEMORY // 1024} MB"
        assert most() < 2 * MEMORY


@pytest.mark.slow
@needs_proc
@pytest.mark.parametrize("callers", [60, pytest.param(100, marks=pytest.mark.slow)])
def test_a_large_output_is_not_copied_for_each_waiting_caller(daemon: Daemon, callers: int) -> None:
    with daemon.wire() as wire, daemon.wire() as holder, _memory_watched(daemon, 3 * MEMORY) as most:
        holder.ask({"op": "once", "key": "k", "token": "t"})
        wire.send(*({"op": "once", "key": "k", "token": f"{n}", "wait": 60, "rid": n} for n in range(callers)))
        assert wire.ask({"op": "status"})["ok"]
        output = "x" * 8 * MEBIBYTE
        assert holder.ask({"op": "once_done", "key": "k", "token": "t", "output": output})["ok"]
        _serve_another(daemon)
        replies = {reply["rid"]: reply["output_bytes"] for reply in (wire.read() for _ in range(callers))}
        assert replies == dict.fromkeys(range(callers), len(output))
        wire.half_close()
        assert wire.ended()
        assert most() < MEMORY


@pytest.mark.slow
@needs_proc
def test_a_large_result_is_not_copied_for_each_waiting_client(daemon: Daemon) -> None:
    daemon.ask(op="send", queue="q", id="m", body="")
    with daemon.wire() as worker, ExitStack() as stack, _memory_watched(daemon, 3 * MEMORY) as most:
        receipt = worker.ask({"op": "receive", "queue": "q"})["messages"][0]["receipt"]
        for _ in range(4):
            wire = stack.enter_context(daemon.wire())
            wire.send(*[{"op": "result", "queue": "q", "id": "m", "wait": 60}] * 250)
            assert wire.ask({"op": "status"})["ok"]
        assert worker.ask({"op": "ack", "receipt": receipt, "result": "x" * MEBIBYTE})["ok"]
        _serve_another(daemon)
        assert most() < MEMORY
        assert {wire.read()["outcome"] for _ in range(250)} == {"done"}
        assert most() < MEMORY


def test_a_peer_that_reads_late_gets_everything(wire: Wire, queue: str) -> None:
    wire.ask({"op": "send", "queue": queue, "id": "m", "body": "x" * 100_000})
    wire.send(*({"op": "show", "queue": queue, "id": "m", "rid": number} for number in range(200)))
    assert sorted(wire.read()["rid"] for _ in range(200)) == list(range(200))


def test_the_leases_of_a_peer_that_vanishes_with_unread_replies_end(shared_daemon: Daemon, queue: str) -> None:
    for _ in range(20):
        shared_daemon.ask(op="send", queue=queue, body="x" * MEBIBYTE)
    with shared_daemon.wire() as wire:
        wire.send(*[{"op": "receive", "queue": queue, "bound": True, "limit": 2}] * 10)
        eventually(lambda: shared_daemon.ask(op="status")["leased"] >= 2)
    taken: set[str] = set()

    def all_again() -> bool:
        reply = shared_daemon.ask(op="receive", queue=queue, limit=1000)
        taken.update(message["id"] for message in reply["messages"])
        return len(taken) == 20

    eventually(all_again)


def test_a_peer_that_vanishes_after_half_a_close_stops_waiting(shared_daemon: Daemon, queue: str) -> None:
    with shared_daemon.wire() as wire:
        wire.send({"op": "receive", "queue": queue, "wait": 3600})
        wire.half_close()
        eventually(lambda: shared_daemon.ask(op="status")["waiting"] == 1)
    eventually(lambda: shared_daemon.ask(op="status")["waiting"] == 0)
    eventually(lambda: shared_daemon.ask(op="status")["connections"] <= 1)


def test_nothing_is_delivered_to_a_peer_that_has_just_vanished_after_half_a_close(
    shared_daemon: Daemon, wire: Wire, queue: str
) -> None:
    for _ in range(100):
        with shared_daemon.wire() as ghost:
            ghost.send({"op": "receive", "queue": queue, "wait": 3600})
            ghost.half_close()
            eventually(lambda: wire.ask({"op": "status"})["waiting"] > 0)
    wire.ask({"op": "send", "queue": queue, "id": "m", "body": ""})
    (message,) = wire.ask({"op": "receive", "queue": queue, "wait": 20})["messages"]
    assert message["attempt"] == 1


# ── many ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_waits_of_one_connection_are_limited(wire: Wire, queue: str) -> None:
    wire.send(*({"op": "receive", "queue": queue, "wait": 60, "rid": number} for number in range(300)))
    refused = [wire.read() for _ in range(44)]
    assert {error_of(reply) for reply in refused} == {"overloaded"}
    assert [reply["rid"] for reply in refused] == list(range(256, 300))
    assert wire.ask({"op": "status"})["ok"]


@contextmanager
def _files_allowed(number: int) -> Iterator[None]:
    """Let this process, and those it starts, open so many files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < number:
        pytest.skip(f"this user may open {hard} files only")
    resource.setrlimit(resource.RLIMIT_NOFILE, (number, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.slow
@needs_proc
def test_thousands_of_connections_are_served_and_one_more_is_refused() -> None:
    with _files_allowed(CONNECTIONS + 1000), running_daemon() as daemon, ExitStack() as stack:
        wires = [stack.enter_context(daemon.wire()) for _ in range(CONNECTIONS)]
        for wire in wires:
            wire.send({"op": "status"})
        assert all(wire.read()["ok"] for wire in wires)
        with daemon.wire() as late:
            assert error_of(late.read()) == "overloaded"
            assert late.ended()
        assert daemon.resident_kilobytes() < MEMORY
        wires.pop().close()
        eventually(daemon.serves)


@needs_proc
def test_a_low_limit_of_open_files_does_not_stop_the_daemon(daemon: Daemon) -> None:
    with daemon.wire() as first, ExitStack() as stack:
        resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE, (64, 64))
        for _ in range(100):
            with suppress(ConnectionError):
                stack.enter_context(daemon.wire())
        assert first.ask({"op": "send", "queue": "q", "body": "x"})["ok"]
    eventually(daemon.serves)


def test_a_low_soft_limit_of_open_files_is_raised_by_the_daemon() -> None:
    """Login shells and service managers set 1,024 (macOS 256) and allow more. The daemon promises 4,000 clients."""
    with _files_allowed(300), running_daemon() as daemon, _files_allowed(2000), ExitStack() as stack:
        wires = [stack.enter_context(daemon.wire()) for _ in range(500)]
        assert all(wire.ask({"op": "status"})["ok"] for wire in wires)


@pytest.mark.slow
def test_connections_that_come_and_go_leak_nothing(shared_daemon: Daemon) -> None:
    for round in range(2000):
        with shared_daemon.wire() as wire:
            if round % 3:
                wire.send({"op": "receive", "queue": "none", "wait": 60})
    eventually(lambda: shared_daemon.ask(op="status")["waiting"] == 0)
    eventually(lambda: shared_daemon.ask(op="status")["connections"] <= 1)


@pytest.mark.slow
@needs_proc
def test_waits_that_end_leak_no_memory(daemon: Daemon) -> None:
    def round() -> None:
        with daemon.wire() as wire:
            for number in range(1000):
                wire.send({"op": "receive", "queue": f"q{number}"}, {"op": "result", "queue": "q", "id": f"{number}"})
                assert wire.read()["ok"]
                assert wire.read()["ok"]

    round()
    before = daemon.resident_kilobytes()
    for _ in range(3):
        round()
    assert daemon.resident_kilobytes() - before < 6 * 1024
