"""The rows of the comparison: the same code measures every peer over its `Connection`.

A rate is in confirmed messages per second. An effect is what `eoq.Inbox` does in one transaction: the id of the message
and a row of the application. For the other peers that is written by hand here.
"""

from __future__ import annotations

import multiprocessing
import os
import sqlite3
import statistics
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import eoq
from tests.bench import measures

from .base import Connection, Running, Taken

BODY = b"x" * 100
BATCH = 100
IDLE_SECONDS = 5.0
TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Place:
    """A peer that runs, and a folder for the files of an application."""

    peer: Running
    folder: Path


@dataclass(frozen=True)
class Row:
    """One line of the table. ``count`` is its number of messages in a full round, ``unit`` what its figure is in."""

    name: str
    label: str
    count: int
    measure: Callable[[Place, int], float | None]
    unit: str = "rate"
    """``rate`` is messages per second, shown as a ratio to raw SQLite. Other figures are shown as they are."""
    aim: float | None = None


# ── sends ───────────────────────────────────────────────────────────────────────────────────────────────────


def _producer(connect: Callable[[str], Connection], count: int, barrier: Barrier) -> None:
    connection = connect("sends")
    barrier.wait()
    for _ in range(count):
        connection.send(BODY)
    barrier.wait()
    connection.close()


def _consumer(connect: Callable[[str], Connection], count: int, barrier: Barrier) -> None:
    connection = connect("takes8")
    barrier.wait()
    for _ in range(count):
        connection.ack(connection.take(1))
    barrier.wait()
    connection.close()


def _together(work: Callable[..., None], place: Place, count: int, processes: int) -> float:
    barrier = multiprocessing.Barrier(processes + 1)
    arguments = (place.peer.connect, count // processes, barrier)
    children = [multiprocessing.Process(target=work, args=arguments) for _ in range(processes)]
    for child in children:
        child.start()
    barrier.wait()
    start = time.perf_counter()
    barrier.wait()
    seconds = time.perf_counter() - start
    for child in children:
        child.join()
    return count / seconds


def send(place: Place, count: int) -> float:
    """One producer, which waits for each confirmation."""
    return _together(_producer, place, count, 1)


def send_8(place: Place, count: int) -> float:
    """Eight producers."""
    return _together(_producer, place, count, 8)


def send_batches(size: int, place: Place, count: int) -> float:
    """Batches of `BATCH` messages of ``size`` bytes."""
    connection = place.peer.connect(f"batches{size}")
    bodies = [b"x" * size] * BATCH
    connection.send_batch(bodies)
    start = time.perf_counter()
    for _ in range(count // BATCH):
        connection.send_batch(bodies)
    seconds = time.perf_counter() - start
    connection.close()
    return count / seconds


# ── receives and acks ───────────────────────────────────────────────────────────────────────────────────────


def _filled(place: Place, queue: str, count: int, size: int = len(BODY)) -> Connection:
    """Return a connection to a queue that has at least ``count`` messages."""
    connection = place.peer.connect(queue)
    whole, rest = divmod(count, BATCH)
    for number in [BATCH] * whole + [rest] * bool(rest):
        connection.send_batch([b"x" * size] * number)
    return connection


def take_one(place: Place, count: int) -> float:
    """Receive and ack one message after the other, each waited for."""
    connection = _filled(place, "takes", count)
    start = time.perf_counter()
    for _ in range(count):
        connection.ack(connection.take(1))
    seconds = time.perf_counter() - start
    connection.close()
    return count / seconds


def take_8(place: Place, count: int) -> float:
    """Eight consumers, one message at a time."""
    _filled(place, "takes8", count).close()
    return _together(_consumer, place, count, 8)


def take_batches(size: int, place: Place, count: int) -> float:
    """Receive and ack `BATCH` messages of ``size`` bytes at a time."""
    return _take_all(_filled(place, f"takes{size}", count, size), count)


def take_with_backlog(backlog: int, place: Place, count: int) -> float:
    """Send, receive and ack by `BATCH` while ``backlog`` messages wait."""
    connection = _filled(place, f"backlog{backlog}", backlog)
    start = time.perf_counter()
    for _ in range(count // BATCH):
        connection.send_batch([BODY] * BATCH)
        _take_batch(connection)
    seconds = time.perf_counter() - start
    connection.close()
    return count / seconds


def _take_all(connection: Connection, count: int) -> float:
    start = time.perf_counter()
    for _ in range(count // BATCH):
        _take_batch(connection)
    seconds = time.perf_counter() - start
    connection.close()
    return count / seconds


def _take_batch(connection: Connection) -> None:
    left = BATCH
    while left:
        messages = connection.take(left)
        connection.ack(messages)
        left -= len(messages)


# ── effects ─────────────────────────────────────────────────────────────────────────────────────────────────


def effect_one(place: Place, count: int) -> float:
    """One transaction of the application for each message, which is acked after it."""
    path = place.folder / "effects.db"
    connection = _filled(place, "effects", count)
    client = getattr(connection, "client", None)
    if client is not None:
        return _eoq_effects(client, path, count)
    return _effects(connection, path, count, 1)


def effect_batches(place: Place, count: int) -> float:
    """One transaction of the application for `BATCH` messages."""
    path = place.folder / "effects.db"
    connection = _filled(place, "effects100", count)
    client = getattr(connection, "client", None)
    if client is None:
        return _effects(connection, path, count, BATCH)
    measures.open_effects(path)
    with eoq.Inbox(path) as inbox:
        messages = client.consume("effects100", prefetch=2 * BATCH)
        start = time.perf_counter()
        for _ in range(count // BATCH):
            inbox.process_many(islice(messages, BATCH), measures.apply)
        seconds = time.perf_counter() - start
    connection.close()
    return count / seconds


def _eoq_effects(client: eoq.Client, path: Path, count: int) -> float:
    measures.open_effects(path)
    stop = threading.Event()
    left = count
    ended = 0.0

    def handle(database: sqlite3.Connection, message: eoq.Message) -> None:
        nonlocal left, ended
        measures.apply(database, message)
        left -= 1
        if not left:
            ended = time.perf_counter()
            stop.set()

    with client, eoq.Inbox(path) as inbox:
        start = time.perf_counter()
        client.work("effects", handle, inbox=inbox, prefetch=100, stop=stop)
    return count / (ended - start)


def _effects(connection: Connection, path: Path, count: int, batch: int) -> float:
    measures.open_effects(path)
    database = measures.open_raw(path)
    database.execute("create table if not exists processed (id text primary key) without rowid")
    start = time.perf_counter()
    left = count
    while left:
        messages = connection.take(min(batch, left))
        database.execute("begin immediate")
        _apply(database, messages)
        database.execute("commit")
        connection.ack(messages)
        left -= len(messages)
    seconds = time.perf_counter() - start
    database.close()
    connection.close()
    return count / seconds


def _apply(database: sqlite3.Connection, messages: Sequence[Taken]) -> None:
    for message in messages:
        if database.execute("insert or ignore into processed values (?)", (message.id,)).rowcount:
            database.execute("insert into effect (body) values (?)", (message.body,))


# ── latencies and costs ─────────────────────────────────────────────────────────────────────────────────────


def _waiting(connect: Callable[[str], Connection], count: int, results: Any, barrier: Barrier) -> None:
    connection = connect("latency")
    barrier.wait()
    latencies = []
    for _ in range(count):
        (message,) = connection.take(1)
        latencies.append(time.time() - float(message.body))
        connection.ack([message])
        barrier.wait()
    results.put(latencies)
    connection.close()


def latencies(place: Place, count: int) -> list[float]:
    """Return the milliseconds from each send to its arrival at a consumer that waits in another process."""
    results: Any = multiprocessing.Queue()
    barrier = multiprocessing.Barrier(2)
    process = multiprocessing.Process(target=_waiting, args=(place.peer.connect, count, results, barrier))
    connection = place.peer.connect("latency")
    process.start()
    barrier.wait()
    for _ in range(count):
        time.sleep(0.003)  # the consumer has come back to its wait by then
        connection.send(str(time.time()).encode())
        barrier.wait()
    found: list[float] = results.get()
    process.join()
    connection.close()
    return sorted(1000 * seconds for seconds in found)


def latency_p50(place: Place, count: int) -> float:
    """The median."""
    return statistics.median(latencies(place, count))


def latency_p99(place: Place, count: int) -> float:
    """The time that one of a hundred messages exceeds."""
    return latencies(place, count)[int(count * 0.99)]


def shell(place: Place, count: int) -> float | None:
    """Return the milliseconds of a shell command that sends one message."""
    if place.peer.shell is None:
        return None
    times = []
    for _ in range(count):
        start = time.perf_counter()
        subprocess.run(place.peer.shell, check=True, stdout=subprocess.DEVNULL)
        times.append(1000 * (time.perf_counter() - start))
    return statistics.median(times)


def cpu_per_message(place: Place, count: int) -> float | None:
    """Return the processor time, in microseconds, that server and client spend on a send, a receive and an ack."""
    if not place.peer.pids:
        return None
    connection = place.peer.connect("cpu")
    before = time.process_time() + _server_cpu(place.peer.pids)
    for _ in range(count):
        connection.send(BODY)
        connection.ack(connection.take(1))
    seconds = time.process_time() + _server_cpu(place.peer.pids) - before
    connection.close()
    return 1e6 * seconds / count


def memory(place: Place, _count: int) -> float | None:
    """Return the megabytes of memory that the server has now."""
    if not place.peer.pids:
        return None
    return sum(_field(pid, "VmRSS:") for pid in _family(place.peer.pids)) / 1024


def idle_wakeups(place: Place, _count: int) -> float | None:
    """Return how often a second the server wakes up while nothing happens."""
    if not place.peer.pids:
        return None
    before = sum(_field(pid, "voluntary_ctxt_switches:") for pid in _family(place.peer.pids))
    time.sleep(IDLE_SECONDS)  # this is what is measured
    after = sum(_field(pid, "voluntary_ctxt_switches:") for pid in _family(place.peer.pids))
    return (after - before) / IDLE_SECONDS


def _family(pids: Sequence[int]) -> list[int]:
    """Return processes and their children."""
    found = list(pids)
    for pid in found:
        for children in Path(f"/proc/{pid}/task").glob("*/children"):
            found += [int(child) for child in children.read_text().split()]
    return found


def _server_cpu(pids: Sequence[int]) -> float:
    ticks = 0
    for pid in _family(pids):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / TICKS


def _field(pid: int, name: str) -> int:
    total = 0
    for status in Path(f"/proc/{pid}").glob("status" if name == "VmRSS:" else "task/*/status"):
        total += sum(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith(name))
    return total
