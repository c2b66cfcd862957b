"""The benchmark: eoq beside raw SQLite at equal durability, in one run, as a table of ratios.

    python tests/bench/run.py [--json] [--rounds N] [--quick]

Every figure is messages per second, confirmed (on disk, fsynced), 100-byte bodies; the ratio is to raw SQLite in
process (WAL, synchronous=FULL) with one insert a commit. Rounds of raw and eoq alternate and the median counts,
since a disk's speed drifts by more than what is measured.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sqlite3
import statistics
import subprocess
import sys
import tempfile
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
AIMS = {
    "send, 1 producer": 0.75,
    "send, 8 producers": 3.0,
    "send, batches of 100": 24.0,
    "receive+ack, 1 at a time (prefetched)": 0.85,
    "receive+ack, 100 at a time": 16.0,
    "inbox, 1 at a time": 0.4,
    "inbox, process_many of 100": 8.0,
}


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


def raw_take(path: Path, count: int, batch: int) -> float:
    database = open_raw(path)
    start = time.perf_counter()
    for _ in range(count // batch):
        database.execute("begin immediate")
        rows = database.execute("select id, body from message order by id limit ?", (batch,)).fetchall()
        database.executemany("delete from message where id = ?", [(row[0],) for row in rows])
        database.execute("commit")
    seconds = time.perf_counter() - start
    database.close()
    return count / seconds


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


def eoq_take_one(socket: str, count: int) -> float:
    with eoq.connect(socket) as client:
        messages = client.consume("bench", prefetch=100)
        start = time.perf_counter()
        for _ in range(count):
            next(messages).ack()
        return count / (time.perf_counter() - start)


def eoq_work(socket: str, count: int, handler: Callable[..., None], inbox: eoq.Inbox | None = None) -> float:
    """One message after the other through `client.work`; at the end all are confirmed but the last few (0.3 %)."""
    stop = threading.Event()
    left = count
    ended = 0.0

    def handle(*arguments: Any) -> None:
        nonlocal left, ended
        handler(*arguments)
        left -= 1
        if not left:
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


def eoq_send_stream(socket: str, count: int) -> float:
    with eoq.connect(socket) as client:
        client.ask("status")
        start = time.perf_counter()
        for _ in client.send_stream("bench", (BODY for _ in range(count))):
            pass
        return count / (time.perf_counter() - start)


def eoq_take_batches(socket: str, count: int) -> float:
    with eoq.connect(socket) as client:
        messages = client.consume("bench", prefetch=200)
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
    """The median seconds from a send to its arrival at a consumer that waits in another process."""
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


@contextmanager
def relay(socket: str, database: Path) -> Iterator[int]:
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "eoq.cli", "relay", str(database), "--socket", socket], stderr=subprocess.PIPE
    )
    assert process.stderr is not None
    process.stderr.readline()
    try:
        yield process.pid
    finally:
        process.terminate()
        process.wait()
        process.stderr.close()


def holds_rows(database: sqlite3.Connection) -> bool:
    return bool(database.execute("select exists (select 1 from eoq_outbox)").fetchone()[0])


def outbox_to_consumer(socket: str, path: Path, count: int) -> float:
    """The median seconds from the commit of an outbox row to its delivery, through a real `eoq relay`."""
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
                time.sleep(0.001)  # unlike a busy loop, it takes no processor from the relay
            database.execute("begin immediate")
            outbox.send("latency", str(time.time()))
            database.execute("commit")
        latencies = results.get()
    process.join()
    database.close()
    return statistics.median(latencies)


def eoq_relay_rows(socket: str, path: Path, count: int) -> float:
    """Rows a second of one large transaction, from its commit to an empty outbox."""
    database = open_raw(path)
    outbox = eoq.Outbox(database)
    with relay(socket, path):
        database.execute("begin immediate")
        for _ in range(count):
            outbox.send("bench", BODY)
        database.execute("commit")
        start = time.perf_counter()
        while holds_rows(database):
            time.sleep(0.001)  # unlike a busy loop, it takes no processor from the relay
        seconds = time.perf_counter() - start
    database.close()
    return count / seconds


def fdatasync_seconds(folder: Path) -> float:
    descriptor = os.open(folder / "fdatasync", os.O_CREAT | os.O_WRONLY, 0o600)
    os.write(descriptor, b"x" * 4096 * 100)
    times = []
    for number in range(500):
        os.pwrite(descriptor, b"y" * 4096, number % 100 * 4096)
        start = time.perf_counter()
        os.fdatasync(descriptor)
        times.append(time.perf_counter() - start)
    os.close(descriptor)
    return statistics.median(times)


def status_seconds(socket: str) -> float:
    """The median round trip of a request that touches no disk."""
    with eoq.connect(socket) as client:
        times = []
        for _ in range(1000):
            start = time.perf_counter()
            client.ask("status")
            times.append(time.perf_counter() - start)
    return statistics.median(times)


@contextmanager
def daemon(folder: Path) -> Iterator[tuple[str, int]]:
    socket = str(folder / "s")
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "eoq.cli", "daemon", "--db", str(folder / "eoq.db"), "--socket", socket],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert process.stdout is not None
    process.stdout.readline()
    try:
        yield socket, process.pid
    finally:
        process.terminate()
        process.wait()


def resident_megabytes(pid: int) -> float:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return float("nan")
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:")) / 1024


def one_round(folder: Path, scale: float) -> dict[str, float]:
    def count(number: int) -> int:
        return max(800, int(number * scale) // 800 * 800)

    rates: dict[str, float] = {}

    def measure(name: str, function: Callable[[], float]) -> None:
        rates[name] = function()

    with daemon(folder) as (socket, _):
        measure("raw send", lambda: raw_send(folder / "raw.db", count(3200), 1))
        measure("send, 1 producer", lambda: eoq_send(socket, count(3200), 1))
        measure("send, 8 producers", lambda: eoq_send(socket, count(12800), 8))
        measure("raw send", lambda: (rates["raw send"] + raw_send(folder / "raw.db", count(3200), 1)) / 2)
        measure("raw send, batches of 100", lambda: raw_send(folder / "raw.db", count(32000), 100))
        measure("send, batches of 100", lambda: eoq_send_batches(socket, count(32000)))
        measure("send_many of all, pipelined", lambda: eoq_send_stream(socket, count(32000)))
        measure("raw take", lambda: raw_take(folder / "raw.db", count(1600), 1))
        measure("receive+ack, 1 at a time (prefetched)", lambda: eoq_work_one(socket, count(9600)))
        measure("the same, each ack waited for", lambda: eoq_take_one(socket, count(3200)))
        measure("raw take, batches of 100", lambda: raw_take(folder / "raw.db", count(24000), 100))
        measure("receive+ack, 100 at a time", lambda: eoq_take_batches(socket, count(24000)))
        measure("inbox, 1 at a time", lambda: eoq_work_inbox(socket, folder / "app.db", count(9600)))
        measure(
            "the same, each ack waited for by the inbox", lambda: eoq_inbox_one(socket, folder / "app.db", count(3200))
        )
        measure("inbox, process_many of 100", lambda: eoq_inbox_many(socket, folder / "app.db", count(16000)))
        measure("outbox, relayed", lambda: eoq_relay_rows(socket, folder / "outbox.db", count(16000)))
        rates["outbox row to waiting consumer, seconds"] = outbox_to_consumer(socket, folder / "outbox.db", 200)
        rates["send to waiting consumer, seconds"] = send_to_consumer(socket, 500)
        rates["status, seconds"] = status_seconds(socket)
        rates["fdatasync, seconds"] = fdatasync_seconds(folder)
    return rates


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", action="store_true", help="print the medians as one JSON object")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="a quarter of the messages")
    options = parser.parse_args()
    rounds = []
    for number in range(options.rounds):
        with tempfile.TemporaryDirectory(dir=os.environ.get("EOQ_BENCH_DIR")) as folder:
            rounds.append(one_round(Path(folder), 0.25 if options.quick else 1.0))
        if sys.stderr.isatty():
            print(f"\rround {number + 1} of {options.rounds}", end="", file=sys.stderr)
    ratios = {name: statistics.median(one[name] / one["raw send"] for one in rounds) for name in rounds[0]}
    rates = {name: statistics.median(one[name] for one in rounds) for name in rounds[0]}
    if options.json:
        print(json.dumps({"rates": rates, "ratios": ratios, "rounds": options.rounds}))
        return
    print(f"{'':42} {'per second':>11} {'ratio':>7} {'aim':>6} {'of aim':>7}")
    for name, rate in rates.items():
        if name.endswith("seconds"):
            continue
        aim = AIMS.get(name)
        against = f"{aim:6g} {ratios[name] / aim:7.0%}" if aim else ""
        print(f"{name:42} {rate:11,.0f} {ratios[name]:7.2f} {against}")
    floor = rates["fdatasync, seconds"] + rates["status, seconds"]
    latency = rates["send to waiting consumer, seconds"]
    print(
        f"\nsend → waiting consumer, p50: {latency * 1e3:.2f} ms = {latency / floor:.1f} times "
        f"(one fdatasync {rates['fdatasync, seconds'] * 1e3:.2f} ms + one round trip "
        f"{rates['status, seconds'] * 1e3:.2f} ms); aim 2"
    )
    relayed = rates["outbox row to waiting consumer, seconds"]
    print(f"outbox row → delivered to a waiting consumer, p50 (ms): {relayed * 1e3:.2f}; aim 15")


if __name__ == "__main__":
    main()
