"""Clients and files that do their worst: ``python -m tests.hogs.hogs NAME SOCKET SPOOL SECONDS`` is one of them.

A hog repeats its round until its time is over. It may use several connections, and it need not read its replies.
"""

from __future__ import annotations

import json
import os
import resource
import select
import socket as sockets
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, Final

from tests.support import Fields, Wire

MEBIBYTE: Final = 1024 * 1024


class Target:
    """The daemon that a hog troubles, and the time that it has for that."""

    def __init__(self, socket: Path, spool: Path, seconds: float) -> None:
        self.spool = spool
        self._socket = socket
        self._until = time.monotonic() + seconds

    def wire(self) -> Wire:
        return Wire(self._socket)

    @property
    def over(self) -> bool:
        return time.monotonic() >= self._until

    @contextmanager
    def clients(self, count: int) -> Iterator[list[Wire]]:
        """Connect many clients, and disconnect them at the end."""
        with ExitStack() as stack:
            yield [stack.enter_context(self.wire()) for _ in range(count)]

    def push(self, wire: Wire, data: bytes, seconds: float = 5.0) -> None:
        """Send bytes for as long as the daemon takes them, and read nothing."""
        wire.socket.setblocking(False)
        view = memoryview(data)
        until = time.monotonic() + seconds
        while view and time.monotonic() < until and not self.over:
            if select.select([], [wire.socket], [], 0.2)[1]:
                with suppress(BlockingIOError):
                    view = view[wire.socket.send(view) :]
        wire.socket.settimeout(20)


def _line(**request: Any) -> bytes:
    return json.dumps(request).encode() + b"\n"


def _messages(count: int, size: int = 0, **options: Any) -> list[Fields]:
    return [{"body": "x" * size, **options} for _ in range(count)]


def _fill(wire: Wire, queue: str, count: int, size: int = 0, **options: Any) -> None:
    for _ in range(0, count, 1000):
        reply = wire.ask({"op": "send_many", "queue": queue, "messages": _messages(1000, size, **options)})
        assert reply["ok"], reply


def _lease(wire: Wire, queue: str, count: int, **options: Any) -> list[str]:
    receipts: list[str] = []
    while len(receipts) < count:
        messages = wire.ask({"op": "receive", "queue": queue, "limit": 1000, **options})["messages"]
        receipts += [message["receipt"] for message in messages]
    return receipts


def nothing(target: Target) -> None:
    """Do nothing. What another client waits for then is the machine."""
    time.sleep(0.1)  # until the time is over


# ── many requests ───────────────────────────────────────────────────────────────────────────────────────────


def sends_without_reading(target: Target) -> None:
    data = _line(op="send", queue="h", body="x") * 20_000
    with target.wire() as wire:
        target.push(wire, data)


def garbage(target: Target) -> None:
    with target.wire() as wire:
        target.push(wire, b'{"op":"send","queue":"h","body":' * 3 + b"\n" + b"\x00\xff[[[{\n" * 100_000)


def deep_lines(target: Target) -> None:
    with target.wire() as wire:
        target.push(wire, (b"[" * 100_000 + b"\n") * 200)


def large_batches(target: Target) -> None:
    data = _line(op="send_many", queue="h", messages=_messages(15, MEBIBYTE))
    with target.wire() as wire, target.wire() as other:
        target.push(wire, data * 4)
        other.ask({"op": "purge", "queue": "h"})


def small_batches(target: Target) -> None:
    with target.wire() as wire:
        _fill(wire, "h", 20_000)
        wire.ask({"op": "purge", "queue": "h"})


def conflicts(target: Target) -> None:
    """Refuse whole batches at their last message."""
    with target.wire() as wire:
        wire.ask({"op": "send", "queue": "h", "id": "taken", "body": "one"})
        messages = [*_messages(999), {"id": "taken", "body": "other"}]
        target.push(wire, _line(op="send_many", queue="h", messages=messages) * 50)


def copies_to_many_queues(target: Target) -> None:
    with target.wire() as wire:
        for number in range(300):
            wire.ask({"op": "bind", "topic": "topic", "queue": f"copy-{number}"})
        target.push(wire, _line(op="send", queue="topic", body="x" * 50_000) * 20)


def schedules(target: Target) -> None:
    """Add schedules whose rules take long to work out, and that are due each second."""
    with target.wire() as wire:
        lines = [
            _line(op="schedule_add", name=f"s{n}", queue="h", cron="0 0 29 2 MON", body="x", replace=True)
            for n in range(200)
        ]
        lines += [_line(op="schedule_add", name=f"t{n}", queue="h", every=1, body="x", replace=True) for n in range(99)]
        target.push(wire, b"".join(lines))
        wire.send({"op": "status", "rid": "last"})
        while wire.read().get("rid") != "last":
            pass


# ── waiting, leaving, half lines ────────────────────────────────────────────────────────────────────────────


def waits_that_leave(target: Target) -> None:
    lines = [
        b"".join(_line(op="receive", queue="w", wait=900) for _ in range(250)),
        b"".join(_line(op="result", queue="w", id="same", wait=900) for _ in range(250)),
        b"".join(_line(op="result", queue="w", id=f"r{number}", wait=900) for number in range(250)),
        b"".join(_line(op="once", key="k", token=f"t{number}", wait=900) for number in range(250)),
        b"".join(_line(op="tail", queue="w", wait=900) for _ in range(250)),
    ]
    with target.clients(200) as clients:
        for number, client in enumerate(clients):
            target.push(client, lines[number % len(lines)])


def cancels(target: Target) -> None:
    with target.wire() as wire:
        pairs = [
            _line(op="receive", queue="w", wait=900, rid=number) + _line(op="cancel", request=number)
            for number in range(5000)
        ]
        target.push(wire, b"".join(pairs))


def connections(target: Target) -> None:
    with target.clients(2000) as clients:
        for client in clients[::10]:
            client.send({"op": "status"})


def half_lines(target: Target) -> None:
    with target.clients(300) as clients:
        for client in clients:
            target.push(client, b'{"op":"send","queue":"h","body":"' + b"x" * 2 * MEBIBYTE, 0.2)


def waits_that_wake(target: Target) -> None:
    """Let one message wake many that wait."""
    with target.clients(40) as clients, target.wire() as wire:
        for client in clients:
            target.push(client, _line(op="receive", queue="w", wait=900) * 200)
        for _ in range(200):
            wire.ask({"op": "send", "queue": "w", "body": "x"})
            if target.over:
                break


# ── large replies ───────────────────────────────────────────────────────────────────────────────────────────


def large_outputs(target: Target) -> None:
    with target.wire() as wire:
        wire.ask({"op": "once", "key": "big", "token": "t"})
        wire.ask({"op": "once_done", "key": "big", "token": "t", "output": "z" * 8_000_000})
    with target.clients(20) as clients:
        for client in clients:
            target.push(client, b'{"op":"once","key":"big","token":"u","wait":1}\n' * 50)
        time.sleep(0.5)  # the daemon makes the replies; nothing tells when


def large_bodies(target: Target) -> None:
    with target.wire() as wire:
        if not wire.ask({"op": "peek", "queue": "big"})["messages"]:
            _fill_large(wire)
        lines = _line(op="peek", queue="big", limit=100) + _line(op="tail", queue="big", last=30, wait=1)
        target.push(wire, lines * 50)
        wire.close()
    with target.wire() as slow:
        slow.send(*[{"op": "receive", "queue": "big", "limit": 30, "lease": 1}] * 20)
        slow.socket.recv(1000)


def _fill_large(wire: Wire) -> None:
    for _ in range(4):
        wire.ask({"op": "send_many", "queue": "big", "messages": _messages(15, MEBIBYTE)})


def filters(target: Target) -> None:
    """Search through many messages for what is in none of them."""
    with target.wire() as wire:
        if not wire.ask({"op": "peek", "queue": "many"})["messages"]:
            _fill(wire, "many", 100_000, 100)
        target.push(wire, _line(op="peek", queue="many", contains="nowhere", limit=1000) * 200)


# ── many rows ───────────────────────────────────────────────────────────────────────────────────────────────


def leases_that_end_together(target: Target) -> None:
    with target.wire() as wire:
        _fill(wire, "leased", 30_000)
        until = time.monotonic() + 4
        for _ in range(30):
            _lease(wire, "leased", 1000, lease=max(0.1, until - time.monotonic()))
        while wire.ask({"op": "status"})["leased"] and not target.over:
            time.sleep(0.05)  # between two looks


def bound_leases(target: Target) -> None:
    with target.wire() as wire:
        if len(wire.ask({"op": "peek", "queue": "bound", "limit": 1})["messages"]) == 0:
            _fill(wire, "bound", 30_000)
        _lease(wire, "bound", 30_000, bound=True)


def ends_under_leases(target: Target) -> None:
    """Let messages expire while they are leased, and others behind them."""
    with target.wire() as wire:
        _fill(wire, "short", 20_000, ttl=3)
        _lease(wire, "short", 20_000, lease=5)
        _fill(wire, "short", 10_000, ttl=1)
        for _ in range(500):
            wire.ask({"op": "send", "queue": "short", "body": "", "ttl": 0.01})
            if target.over:
                return


def due_together(target: Target) -> None:
    with target.wire() as wire:
        at = time.time() + 3
        _fill(wire, "due", 30_000, at=at, ttl=4)
        while time.time() < at + 3 and not target.over:
            time.sleep(0.05)  # until they are due


def one_group(target: Target) -> None:
    with target.wire() as wire:
        _fill(wire, "group", 10_000, group="g")
        for _ in range(300):
            (receipt,) = _lease(wire, "group", 1)
            wire.ask({"op": "nack", "receipt": receipt, "delay": 0})
            if target.over:
                break
        wire.ask({"op": "purge", "queue": "group"})


def dead_letters(target: Target) -> None:
    with target.wire() as wire:
        _fill(wire, "dead", 3000)
        for receipt in _lease(wire, "dead", 3000, lease=60):
            wire.send({"op": "reject", "receipt": receipt, "error": "e" * 900})
        for _ in range(3000):
            wire.read()
        wire.ask({"op": "redrive", "queue": "dead", "all": True})
        wire.ask({"op": "purge", "queue": "dead"})


def drops_of_the_oldest(target: Target) -> None:
    """Keep a queue full whose oldest messages are leased (its limit is in the configuration)."""
    with target.wire() as wire:
        _fill(wire, "full", 20_000)
        _lease(wire, "full", 19_000, lease=60, bound=True)
        target.push(wire, _line(op="send", queue="full", body="") * 5000)


def queue_names(target: Target) -> None:
    with target.wire() as wire:
        prefix = f"{time.monotonic_ns()}"
        for start in range(0, 5000, 1000):
            sends = [{"queue": f"n{prefix}-{start + number}", "body": ""} for number in range(1000)]
            wire.ask({"op": "settle", "send": sends})
        target.push(wire, _line(op="queues") * 20)
        for number in range(5000):
            if target.over:
                return
            wire.send({"op": "purge", "queue": f"n{prefix}-{number}", "rid": 1})
            wire.read()


def extends(target: Target) -> None:
    with target.wire() as wire:
        _fill(wire, "extended", 1000)
        receipts = _lease(wire, "extended", 1000, lease=60)
        target.push(wire, b"".join(_line(op="extend", receipt=receipt, seconds=1) for receipt in receipts * 20))


def large_returns(target: Target) -> None:
    """Give large messages back all at once, and redrive large dead letters in a circle."""
    with target.wire() as wire:
        if not wire.ask({"op": "peek", "queue": "back", "limit": 1})["messages"]:
            for _ in range(10):
                wire.ask({"op": "send_many", "queue": "back", "messages": _messages(10, MEBIBYTE - 100)})
        receipts = _lease(wire, "back", 100, lease=60)
        wire.ask({"op": "release", "receipts": receipts})
        for receipt in _lease(wire, "back", 100, lease=60):
            wire.send({"op": "reject", "receipt": receipt, "error": "e" * 900})
        for _ in range(100):
            wire.read()
        after: int | None = 0
        while after is not None:
            after = wire.ask({"op": "redrive", "queue": "back", "all": True, "after": after}).get("after")


def one_by_one(target: Target) -> None:
    """Send each request alone, each as heavy as a light line can be, and wait for no reply."""
    with target.wire() as wire:
        for number in range(300):
            wire.send({"op": "send", "queue": "alone", "body": "x" * 4000}, {"op": "purge", "queue": "alone"})
            if number % 10 == 0:
                time.sleep(0.001)  # so that the daemon reads them one by one


def resumes(target: Target) -> None:
    """Let thousands wait for a queue that is paused and resumed."""
    with target.clients(32) as clients, target.wire() as wire:
        wire.ask({"op": "pause", "queue": "paused"})
        for client in clients:
            target.push(client, _line(op="receive", queue="paused", wait=900) * 250)
        while not target.over:
            wire.ask({"op": "resume", "queue": "paused"})
            wire.ask({"op": "pause", "queue": "paused"})


def many_receivers(target: Target) -> None:
    """Send a thousand messages at once to a thousand that wait."""
    with target.clients(4) as clients, target.wire() as wire:
        while not target.over:
            for client in clients:
                client.send(*[{"op": "receive", "queue": "many-wait", "wait": 900}] * 250)
            wire.ask({"op": "send_many", "queue": "many-wait", "messages": _messages(1000)})
            for client in clients:
                for _ in range(250):
                    client.read()


def many_groups(target: Target) -> None:
    """Store messages of which each has a group of its own, the urgent ones last, and nack them."""
    with target.wire() as wire:
        for start in range(0, 5000, 1000):
            messages = [{"body": "", "group": f"g{start + n}", "priority": (start + n) % 100} for n in range(1000)]
            wire.ask({"op": "send_many", "queue": "groups", "messages": messages})
        for receipt in _lease(wire, "groups", 1000, lease=60):
            wire.send({"op": "nack", "receipt": receipt, "delay": 0})
        for _ in range(1000):
            wire.read()
        wire.ask({"op": "purge", "queue": "groups"})


def edits(target: Target) -> None:
    """Change a large body again and again."""
    with target.wire() as wire:
        wire.ask({"op": "send", "queue": "edited", "id": "e", "body": "x"})
        lines = [_line(op="edit", queue="edited", id="e", body=letter * (MEBIBYTE - 1000)) for letter in "ab"]
        target.push(wire, b"".join(lines) * 50)


def most_copies(target: Target) -> None:
    """Store as many copies as one request may."""
    with target.wire() as wire:
        for number in range(100):
            wire.ask({"op": "bind", "topic": "wide", "queue": f"wide-{number}"})
        while not target.over:
            wire.ask({"op": "send_many", "queue": "wide", "messages": _messages(250)})


def large_finishes(target: Target) -> None:
    """Store large outputs, one after the other."""
    with target.wire() as wire:
        for number in range(20):
            key = f"{time.monotonic_ns()}-{number}"
            wire.send({"op": "once", "key": key, "token": "t"})
            done = {"op": "once_done", "key": key, "token": "t", "output": "z" * 8_000_000, "ttl": 1}
            target.push(wire, json.dumps(done).encode() + b"\n")


# ── files ───────────────────────────────────────────────────────────────────────────────────────────────────


def _leave(target: Target, count: int, content: bytes) -> None:
    here = target.spool / "files"
    here.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        name = f"{time.monotonic_ns()}-{number}.eoq"
        (here / f".{name}").write_bytes(content)
        (here / f".{name}").rename(here / name)
        if target.over:
            return


def wrong_files(target: Target) -> None:
    _leave(target, 3000, b'{"ttl": "five"}\nbody')


def many_files(target: Target) -> None:
    _leave(target, 5000, b"{}\nbody")


def large_files(target: Target) -> None:
    _leave(target, 50, b"{}\n" + b"x" * (MEBIBYTE - 10))
    _leave(target, 50, b"[" * 2 * MEBIBYTE)


def strange_names(target: Target) -> None:
    for number in range(1000):
        (target.spool / f"file-{time.monotonic_ns()}-{number}").write_bytes(b"")
        if target.over:
            return


def changing_configuration(target: Target) -> None:
    """Change the configuration beside the spool, to right and wrong ones."""
    file = target.spool.parent / "eoq.toml"
    text = file.read_text()
    for number in range(100):
        file.write_text(f'{text}[queues."q{number}"]\nretention = {number if number % 2 else -number}\n')
        time.sleep(0.03)  # as an editor or a script does
        if target.over:
            break
    file.write_text(text)


HOGS: Final[dict[str, Callable[[Target], None]]] = {
    hog.__name__: hog
    for hog in (
        nothing,
        sends_without_reading,
        garbage,
        deep_lines,
        large_batches,
        small_batches,
        conflicts,
        copies_to_many_queues,
        schedules,
        waits_that_leave,
        cancels,
        connections,
        half_lines,
        waits_that_wake,
        large_outputs,
        large_bodies,
        filters,
        leases_that_end_together,
        bound_leases,
        ends_under_leases,
        due_together,
        one_group,
        dead_letters,
        drops_of_the_oldest,
        queue_names,
        extends,
        large_returns,
        one_by_one,
        resumes,
        many_receivers,
        many_groups,
        edits,
        most_copies,
        large_finishes,
        wrong_files,
        many_files,
        large_files,
        strange_names,
        changing_configuration,
    )
}
"""All hogs, by name."""


def main() -> None:
    """Trouble the daemon of the arguments until the time is over."""
    name, socket, spool, seconds = sys.argv[1:]
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 5000), hard))
    os.nice(1)  # on a machine with few processors, the time that it takes for itself is not what is measured
    target = Target(Path(socket), Path(spool), float(seconds))
    while not target.over:
        with suppress(ConnectionError, AssertionError, TimeoutError, sockets.timeout):  # a hog may be disconnected
            HOGS[name](target)


if __name__ == "__main__":
    main()
