"""Questions to the daemon's file that change nothing: results, counts, peeks.

They have a connection of their own, read-only, on its own thread: a slow question holds up no send, and only the
store's connection writes and checkpoints. What the writer has confirmed is seen here.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from ..protocol import put_bytes
from .file import Connection, storage_error

Fields = dict[str, Any]

INDEXED_STATES: Final = ("ready", "leased", "dead")
"""The states that have an index by queue of their own; the others share one."""
PEEK_BYTES: Final = 2 * 1024 * 1024
"""Bytes of bodies in one answer."""


class Reader:
    """A read-only connection to the file of an open `Store`."""

    def __init__(self, connection: Connection, database: sqlite3.Connection, path: Path) -> None:
        self._connection = connection
        self._database = database
        self._path = path

    @classmethod
    async def open(cls, path: Path) -> Reader:
        """Opens the file, which the store has made."""
        uri = f"file:{quote(str(path.absolute()))}?mode=ro"
        database = sqlite3.connect(uri, uri=True, isolation_level=None, check_same_thread=False)
        database.execute("pragma query_only = true")
        connection = Connection(lambda: database, 64)
        await connection
        return cls(connection, database, path)

    async def close(self) -> None:
        await self._connection.close()

    async def result(self, queue: str, id: str) -> Fields | None:
        """The state of a message, its result and its last error; None where the id is not known."""
        rows = await self._rows(
            """
            select state, result, error
            from message
            where id = ?
              and queue = (select number from queue where name = ?)
            """,
            (id, queue),
        )
        return dict(rows[0]) if rows else None

    async def queues(self) -> list[Fields]:
        """Every queue with the number of its messages in each state, and when its oldest one was stored."""
        rows = await self._rows(
            """
            with
              delayed as (
                select queue, count(*) as number
                from message indexed by message_delayed
                where state = 'delayed'
                group by queue
              ),
              blocked as (
                select queue, count(*) as number
                from message
                where "group" is not null and state = 'blocked'
                group by queue
              )
            select
              name,
              (
                select count(*)
                from message indexed by message_ready
                where queue = queue.number and state = 'ready'
              ) as ready,
              (
                select count(*)
                from message indexed by message_leased
                where queue = queue.number and state = 'leased'
              ) as leased,
              coalesce(delayed.number, 0) as delayed,
              coalesce(blocked.number, 0) as blocked,
              (
                select count(*)
                from message indexed by message_dead
                where queue = queue.number and state = 'dead'
              ) as dead,
              (
                select enqueued_at
                from message
                where seq = (
                  select min(seq)
                  from (
                    select min(seq) as seq from message where queue = queue.number and state = 'ready' and priority = 0
                    union all
                    select min(seq) from message where queue = queue.number and state = 'ready' and priority <> 0
                    union all
                    select min(seq) from message where queue = queue.number and state = 'leased'
                    union all
                    select min(seq) from message where queue = queue.number and state in ('delayed', 'blocked')
                    union all
                    select min(seq) from message where queue = queue.number and state = 'dead'
                  )
                )
              ) as oldest
            from queue
            left join delayed on delayed.queue = queue.number
            left join blocked on blocked.queue = queue.number
            order by name
            """,
        )
        return [dict(row) for row in rows]

    async def peek(self, queue: str, state: str, limit: int) -> list[Fields]:
        """The first messages of a queue that are in ``state``, in the order of their delivery."""
        order = "priority desc, seq" if state == "ready" else "seq"
        # Written out, not bound: only so can SQLite see that an index of this state alone serves.
        only = f"state = '{state}'" + ("" if state in INDEXED_STATES else " and state in ('delayed', 'blocked')")
        rows = await self._rows(
            f"""
            select id, seq, state, attempts, priority, "group", enqueued_at, due_at, headers, error, body
            from message
            where queue = (select number from queue where name = ?)
              and {only}
            order by {order}
            limit ?
            """,  # noqa: S608 # the state is one of our own words: requests.Peek
            (queue, limit),
            most_bytes=PEEK_BYTES,
        )
        return [_shown(row.items()) for row in rows]

    async def show(self, queue: str, id: str) -> Fields | None:
        """All that is known of one message."""
        rows = await self._rows(
            """
            select
              id, seq, state, attempts, fence as deliveries, priority, "group", enqueued_at, due_at, settled_at,
              headers, error, body, result
            from message
            where id = ?
              and queue = (select number from queue where name = ?)
            """,
            (id, queue),
        )
        return _shown(rows[0].items()) if rows else None

    async def _rows(
        self, sql: str, parameters: tuple[object, ...] = (), *, most_bytes: int | None = None
    ) -> list[Fields]:
        """All rows; where ``most_bytes`` of bodies are given, those that fit, or the first."""
        try:
            return await self._connection.run(partial(self._fetch, sql, parameters, most_bytes))
        except sqlite3.Error as error:
            raise storage_error(error, self._path) from error

    def _fetch(self, sql: str, parameters: tuple[object, ...], most_bytes: int | None) -> list[Fields]:
        # The whole question is one call on the thread. Were it several, one whose client has left would stop between
        # them, its statement open, and the next question would see the file as it was then.
        rows: list[Fields] = []
        size = 0
        with closing(self._database.execute(sql, parameters)) as cursor:
            names = [column[0] for column in cursor.description]
            for values in cursor:
                row = dict(zip(names, values, strict=True))
                size += len(row.get("body") or b"")
                if most_bytes is not None and rows and size > most_bytes:
                    break
                rows.append(row)
        return rows


def _shown(columns: Iterable[tuple[str, Any]]) -> Fields:
    """A row as the fields of a reply: without what is null, headers as an object, bytes as the wire writes them."""
    fields: Fields = {}
    for name, value in columns:
        if value is None:
            continue
        if name == "headers":
            fields[name] = json.loads(value)
        elif isinstance(value, bytes):
            put_bytes(fields, name, value)
        else:
            fields[name] = value
    return fields
