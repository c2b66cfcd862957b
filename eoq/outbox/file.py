"""The relay's end of the outbox: the SQL that reads, marks, removes and sets aside the rows that `Outbox` wrote.

The file is the application's. So every transaction is short, begins ``immediate`` if it writes, and never waits for the
network. Any program may have written the rows, so they may contain anything.
"""

from __future__ import annotations

import json
import secrets
import sqlite3
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from ..errors import EoqError, Forbidden, InvalidRequest, StorageFailed, StorageFull
from ..protocol.limits import MAX_BODY, MAX_ERROR, MAX_HEADERS, MAX_ID
from ..system.forks import leak
from ..system.sqlite import DURABLE, FAILED_SYNCS
from ..system.watch import watch_database
from .rows import FileBusy, FileGone, NoOutbox, Row, SetAside, check_age, read_message
from .wal import WriteAheadLog
from .writer import INDEX

# The rows that a relay has begun to send. The mark is on disk before the first try. So a relay that was not running for
# longer than the daemon remembers ids knows which rows may have arrived. It is a table of its own, since a mark in the
# row would write the body again.
_SENDING: Final = """
    create table if not exists eoq_outbox_sending (
      seq integer primary key,
      since real not null, -- the first try, in seconds since the epoch
      try text             -- that one; null after another try, which may have stored the message
    )
"""
_ADD_TRY: Final = "alter table eoq_outbox_sending add column try text"
"""For a table that an earlier version made."""
_BUSY_SECONDS: Final = 1.0
"""How long one try waits for another writer. It is short, so that a relay can be stopped; the relay tries again."""
_KEY: Final = "substr(cast(id as blob), 1, 1000)"
"""The id in the file, whatever its type. Valid ids are shorter."""


def _bounded(column: str, most: int) -> str:
    """Return SQL for the value of a column, or for its first bytes if it is over the limit.

    `read_message` then refuses those. A text is made a blob first: ``substr`` and ``length`` end a text at its first
    NUL.
    """
    as_blob = f"cast({column} as blob)"
    return f"iif(length({as_blob}) <= {most}, {column}, substr({as_blob}, 1, {most} + 1))"


_COUNT_SET_ASIDE: Final = "select count(*), total(seq) from eoq_outbox where error is not null"
# Values that are cut here are far over their limit, and `read_message` refuses them.
_READ: Final = f"""
    select
      next.seq,
      {_KEY},
      (select since from eoq_outbox_sending as sending where sending.seq = next.seq),
      {_bounded("queue", 4 * MAX_ID)},
      {_bounded('"group"', 4 * MAX_ID)},
      iif(typeof(body) in ('integer', 'real'), cast(body as text), {_bounded("body", MAX_BODY)}),
      {_bounded("headers", 4 * MAX_HEADERS)},
      {_bounded("id", 4 * MAX_ID)},
      priority,
      at,
      ttl,
      created_at
    from eoq_outbox as next
    where next.seq > :floor
      and error is null
      and ifnull(queue, '') not in (select value from json_each(:without))
      and not exists (
        select 1
        from eoq_outbox as aside
        where aside.error is not null
          and aside.queue = next.queue
          and aside."group" = next."group"
          and aside.seq < next.seq
      )
    order by next.seq
    limit :limit
"""  # noqa: S608 # constants


_STILL_THERE: Final = f"""
    select seq, {_KEY}, iif(typeof(since) in ('text', 'blob'), 0.0, since)
    from eoq_outbox
    left join eoq_outbox_sending using (seq)
    where seq in (select value from json_each(?)) and error is null
"""  # noqa: S608 # constants


class OutboxFile:
    """The outbox in an application's file, over a connection of its own. Only one thread may use it at a time.

    Each method is one short transaction. The file is opened when it is first used, and again if it was replaced. All
    methods raise `FileBusy`, `FileGone`, `NoOutbox`, `StorageFull`, `StorageFailed` or `Forbidden`, and
    `InvalidRequest` if the file is not a database or the table is not as documented.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self._connection: sqlite3.Connection | None = None
        self._identity = (0, 0)
        self._prepared = False
        self._floor = 0
        self._floor_valid_for: object = None
        self._log = WriteAheadLog(path)
        self._try = ""
        self._has_failed_to_sync = False

    @property
    def name(self) -> str:
        """The path of the file, as it is shown."""
        return str(self.path)

    async def watch(self, wake: Callable[[], None], seconds: float) -> None:
        """Call ``wake`` when the file may have been written, and every ``seconds`` at least, until cancelled."""
        await watch_database(self.path, wake, seconds)

    def close(self) -> None:
        """Close the file. The next use opens it again."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

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
        """Return the next rows, in order: at most ``limit``, and ``most_bytes`` unless the first alone has more.

        Leave out the rows of the queues in ``without``, the rows that were set aside, and those behind them in the same
        queue and group (G8). A row that was first tried longer than ``resend_within`` seconds ago has an error
        instead of its message. ``behind_writers`` waits for a transaction that is being written now. ``reread`` also
        finds rows that were changed while they waited.
        """
        with self._transaction("begin immediate" if behind_writers else "begin") as database:
            # No row below the floor can be sent until one of these values changes.
            valid_for = (*database.execute(_COUNT_SET_ASIDE).fetchone(), sorted(without))
            if reread or valid_for != self._floor_valid_for:
                self._floor, self._floor_valid_for = 0, valid_for
            parameters = {"floor": self._floor, "limit": limit, "without": json.dumps(list(without))}
            rows: list[Row] = []
            size = 0
            found = database.execute(_READ, parameters)
            for seq, key, since, queue, group, body, headers, *options in found:
                size += sum(len(value) for value in (body, headers) if isinstance(value, str | bytes))
                if rows and size > most_bytes:
                    break
                stream = None if group is None else (queue, group)
                too_old = check_age(since, resend_within)
                rows.append(Row(seq, key, stream, too_old or read_message(queue, group, body, headers, *options)))
            found.close()
            if not rows:
                (self._floor,) = database.execute("select ifnull(max(seq), 0) from eoq_outbox").fetchone()
        return rows

    def mark(self, rows: Sequence[Row]) -> tuple[list[Row], float]:
        """Mark rows that are about to be sent. Return those that are still there, and the first try of any of them.
        When it returns, the marks are on disk, and so are the transactions that wrote the rows, even if the application
        commits without a sync. So a loss of power cannot undo what is sent.
        """
        with self._transaction("begin immediate") as database:
            now = time.time()
            found = database.execute(_STILL_THERE, (json.dumps([row.seq for row in rows]),)).fetchall()
            since = {(seq, key): now if tried is None else tried for seq, key, tried in found}
            left = [row for row in rows if (row.seq, row.key) in since]
            self._try = secrets.token_hex(8)
            database.executemany(
                """
                insert into eoq_outbox_sending (seq, since, try)
                values (?, ?, ?)
                on conflict (seq) do update
                set try = null
                """,
                [(row.seq, now, self._try) for row in left],
            )
        return left, min((since[row.seq, row.key] for row in left), default=now)

    def unmark(self, rows: Sequence[Row]) -> None:
        """Remove the marks of rows that the daemon refused, so that they may wait for any time.

        These are the marks that the last `mark` made. If there was another try, of this relay or of another one, it
        may have stored its message, and the mark stays.
        """
        with self._transaction("begin immediate") as database:
            database.executemany(
                "delete from eoq_outbox_sending where seq = ? and try = ?", [(row.seq, self._try) for row in rows]
            )

    def remove(self, rows: Sequence[Row]) -> None:
        """Remove rows whose messages the daemon confirmed. Ignore rows that are gone, and others in their place."""
        with self._transaction("begin immediate") as database:
            database.executemany(
                f"delete from eoq_outbox where seq = ? and {_KEY} is ?",  # noqa: S608 # a constant
                [(row.seq, row.key) for row in rows],
            )
            database.executemany(
                """
                delete from eoq_outbox_sending
                where seq = ?1 and not exists (select 1 from eoq_outbox where seq = ?1)
                """,
                [(row.seq,) for row in rows],
            )
        with self._errors():
            self._log.shrink(database)

    def set_aside(self, row: Row, error: str) -> None:
        """Mark a row whose message cannot be sent, so that only its group waits for it."""
        with self._transaction("begin immediate") as database:
            found = database.execute(
                f"""
                update eoq_outbox
                set error = ?, failed_at = ?
                where seq = ? and {_KEY} is ? and error is null
                """,  # noqa: S608 # a constant
                (error[:MAX_ERROR].encode(errors="replace").decode(), time.time(), row.seq, row.key),
            )
            if found.rowcount:
                database.execute("delete from eoq_outbox_sending where seq = ?", (row.seq,))

    def count_set_aside(self) -> int:
        """Return how many rows are set aside."""
        with self._transaction("begin") as database:
            return int(database.execute(_COUNT_SET_ASIDE).fetchone()[0])

    def list_set_aside(self, limit: int) -> list[SetAside]:
        """Return the first rows that are set aside, in the order of the outbox."""
        with self._transaction("begin") as database:
            found = database.execute(
                """
                select
                  seq, substr(cast(queue as text), 1, 200), substr(cast(id as text), 1, 200),
                  substr(cast("group" as text), 1, 200), cast(error as text), cast(failed_at as real)
                from eoq_outbox
                where error is not null
                order by seq
                limit ?
                """,
                (limit,),
            )
            return [SetAside(*row) for row in found]

    # ── the connection ──────────────────────────────────────────────────────────────────────────────────

    @contextmanager
    def _transaction(self, begin: str) -> Iterator[sqlite3.Connection]:
        if self._has_failed_to_sync:
            raise self._failed_to_sync()
        with self._errors():
            database = self._open()
            if not self._prepared:
                _prepare(database, self.path)
                self._prepared = True
            database.execute(begin)
            try:
                yield database
                database.execute("commit")
            except BaseException:
                if database.in_transaction:
                    database.execute("rollback")
                raise

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Raise the errors of SQLite as those of eoq, and do with the connection what they demand."""
        try:
            yield
        except sqlite3.Error as error:
            if getattr(error, "sqlite_errorcode", None) in FAILED_SYNCS:
                self._has_failed_to_sync = True
                leak(self._connection)  # SQLite moves the log into the file when its last connection is closed
                self._connection = None
                raise self._failed_to_sync() from error
            failure = _storage_error(error, self.path)
            if isinstance(failure, StorageFailed) and not isinstance(failure, FileBusy):
                self._log.distrust_disk()
            if not isinstance(failure, FileBusy):
                self.close()
            raise failure from error

    def _failed_to_sync(self) -> StorageFailed:
        """Return the error after a failed sync. A row that is sent now could vanish with the power."""
        return StorageFailed(
            f"a sync of {self.path} has failed, so what was committed could be lost with the power; this process sends "
            "nothing more from it: see to the disk, end all programs that use the file, and start them again"
        )

    def _open(self) -> sqlite3.Connection:
        """Return the connection: a new one if the path leads to another file now (a restore, a rename)."""
        identity = self._identity_now()
        if self._connection is not None and identity == self._identity:
            return self._connection
        self.close()
        connection = sqlite3.connect(
            f"{self.path.as_uri()}?mode=rw",
            uri=True,
            timeout=_BUSY_SECONDS,
            isolation_level=None,
            check_same_thread=False,
        )
        try:
            # Another program may have written text that is not UTF-8. Such a row is set aside.
            connection.text_factory = lambda raw: raw.decode(errors="surrogateescape")
            connection.execute(DURABLE)
            connection.execute("pragma wal_autocheckpoint = 0")  # `WriteAheadLog` says why
            if identity != self._identity_now():
                raise FileBusy(f"{self.path} is being replaced")
        except BaseException:
            connection.close()
            raise
        self._connection, self._identity = connection, identity
        self._prepared, self._floor, self._floor_valid_for = False, 0, None
        return connection

    def _identity_now(self) -> tuple[int, int]:
        # `stat` does not open the file: closing a descriptor of it would drop the locks that this process has on it.
        try:
            found = self.path.stat()
        except FileNotFoundError as error:
            raise FileGone(f"{self.path} does not exist; put it back, or name the file that has the outbox") from error
        except OSError as error:
            raise Forbidden(f"{self.path} cannot be reached: {error.strerror}; ask its owner") from error
        return found.st_dev, found.st_ino


def _prepare(database: sqlite3.Connection, path: Path) -> None:
    if not database.execute("select 1 from sqlite_schema where name = 'eoq_outbox'").fetchone():
        raise NoOutbox(
            f"{path} has no outbox (no table eoq_outbox); the application creates it with eoq.Outbox(connection)"
        )
    database.execute(INDEX)
    database.execute(_SENDING)
    if not _has_try(database):
        database.execute("begin immediate")
        try:
            if not _has_try(database):  # another relay may have been quicker
                database.execute(_ADD_TRY)
            database.execute("commit")
        finally:
            if database.in_transaction:
                database.execute("rollback")


def _has_try(database: sqlite3.Connection) -> bool:
    columns = "select 1 from pragma_table_info('eoq_outbox_sending') where name = 'try'"
    return database.execute(columns).fetchone() is not None


def _storage_error(error: sqlite3.Error, path: Path) -> EoqError:
    # The low byte of an error code is its kind. Errors of the `sqlite3` module itself have no code.
    kind = getattr(error, "sqlite_errorcode", -1) & 0xFF
    if kind in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return FileBusy(f"{path} is locked by another program; end the transaction of that program")
    if kind == sqlite3.SQLITE_FULL:
        return StorageFull(f"there is no space for {path}; free some")
    if kind in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_AUTH):
        return Forbidden(f"{path} cannot be written: {error}; a relay must be able to write it and its folder")
    if kind == sqlite3.SQLITE_NOTADB:
        return InvalidRequest(f"{path} is not a SQLite database; name the file that has the outbox")
    if kind == sqlite3.SQLITE_ERROR:
        return InvalidRequest(f"the outbox table of {path} is not as PROTOCOL.md describes it: {error}")
    return StorageFailed(f"{path} cannot be read or written: {error}")
