"""What `eoq bench` measures: each row for raw SQLite in this process, and for eoq, a daemon away.

A row is given a time, and returns how many messages it did in how many seconds. Both sides are on disk after each
commit: WAL, ``synchronous=FULL``.
"""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from eoq.client.blocking import Client
from eoq.inbox.blocking import Inbox
from eoq.message import Message

BODY: Final = b"x" * 100
QUEUE: Final = "bench"
BATCH: Final = 100
MOST: Final = 20_000
"""Messages of one measurement that receives."""
SYNCS: Final = 1000


class Stopwatch:
    """Counts messages until its time is over."""

    def __init__(self, seconds: float) -> None:
        self.count = 0
        self._begun = time.perf_counter()
        self._until = self._begun + seconds

    def goes_on(self, more: int) -> bool:
        """Count ``more`` messages. Return whether there is time left."""
        self.count += more
        return time.perf_counter() < self._until

    @property
    def rate(self) -> float:
        """Messages a second so far."""
        return self.count / (time.perf_counter() - self._begun)


def sync_times(folder: Path, seconds: float) -> list[float]:
    """Return how long it takes to write and sync a page of a file, in seconds, sorted."""
    times: list[float] = []
    until = time.perf_counter() + seconds
    with (folder / "sync").open("wb", buffering=0) as file:
        while not times or (time.perf_counter() < until and len(times) < SYNCS):
            begun = time.perf_counter()
            file.write(bytes(4096))
            os.fsync(file.fileno())
            times.append(time.perf_counter() - begun)
    return sorted(times)


# ── raw SQLite ──────────────────────────────────────────────────────────────────────────────────────────────


class Raw:
    """A table of messages in an SQLite file, used directly: as fast as the disk allows."""

    def __init__(self, folder: Path) -> None:
        self._database = sqlite3.connect(folder / "raw.db", isolation_level=None)
        self._database.executescript(
            """
            pragma journal_mode = wal;
            pragma synchronous = full;
            create table message (id integer primary key, body blob);
            create table ledger (id integer primary key);
            """
        )

    def close(self) -> None:
        """Close the file."""
        self._database.close()

    def send(self, seconds: float, batch: int) -> float:
        """Insert ``batch`` messages in each transaction."""
        watch = Stopwatch(seconds)
        while True:
            self._insert(batch)
            if not watch.goes_on(batch):
                return watch.rate

    def take(self, seconds: float, batch: int, effects: bool = False) -> float:
        """Read and delete ``batch`` messages in each transaction, with an effect for each of them if ``effects``."""
        self._fill()
        watch = Stopwatch(seconds)
        while True:
            self._database.execute("begin immediate")
            rows = self._database.execute("select id, body from message order by id limit ?", (batch,)).fetchall()
            ids = [(id,) for id, _ in rows]
            if effects:
                self._database.executemany("insert into ledger values (?)", ids)
            self._database.executemany("delete from message where id = ?", ids)
            self._database.execute("commit")
            if not watch.goes_on(len(rows)) or not rows:
                return watch.rate

    def _insert(self, count: int) -> None:
        self._database.execute("begin immediate")
        self._database.executemany("insert into message (body) values (?)", [(BODY,)] * count)
        self._database.execute("commit")

    def _fill(self) -> None:
        (stored,) = self._database.execute("select count(*) from message").fetchone()
        self._insert(max(0, MOST - stored))


# ── eoq ─────────────────────────────────────────────────────────────────────────────────────────────────────


class Eoq:
    """The same over a daemon."""

    def __init__(self, client: Client, folder: Path) -> None:
        self._client = client
        ledger = folder / "ledger.db"
        with closing(sqlite3.connect(ledger)) as database:
            database.execute("create table ledger (id text primary key)")
        self._inbox = Inbox(ledger)

    def close(self) -> None:
        """Close the ledger."""
        self._inbox.close()

    def send(self, seconds: float, batch: int) -> float:
        """Send messages, ``batch`` in each request."""
        watch = Stopwatch(seconds)
        bodies = [BODY] * batch
        while True:
            if batch == 1:
                self._client.send(QUEUE, BODY)
            else:
                self._client.send_many(QUEUE, bodies)
            if not watch.goes_on(batch):
                return watch.rate

    def take(self, seconds: float, batch: int) -> float:
        """Receive and ack messages, ``batch`` in each request."""
        self._fill()
        watch = Stopwatch(seconds)
        while True:
            messages = self._client.receive(QUEUE, batch)
            self._client.ack_many([(message, None) for message in messages])
            if not watch.goes_on(len(messages)) or not messages:
                return watch.rate

    def work(self, seconds: float, batch: int) -> float:
        """Handle messages through an inbox, ``batch`` in each transaction of the ledger."""
        self._fill()
        stop = threading.Event()
        watch = Stopwatch(seconds)

        def handle(tx: sqlite3.Connection, message: Message) -> None:
            tx.execute("insert into ledger values (?)", (message.id,))
            if not watch.goes_on(1):
                stop.set()

        options = {"prefetch": batch} if batch == 1 else {"prefetch": 2 * batch, "batch": batch}
        self._client.work(QUEUE, handle, inbox=self._inbox, stop=stop, until_empty=True, **options)
        return watch.rate

    def _fill(self) -> None:
        ready = sum(row["ready"] for row in self._client.queues() if row["name"] == QUEUE)
        for _ in self._client.send_stream(QUEUE, (BODY for _ in range(MOST - ready))):
            pass


# ── the rows ────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class BenchRow:
    """One line of the table: what it is, and how both sides measure it, given the seconds."""

    name: str
    raw: Callable[[Raw, float], float]
    eoq: Callable[[Eoq, float], float]


ROWS: Final = (
    BenchRow("send, one at a time", lambda raw, s: raw.send(s, 1), lambda eoq, s: eoq.send(s, 1)),
    BenchRow("send, 100 at a time", lambda raw, s: raw.send(s, BATCH), lambda eoq, s: eoq.send(s, BATCH)),
    BenchRow("receive and ack, one at a time", lambda raw, s: raw.take(s, 1), lambda eoq, s: eoq.take(s, 1)),
    BenchRow("receive and ack, 100 at a time", lambda raw, s: raw.take(s, BATCH), lambda eoq, s: eoq.take(s, BATCH)),
    BenchRow("effect once, one at a time", lambda raw, s: raw.take(s, 1, True), lambda eoq, s: eoq.work(s, 1)),
    BenchRow("effect once, 100 at a time", lambda raw, s: raw.take(s, BATCH, True), lambda eoq, s: eoq.work(s, BATCH)),
)
