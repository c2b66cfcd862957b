"""What the rows of the benchmark measure: each function returns messages per second, or seconds.

Receiving functions expect that the queue ``bench`` has enough messages; see `fill`.
"""

from __future__ import annotations

import multiprocessing
import os
import sqlite3
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import eoq

BODY = b"x" * 100
BODY_1K = b"x" * 1024
SPARE = 400
"""Messages that are in the queue beyond those that a row receives, since consumers prefetch."""


# ── processes ───────────────────────────────────────────────────────────────────────────────────────────────


@contextmanager
def daemon(folder: Path) -> Iterator[str]:
    """Run a daemon in ``folder``, and yield its socket."""
    with daemon_process(folder) as (_, socket):
        yield socket


@contextmanager
def daemon_process(folder: Path) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """Run a daemon in ``folder``, and yield its process and its socket."""
    socket = str(folder / "s")
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "eoq.cli", "daemon", "--db", str(folder / "eoq.db"), "--socket", socket],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert process.stdout is not None
    process.stdout.readline()
    try:
        yield process, socket
    finally:
        process.terminate()
        process.wait()
        process.stdout.close()


@contextmanager
def relay(socket: str, database: Path) -> Iterator[None]:
    """Run `eoq relay` on a file."""
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "eoq.cli", "relay", str(database), "--socket", socket], stderr=subprocess.PIPE
    )
    assert process.stderr is not None
    process.stderr.readline()
    try:
        yield
    finally:
        process.terminate()
        process.wait()
        process.stderr.close()


def fill(socket: str, count: int, queue: str = "bench") -> None:
    """Send as many messages as are missing for ``count`` of them to be received."""
    body = BODY if queue == "bench" else BODY_1K
    with eoq.connect(socket) as client:
        ready = sum(row["ready"] for row in client.ask("queues")["queues"] if row["name"] == queue)
        for _ in client.send_stream(queue, (body for _ in range(count + SPARE - ready))):
            pass


# ── raw SQLite ──────────────────────────────────────────────────────────────────────────────────────────────


def open_raw(path: Path) -> sqlite3.Connection:
    database = sqlite3.connect(path, isolation_level=None)
    database.executescript("pragma journal_mode = wal; pragma synchronous = full;")
    database.execute("create table if not exists message (id integer primary key, body blob)")
    return database


def raw_send(path: Path, count: int, batch: int) -> float:
    database = open_raw(path)
    start = time.perf_counter()
    for _ in range(count // batch):
        database.execute("begin immediate")
        database.executemany("insert into message (body) values (?)", [(BODY,)] * batch)
        database.execute("commit")
    seconds = time.perf_counter() - start
    database.close()
    return count / seconds


def raw_take(path: Path, count: int, batch: int, body: bytes = BODY) -> float:
    database = open_raw(path)
    (stored,) = database.execute("select count(*) from message").fetchone()
    if stored < count:
        database.execute("begin")
        database.executemany("insert into message (body) values (?)", [(body,)] * (count - stored))
        database.execute("commit")
    start = time.perf_counter()
    for _ in range(count // batch):
        database.execute("begin immediate")
        rows = database.execute("select id, body from message order by id limit ?", (batch,)).fetchall()
        database.executemany("delete from message where id = ?", [(row[0],) for row in rows])
        database.execute("commit")
    seconds = time.perf_counter() - start
    database.close()
    return count / seconds


# ── sends ───────────────────────────────────────────────────────────────────────────────────────────────────


def one_producer(socket: str, count: int, barrier: Barrier) -> None:
    with eoq.connect(socket) as client:
        client.ask("status")
        barrier.wait()
        for _ in range(count):
            client.send("bench", BODY)
        barrier.wait()


def eoq_send(socket: str, count: int, producers: int) -> float:
    barrier = multiprocessing.Barrier(producers + 1)
    processes = [
        multiprocessing.Process(target=one_producer, args=(socket, count // producers, barrier))
        for _ in range(producers)
    ]
    for process in processes:
        process.start()
    barrier.wait()
    start = time.perf_counter()
    barrier.wait()
    seconds = time.perf_counter() - start
    for process in processes:
        process.join()
    return count / seconds


def eoq_send_batches(socket: str, count: int) -> float:
    with eoq.connect(socket) as client:
        client.ask("status")
        start = time.perf_counter()
        for _ in range(count // 100):
            client.send_many("bench", [BODY] * 100)
        return count / (time.perf_counter() - start)


def eoq_send_stream(socket: str, count: int) -> float:
    with eoq.connect(socket) as client:
        client.ask("status")
        start = time.perf_counter()
        for _ in client.send_stream("bench", (BODY for _ in range(count))):
            pass
        return count / (time.perf_counter() - start)


# ── receives and acks ───────────────────────────────────────────────────────────────────────────────────────


def eoq_take_one(socket: str, count: int) -> float:
    with eoq.connect(socket) as client:
        messages = client.consume("bench", prefetch=100)
        start = time.perf_counter()
        for _ in range(count):
            next(messages).ack()
        return count / (time.perf_counter() - start)


def eoq_work(socket: str, count: int, handler: Callable[..., None], inbox: eoq.Inbox | None = None) -> float:
    """Handle one message after the other with `client.work`. All but the last acks (0.3 %) are confirmed at the end."""
    stop = threading.Event()
    remaining = count
    ended = 0.0

    def handle(*arguments: Any) -> None:
        nonlocal remaining, ended
        handler(*arguments)
        remaining -= 1
        if not remaining:
            ended = time.perf_counter()
            stop.set()

    with eoq.connect(socket) as client:
        client.ask("status")
        start = time.perf_counter()
        client.work("bench", handle, inbox=inbox, prefetch=100, stop=stop)
    return count / (ended - start)


def eoq_work_one(socket: str, count: int) -> float:
    return eoq_work(socket, count, lambda _message: None)


def eoq_work_inbox(socket: str, path: Path, count: int) -> float:
    open_effects(path)
    with eoq.Inbox(path) as inbox:
        return eoq_work(socket, count, apply, inbox)


def eoq_take_batches(socket: str, count: int, queue: str = "bench") -> float:
    with eoq.connect(socket) as client:
        messages = client.consume(queue, prefetch=200)
        start = time.perf_counter()
        for _ in range(count // 100):
            client.ack_many([(message, None) for message in islice(messages, 100)])
        return count / (time.perf_counter() - start)


def apply(database: sqlite3.Connection, message: eoq.Message) -> None:
    database.execute("insert into effect (body) values (?)", (message.body,))


def open_effects(path: Path) -> None:
    database = open_raw(path)
    database.execute("create table if not exists effect (id integer primary key, body blob)")
    database.close()


def eoq_inbox_one(socket: str, path: Path, count: int) -> float:
    open_effects(path)
    with eoq.connect(socket) as client, eoq.Inbox(path) as inbox:
        messages = client.consume("bench", prefetch=100)
        start = time.perf_counter()
        for _ in range(count):
            inbox.process(next(messages), apply)
        return count / (time.perf_counter() - start)


def eoq_inbox_many(socket: str, path: Path, count: int) -> float:
    open_effects(path)
    with eoq.connect(socket) as client, eoq.Inbox(path) as inbox:
        messages = client.consume("bench", prefetch=200)
        start = time.perf_counter()
        for _ in range(count // 100):
            inbox.process_many(islice(messages, 100), apply)
        return count / (time.perf_counter() - start)


# ── latencies ───────────────────────────────────────────────────────────────────────────────────────────────


def wait_then_stamp(socket: str, count: int, results: multiprocessing.Queue[list[float]], barrier: Barrier) -> None:
    with eoq.connect(socket) as client:
        messages = client.consume("latency")
        client.ask("status")
        barrier.wait()
        latencies = []
        for _ in range(count):
            message = next(messages)
            latencies.append(time.time() - float(message.text))
            message.ack()
        results.put(latencies)


def send_to_consumer(socket: str, count: int) -> float:
    """Return the median seconds from a send to its arrival at a consumer that waits in another process."""
    results: multiprocessing.Queue[list[float]] = multiprocessing.Queue()
    barrier = multiprocessing.Barrier(2)
    process = multiprocessing.Process(target=wait_then_stamp, args=(socket, count, results, barrier))
    process.start()
    with eoq.connect(socket) as client:
        barrier.wait()
        for _ in range(count):
            while client.ask("status")["waiting"] == 0:
                pass
            client.send("latency", str(time.time()))
    latencies = results.get()
    process.join()
    return statistics.median(latencies)


def holds_rows(database: sqlite3.Connection) -> bool:
    return bool(database.execute("select exists (select 1 from eoq_outbox)").fetchone()[0])


def outbox_to_consumer(socket: str, path: Path, count: int) -> float:
    """Return the median seconds from the commit of an outbox row to its delivery, through a real `eoq relay`."""
    results: multiprocessing.Queue[list[float]] = multiprocessing.Queue()
    barrier = multiprocessing.Barrier(2)
    process = multiprocessing.Process(target=wait_then_stamp, args=(socket, count, results, barrier))
    process.start()
    database = open_raw(path)
    outbox = eoq.Outbox(database)
    with relay(socket, path), eoq.connect(socket) as client:
        barrier.wait()
        for _ in range(count):
            while holds_rows(database) or client.ask("status")["waiting"] == 0:
                time.sleep(0.001)  # a busy loop would take a processor from the relay
            database.execute("begin immediate")
            outbox.send("latency", str(time.time()))
            database.execute("commit")
        latencies = results.get()
    process.join()
    database.close()
    return statistics.median(latencies)


def eoq_relay_rows(socket: str, path: Path, count: int) -> float:
    """Return the relayed rows per second of one large transaction, from its commit until the outbox is empty."""
    database = open_raw(path)
    outbox = eoq.Outbox(database)
    with relay(socket, path):
        database.execute("begin immediate")
        for _ in range(count):
            outbox.send("bench", BODY)
        database.execute("commit")
        start = time.perf_counter()
        while holds_rows(database):
            time.sleep(0.001)  # a busy loop would take a processor from the relay
        seconds = time.perf_counter() - start
    database.close()
    return count / seconds


def fdatasync_seconds(folder: Path, count: int) -> float:
    """Return the median seconds of an fdatasync after a write of one page."""
    descriptor = os.open(folder / "fdatasync", os.O_CREAT | os.O_WRONLY, 0o600)
    os.write(descriptor, b"x" * 4096 * 100)
    times = []
    for number in range(count):
        os.pwrite(descriptor, b"y" * 4096, number % 100 * 4096)
        start = time.perf_counter()
        os.fdatasync(descriptor)
        times.append(time.perf_counter() - start)
    os.close(descriptor)
    return statistics.median(times)


def command_seconds(socket: str, count: int) -> float:
    """Return the median seconds of `eoq send` as a whole process."""
    command = [sys.executable, "-P", "-m", "eoq.cli", "send", "--socket", socket, "command", "hello"]
    times = []
    for _ in range(count):
        start = time.perf_counter()
        subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def status_seconds(socket: str, count: int) -> float:
    """Return the median round trip of a request that needs no disk."""
    with eoq.connect(socket) as client:
        times = []
        for _ in range(count):
            start = time.perf_counter()
            client.ask("status")
            times.append(time.perf_counter() - start)
    return statistics.median(times)
