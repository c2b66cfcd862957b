"""The daemon's file: opened, brought up to date, and changed in transactions that many verbs share.

This is the only connection that writes and checkpoints; those that only look are in ``reader.py``. What the verbs do
is in ``store.py``.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from importlib import resources
from itertools import chain
from pathlib import Path
from typing import Final, Self, TypeVar

import aiosqlite

from ....errors import EoqError, Forbidden, StorageFailed, StorageFull

T = TypeVar("T")
Verb = Callable[[], object]

log = logging.getLogger("eoq.store")

APPLICATION_ID: Final = 0x656F7131
"""``eoq1`` in the header of the file: tells it from other SQLite files."""
MINIMUM_SQLITE: Final = (3, 40, 0)
QUICK_COMMIT: Final = 0.002
"""Seconds. A disk that commits faster than this is not worth two hops between threads (0.1 ms)."""
MANY: Final = 50
"""Rows in one statement where there are many: each step of a statement costs Python as much as SQLite."""


class WrongFile(StorageFailed):
    """What was given is no file of this eoq's: trying again later is no use."""

    exit_status = 65


# sqlite3 looks for an adapter of all values but those of a few types. To search in vain takes it several times as long
# as to bind the value, so it finds one: of those that bind the same, the quickest. (``{}.get(None)`` is None.)
sqlite3.register_adapter(bytes, bytes)
sqlite3.register_adapter(bool, int)
_none_of: Callable[[None], None] = dict[None, None]().get
sqlite3.register_adapter(type(None), _none_of)


class DatabaseConnection(aiosqlite.Connection):
    """aiosqlite, with a whole transaction as one call: each call is a hop to its thread and back."""

    async def run(self, function: Callable[[], T]) -> T:
        return await self._execute(function)  # type: ignore[no-any-return,no-untyped-call] # aiosqlite leaves it untyped


class File:
    """A SQLite file of the daemon: one process and one writer at a time."""

    def __init__(
        self, connection: DatabaseConnection, database: sqlite3.Connection, path: Path, quick_commit: float
    ) -> None:
        self.path = path
        self._connection = connection
        self._database = database
        self._quick_commit = quick_commit
        self._last_commit = 0.0
        self._durable = True

    @classmethod
    async def open(cls, path: Path, *, quick_commit: float = QUICK_COMMIT) -> Self:
        """Opens or makes the file and brings its schema up to date.

        Raises `StorageFailed`, `StorageFull` or `Forbidden` with what to do about it.
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
        with suppress(OSError):  # whatever is wrong there, SQLite says
            # For its owner alone, as SQLite then makes the log beside it. Nothing of this process has it open yet.
            os.close(os.open(path.resolve(), os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        try:
            # Two threads use it, never at once: the writer waits for the one before it asks the other.
            database = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=10)
        except sqlite3.Error as error:
            raise storage_error(error, path) from error
        connection = DatabaseConnection(lambda: database, 64)
        await connection
        file = cls(connection, database, path, quick_commit)
        try:
            await connection.run(file._prepare)
        except sqlite3.Error as error:
            await connection.close()
            raise storage_error(error, path) from error
        except BaseException:
            await connection.close()
            raise
        return file

    async def close(self) -> None:
        """Closes the file; SQLite then moves the rest of the WAL into it."""
        await self._connection.close()

    # ── transactions ────────────────────────────────────────────────────────────────────────────────────

    @property
    def quick(self) -> bool:
        """Whether the disk answers so fast that waiting for it here is cheaper than asking the thread."""
        return self._last_commit < self._quick_commit

    async def transact_in_thread(self, verbs: Sequence[Verb], durable: bool = True) -> list[object]:
        """`transact` on aiosqlite's thread, so that a slow disk does not hold up the event loop."""
        return await self._connection.run(partial(self.transact, verbs, durable))

    def transact(self, verbs: Sequence[Verb], durable: bool = True) -> list[object]:
        """Runs all ``verbs`` in one transaction with one fsync, or without any where it need not be ``durable``.

        Returns what each returned, or the `EoqError` it raised. If the transaction fails as a whole, each verb
        is tried again in one of its own, so that an error reaches only those it belongs to.
        """
        start = time.perf_counter()
        changes = self._database.total_changes
        try:
            self._set_durable(durable)
            self._database.execute("begin immediate")
            outcomes = self._attempt_all(verbs)
            self._database.execute("commit")
            self._kept()
        except Exception as error:  # noqa: BLE001 # whatever it is, the transaction is undone and the error answered
            self._undo()
            if len(verbs) == 1:
                return [self._failure(error)]
            return [self.transact([verb], durable)[0] for verb in verbs]
        if durable and self._database.total_changes != changes:
            # Only this has asked the disk; the others are quick on any.
            self._last_commit = time.perf_counter() - start
        return outcomes

    def _set_durable(self, durable: bool) -> None:
        # Without a sync of its own a transaction becomes durable with the next one that has: the WAL is one file.
        if durable != self._durable:
            self._database.execute("pragma synchronous = full" if durable else "pragma synchronous = normal")
            self._durable = durable

    def _attempt_all(self, verbs: Sequence[Verb]) -> list[object]:
        """What each of ``verbs`` returned, or the `EoqError` it raised, as if one was run after the other."""
        return [self._attempt(verb) for verb in verbs]

    def _attempt(self, verb: Verb) -> object:
        try:
            return verb()
        except EoqError as refusal:
            return refusal

    def _undo(self) -> None:
        # A failed commit (a full disk) has rolled back by itself.
        if self._database.in_transaction:
            self._database.execute("rollback")
        self._undone(0)

    # What a subclass knows by heart of the file's content follows the transaction.

    def _mark(self) -> int:
        """How much was changed in this transaction so far."""
        return 0

    def _undone(self, mark: int) -> None:
        """What was changed since ``mark`` is taken back."""

    def _kept(self) -> None:
        """The transaction is committed."""

    def _failure(self, error: Exception) -> EoqError:
        if isinstance(error, sqlite3.Error):
            return storage_error(error, self.path)
        log.exception("a verb of the store failed", exc_info=error)
        return EoqError(f"the daemon failed inside, and nothing was changed: {error!r}; see its log")

    @contextmanager
    def _all_or_nothing(self) -> Iterator[None]:
        mark = self._mark()
        self._database.execute("savepoint verb")
        try:
            yield
        except BaseException:
            # A full disk has undone the whole transaction, and the savepoint with it.
            if self._database.in_transaction:
                self._database.execute("rollback to verb")
                self._database.execute("release verb")
            self._undone(mark)
            raise
        self._database.execute("release verb")

    def _execute_rows(self, one: str, many: str, rows: Sequence[tuple[object, ...]]) -> int:
        """Runs a statement for all ``rows``, `MANY` at a time where there are so many; returns the rows changed."""
        changed = 0
        whole = len(rows) // MANY * MANY
        for start in range(0, whole, MANY):
            changed += self._database.execute(many, [*chain.from_iterable(rows[start : start + MANY])]).rowcount
        for row in rows[whole:]:
            changed += self._database.execute(one, row).rowcount
        return changed

    # ── opening ─────────────────────────────────────────────────────────────────────────────────────────

    def _prepare(self) -> None:
        database = self._database
        (version,) = database.execute("pragma user_version").fetchone()
        (application,) = database.execute("pragma application_id").fetchone()
        (tables,) = database.execute("select count(*) from sqlite_schema").fetchone()
        if tables and application != APPLICATION_ID:
            raise WrongFile(f"{self.path} is a SQLite file of another program; give the daemon one of its own")
        scripts = migrations()
        if version > len(scripts):
            raise WrongFile(
                f"{self.path} was written by a newer eoq (schema {version}, this one knows {len(scripts)}); "
                "install that version again"
            )
        (mode,) = database.execute("pragma journal_mode = wal").fetchone()
        if mode != "wal":
            raise StorageFailed(f"{self.path} cannot use a write-ahead log; put it on a local file system")
        # A checkpoint comes every 1000 pages, as is SQLite's habit: a log that grows takes longer to sync than one that
        # is written over. The cache is small, for what is hot is: both ends of the queues. Where pages of a tree have
        # changed places, a commit looks through all of it.
        database.executescript(
            """
            pragma synchronous = full;
            pragma mmap_size = 0;
            pragma cache_size = -4096;
            pragma journal_size_limit = 67108864;
            """
        )
        for number, script in enumerate(scripts[version:], start=version + 1):
            database.executescript(
                f"""
                begin immediate;
                {script}
                pragma application_id = {APPLICATION_ID};
                pragma user_version = {number};
                commit;
                """
            )


def migrations() -> list[str]:
    """The scripts of ``schema/``, in the order of their numbers."""
    folder = resources.files("eoq.daemon.store.sqlite.schema")
    files = [entry for entry in folder.iterdir() if entry.name.endswith(".sql")]
    return [entry.read_text() for entry in sorted(files, key=lambda entry: entry.name)]


def storage_error(error: sqlite3.Error, path: Path) -> EoqError:
    """What a failure of SQLite means for whoever asked."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code == sqlite3.SQLITE_FULL:
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
