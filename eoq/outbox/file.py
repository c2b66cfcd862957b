"""The relay's end of the outbox: the SQL that reads, marks, removes and sets aside what ``outbox.py`` wrote.

The file is the application's, so every transaction is short, begins ``immediate`` where it writes, and never waits for
the network. Its rows may have been written by anybody, and anything may stand in them.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, NamedTuple

from ..errors import EoqError, Forbidden, InvalidRequest, MessageTooLarge, NotFound, StorageFailed, StorageFull
from ..message import Outgoing
from ..protocol.limits import MAX_BODY, MAX_ERROR, MAX_HEADERS, MAX_ID
from ..protocol.validation import check_options, check_queue, time_left
from ..system.sqlite import DURABLE
from .writer import INDEX

# Rows that a relay has begun to send. They are on disk before the first try, so that a relay that was away for longer
# than the daemon remembers ids can tell which rows may have arrived. A table of its own, since a mark in the row would
# write its body again.
_SENDING: Final = """
    create table if not exists eoq_outbox_sending (
      seq integer primary key,
      since real not null  -- the first try, in seconds since the epoch
    )
"""
_BUSY_SECONDS: Final = 1.0
"""How long one try waits for another writer. Short, so that a relay can be stopped; it tries again."""
_KEY: Final = "substr(cast(id as blob), 1, 1000)"
"""An id as it stands in the file, whatever type it has. Valid ones are shorter."""


def _bounded(column: str, most: int) -> str:
    """A column's value, or the first bytes of one that is over the limit, which `_read_message` then refuses.

    The text itself is never cut: ``substr`` and ``length`` end a text at its first NUL.
    """
    as_blob = f"cast({column} as blob)"
    return f"iif(length({as_blob}) <= {most}, {column}, substr({as_blob}, 1, {most} + 1))"


_COUNT_SET_ASIDE: Final = "select count(*), total(seq) from eoq_outbox where error is not null"
# What is cut off here is far over its limit, and refused by `_read_message`.
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


class FileBusy(StorageFailed):
    """Another program holds the lock of the application's file."""


class FileGone(StorageFailed):
    """The application's file is not there any more."""


class NoOutbox(NotFound):
    """The file has no outbox yet."""


class Row(NamedTuple):
    """A message in an outbox: what is to be sent, or why it cannot be."""

    seq: int
    key: bytes
    """Its id in the file. With it, ``seq`` means this row also where the file was restored meanwhile."""
    stream: tuple[str | bytes, str | bytes] | None
    """Its queue and group; what is of the same waits for this row. None without a group."""
    message: Outgoing | EoqError


class SetAside(NamedTuple):
    """A row that cannot be sent, for people."""

    seq: int
    queue: str
    id: str
    group: str | None
    error: str
    failed_at: float | None


class OutboxFile:
    """The outbox in an application's file, over a connection of the relay's own. Not for two threads at once.

    Each method is one short transaction. The file is opened when it is first used, and anew where it was replaced.
    All raise `FileBusy`, `FileGone`, `NoOutbox`, `StorageFull`, `StorageFailed`, `Forbidden`, and `InvalidRequest`
    where the file is no database or the table is not as documented.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._connection: sqlite3.Connection | None = None
        self._identity = (0, 0)
        self._prepared = False
        self._floor = 0
        self._floor_holds: object = None

    def close(self) -> None:
        """Closes the file, until it is used again."""
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
        anew: bool = False,
    ) -> list[Row]:
        """The next messages, in order: at most ``limit``, and ``most_bytes`` unless the first alone has more.

        Not those of the queues in ``without``, nor those that were set aside, nor those of the same queue and group
        behind them (G8). A row that was first tried longer than ``resend_within`` seconds ago has an error instead
        of its message. ``behind_writers`` waits for a transaction that is being written now. ``anew`` also finds rows
        that somebody has changed while they waited.
        """
        with self._transaction("begin immediate" if behind_writers else "begin") as database:
            # All that waits below the floor waits for something that stands here.
            holds = (*database.execute(_COUNT_SET_ASIDE).fetchone(), sorted(without))
            if anew or holds != self._floor_holds:
                self._floor, self._floor_holds = 0, holds
            parameters = {"floor": self._floor, "limit": limit, "without": json.dumps(list(without))}
            rows: list[Row] = []
            size = 0
            found = database.execute(_READ, parameters)
            for seq, key, since, queue, group, body, headers, *options in found:
                size += sum(len(value) for value in (body, headers) if isinstance(value, str | bytes))
                if rows and size > most_bytes:
                    break
                stream = None if group is None else (queue, group)
                doubt = _doubt(since, resend_within)
                rows.append(Row(seq, key, stream, doubt or _read_message(queue, group, body, headers, *options)))
            found.close()
            if not rows:
                (self._floor,) = database.execute("select ifnull(max(seq), 0) from eoq_outbox").fetchone()
        return rows

    def mark(self, rows: Sequence[Row]) -> None:
        """Notes that these are about to be sent.

        When it returns, the note is on disk, and with it the transactions that wrote the rows, also where the
        application commits without a sync: what is sent can no longer be undone by a loss of power.
        """
        with self._transaction("begin immediate") as database:
            database.executemany(
                """
                insert or ignore into eoq_outbox_sending (seq, since)
                values (?, ?)
                """,
                [(row.seq, time.time()) for row in rows],
            )

    def unmark(self, rows: Sequence[Row]) -> None:
        """Notes that these were refused, so that they may wait as long as they have to."""
        with self._transaction("begin immediate") as database:
            database.executemany("delete from eoq_outbox_sending where seq = ?", [(row.seq,) for row in rows])

    def remove(self, rows: Sequence[Row]) -> None:
        """Removes messages that are confirmed. Without effect for those that are gone."""
        with self._transaction("begin immediate") as database:
            database.executemany(
                f"delete from eoq_outbox where seq = ? and {_KEY} is ?",  # noqa: S608 # a constant
                [(row.seq, row.key) for row in rows],
            )
            database.executemany("delete from eoq_outbox_sending where seq = ?", [(row.seq,) for row in rows])

    def set_aside(self, row: Row, error: str) -> None:
        """Marks a message that cannot be sent, so that it holds up only its group."""
        with self._transaction("begin immediate") as database:
            database.execute(
                f"""
                update eoq_outbox
                set error = ?, failed_at = ?
                where seq = ? and {_KEY} is ? and error is null
                """,  # noqa: S608 # a constant
                (error[:MAX_ERROR].encode(errors="replace").decode(), time.time(), row.seq, row.key),
            )
            database.execute("delete from eoq_outbox_sending where seq = ?", (row.seq,))

    def count_set_aside(self) -> int:
        """How many rows are set aside."""
        with self._transaction("begin") as database:
            return int(database.execute(_COUNT_SET_ASIDE).fetchone()[0])

    def list_set_aside(self, limit: int) -> list[SetAside]:
        """The first rows that are set aside, in the order of the outbox."""
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
        try:
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
        except sqlite3.Error as error:
            trouble = _trouble(error, self.path)
            if not isinstance(trouble, FileBusy):
                self.close()
            raise trouble from error

    def _open(self) -> sqlite3.Connection:
        """The connection; a new one where another file stands at the path now (a restore, a rename)."""
        identity = self._identity_now()
        if self._connection is not None and identity == self._identity:
            return self._connection
        self.close()
        connection = sqlite3.connect(
            f"{self.path.absolute().as_uri()}?mode=rw",
            uri=True,
            timeout=_BUSY_SECONDS,
            isolation_level=None,
            check_same_thread=False,
        )
        try:
            # Another program may have written what is no UTF-8: it is set aside like all that cannot be sent.
            connection.text_factory = lambda raw: raw.decode(errors="surrogateescape")
            connection.execute(DURABLE)
            # Checkpoints are the application's business: SQLite before 3.51.3 can break a file that two connections
            # write and checkpoint at the same moment.
            connection.execute("pragma wal_autocheckpoint = 0")
            if identity != self._identity_now():
                raise FileBusy(f"{self.path} is being replaced")
        except BaseException:
            connection.close()
            raise
        self._connection, self._identity = connection, identity
        self._prepared, self._floor, self._floor_holds = False, 0, None
        return connection

    def _identity_now(self) -> tuple[int, int]:
        # Never by opening it: closing a descriptor of the file would drop the locks that this process has on it.
        try:
            found = self.path.stat()
        except FileNotFoundError as error:
            raise FileGone(f"{self.path} is not there; put it back, or name the file that has the outbox") from error
        except OSError as error:
            raise Forbidden(f"{self.path} cannot be reached: {error.strerror}; ask its owner") from error
        return found.st_dev, found.st_ino


def _prepare(database: sqlite3.Connection, path: Path) -> None:
    if not database.execute("select 1 from sqlite_schema where name = 'eoq_outbox'").fetchone():
        raise NoOutbox(
            f"{path} has no outbox (no table eoq_outbox); the application makes it with eoq.Outbox(connection)"
        )
    database.execute(INDEX)
    database.execute(_SENDING)


def _trouble(error: sqlite3.Error, path: Path) -> EoqError:
    # An error code has its kind in the low byte. Errors of the `sqlite3` module itself have none.
    kind = getattr(error, "sqlite_errorcode", -1) & 0xFF
    if kind in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return FileBusy(f"{path} is locked by another program; end its transaction")
    if kind == sqlite3.SQLITE_FULL:
        return StorageFull(f"there is no space for {path}; free some")
    if kind in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_AUTH):
        return Forbidden(f"{path} cannot be written: {error}; a relay must be able to write it and its folder")
    if kind == sqlite3.SQLITE_NOTADB:
        return InvalidRequest(f"{path} is no SQLite database; name the file that has the outbox")
    if kind == sqlite3.SQLITE_ERROR:
        return InvalidRequest(f"the outbox of {path} is not made as README says: {error}")
    return StorageFailed(f"{path} cannot be read or written: {error}")


def _doubt(since: Any, resend_within: float) -> InvalidRequest | None:
    """Why a row may not be sent again without a person's word, if so."""
    if since is None or time.time() - since <= resend_within:
        return None
    tried = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(since))
    return InvalidRequest(
        f"it was first sent on {tried}, and no answer was seen; by now the daemon may have forgotten its id, so that "
        "it would be stored twice. Find out whether it arrived: then delete the row; otherwise set its error to null"
    )


def _read_message(
    queue: Any, group: Any, body: Any, headers: Any, id: Any, priority: Any, at: Any, ttl: Any, created_at: Any
) -> Outgoing | InvalidRequest | MessageTooLarge:
    """A row as a message, whoever wrote it; or what is wrong with it."""
    try:
        check_queue(queue)
        if id is None:
            raise InvalidRequest("it has no id, so that it could be stored twice")
        if not isinstance(body, str | bytes):
            raise InvalidRequest("it has no body; write text or a blob")
        content = body.encode(errors="surrogateescape") if isinstance(body, str) else body
        if len(content) > MAX_BODY:
            raise MessageTooLarge(f"the body has more than {MAX_BODY:,} bytes; store it elsewhere and send its name")
        message = Outgoing(content, id, queue, _read_headers(headers), priority, group, None, at, ttl)
        check_options(message)
        if ttl is not None:
            if not isinstance(created_at, int | float):
                raise InvalidRequest("its `created_at` is no number of seconds, from which its `ttl` could be counted")
            message = replace(message, ttl=time_left(ttl, created_at))
    except (InvalidRequest, MessageTooLarge) as error:
        return error
    return message


def _read_headers(text: object) -> dict[str, str] | None:
    if text is None:
        return None
    headers = None
    if isinstance(text, str | bytes):
        with suppress(ValueError, RecursionError):
            headers = json.loads(text)
    if not isinstance(headers, dict):
        raise InvalidRequest('the headers are no JSON object of texts: {"name": "value"}')
    return headers
