"""A relay that dies at one point of a step: ``planted_relay.py FILE SOCKET QUEUE POINT exit|kill``.

Each point is a place between two effects of the relay on the world: on the daemon, or on the application's file. They
are planted around the verbs of the relay's file, the statements of its connection, and its one request.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import sys
from pathlib import Path
from typing import Any, Final

from eoq.client.aio import connect_async
from eoq.outbox.file import OutboxFile
from eoq.outbox.relay import Relay
from eoq.transport.aio_channel import AsyncChannel
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
"""In their order. Up to ``marks are committed`` the daemon has nothing."""
STATEMENTS: Final = {
    "insert or ignore into eoq_outbox_sending": "marks are written",
    "delete from eoq_outbox where": "rows are removed",
    "delete from eoq_outbox_sending": "marks are removed too",
}

queue = point = how = ""
verb = ""


def reached(name: str) -> None:
    """Dies if this is the point."""
    if name == point:
        if how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        os._exit(9)


class Connection(sqlite3.Connection):
    """The relay's connection to the application's file."""

    def execute(self, sql: str, *parameters: Any) -> sqlite3.Cursor:
        cursor = super().execute(sql, *parameters)
        if sql == "begin immediate":
            reached({"mark": "marking has begun", "remove": "removal has begun"}.get(verb, ""))
        if sql == "commit":
            reached({"mark": "marks are committed", "remove": "removal is committed"}.get(verb, ""))
        return cursor

    def executemany(self, sql: str, *parameters: Any) -> sqlite3.Cursor:
        cursor = super().executemany(sql, *parameters)
        for begin, name in STATEMENTS.items():
            if " ".join(sql.split()).startswith(begin):
                reached(name)
        return cursor


class File(OutboxFile):
    """The relay's end of the outbox."""

    def read(self, *arguments: Any, **options: Any) -> Any:
        reached("before reading")
        rows = super().read(*arguments, **options)
        if rows:
            reached("after reading")
        return rows

    def mark(self, rows: Any) -> None:
        global verb
        verb = "mark"
        super().mark(rows)

    def remove(self, rows: Any) -> None:
        global verb
        verb = "remove"
        super().remove(rows)
        if rows[0].seq > 1:
            reached("after the second step")


start, run = AsyncConnection.start, AsyncChannel.run


async def dying_start(connection: AsyncConnection, requests: Any, seconds: float) -> Any:
    replies = await start(connection, requests, seconds)
    if requests[0]["op"] == "settle":
        reached("the request has left")
    return replies


async def dying_run(channel: AsyncChannel, call: Any) -> Any:
    if call.fields["op"] != "settle":
        return await run(channel, call)
    request = asyncio.create_task(run(channel, call))
    if point == "the daemon has committed":
        # Another connection tells; the reply to the first is never looked at.
        async with connect_async(channel.path) as other:
            while not (await other.ask("peek", queue=queue))["messages"]:  # noqa: ASYNC110 # no event tells of the daemon's file
                await asyncio.sleep(0)
        reached("the daemon has committed")
    reply = await request
    reached("after the reply")
    return reply


async def main(file: Path, socket: str) -> None:
    async with connect_async(socket) as client:
        relay = Relay(file, client)
        relay._file = File(file)
        await relay.flush()


if __name__ == "__main__":
    queue, point, how = sys.argv[3:]
    connect = sqlite3.connect
    AsyncConnection.start = dying_start  # type: ignore[method-assign,assignment] # planted
    AsyncChannel.run = dying_run  # type: ignore[method-assign,assignment] # planted
    vars(sqlite3)["connect"] = lambda *arguments, **options: connect(*arguments, **options, factory=Connection)
    asyncio.run(main(Path(sys.argv[1]), sys.argv[2]))
