"""The daemon's file: opened, migrated, and changed in transactions.

This is the only connection that writes and checkpoints. Queries have a read-only connection in ``reader.py``. What the
parts of the store keep in memory about the file follows the transaction: a part that changes such a value says with
`Database.on_rollback` how to undo the change.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import chain
from pathlib import Path
from typing import Final, Self, TypeVar

import aiosqlite

from ....errors import EoqError, Forbidden, StorageFailed, StorageFull
from ....system import aio_sqlite
from ....system.sqlite import FAILED_SYNCS
from ...measures import Latencies
from . import open_mark
from .migration import Tell, migrate, migrations, to_nobody
from .trouble import LOG_LIMIT, FileLost, Ownership, StorageTrouble

T = TypeVar("T")

log = logging.getLogger("eoq.store")

APPLICATION_ID: Final = 0x656F7131
"""``eoq1`` in the header of the file: tells it from other SQLite files."""
MINIMUM_SQLITE: Final = (3, 40, 0)
QUICK_COMMIT: Final = 0.002
"""Seconds. A commit faster than this is cheaper on the event loop than on a thread, which costs two hops (0.1 ms)."""
LONG_LOG: Final = 1000
"""Pages after which SQLite writes the log back into the file. A log that grows takes longer to sync."""
SHORT_LOG: Final = 100
"""The same where the disk has little room."""
WRITE_BACK_CHANGES: Final = 100
"""After so many changed rows, SQLite looks again whether the log is long."""
LOCK_SECONDS: Final = 10.0
"""How long a transaction waits for a lock that another program holds on the file."""
LOCK_PAUSE: Final = 0.01
"""Seconds between two tries for that lock."""
MANY: Final = 50
"""Rows in one statement where there are many. Each step of a statement costs Python as much as SQLite."""


class WrongFile(StorageFailed):
    """The path is not an eoq database. Retrying will not help."""

    exit_status = 65


class FileLocked(StorageFailed):
    """Another program holds the lock of the file. Nothing was changed."""


# For each bound value that is not of a few basic types, sqlite3 searches an adapter. A search that finds none takes
# several times as long as binding the value. So the common types get an adapter that binds the same value, as fast as
# possible. (``{}.get(None)`` is None.) Measure: tests/bench/run.py with and without these lines.
sqlite3.register_adapter(bytes, bytes)
sqlite3.register_adapter(bool, int)
_none_of: Callable[[None], None] = dict[None, None]().get
sqlite3.register_adapter(type(None), _none_of)


class Database:
    """The SQLite file of a daemon: one process and one writer at a time."""

    def __init__(
        self, connection: aiosqlite.Connection, database: sqlite3.Connection, path: Path, quick_commit: float
    ) -> None:
        self.path = path
        self.execute = database.execute
        """Run one statement. Public, since the parts of the store consist of statements."""
        self._connection = connection
        self._database = database
        self._quick_commit = quick_commit
        self._last_commit = 0.0
        self._durable = True
        self.has_short_log = False
        """Whether the log has to be kept short, since the disk has little room."""
        self._writes_back_at: int | None = None
        self._changes_then = self._log_size_then = 0
        """What the numbers were when the log was last written back, if it was long."""
        self._ours = Ownership(database, path)
        self.trouble = StorageTrouble(database, path)
        self.lost: FileLost | None = None
        """Why no transaction is possible any more."""
        self._undo: list[Callable[[], object]] = []
        self._keepers: list[Callable[[], Callable[[], object]]] = []
        self.latencies = Latencies()

    @classmethod
    async def open(cls, path: Path, *, quick_commit: float = QUICK_COMMIT, tell: Tell = to_nobody) -> Self:
        """Open or make the file and bring its schema up to date. ``tell`` is told how far that is.

        Raises `StorageFailed`, `StorageFull` or `Forbidden`, each with what to do about it.
        """
        if sqlite3.sqlite_version_info < MINIMUM_SQLITE:
            raise StorageFailed(
                f"Python is linked to SQLite {sqlite3.sqlite_version}; eoq needs 3.40 or newer: "
                "use a newer Python, or one built against a newer SQLite"
            )
        if path.is_file() and path.stat().st_nlink > 1:
            raise StorageFailed(
                f"{path} has more than one name (hard links), and SQLite would keep another log under each of them: "
                "remove all names but one"
            )
        of_log = open_mark.require_log(path)
        with suppress(OSError):  # SQLite reports what is wrong with the path
            # Readable for its owner alone; SQLite makes the log beside it with the same mode. Nothing in this process
            # has the file open yet, so closing the descriptor drops no lock.
            os.close(os.open(path.resolve(), os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        try:
            # Two threads use the connection, never at once: the writer waits for one before it uses the other.
            database = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=10)
        except sqlite3.Error as error:
            raise storage_error(error, path) from error
        connection = aiosqlite.Connection(lambda: database, 64)
        await connection
        file = cls(connection, database, path, quick_commit)
        file.trouble.report("last log", of_log)
        try:
            await aio_sqlite.run(connection, lambda database: prepare(database, path, tell))
        except sqlite3.Error as error:
            await connection.close()
            raise storage_error(error, path) from error
        except BaseException:
            await connection.close()
            raise
        return file

    async def close(self) -> None:
        """Close the file. After a clean stop, SQLite writes the rest of the log back into it, and removes the log."""
        with open_mark.log_kept_with_mark(self._database, self.path):
            await self._connection.close()

    # ── transactions ────────────────────────────────────────────────────────────────────────────────────

    @property
    def quick(self) -> bool:
        """Whether the disk commits so fast that waiting on the event loop is cheaper than asking the thread."""
        return self._last_commit < self._quick_commit

    async def in_thread(self, function: Callable[[], T]) -> T:
        """Run ``function`` on aiosqlite's thread, so that a slow disk does not block the event loop."""
        return await aio_sqlite.run(self._connection, lambda _: function())

    def transaction(self, function: Callable[[], T], durable: bool, wait: float = LOCK_SECONDS) -> T:
        """Run ``function`` in one transaction, with one sync of the disk where it is to be ``durable``.

        If ``function`` or the commit raises, everything is rolled back, and the error is raised again. A transaction
        that is not durable becomes durable with the next one that is, since the log is one file.

        Raises `FileLocked` where another program holds the file for more than ``wait`` seconds.
        """
        if self.lost is not None:
            raise self.lost
        start = time.perf_counter()
        changes = self._database.total_changes
        try:
            if durable != self._durable:
                self.execute("pragma synchronous = full" if durable else "pragma synchronous = normal")
                self._durable = durable
            self._begin(wait)
            self._ours.check()
            self._let_write_back(durable)
            self._undo.extend([keep() for keep in self._keepers])
            outcome = function()
            commit = time.perf_counter()
            self._commit()
        except BaseException as error:
            # A failed commit (a full disk) has rolled back by itself.
            if self._database.in_transaction:
                self.execute("rollback")
            self._undo_since(0)
            if isinstance(error, FileLost):
                self.lost = error
            raise
        self._undo.clear()
        if durable and self._database.total_changes != changes:
            # Only such a transaction waited for the disk; the others are quick on any disk.
            end = time.perf_counter()
            self._last_commit = end - start
            if self._writes_back_at:  # only a commit that has written something writes the log back
                self._changes_then, self._log_size_then = self._database.total_changes, self._ours.log_size
            self.latencies.commit.add(self._last_commit)
            self.latencies.sync.add(end - commit)
        if durable:
            self.trouble.check_log(self._ours.log_size)  # it may write the log back as well
        return outcome

    def _let_write_back(self, durable: bool) -> None:
        """Let SQLite write a long log back into the file after this commit, or not.

        Before it does, it syncs the log, and tells nobody if that fails, although the lost pages are called clean by
        each later sync. So only a commit that has just synced the log itself may do it. Each switch takes some µs, so
        there is one for many small commits.
        """
        changes, size = self._database.total_changes, self._ours.log_size
        let = durable and (changes >= self._changes_then + WRITE_BACK_CHANGES or size > self._log_size_then)
        pages = 0 if not let else SHORT_LOG if self.has_short_log else LONG_LOG
        if pages != self._writes_back_at:
            self.execute(f"pragma wal_autocheckpoint = {pages}")
            self._writes_back_at = pages

    def write_log_back(self) -> bool:
        """Write the log back into the file, so that it begins again at its start. Call it outside a transaction.

        Return whether all of it was written: another program may read an old state, and the disk may have no room.
        Raises `FileLost`.
        """
        if self.lost is not None:
            raise self.lost
        try:
            self.execute("begin")
            try:
                self._ours.check()
            finally:
                self.execute("rollback")
            _, pages, written = self.execute("pragma wal_checkpoint(passive)").fetchone()
        except FileLost as error:
            self.lost = error
            raise
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode in FAILED_SYNCS:
                self.lost = FileLost(
                    f"{self.path} could not be written to the disk ({error}), so the daemon stops; see to the disk"
                )
                raise self.lost from error
            self.trouble.report(
                "log", f"the log of {self.path} cannot be written to the file ({error}): see to the disk"
            )
            return False
        return bool(pages == written)

    def _begin(self, wait: float) -> None:
        """Begin a transaction. SQLite's own waiting would keep the event loop."""
        try:
            self.execute("begin immediate")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY:
                raise
            self._wait_for_lock(wait)
        self.trouble.report("lock", None)

    def _wait_for_lock(self, wait: float) -> None:
        """Begin a transaction as soon as the other program releases its lock."""
        end = time.monotonic() + wait
        while time.monotonic() < end:
            time.sleep(LOCK_PAUSE)  # SQLite tells no one when a lock is released
            with suppress(sqlite3.OperationalError):
                self.execute("begin immediate")
                return
        holders = self.trouble.holders()
        text = f"{self.path} is locked by {holders}, so nothing was changed; end its transaction, and try again"
        if wait:
            self.trouble.report("lock", text)
        raise FileLocked(text)

    def _commit(self) -> None:
        try:
            self.execute("commit")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_IOERR:
                raise
            unknown = (
                f"{self.path} could not be written to the disk ({error}), so it is unknown whether this was stored: "
                "see to the disk, and repeat it with the same id"
            )
            if error.sqlite_errorcode in FAILED_SYNCS:
                # After a failed sync the kernel calls pages clean that never reached the disk. No later sync tells.
                raise FileLost(f"{unknown} once the daemon runs again") from error
            raise StorageFailed(unknown) from error

    @contextmanager
    def savepoint(self) -> Iterator[None]:
        """Undo what the block has changed if it raises, and leave the rest of the transaction as it is."""
        mark = len(self._undo)
        self._undo.extend([keep() for keep in self._keepers])
        self.execute("savepoint command")
        try:
            yield
        except BaseException:
            # A full disk has rolled back the whole transaction, and the savepoint with it.
            if self._database.in_transaction:
                self.execute("rollback to command")
                self.execute("release command")
            self._undo_since(mark)
            raise
        self.execute("release command")

    def on_rollback(self, undo: Callable[[], object]) -> None:
        """Call ``undo`` if the current transaction or savepoint is rolled back. A commit discards it."""
        self._undo.append(undo)

    def keep(self, keeper: Callable[[], Callable[[], object]]) -> None:
        """Call ``keeper`` where a transaction or savepoint begins. It returns what to call if that is rolled back."""
        self._keepers.append(keeper)

    def _undo_since(self, mark: int) -> None:
        while len(self._undo) > mark:
            self._undo.pop()()

    def execute_rows(self, one: str, many: str, rows: Sequence[tuple[object, ...]]) -> int:
        """Run a statement for all ``rows``, `MANY` at a time with ``many``; return how many rows it changed."""
        changed = 0
        whole = len(rows) // MANY * MANY
        for start in range(0, whole, MANY):
            changed += self.execute(many, [*chain.from_iterable(rows[start : start + MANY])]).rowcount
        for row in rows[whole:]:
            changed += self.execute(one, row).rowcount
        return changed

    def create_function(self, name: str, function: Callable[[int], bool]) -> None:
        """Let statements call ``function``, with one argument, by ``name``."""
        self._database.create_function(name, 1, function)

    def trace(self, callback: Callable[[str], None] | None) -> None:
        """Call ``callback`` with each statement that runs, or stop doing so. For tests of query plans."""
        self._database.set_trace_callback(callback)


# ── opening ─────────────────────────────────────────────────────────────────────────────────────────────────


def prepare(database: sqlite3.Connection, path: Path, tell: Tell = to_nobody) -> None:
    """Check that the file is eoq's, set the connection up, and run the migrations that are missing."""
    (version,) = database.execute("pragma user_version").fetchone()
    (application,) = database.execute("pragma application_id").fetchone()
    (tables,) = database.execute("select count(*) from sqlite_schema").fetchone()
    if tables and application != APPLICATION_ID:
        raise WrongFile(f"{path} is a SQLite file of another program; give the daemon a file of its own")
    scripts = migrations()
    if version > len(scripts):
        raise WrongFile(
            f"{path} was written by a newer eoq (schema {version}, this one knows {len(scripts)}); "
            "install that version again"
        )
    if not tables:
        database.execute("pragma auto_vacuum = incremental")  # before the first page is written
    (mode,) = database.execute("pragma journal_mode = wal").fetchone()
    if mode != "wal":
        raise StorageFailed(f"{path} cannot use a write-ahead log; put it on a local file system")
    # The cache is small, since the hot pages are few: both ends of the queues. When pages of a tree have moved, a
    # commit searches the whole cache. Debian's SQLite overwrites what is deleted with zeros (secure_delete), into the
    # log.
    database.executescript(
        f"""
        pragma synchronous = full;
        pragma mmap_size = 0;
        pragma secure_delete = off;
        pragma cache_size = -4096;
        pragma journal_size_limit = {LOG_LIMIT};
        """
    )
    _checkpoint(database, path)
    migrate(database, path, version, scripts, APPLICATION_ID, tell)
    database.execute("pragma busy_timeout = 0")  # from now on, `transaction` waits by itself
    open_mark.set_mark(database, path)


def _checkpoint(database: sqlite3.Connection, path: Path) -> None:
    """Write and sync all pages of the log, before this daemon confirms anything.

    A daemon before may have ended because a sync failed. Then the log has pages that were only read back from memory.
    A full disk has no room for this, and must not keep the daemon from settling what is stored.
    """
    try:
        database.execute("pragma wal_checkpoint(truncate)").fetchone()
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_FULL:
            raise
        log.warning("the disk of %s is full, so its log could not be written to the file yet", path)


def storage_error(error: sqlite3.Error, path: Path) -> EoqError:
    """Return the error of eoq for a failure of SQLite: what happened, and what to do."""
    exact = getattr(error, "sqlite_errorcode", 0)
    code = exact & 0xFF
    if code == sqlite3.SQLITE_FULL or exact == sqlite3.SQLITE_IOERR_SHMSIZE:
        return StorageFull(f"the disk of {path} is full, so nothing was stored; free some space and try again")
    if code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM):
        return Forbidden(
            f"{path} or its folder cannot be written by this user; mend its permissions or give another --db"
        )
    if code == sqlite3.SQLITE_CANTOPEN:
        return Forbidden(f"{path} cannot be opened; check that its folder exists and that this user may write there")
    if code == sqlite3.SQLITE_NOTADB:
        return WrongFile(f"{path} is no database: give the daemon a file of its own, or restore it from a backup")
    if code == sqlite3.SQLITE_CORRUPT:
        return StorageFailed(f"{path} is damaged ({error}); restore it from a backup")
    return StorageFailed(f"{path} could not be read or written ({error}); nothing was changed; see to the disk")
