"""A consumer that applies messages through an inbox and kills itself at a chosen point of the message ``b``.

    python planted_worker.py SOCKET LEDGER QUEUE POINT one|many|async-one|async-many

POINT is one of `POINTS`, or ``none``; ``many`` applies all it received in one transaction; ``async`` is `AsyncInbox`.
The points are planted into what the application owns: its handler, its connection, and the process's sockets (the
wire is a contract).
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sqlite3
import sys
from contextlib import closing, suppress
from typing import Any, Final

import aiosqlite

import eoq

POINTS: Final = {
    "inbox begins": False,
    "inbox has begun": False,
    "handler begins": False,
    "handler has written": False,
    "inbox commits": False,
    "inbox has committed": True,
    "ack leaves": True,
    "ack has left": True,
    "ack is answered": True,
}
"""The points, and whether the effect is in the ledger by then."""
BEFORE: Final = ("inbox begins", "inbox has begun")
"""The points before the handler begins."""
MESSAGE: Final = "b"
SETTLING: Final = (b'"op":"ack"', b'"op":"settle"')

planted = "none"
handled: set[str] = set()
"""The ids whose handler has begun."""
given: set[str] = set()
"""The ids that were given to the inbox."""
acking = False


def reached(point: str) -> None:
    """Die if this is the point."""
    if point == planted and MESSAGE in (given if point in BEFORE else handled):
        os.kill(os.getpid(), signal.SIGKILL)


class Connection(sqlite3.Connection):
    """The connection of the application."""

    def execute(self, sql: str, *parameters: Any) -> sqlite3.Cursor:
        commits = sql.startswith("commit")
        begins = sql.startswith("begin")
        if begins:
            reached("inbox begins")
        if commits:
            reached("inbox commits")
        cursor = super().execute(sql, *parameters)
        if begins:
            reached("inbox has begun")
        if commits:
            reached("inbox has committed")
        return cursor


class Socket(socket.socket):
    """The socket of the client."""

    def send(self, data: Any, *flags: int) -> int:
        self._leaves(data)
        count = super().send(data, *flags)
        self._has_left()
        return count

    def _leaves(self, data: Any) -> None:
        global acking
        acking = any(op in bytes(data) for op in SETTLING)
        if acking:
            reached("ack leaves")

    def _has_left(self) -> None:
        if acking:
            reached("ack has left")

    def recv(self, *arguments: int) -> bytes:
        data = super().recv(*arguments)
        self._is_answered()
        return data

    def recv_into(self, *arguments: Any) -> int:
        count = super().recv_into(*arguments)
        self._is_answered()
        return count

    def _is_answered(self) -> None:
        if acking:
            reached("ack is answered")


def apply(tx: sqlite3.Connection, message: eoq.Message) -> str:
    """Insert one row per message, so that an effect that happens twice is seen."""
    handled.add(message.id)
    reached("handler begins")
    tx.execute("insert into effect (id) values (?)", (message.id,))
    reached("handler has written")
    return f"did {message.id}"


def work(path: str, ledger: str, queue: str, many: bool) -> None:
    """Handle all messages of the queue, until none came for a while."""
    with (
        eoq.connect(path) as client,
        closing(sqlite3.connect(ledger, isolation_level=None, timeout=20, factory=Connection)) as database,
    ):
        inbox = eoq.Inbox(database)
        if many:
            while messages := client.receive(queue, 10, wait=0.2, bound=True):
                given.update(message.id for message in messages)
                inbox.process_many(messages, apply)
            return
        for message in client.consume(queue, prefetch=3, idle=0.2):
            given.add(message.id)
            with suppress(eoq.LeaseLost):
                inbox.process(message, apply)


async def apply_async(tx: aiosqlite.Connection, message: eoq.AsyncMessage) -> str:
    """Insert one row per message, as the handler of the asyncio inbox."""
    handled.add(message.id)
    reached("handler begins")
    await tx.execute("insert into effect (id) values (?)", (message.id,))
    reached("handler has written")
    return f"did {message.id}"


async def work_async(path: str, ledger: str, queue: str, many: bool) -> None:
    """Do the same with the asyncio client and inbox."""
    async with (
        eoq.connect_async(path) as client,
        aiosqlite.connect(ledger, isolation_level=None, timeout=20, factory=Connection) as database,
    ):
        inbox = eoq.AsyncInbox(database)
        if many:
            while messages := await client.receive(queue, 10, wait=0.2, bound=True):
                given.update(message.id for message in messages)
                await inbox.process_many(messages, apply_async)
            return
        async for message in client.consume(queue, prefetch=3, idle=0.2):
            given.add(message.id)
            with suppress(eoq.LeaseLost):
                await inbox.process(message, apply_async)


if __name__ == "__main__":
    planted = sys.argv[4]
    vars(socket)["socket"] = Socket
    if sys.argv[5].startswith("async-"):
        asyncio.run(work_async(sys.argv[1], sys.argv[2], sys.argv[3], sys.argv[5] == "async-many"))
    else:
        work(sys.argv[1], sys.argv[2], sys.argv[3], sys.argv[5] == "many")
