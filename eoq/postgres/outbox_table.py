"""The relay's end of an outbox in PostgreSQL. `Relay` takes it in place of the path of a file."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Collection, Sequence

from ..outbox.rows import Row, SetAside, check_age, read_message
from .driver import storable_error
from .sql import outbox as statements
from .waking import WakingTable


class OutboxTable:
    """The outbox in the database of a connection string, over a connection of its own.

    All methods raise the errors of `WakingTable`.
    """

    def __init__(self, conninfo: str) -> None:
        self._table = WakingTable(
            conninfo, "eoq_outbox", "the application creates it with its first eoq.PgOutbox(connection).send"
        )
        self.name = self._table.name
        self._try = ""

    def close(self) -> None:
        """Close the connection. The next use opens it again."""
        self._table.close()

    async def watch(self, wake: Callable[[], None], seconds: float) -> None:
        """Call ``wake`` when another program may have written to the outbox, until cancelled."""
        await self._table.watch(wake, seconds)

    def read(
        self,
        limit: int,
        most_bytes: int,
        *,
        without: Collection[str] = (),
        resend_within: float,
        behind_writers: bool = False,
        reread: bool = False,
    ) -> list[Row]:
        """Return the next rows, in order. See `OutboxFile.read`. All rows are always read from the start.

        ``behind_writers`` first waits for all transactions that have written to the outbox. From then on until the next
        read, those that write notify. Raises `FileBusy` if they take long.
        """
        if behind_writers:
            self._table.begin_waiting()
        else:
            self._table.end_waiting()
        with self._table.transaction() as connection:
            now = time.time()
            rows: list[Row] = []
            for seq, key, age, queue, group, body, headers, id, priority, delay, ttl, created in connection.execute(
                statements.READ, (list(without), limit, most_bytes)
            ):
                stream = None if group is None else (queue, group)
                too_old = check_age(None if age is None else now - age, resend_within)
                # By the clock of the database, which all its clients share.
                at = None if delay is None else max(now + delay, 0.0)
                message = too_old or read_message(
                    queue, group, bytes(body), headers, id, priority, at, ttl, now - created
                )
                rows.append(Row(seq, bytes(key), stream, message))
        return rows

    def mark(self, rows: Sequence[Row]) -> tuple[list[Row], float]:
        """Mark rows that are about to be sent. See `OutboxFile.mark`."""
        with self._table.transaction() as connection:
            self._try = secrets.token_hex(8)
            found = connection.execute(statements.MARK, (*_columns(rows), self._try)).fetchall()
            now = time.time()
        ages = dict(found)
        return [row for row in rows if row.seq in ages], now - max(ages.values(), default=0.0)

    def unmark(self, rows: Sequence[Row]) -> None:
        """Remove the marks of rows that the daemon refused, so that they may wait for any time.

        Those are the marks of the last `mark`. See `OutboxFile.unmark`.
        """
        with self._table.transaction() as connection:
            connection.execute(statements.UNMARK, ([row.seq for row in rows], self._try))

    def remove(self, rows: Sequence[Row]) -> None:
        """Remove rows whose messages the daemon confirmed. Ignore rows that are gone."""
        with self._table.transaction() as connection:
            connection.execute(statements.REMOVE, _columns(rows))
            connection.execute(statements.REMOVE_MARKS, ([row.seq for row in rows],))

    def set_aside(self, row: Row, error: str) -> None:
        """Mark a row whose message cannot be sent, so that only its group waits for it."""
        with self._table.transaction() as connection:
            if connection.execute(statements.SET_ASIDE, (storable_error(error, connection), row.seq, row.key)).rowcount:
                connection.execute(statements.REMOVE_MARK, (row.seq,))

    def count_set_aside(self) -> int:
        """Return how many rows are set aside."""
        with self._table.transaction() as connection:
            return int(connection.execute(statements.COUNT_SET_ASIDE).fetchall()[0][0])

    def list_set_aside(self, limit: int) -> list[SetAside]:
        """Return the first rows that are set aside, in the order of the outbox."""
        with self._table.transaction() as connection:
            return [SetAside(*row) for row in connection.execute(statements.LIST_SET_ASIDE, (limit,))]


def _columns(rows: Sequence[Row]) -> tuple[list[int], list[bytes]]:
    return [row.seq for row in rows], [row.key for row in rows]
