"""The relay's end of an outbox in PostgreSQL. `Relay` takes it in place of the path of a file."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Final

import psycopg
from psycopg.rows import tuple_row

from ..backoff import pauses
from ..errors import EoqError, Forbidden, InvalidRequest, StorageFailed, StorageFull
from ..outbox.rows import FileBusy, NoOutbox, Row, SetAside, check_age, read_message
from ..protocol.limits import MAX_ERROR
from . import outbox_statements as statements
from .driver import shown, with_defaults

LOCK_SECONDS: Final = 1
"""How long the relay waits for transactions that have written to the outbox, before it looks again."""


class OutboxTable:
    """The outbox in the database of a connection string, over a connection of its own.

    All methods raise `FileBusy`, `NoOutbox`, `StorageFull`, `StorageFailed` or `Forbidden`, and `InvalidRequest` if
    the table is not as documented. A connection that was lost is opened again at the next use.
    """

    def __init__(self, conninfo: str) -> None:
        self.name = shown(conninfo)
        self._conninfo = with_defaults(conninfo)
        self._connection: psycopg.Connection[tuple[Any, ...]] | None = None
        self._try = ""
        self._waiting = False
        """Whether the connection holds the lock by which writers know that the relay waits."""

    def close(self) -> None:
        """Close the connection. The next use opens it again."""
        if self._connection is not None:
            self._connection.close()
        self._connection, self._waiting = None, False

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
            self._begin_waiting()
        else:
            self._end_waiting()
        with self._transaction() as connection:
            now = time.time()
            rows: list[Row] = []
            size = 0
            for seq, key, age, queue, group, body, headers, id, priority, delay, ttl, created in connection.execute(
                statements.READ, (list(without), limit)
            ):
                size += sum(len(value) for value in (body, headers) if value is not None)
                if rows and size > most_bytes:
                    break
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
        with self._transaction() as connection:
            self._try = secrets.token_hex(8)
            found = connection.execute(statements.MARK, (*_columns(rows), self._try)).fetchall()
            now = time.time()
        ages = dict(found)
        return [row for row in rows if row.seq in ages], now - max(ages.values(), default=0.0)

    def unmark(self, rows: Sequence[Row]) -> None:
        """Remove the marks of rows that the daemon refused, so that they may wait for any time.

        Those are the marks of the last `mark`. See `OutboxFile.unmark`.
        """
        with self._transaction() as connection:
            connection.execute(statements.UNMARK, ([row.seq for row in rows], self._try))

    def remove(self, rows: Sequence[Row]) -> None:
        """Remove rows whose messages the daemon confirmed. Ignore rows that are gone."""
        with self._transaction() as connection:
            connection.execute(statements.REMOVE, _columns(rows))
            connection.execute(statements.REMOVE_MARKS, ([row.seq for row in rows],))

    def set_aside(self, row: Row, error: str) -> None:
        """Mark a row whose message cannot be sent, so that only its group waits for it."""
        text = error[:MAX_ERROR].encode(errors="replace").decode().replace("\0", "·")  # PostgreSQL has no NUL in a text
        with self._transaction() as connection:
            if connection.execute(statements.SET_ASIDE, (text, row.seq, row.key)).rowcount:
                connection.execute(statements.REMOVE_MARK, (row.seq,))

    def count_set_aside(self) -> int:
        """Return how many rows are set aside."""
        with self._transaction() as connection:
            return int(connection.execute(statements.COUNT_SET_ASIDE).fetchall()[0][0])

    def list_set_aside(self, limit: int) -> list[SetAside]:
        """Return the first rows that are set aside, in the order of the outbox."""
        with self._transaction() as connection:
            return [SetAside(*row) for row in connection.execute(statements.LIST_SET_ASIDE, (limit,))]

    async def watch(self, wake: Callable[[], None], seconds: float) -> None:
        """Call ``wake`` when another program may have written to the outbox, until cancelled.

        Over a connection of its own. While that is lost, it calls ``wake`` only now and then.
        """
        waits = pauses(1.0, seconds)
        while True:
            with suppress(psycopg.Error, OSError):
                async with await psycopg.AsyncConnection.connect(self._conninfo, autocommit=True) as connection:
                    await connection.execute(f"listen {statements.CHANNEL}")
                    wake()  # what came before is not notified
                    waits = pauses(1.0, seconds)
                    async for _notice in connection.notifies():
                        wake()
            wake()
            await asyncio.sleep(next(waits))  # the database is away

    # ── the connection ──────────────────────────────────────────────────────────────────────────────────

    def _begin_waiting(self) -> None:
        if not self._waiting:
            with self._transaction() as connection:
                connection.execute(f"set local lock_timeout = '{LOCK_SECONDS}s'")
                connection.execute(statements.LOCK_WAITERS)
            self._waiting = True

    def _end_waiting(self) -> None:
        if self._waiting:
            with self._transaction() as connection:
                connection.execute(statements.UNLOCK_WAITERS)
            self._waiting = False

    @contextmanager
    def _transaction(self) -> Iterator[psycopg.Connection[tuple[Any, ...]]]:
        failure: EoqError | None = None
        try:
            connection = self._open()
            with connection.transaction():
                yield connection
        except psycopg.Error as error:
            failure = self._failure(error)
            if not isinstance(failure, FileBusy | NoOutbox):
                self.close()
            raise failure from error

    def _open(self) -> psycopg.Connection[tuple[Any, ...]]:
        if self._connection is None or self._connection.closed:
            self._waiting = False
            self._connection = psycopg.connect(self._conninfo, autocommit=True, row_factory=tuple_row)
            # A mark has to be on disk before its row is sent, and with it the transaction that wrote the row.
            self._connection.execute(
                "select set_config('synchronous_commit', 'local', false) "
                "where current_setting('synchronous_commit') = 'off'"
            )
        return self._connection

    def _failure(self, error: psycopg.Error) -> EoqError:
        state = error.sqlstate or ""
        if state == "55P03":
            return FileBusy(f"{self.name} has open transactions that have written to the outbox")
        if state == "42P01":
            return NoOutbox(
                f"{self.name} has no outbox (no table eoq_outbox in its search path); the application creates it with "
                "its first eoq.PgOutbox(connection).send"
            )
        if state.startswith("53100"):
            return StorageFull(f"there is no space for {self.name}; free some")
        if state.startswith(("28", "42501")):
            return Forbidden(f"{self.name} refuses this user: {error}; a relay selects, inserts, updates and deletes")
        if state.startswith(("42", "22")):
            return InvalidRequest(f"the outbox table of {self.name} is not as PROTOCOL.md describes it: {error}")
        return StorageFailed(f"{self.name} cannot be reached or used: {error}".rstrip())


def _columns(rows: Sequence[Row]) -> tuple[list[int], list[bytes]]:
    return [row.seq for row in rows], [row.key for row in rows]
