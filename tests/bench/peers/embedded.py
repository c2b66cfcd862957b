"""Queues that are libraries: raw SQLite, which is the floor, and huey, litequeue and persist-queue."""

from __future__ import annotations

import importlib
import sqlite3
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from .base import Absent, Running, Taken

PAUSE = 0.0005
"""Seconds between two looks of a consumer that waits: these queues wake nobody."""


class RawSqlite:
    """One table in a file with a write-ahead log, each commit synced."""

    name = "raw SQLite"
    durability = "synced at each commit (WAL, synchronous=FULL)"

    @contextmanager
    def run(self, folder: Path) -> Iterator[Running]:
        yield Running(partial(_Raw, folder / "raw.db"))


class _Raw:
    def __init__(self, path: Path, queue: str) -> None:
        self._database = sqlite3.connect(path, isolation_level=None, timeout=60)
        self._database.executescript("pragma journal_mode = wal; pragma synchronous = full;")
        self._table = f"message_{queue}"
        self._database.execute(f"create table if not exists {self._table} (id integer primary key, body blob)")
        self.close = self._database.close

    def send(self, body: bytes) -> None:
        self.send_batch([body])

    def send_batch(self, bodies: Sequence[bytes]) -> None:
        self._database.execute("begin immediate")
        self._database.executemany(f"insert into {self._table} (body) values (?)", [(body,) for body in bodies])
        self._database.execute("commit")

    def take(self, limit: int) -> list[Taken]:
        select = f"select id, body from {self._table} order by id limit ?"
        while not (rows := self._database.execute(select, (limit,)).fetchall()):
            time.sleep(PAUSE)  # it wakes nobody
        return [Taken(id, str(id), body) for id, body in rows]

    def ack(self, messages: Sequence[Taken]) -> None:
        self._database.execute("begin immediate")
        keys = [(message.key,) for message in messages]
        self._database.executemany(f"delete from {self._table} where id = ?", keys)
        self._database.execute("commit")


class Huey:
    """huey with SQLite. A message leaves the file when it is taken, so a consumer that dies has lost it."""

    name = "huey"
    durability = "synced at each commit (fsync=True); delivered at most once"

    @contextmanager
    def run(self, folder: Path) -> Iterator[Running]:
        _require("huey")
        yield Running(partial(_Huey, folder / "huey.db"))


class _Huey:
    def __init__(self, path: Path, queue: str) -> None:
        storage = _require("huey.storage")
        self._storage = storage.SqliteStorage(queue, filename=str(path), fsync=True, timeout=60)
        self.close = self._storage.close

    def send(self, body: bytes) -> None:
        self._storage.enqueue(uuid.uuid4().bytes + body)

    def send_batch(self, bodies: Sequence[bytes]) -> None:
        for body in bodies:
            self.send(body)

    def take(self, limit: int) -> list[Taken]:
        return _take(self._take_one, limit)

    def _take_one(self) -> Taken | None:
        data = self._storage.dequeue()
        return None if data is None else Taken(None, data[:16].hex(), data[16:])

    def ack(self, messages: Sequence[Taken]) -> None:
        pass


class Litequeue:
    """litequeue with the settings of its manual, and its file set to sync each commit."""

    name = "litequeue"
    durability = "synced at each commit (synchronous=FULL instead of its default)"

    @contextmanager
    def run(self, folder: Path) -> Iterator[Running]:
        _require("litequeue")
        yield Running(partial(_Litequeue, folder / "litequeue.db"))


class _Litequeue:
    def __init__(self, path: Path, queue: str) -> None:
        self._queue = _require("litequeue").LiteQueue(f"{path}-{queue}", timeout=60)
        self._queue.conn.execute("pragma synchronous = full")
        self.close = self._queue.conn.close

    def send(self, body: bytes) -> None:
        self._queue.put(body.decode())

    def send_batch(self, bodies: Sequence[bytes]) -> None:
        for body in bodies:
            self.send(body)

    def take(self, limit: int) -> list[Taken]:
        return _take(self._take_one, limit)

    def _take_one(self) -> Taken | None:
        message = self._queue.pop()
        return None if message is None else Taken(message.message_id, message.message_id, message.data.encode())

    def ack(self, messages: Sequence[Taken]) -> None:
        for message in messages:
            self._queue.done(message.key)


class PersistQueue:
    """persist-queue's queue with acks."""

    name = "persist-queue"
    durability = "SQLite's defaults: synced at each commit"

    @contextmanager
    def run(self, folder: Path) -> Iterator[Running]:
        _require("persistqueue")
        yield Running(partial(_PersistQueue, folder / "persist-queue"))


class _PersistQueue:
    def __init__(self, path: Path, queue: str) -> None:
        package = _require("persistqueue")
        self._queue = package.SQLiteAckQueue(f"{path}-{queue}", auto_commit=True, timeout=60)
        self._empty = package.exceptions.Empty
        self.close = self._queue.close

    def send(self, body: bytes) -> None:
        self._queue.put(body)

    def send_batch(self, bodies: Sequence[bytes]) -> None:
        for body in bodies:
            self._queue.put(body)

    def take(self, limit: int) -> list[Taken]:
        return _take(self._take_one, limit)

    def _take_one(self) -> Taken | None:
        try:
            row = self._queue.get(block=False, raw=True)  # a `get` that blocks does not see what other processes put
        except self._empty:
            return None
        return Taken(row["pqid"], str(row["pqid"]), row["data"])

    def ack(self, messages: Sequence[Taken]) -> None:
        for message in messages:
            self._queue.ack(id=message.key)


def _take(take_one: Callable[[], Taken | None], limit: int) -> list[Taken]:
    """Wait for a message, and return what is there, at most ``limit`` messages."""
    taken: list[Taken] = []
    while len(taken) < limit:
        message = take_one()
        if message is not None:
            taken.append(message)
        elif taken:
            break
        else:
            time.sleep(PAUSE)  # it wakes nobody
    return taken


def _require(module: str) -> Any:
    """Import a module that may be missing."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise Absent(f"no package {module.partition('.')[0]}") from error
