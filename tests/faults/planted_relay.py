"""A relay that dies or stops at one point of a step: ``planted_relay.py FILE SOCKET QUEUE POINT exit|kill|stop``.

Each point lies between two effects of the relay on the daemon or on the application's file. The points are planted
around the methods of the relay's file, the statements of its connection, and its one request.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import sys
import threading
from pathlib import Path
from typing import Any, Final

from eoq.client.aio import connect_async
from eoq.outbox.file import OutboxFile
from eoq.outbox.relay import Relay
from eoq.transport.aio_connection import AsyncConnection

POINTS: Final = (
    "before reading",
    "after reading",
    "marking has begun",
    "marks are written",
    "marks are committed",
    "the request has left",
    "the daemon has committed",
    "after the reply",
    "removal has begun",
    "rows are removed",
    "marks are removed too",
    "removal is committed",
    "after the second step",
)
"""In their order. Up to ``marks are committed`` the daemon has no message."""
STATEMENTS: Final = {
    "insert into eoq_outbox_sending": "marks are written",
    "delete from eoq_outbox where": "rows are removed",
    "delete from eoq_outbox_sending": "marks are removed too",
}

socket = queue = point = how = ""
step = ""


def reached(name: str) -> None:
    """End or stop this process if this is the point."""
    global point
    if name == point:
        if how == "stop":
            point = "nowhere: it was reached"
            # A signal to the process would let this thread go on, into a transaction, before it stops.
            signal.pthread_kill(threading.get_ident(), signal.SIGSTOP)
            return
        if how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        os._exit(9)


class Connection(sqlite3.Connection):
    """The relay's connection to the application's file."""

    def execute(self, sql: str, *parameters: Any) -> sqlite3.Cursor:
        cursor = super().execute(sql, *parameters)
        if sql == "begin immediate":
            reached({"mark": "marking has begun", "remove": "removal has begun"}.get(step, ""))
        if sql == "commit":
            reached({"mark": "marks are committed", "remove": "removal is committed"}.get(step, ""))
        return cursor

    def executemany(self, sql: str, *parameters: Any) -> sqlite3.Cursor:
        cursor = super().executemany(sql, *parameters)
        for begin, name in STATEMENTS.items():
            if " ".join(sql.split()).startswith(begin):
                reached(name)
        return cursor


def plant_file() -> None:
    """Plant the points around the steps of the relay's file."""
    read, mark, remove = OutboxFile.read, OutboxFile.mark, OutboxFile.remove

    def reading(file: OutboxFile, *arguments: Any, **options: Any) -> Any:
        reached("before reading")
        rows = read(file, *arguments, **options)
        if rows:
            reached("after reading")
        return rows

    def marking(file: OutboxFile, rows: Any) -> Any:
        global step
        step = "mark"
        return mark(file, rows)

    def removing(file: OutboxFile, rows: Any) -> None:
        global step
        step = "remove"
        remove(file, rows)
        if rows[0].seq > 1:
            reached("after the second step")

    for name, planted in (("read", reading), ("mark", marking), ("remove", removing)):
        setattr(OutboxFile, name, planted)


def plant_request() -> None:
    """Plant the points around the one request that stores messages."""
    start, finish = AsyncConnection.start, AsyncConnection.finish
    storing: Any = None

    async def starting(connection: AsyncConnection, requests: Any, seconds: float) -> Any:
        nonlocal storing
        replies = await start(connection, requests, seconds)
        if requests[0]["op"] == "settle":
            storing = replies
            reached("the request has left")
            if point == "the daemon has committed":
                # Another connection tells. The reply to this one is never read.
                async with connect_async(socket) as other:
                    while not (await other.ask("peek", queue=queue))["messages"]:  # noqa: ASYNC110 # no event tells of the daemon's file
                        await asyncio.sleep(0)
                reached("the daemon has committed")
        return replies

    async def finishing(connection: AsyncConnection, replies: Any, seconds: float) -> Any:
        outcome = await finish(connection, replies, seconds)
        if replies is storing:
            reached("after the reply")
        return outcome

    for name, planted in (("start", starting), ("finish", finishing)):
        setattr(AsyncConnection, name, planted)


async def main(file: Path) -> None:
    async with connect_async(socket) as client:
        await Relay(file, client).flush()


if __name__ == "__main__":
    socket, queue, point, how = sys.argv[2:]
    connect = sqlite3.connect
    vars(sqlite3)["connect"] = lambda *arguments, **options: connect(*arguments, **options, factory=Connection)
    plant_file()
    plant_request()
    asyncio.run(main(Path(sys.argv[1])))
