"""Queries of the daemon's file: results, counts, peeks, tails.

The reader has a read-only connection on a thread of its own. So a slow query does not delay sends, and only the
store's connection writes and checkpoints. A query sees everything that the writer has confirmed.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Sequence
from contextlib import closing
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import Final, TypeVar

import aiosqlite

from ....system import aio_sqlite
from .database import storage_error
from .overview import QueueState, Ranking, read_page, read_ranking
from .shown import SET_BY, Fields, Filter, Found, shown, with_lease
from .waits import Waiting, read_settled, read_waiting

T = TypeVar("T")

LATER_STATES: Final = ("delayed", "blocked")
"""The states that share an index by queue."""
SETTLED_STATES: Final = ("done", "forwarded", "expired", "dropped", "cancelled")
ENDED_STATES: Final = (*SETTLED_STATES, "dead")
PEEK_BYTES: Final = 2 * 1024 * 1024
"""Bytes of bodies, headers and errors in one reply."""
SCAN_ROWS: Final = 50_000
"""How many messages one query reads at most, where a filter selects only some."""
SCAN_IDS: Final = 100_000
"""How many ids one query of settled messages looks at, at most."""
SCAN_BYTES: Final = 64 * 1024 * 1024
"""How many bytes of bodies, headers and errors such a query reads at most."""

_COLUMNS: Final = f"""
    id, seq, state, attempts, priority, "group", enqueued_at,
    due_at + iif(fixed, 0.0, {SET_BY}) as due_at, expires_at + {SET_BY} as expires_at,
    delivered_at, consumer, failed_at, cancelled_at, headers, error, body
    """


_LEASED: Final = """
    select delivered.value
    from delivery, json_each(delivery.seqs) as delivered
    where delivery.queue = (select number from queue where name = ?1)
    """


class Reader:
    """A read-only connection to the file of an open store."""

    def __init__(self, connection: aiosqlite.Connection, database: sqlite3.Connection, path: Path) -> None:
        self._connection = connection
        self._database = database
        self._path = path

    @classmethod
    async def open(cls, path: Path) -> Reader:
        """Open the file, which the store has made."""
        uri = f"{path.absolute().as_uri()}?mode=ro"  # also of a name that is no UTF-8
        database = sqlite3.connect(uri, uri=True, isolation_level=None, check_same_thread=False)
        database.execute("pragma query_only = true")
        connection = aiosqlite.Connection(lambda: database, 64)
        await connection
        return cls(connection, database, path)

    async def close(self) -> None:
        """Close the connection."""
        await self._connection.close()

    async def result(self, queue: str, id: str) -> Fields | None:
        """Return the state of a message, its result, its last error and where it went; None where it is not known.

        The state of a forwarded message is how it ended there, if that came back, or ``awaited``.
        """
        rows = await self._rows(
            """
            select state, null as result, error, null as forwarded_to
            from message
            where seq = (select seq from known_id where queue = (select number from queue where name = ?1) and id = ?2)
            union all
            select
              coalesce(far_outcome, outcome), result, iif(far_outcome is null, error, far_error),
              iif(outcome = 'forwarded', error, null)
            from settled
            left join result using (seq)
            where queue = (select number from queue where name = ?1) and id = ?2
            """,
            (queue, id),
        )
        return dict(rows[0]) if rows else None

    async def queues(self, after: str, prefix: str, limit: int) -> list[QueueState]:
        """Return the next queues by their names: behind ``after``, and beginning with ``prefix``."""
        return await self._run(lambda: read_page(self._database, after, prefix, limit))

    async def ranking(self, order: str, contains: str, skip: int, limit: int, rates: bytes) -> Ranking:
        """Return the sums of all queues, and the first ones in an order. See `read_ranking`."""
        return await self._run(lambda: read_ranking(self._database, order, contains, skip, limit, rates))

    async def results(self, queue: str, ids: Sequence[str], most_bytes: int) -> tuple[list[Fields], list[str]]:
        """Return how the first of these messages ended, ``most_bytes`` at most, and the ids unknown here."""
        return await self._run(partial(self._results, queue, ids, most_bytes))

    def _results(self, queue: str, ids: Sequence[str], most_bytes: int) -> tuple[list[Fields], list[str]]:
        values = (queue, json.dumps(ids))
        live = self._fetch(
            """
            select message.id, state, null as result, error
            from known_id
            cross join message on message.seq = known_id.seq
            where known_id.queue = (select number from queue where name = ?)
              and known_id.id in (select value from json_each(?))
            """,
            values,
        )
        settled = self._fetch(
            """
            select
              id, coalesce(far_outcome, outcome) as state, length(result) as bytes, seq,
              iif(far_outcome is null, error, far_error) as error
            from settled
            left join result using (seq)
            where queue = (select number from queue where name = ?) and id in (select value from json_each(?))
            """,
            values,
        )
        # Dead letters come last: they are asked for again and again, since they may be redriven.
        ended: list[Fields] = []
        for row in (*settled, *live):
            if row["state"] not in ENDED_STATES:
                continue
            size = row.get("bytes") or 0
            most_bytes -= size + len((row["error"] or "").encode())
            if most_bytes < 0 and ended:
                break
            found = self._fetch("select result from result where seq = ?", (row["seq"],)) if size else []
            ended.append({**row, "result": found[0]["result"] if found else None})
        return ended, sorted(set(ids).difference([row["id"] for row in (*live, *settled)]))

    async def peek(self, queue: str, state: str, limit: int, wanted: Filter) -> Found:
        """Return the first messages of a queue in one state, in the order of delivery; settled ones from the newest.

        Where the filter selects few, the query ends after `SCAN_ROWS` messages.
        """
        if state in SETTLED_STATES:
            return await self._run(partial(self._peek_settled, queue, state, limit, wanted))
        order = "priority desc, seq" if state == "ready" else "seq"
        # The state is part of the text, not bound. Only so can SQLite use the partial index of this state.
        only = f"state = '{state}'"
        if state == "ready":
            only += f" and seq not in ({_LEASED})"
        elif state == "leased":
            only = f"state = 'ready' and seq in ({_LEASED})"
        elif state in LATER_STATES:
            only += " and state in ('delayed', 'blocked')"
        statement = f"""
            select {_COLUMNS}
            from message
            where queue = (select number from queue where name = ?1)
              and {only}
            order by {order}
            """  # noqa: S608 # the state is one of those that `requests.Peek` allows
        return await self._run(partial(self._filter, queue, statement, (queue,), limit, wanted))

    def _peek_settled(self, queue: str, state: str, limit: int, wanted: Filter) -> Found:
        """Return the newest settled messages of a queue with one outcome, among the last ones by their ids."""
        if wanted != Filter():
            return Found([], False)  # nothing is remembered that a filter could select
        rows = self._fetch(
            f"""
            select id, seq, outcome as state, settled_at, error
            from (
              select id, seq
              from known_id
              where queue = (select number from queue where name = ?)
              order by id desc
              limit {SCAN_IDS}
            )
            cross join outcome using (seq)
            left join result using (seq)
            where outcome = ?
            order by settled_at desc, seq desc
            limit ?
            """,  # noqa: S608 # a constant
            (queue, state, limit + 1),
        )
        (scanned,) = self._database.execute(
            """
            select count(*)
            from (select 1 from known_id where queue = (select number from queue where name = ?) limit ?)
            """,
            (queue, SCAN_IDS),
        ).fetchone()
        found = [shown(row.items()) for row in rows[:limit]]
        return Found(found, len(rows) > limit or scanned == SCAN_IDS)

    def _filter(self, queue: str, statement: str, parameters: tuple[object, ...], limit: int, wanted: Filter) -> Found:
        found: list[Fields] = []
        deliveries = self._deliveries(queue)
        size = scanned = scanned_bytes = 0
        with closing(self._database.execute(statement, parameters)) as cursor:
            names = [column[0] for column in cursor.description]
            for values in cursor:
                row = dict(zip(names, values, strict=True))
                length = len(row["body"] or b"") + len(row["headers"] or "") + len(row["error"] or "")
                scanned, scanned_bytes = scanned + 1, scanned_bytes + length
                if wanted.selects(row):
                    if len(found) == limit or (found and size + length > PEEK_BYTES):
                        return Found(found, True)
                    size += length
                    found.append(shown(with_lease(row, deliveries).items()))
                if scanned >= SCAN_ROWS or scanned_bytes >= SCAN_BYTES:
                    return Found(found, True)
        return Found(found, False)

    async def tail(
        self, queue: str, after: int | None, last: int, limit: int, ended: Sequence[str] = ()
    ) -> tuple[list[Fields], int]:
        """Return the messages of a queue behind the seq ``after``, and the seq from which the next call continues.

        Without ``after``, return the ``last`` messages that are stored. Of the settled ones it returns those whose ids
        are in ``ended``.
        """
        return await self._run(partial(self._tail, queue, after, last, limit, ended))

    def _tail(
        self, queue: str, after: int | None, last: int, limit: int, ended: Sequence[str]
    ) -> tuple[list[Fields], int]:
        settled = self._ended(queue, -1 if after is None else after, ended)
        (end,) = self._database.execute("select coalesce(max(seq), 0) from message").fetchone()
        end = max([end, *(message["seq"] for message in settled)])
        # By seq, over all queues: new messages are together at the end of the table.
        statement = f"""
            select {_COLUMNS}
            from message not indexed
            where seq > ? and seq <= ?
              and queue = (select number from queue where name = ?)
            order by seq {{order}}
            """  # noqa: S608 # constants
        if after is None:
            newest = statement.format(order="desc")
            found = (
                self._filter(queue, newest, (end - SCAN_ROWS, end, queue), last, Filter()) if last else Found([], False)
            )
            return found.messages[::-1], end
        upto = min(end, after + SCAN_ROWS)
        found = self._filter(queue, statement.format(order="asc"), (after, upto, queue), limit, Filter())
        messages = sorted([*found.messages, *settled], key=itemgetter("seq"))
        found = Found(messages[:limit], found.more or len(messages) > limit)
        if found.more:
            return found.messages, found.messages[-1]["seq"]
        # It never goes back, except where an older file has replaced this one: then it continues from the end of that
        # file.
        (given,) = self._database.execute("select coalesce(max(value), 1) from counter").fetchone()
        return found.messages, max(upto, after) if after < given else end

    def _ended(self, queue: str, after: int, ids: Sequence[str]) -> list[Fields]:
        """Return the settled messages of a queue among ``ids`` with a seq above ``after``."""
        rows = self._fetch(
            """
            select id, seq, outcome as state, settled_at
            from settled
            where queue = (select number from queue where name = ?)
              and id in (select value from json_each(?))
              and seq > ?
            """,
            (queue, json.dumps(ids), after),
        )
        return [shown(row.items()) for row in rows]

    async def show(self, queue: str, id: str) -> Fields | None:
        """Return everything that is stored of one message, with its deliveries; None where the id is not known."""
        return await self._run(partial(self._show, queue, id))

    def _show(self, queue: str, id: str) -> Fields | None:
        rows = self._fetch(
            f"""
            select {_COLUMNS}, deliveries
            from message
            where seq = (select seq from known_id where id = ? and queue = (select number from queue where name = ?))
            """,  # noqa: S608 # a constant
            (id, queue),
        )
        if not rows:
            return self._show_settled(queue, id)
        row = with_lease(rows[0], self._deliveries(queue))
        failed = self._failed(row["seq"])
        newest = {"delivery": row["deliveries"], "delivered_at": row["delivered_at"], "consumer": row["consumer"]}
        if row["deliveries"] and all(failure["delivery"] != row["deliveries"] for failure in failed):
            failed.append(newest)
        fields = shown((name, value) for name, value in row.items() if name not in ("delivered_at", "consumer"))
        return {**fields, "history": [shown(delivery.items()) for delivery in failed]} if failed else fields

    def _show_settled(self, queue: str, id: str) -> Fields | None:
        rows = self._fetch(
            """
            select
              id, seq, settled.outcome as state, settled_at, nullif(far_outcome, 'awaited') as outcome,
              iif(far_outcome = 'awaited', 1, null) as awaits, result,
              iif(far_outcome is null, error, far_error) as error,
              iif(outcome = 'forwarded', error, null) as forwarded_to
            from settled
            left join result using (seq)
            where id = ?
              and queue = (select number from queue where name = ?)
            """,
            (id, queue),
        )
        if not rows:
            return None
        failed = [shown(delivery.items()) for delivery in self._failed(rows[0]["seq"])]
        fields = shown(rows[0].items())
        return {**fields, "history": failed} if failed else fields

    def _failed(self, seq: int) -> list[Fields]:
        """Return the deliveries of a message that failed."""
        return self._fetch(
            """
            select delivery, delivered_at, consumer, failed_at, error
            from failure
            where seq = ?
            order by delivery
            """,
            (seq,),
        )

    def _deliveries(self, queue: str) -> dict[int, tuple[float, str | None]]:
        """Return the moment and the consumer of each delivery of a queue, by the seqs of its messages."""
        rows = self._database.execute(
            """
            select delivered.value, delivered_at, consumer
            from delivery, json_each(delivery.seqs) as delivered
            where delivery.queue = (select number from queue where name = ?)
            """,
            (queue,),
        )
        return {seq: (delivered_at, consumer) for seq, delivered_at, consumer in rows}

    async def why(self, queue: str, id: str) -> tuple[Waiting | None, Fields | None]:
        """Return a message with what it waits for, or else how it was settled."""
        return await self._run(
            lambda: (read_waiting(self._database, queue, id), read_settled(self._database, queue, id))
        )

    async def _rows(self, sql: str, parameters: tuple[object, ...] = ()) -> list[Fields]:
        return await self._run(partial(self._fetch, sql, parameters))

    async def _run(self, query: Callable[[], T]) -> T:
        try:
            return await aio_sqlite.run(self._connection, lambda _: self._at_one_moment(query))
        except sqlite3.Error as error:
            raise storage_error(error, self._path) from error

    def _at_one_moment(self, query: Callable[[], T]) -> T:
        """Run a query of several statements, which all see the same commits."""
        self._database.execute("begin")
        try:
            return query()
        finally:
            self._database.execute("rollback")

    def _fetch(self, sql: str, parameters: tuple[object, ...]) -> list[Fields]:
        # The whole query is one call on the thread. With several calls, a cancelled query could stop between them and
        # leave its statement open; the next query would then see the file as it was at that moment.
        with closing(self._database.execute(sql, parameters)) as cursor:
            names = [column[0] for column in cursor.description]
            return [dict(zip(names, values, strict=True)) for values in cursor]
