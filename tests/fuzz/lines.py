"""Lines of the wire, mutated: each is answered once, other clients are served, and the daemon stays small."""

from __future__ import annotations

import json
import random
import select
import time
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from tests.fuzz.mutations import STRANGE, mutated
from tests.support import HAS_PROC, PATIENCE, Daemon, Fields, Wire, peak_kilobytes, running_daemon

CODES: Final = {
    "invalid_request",
    "message_too_large",
    "id_conflict",
    "lease_lost",
    "not_found",
    "queue_full",
    "too_late",
    "overloaded",
}
"""Errors that a client can cause. Any other would be a fault of the daemon."""
VALID: Final[list[Fields]] = [
    {"op": "send", "queue": "q", "body": "x", "id": "a", "headers": {"k": "v"}, "priority": 1, "group": "g"},
    {"op": "send", "queue": "q", "body_base64": "AP8=", "delay": 0.01},
    {"op": "send", "queue": "q", "body": "x", "at": 1700000000},
    {"op": "send_many", "queue": "q", "messages": [{"body": "x", "id": "b"}, {"body": "y"}]},
    {"op": "receive", "queue": "q", "limit": 2, "wait": 0, "lease": 0.01, "bound": True},
    {"op": "ack", "receipt": "0.1.1", "result": "r"},
    {"op": "settle", "acks": [{"receipt": "0.1.1", "result_base64": ""}], "send": [{"queue": "r", "body": "x"}]},
    {"op": "nack", "receipt": "0.1.1", "delay": 1, "error": "e"},
    {"op": "reject", "receipt": "0.1.1", "error": "e"},
    {"op": "extend", "receipt": "0.1.1", "seconds": 1},
    {"op": "release", "receipts": ["0.1.1"]},
    {"op": "result", "queue": "q", "id": "a", "wait": 0},
    {"op": "queues"},
    {"op": "queues", "limit": 2, "after": "a", "prefix": "q"},
    {"op": "overview", "order": "busy", "contains": "q", "skip": 1, "limit": 2},
    {"op": "peek", "queue": "q", "limit": 1, "state": "dead"},
    {"op": "show", "queue": "q", "id": "a"},
    {"op": "status"},
]
MORE: Final[list[Fields]] = [
    {"op": "send", "queue": "t", "body": "x", "headers": {"risk": "high"}, "ttl": 0.5, "not_after": 4e9},
    {"op": "receive", "queue": "r", "limit": 100, "lease": 30, "handles": 1},
    {"op": "receive", "queue": "q", "limit": 50, "lease": 5},
    {"op": "cancel", "request": 1},
    {"op": "once", "key": "k", "token": "t", "fingerprint": "f"},
    {"op": "once_done", "key": "k", "token": "t", "status": 1, "output": "o", "output_bytes": 1, "ttl": 1},
    {"op": "once_release", "key": "k", "token": "t"},
    {"op": "peek", "queue": "q", "state": "ready", "headers": {"k": "v"}, "contains": "x", "group": "g"},
    {"op": "tail", "queue": "q", "after": 1, "last": 2},
    {"op": "pause", "queue": "r"},
    {"op": "resume", "queue": "r"},
    {"op": "delete_queue", "queue": "r", "forget_ids": True},
    {"op": "purge", "queue": "q", "upto": 1000},
    {"op": "redrive", "queue": "q", "ids": ["a"], "to": "r"},
    {"op": "redrive", "queue": "q", "all": True, "failed_before": 1},
    {"op": "drop", "queue": "q", "ids": ["a", "b"]},
    {"op": "bind", "topic": "t", "queue": "r", "headers": {"risk": "high"}},
    {"op": "unbind", "topic": "t", "queue": "r"},
    {"op": "topics"},
    {"op": "schedule_add", "name": "s", "queue": "q", "cron": "0 0 29 2 *", "timezone": "Europe/Berlin", "body": "x"},
    {"op": "schedule_add", "name": "s", "queue": "q", "every": 86400, "replace": True, "catch_up": "all"},
    {"op": "schedule_remove", "name": "s"},
    {"op": "schedule_show", "name": "s"},
    {"op": "schedules"},
]
LONG: Final = {"queues", "overview", "topics", "schedules"}
"""Requests whose reply grows with what the lines have made. They are rare, so that the rest gets its turn."""
LINES: Final = 500
"""Lines in one write."""
CONNECTION_LINES: Final = 20_000
"""Lines of one connection."""
OTHER_SECONDS: Final = 0.1
"""How often another client sends meanwhile."""


@dataclass(slots=True)
class LineReport:
    """What became of the lines."""

    lines: int = 0
    ok: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    others: int = 0
    """Messages of another client, sent between the lines. Each was stored."""
    seconds: float = 0.0
    peak_kilobytes: int = 0
    problems: list[str] = field(default_factory=list)

    @property
    def is_good(self) -> bool:
        return not self.problems

    def __str__(self) -> str:
        codes = ", ".join(f"{number:,} {code}" for code, number in self.errors.most_common())
        return "\n".join(
            [
                f"{self.lines:,} lines in {self.seconds:.0f} s: {self.ok:,} ok, {codes}",
                f"another client: {self.others:,} sends; memory of the daemon: {self.peak_kilobytes // 1024} MB",
                *self.problems,
            ]
        )


class _Fuzzer:
    """Makes lines, out of valid requests with changes and with the receipts of earlier replies."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._serial = 0
        self.receipts: deque[str] = deque(["0.1.1"], 200)

    def line(self) -> bytes:
        """Return the bytes of a line, without its end. With line feeds in it, it is several."""
        while True:
            data = self._changed()
            if not _may_wait(data):
                return data

    def _request(self) -> Fields:
        while True:
            request = dict(self._rng.choice(VALID if self._rng.random() < 0.5 else MORE))
            if request["op"] not in LONG or self._rng.random() < 0.01:
                break
        self._serial += 1
        request["rid"] = self._serial
        if "id" in request and self._rng.random() < 0.7:
            request["id"] = f"{self._rng.randrange(10_000)}"
        if "receipt" in request and self._rng.random() < 0.7:
            request["receipt"] = self._rng.choice(self.receipts)
        return request

    def _changed(self) -> bytes:
        rng = self._rng
        request = self._request()
        kind = rng.random()
        if kind < 0.2:
            return json.dumps(request).encode()
        if kind < 0.4:
            request[rng.choice([*request, "extra", "wait"])] = rng.choice(STRANGE)
            return json.dumps(request).encode()
        if kind < 0.45:
            return rng.randbytes(rng.randrange(100))
        return mutated(rng, json.dumps(request).encode(), json.dumps(self._request()).encode())


def _may_wait(data: bytes) -> bool:
    """Return whether a request of these lines might wait for longer than a test."""
    for line in data.split(b"\n"):
        try:
            request = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(request, dict) and isinstance(request.get("wait"), int | float) and request["wait"] > 0:
            return True
    return False


def exchange(wire: Wire, lines: Sequence[bytes]) -> list[Any]:
    """Send lines, and return as many replies. Raises `AssertionError` where fewer come, or more."""
    data = memoryview(b"".join(line + b"\n" for line in lines))
    wanted = sum(line.count(b"\n") + 1 for line in lines)
    received = bytearray()
    wire.socket.setblocking(False)
    until = time.monotonic() + 3 * PATIENCE
    while (found := received.count(b"\n")) < wanted:
        assert time.monotonic() < until, f"{wanted} lines, and only {found} replies"
        readable, writable, _ = select.select([wire.socket], [wire.socket] if data else [], [], 1.0)
        if readable:
            piece = wire.socket.recv(1024 * 1024)
            assert piece, f"{wanted} lines, and the connection ended after {found} replies"
            received += piece
        if writable:
            data = data[wire.socket.send(data) :]
    wire.socket.settimeout(PATIENCE)
    assert received.endswith(b"\n") and found == wanted, f"{wanted} lines, and {found} replies"
    last = wire.ask({"op": "status", "rid": "the end"})
    assert last["rid"] == "the end", f"one reply more than lines: {last}"
    return [json.loads(reply) for reply in received.splitlines()]


def run_lines(count: int, seed: int) -> LineReport:
    """Send ``count`` lines to a daemon, and return what became of them."""
    rng = random.Random(seed)
    report = LineReport()
    fuzzer = _Fuzzer(rng)
    began = time.monotonic()
    with running_daemon() as daemon, daemon.wire() as other:
        while report.lines < count and report.is_good:
            with daemon.wire() as wire:
                _fuzz(daemon, wire, other, fuzzer, report, min(CONNECTION_LINES, count - report.lines))
        report.seconds = time.monotonic() - began
        stored = other.ask({"op": "peek", "queue": "other", "limit": 1})
        if not stored["ok"] or not stored["messages"]:
            report.problems.append("what another client has sent is not there")
        if HAS_PROC:
            report.peak_kilobytes = peak_kilobytes(daemon.pid)
        if "Traceback" in daemon.said:
            report.problems.append(daemon.said[-2000:])
    return report


def _fuzz(daemon: Daemon, wire: Wire, other: Wire, fuzzer: _Fuzzer, report: LineReport, count: int) -> None:
    end = report.lines + count
    told = 0.0
    while report.lines < end:
        lines = [fuzzer.line() for _ in range(min(LINES, end - report.lines))]
        try:
            replies = exchange(wire, lines)
        except (AssertionError, OSError, ValueError) as error:
            report.problems.append(f"after {report.lines:,} lines: {error}; the lines: {_culprits(daemon, lines)}")
            return
        report.lines += len(replies)
        for reply in replies:
            _note(reply, fuzzer, report)
        if time.monotonic() > told + OTHER_SECONDS:
            told = time.monotonic()
            if not other.ask({"op": "send", "queue": "other", "id": f"{report.others}", "body": "x"})["ok"]:
                report.problems.append("another client could not send")
            report.others += 1


def _note(reply: Fields, fuzzer: _Fuzzer, report: LineReport) -> None:
    if reply["ok"]:
        report.ok += 1
        fuzzer.receipts += [message["receipt"] for message in reply.get("messages", ()) if "receipt" in message]
        return
    code = reply["error"]["code"]
    report.errors[code] += 1
    if code not in CODES:
        report.problems.append(f"a fault: {reply}")


def _culprits(daemon: Daemon, lines: Sequence[bytes]) -> list[bytes]:
    """Return the lines that are not answered once where each is alone on a connection."""
    found = []
    for line in lines:
        try:
            with daemon.wire() as wire:
                exchange(wire, [line])
        except (AssertionError, OSError, ValueError):
            found.append(line[:1000])
            if len(found) == 3:
                break
    return found
