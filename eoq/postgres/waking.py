"""A connection to a table whose writers wake those that wait for rows: a trigger notifies while somebody waits.

Each transaction that inserts holds the table's lock ``WRITING``, and each waiting reader its lock ``WAITING``, both
shared. So any number may write and wait. A reader first takes ``WAITING``, and then waits once until nobody has
``WRITING``. A transaction that takes ``WRITING`` before that is over when the reader reads. One that takes it later
sees that somebody waits, and notifies. So nobody notifies for nothing: a notification takes a lock of the whole
database at the commit (``sql/common.py`` has the trigger).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final

import psycopg
from psycopg.rows import tuple_row

from ..backoff import pauses
from ..errors import EoqError, Forbidden, InvalidRequest, StorageFailed, StorageFull
from ..outbox.rows import FileBusy, NoOutbox
from .driver import refuse_encoding, shown, with_defaults
from .sql.common import WAITING, WRITING

LOCK_SECONDS: Final = 1
"""How long a reader waits for transactions that have written to the table, before it looks again."""
SETTINGS: Final = """
    select
      set_config('client_encoding', 'UTF8', false),
      set_config('default_transaction_isolation', 'read committed', false),
      case
        when current_setting('synchronous_commit') = 'off' then set_config('synchronous_commit', 'local', false)
      end
    """
"""What a connection of a relay or a bridge needs, whatever the database, the user or a service has set.

Texts as UTF-8, statements that see what was committed before them, and commits that wait for the disk.
"""


class WakingTable:
    """The table ``table`` in the database of a connection string, over a connection that is opened when it is needed.

    All methods raise `FileBusy`, `NoOutbox`, `StorageFull`, `StorageFailed` or `Forbidden`, and `InvalidRequest` if
    the table is not as documented. ``absent`` says what to do if it is not there. ``opened`` is called with each new
    connection.
    """

    def __init__(
        self,
        conninfo: str,
        table: str,
        absent: str,
        opened: Callable[[psycopg.Connection[tuple[Any, ...]]], None] = lambda _connection: None,
    ) -> None:
        self.name = shown(conninfo)
        self._conninfo = with_defaults(conninfo)
        self._table = table
        self._absent = absent
        self._opened = opened
        self._connection: psycopg.Connection[tuple[Any, ...]] | None = None
        self._waiting = False
        """Whether the connection holds the lock by which writers know that somebody waits."""
        self._all_notify = False
        """Whether those that wrote before it was held are over, so that whatever comes is notified."""
        self._is_held_up = False
        """Whether the last wait for the writers was too long."""

    def close(self) -> None:
        """Close the connection. The next use opens it again."""
        if self._connection is not None:
            self._connection.close()
        self._connection, self._waiting, self._all_notify = None, False, False

    @property
    def is_notified(self) -> bool:
        """Whether what can be read from now on, and cannot be read yet, is notified: see `begin_waiting`."""
        return self._all_notify

    def begin_waiting(self) -> None:
        """Wait for all transactions that have written to the table. Those that write from now on notify.

        Raises `FileBusy` if they take long.
        """
        if self._all_notify:
            return
        with self.transaction() as connection:
            if not self._waiting:
                connection.execute(self._of_lock("pg_advisory_lock_shared", WAITING))
                self._waiting = True  # whatever becomes of this transaction
            if self._is_held_up:
                # A transaction is open for long. To wait for it again and again would fill the log of the server.
                ((free,),) = connection.execute(self._of_lock("pg_try_advisory_xact_lock", WRITING)).fetchall()
                if not free:
                    raise _busy(self.name, self._table)
            else:
                self._is_held_up = True  # unless the lock is free in time
                connection.execute(f"set local lock_timeout = '{LOCK_SECONDS}s'")
                connection.execute(self._of_lock("pg_advisory_xact_lock", WRITING))
            self._is_held_up = False
        self._all_notify = True

    def end_waiting(self) -> None:
        """Let those that write notify no more on account of this reader."""
        if self._waiting:
            self._all_notify = False
            with self.connected() as connection:
                connection.execute(self._of_lock("pg_advisory_unlock_shared", WAITING))
            self._waiting = False

    def _of_lock(self, function: str, number: int) -> str:
        return f"select {function}({number}, '{self._table}'::regclass::oid::integer)"

    async def watch(self, wake: Callable[[], None], seconds: float) -> None:
        """Call ``wake`` when another program may have written to the table, until cancelled.

        Over a connection of its own. While that is lost, it calls ``wake`` only now and then.
        """
        waits = pauses(1.0, seconds)
        while True:
            with suppress(psycopg.Error, OSError):
                async with await psycopg.AsyncConnection.connect(self._conninfo, autocommit=True) as connection:
                    await connection.execute(f"listen {self._table}")
                    wake()  # what came before is not notified
                    waits = pauses(1.0, seconds)
                    async for _notice in connection.notifies():
                        wake()
            wake()
            await asyncio.sleep(next(waits))  # the database is away

    @contextmanager
    def transaction(self) -> Iterator[psycopg.Connection[tuple[Any, ...]]]:
        """Run the block in a transaction, which is on disk after it."""
        with self.connected() as connection, connection.transaction():
            yield connection

    @contextmanager
    def connected(self) -> Iterator[psycopg.Connection[tuple[Any, ...]]]:
        """Run the block, in which each call of `execute` is a transaction, which is on disk after it."""
        try:
            yield self._open()
        except psycopg.Error as error:
            failure = failure_of(error, self.name, self._table, self._absent)
            if not isinstance(failure, FileBusy | NoOutbox):
                self.close()
            raise failure from error

    def _open(self) -> psycopg.Connection[tuple[Any, ...]]:
        if self._connection is None or self._connection.closed:
            self._waiting = self._all_notify = False
            connection = psycopg.connect(self._conninfo, autocommit=True, row_factory=tuple_row)
            try:
                refuse_encoding(connection)
                connection.execute(SETTINGS)
                self._opened(connection)
            except BaseException:
                connection.close()
                raise
            self._connection = connection
        return self._connection


def failure_of(error: psycopg.Error, name: str, table: str, absent: str) -> EoqError:
    """Return the error of eoq for one of the database ``name``. ``absent`` says what to do if there is no table."""
    state, said = error.sqlstate or "", " ".join(str(error).split())  # those of libpq have several lines
    if state == "55P03":
        return _busy(name, table)
    if state == "42P01":
        return NoOutbox(f"{name} has no table {table} in its search path; {absent}")
    if state == "53100":
        return StorageFull(f"there is no space for {name}; free some")
    if state.startswith(("28", "42501")):
        return Forbidden(f"{name} refuses this user: {said}; grant select, insert, update and delete")
    if state.startswith(("42", "22")):
        return InvalidRequest(f"the table {table} of {name} is not as documented: {said}")
    return StorageFailed(f"{name} cannot be reached or used: {said}")


def _busy(name: str, table: str) -> FileBusy:
    return FileBusy(f"{name} has open transactions that have written to {table}")
