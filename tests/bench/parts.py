"""Where the time of a send, and of a receive with an ack, goes: each part alone, and the whole.

    python -m tests.bench.parts [--rounds N] [--json]

All files are in /dev/shm where there is one, so that nothing of the disk is in it: on a disk, the time of a sync is to
be added for each transaction. A part that runs in one process is measured in this process, by its processor time. The
whole, and the bare round trip, are between two processes, by the clock. The table has the medians of the rounds in
microseconds a message: for one message alone, and for 100 in one request. Bodies have 100 bytes.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import socket
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import msgspec

import eoq
from eoq.daemon import requests as ask
from eoq.daemon.config.settings import defaults
from eoq.daemon.records import Claimed, DeliveryRef
from eoq.daemon.request_values import new_message
from eoq.daemon.store.commands import Claim, Command, Put, Settle
from eoq.daemon.store.sqlite.store import SqliteStore
from eoq.ids import new_id
from eoq.message import Message
from eoq.protocol import calls
from tests.bench.large import daemon
from tests.support import memory_folder

BODY = b"x" * 100
COUNTS = {1: 1000, 100: 50}
"""How many messages are in a request, and how many requests are in a measurement."""
NOW = 1_800_000_000.0


@dataclass
class Part:
    """One line of the table: microseconds a message, of each round, by the messages of a request."""

    name: str
    figures: dict[int, list[float]] = field(default_factory=dict)

    def add(self, count: int, seconds: float) -> None:
        """Note what a measurement took."""
        self.figures.setdefault(count, []).append(seconds / COUNTS[count] / count * 1e6)

    def median(self, count: int) -> float | None:
        """Return the median of the rounds; None where it was not measured."""
        found = self.figures.get(count)
        return statistics.median(found) if found else None


class Parts:
    """The lines of the table, in the order in which they were first measured."""

    def __init__(self) -> None:
        self.all: dict[str, Part] = {}

    def measure(self, name: str, count: int, run: Callable[[], object], *, by_clock: bool = False) -> None:
        """Run something as often as `COUNTS` says, and note the time."""
        clock = time.perf_counter if by_clock else time.process_time
        start = clock()
        for _ in range(COUNTS[count]):
            run()
        self.all.setdefault(name, Part(name)).add(count, clock() - start)


# ── in one process ──────────────────────────────────────────────────────────────────────────────────────────


def raw(parts: Parts, folder: Path) -> None:
    """Insert into one table, one transaction for each request."""
    with closing(sqlite3.connect(folder / "raw.db", isolation_level=None)) as file:
        file.executescript("pragma journal_mode = wal; pragma synchronous = full; create table if not exists t (b);")
        for count in COUNTS:
            rows = [(BODY,)] * count

            def insert(rows: list[tuple[bytes]] = rows) -> None:
                file.execute("begin immediate")
                file.executemany("insert into t values (?)", rows)
                file.execute("commit")

            parts.measure("raw SQLite", count, insert)


def python_of_a_send(parts: Parts) -> None:
    """Make and write the request, read it, make messages of it, write the reply, and read that."""
    encoder, decoder = msgspec.json.Encoder(), msgspec.json.Decoder()
    for count in COUNTS:

        def request(count: int = count) -> tuple[calls.Call[Any], bytes]:
            if count == 1:
                call: calls.Call[Any] = calls.send("q", eoq.Outgoing(BODY))
            else:
                (call,) = calls.send_batches("q", [BODY] * count)
            return call, encoder.encode({**call.fields, "rid": 1})

        call, line = request()

        def messages(line: bytes = line) -> list[object]:
            one = ask.decode(line)
            if isinstance(one, ask.SendMany):
                return [new_message("q", content, NOW, new_id) for content in one.messages]
            assert isinstance(one, ask.Send)
            return [new_message("q", one, NOW, new_id)]

        ids = [f"{number:036}" for number in range(count)]
        reply: dict[str, object] = {"rid": 1, "ok": True}
        reply |= {"id": ids[0], "duplicate": False} if count == 1 else {"ids": ids, "duplicates": []}
        parts.measure("send: client, request", count, request)
        parts.measure("send: daemon, reads it and makes messages", count, messages)
        parts.measure("send: daemon, reply", count, partial(ask.encode, reply))
        written = ask.encode(reply)

        def read(call: calls.Call[Any] = call, written: bytes = written) -> None:
            call.read(decoder.decode(written))

        parts.measure("send: client, reads it", count, read)


async def store(parts: Parts, folder: Path) -> None:
    """Put, claim and settle messages in the store, in one transaction for each request."""
    path = folder / "store.db"
    file = await SqliteStore.open(path)
    try:
        for count in COUNTS:
            line = msgspec.json.encode({"op": "send", "queue": "q", "body": BODY.decode()})
            one = ask.decode(line)
            assert isinstance(one, ask.Send)
            puts = iter(
                [
                    Put(NOW, tuple(new_message("q", one, NOW, new_id) for _ in range(count)), defaults)
                    for _ in range(COUNTS[count])
                ]
            )
            claimed: list[Claimed] = []
            claim = Claim(NOW, "q", count, 1 << 30, defaults)

            def take(claim: Claim = claim, claimed: list[Claimed] = claimed) -> None:
                (outcome,) = file.transact([claim], durable=False)
                assert isinstance(outcome, Claimed)
                claimed.append(outcome)

            parts.measure("send: store", count, partial(_run_next, file, puts))
            parts.measure("receive: store", count, take)
            settles = iter([Settle(NOW, [(ref, None) for ref in _refs(one)], (), defaults) for one in claimed])
            parts.measure("ack: store", count, partial(_run_next, file, settles))
    finally:
        await file.close()


def _run_next(file: SqliteStore, commands: Iterator[Command[Any]]) -> None:
    (outcome,) = file.transact([next(commands)])
    assert not isinstance(outcome, Exception), outcome


def _refs(claimed: Claimed) -> list[DeliveryRef]:
    return [
        DeliveryRef(
            message.seq,
            claimed.delivery_number,
            queue="q",
            size=len(message.body),
            queue_id=claimed.queue_id,
            id=message.id,
        )
        for message in claimed.messages
    ]


# ── between two processes ───────────────────────────────────────────────────────────────────────────────────


class Echo(asyncio.Protocol):
    """Sends back what it reads."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._transport.write(data)


def _echo(path: str, ready: Connection) -> None:
    async def serve() -> None:
        server = await asyncio.get_running_loop().create_unix_server(Echo, path)
        ready.send(True)
        await server.serve_forever()

    asyncio.run(serve())


@contextmanager
def echo(folder: Path) -> Iterator[socket.socket]:
    """Run a bare asyncio server in another process, and connect to it."""
    path = str(folder / "echo")
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=_echo, args=(path, there))
    process.start()
    here.recv()
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(path)
            yield connection
    finally:
        process.terminate()
        process.join()


def whole(parts: Parts, client: eoq.Client, bare: socket.socket) -> None:
    """Make round trips, sends, and receives with acks that are waited for."""

    def trip() -> None:
        bare.sendall(BODY)
        assert bare.recv(1024)

    parts.measure("a bare round trip (asyncio)", 1, trip, by_clock=True)
    parts.measure("send: the whole", 1, lambda: client.send("q", BODY), by_clock=True)
    parts.measure("send: the whole", 100, lambda: client.send_many("q", [BODY] * 100), by_clock=True)

    def take_one() -> None:
        (message,) = client.receive("q", 1)
        message.ack()

    def take_many() -> None:
        messages: list[Message] = client.receive("q", 100)
        client.ack_many([(message, None) for message in messages])

    parts.measure("receive and ack: the whole", 1, take_one, by_clock=True)
    parts.measure("receive and ack: the whole", 100, take_many, by_clock=True)


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    parts = Parts()
    with tempfile.TemporaryDirectory(dir=memory_folder()) as name:
        folder = Path(name)
        with daemon(folder), eoq.connect(folder / "s") as client, echo(folder) as bare:
            for _ in range(options.rounds):
                raw(parts, folder)
                python_of_a_send(parts)
                asyncio.run(store(parts, folder))
                whole(parts, client, bare)
    medians = {part.name: {count: part.median(count) for count in COUNTS} for part in parts.all.values()}
    if options.json:
        print(json.dumps(medians))
        return
    print(f"{'microseconds a message':44}{'alone':>9}{'by 100':>9}")
    for title, figures in medians.items():
        print(f"{title:44}" + "".join("        -" if one is None else f"{one:9.2f}" for one in figures.values()))


if __name__ == "__main__":
    main()
