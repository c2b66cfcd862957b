"""What an ack rests on: the library's block has committed, to the file that has the name, on a disk that has synced.

All of that is seen and not believed.

After a failed sync the system calls pages written that never reached the disk, and no later sync tells. So the log may
have a hole before what is committed from now on, and a loss of power would take all of that. An inbox whose connection
has seen it applies no more messages in this process, since it would ack them. It also keeps the file open: SQLite moves
the log into the file when the last connection is closed, and the pages that it would read may not be those that were
written. When all programs that use the file have ended, the next one recovers by the checksums of the log.
"""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing, suppress
from pathlib import Path
from typing import Final, NamedTuple

from ..errors import InvalidRequest, StorageFailed
from ..message import Delivery
from ..system.forks import leak
from ..system.sqlite import BUSY_SECONDS, FAILED_SYNCS
from .tables import is_stored


class Place(NamedTuple):
    """The connection of a transaction, and the path of its file (empty where it is in memory)."""

    database: sqlite3.Connection
    path: str

    @classmethod
    def of(cls, database: sqlite3.Connection) -> Place:
        """Return the place of the transaction that is open on a connection."""
        cursor = database.cursor()
        cursor.row_factory = None  # the library may have set one on its connection
        paths = [path for _seq, name, path in cursor.execute("pragma database_list") if os.fsdecode(name) == "main"]
        return cls(database, os.fsdecode(paths[0] or ""))

    def shows(self, message: Delivery) -> bool | None:
        """Return whether the id of a message is committed, as the connection sees it after the library's block.

        Return None if the connection cannot tell: the library has closed it, it is bound to another thread, another
        thread has taken it from a pool, or a transaction around the block is still open.
        """
        try:
            return None if self.database.in_transaction else is_stored(self.database, message)
        except sqlite3.ProgrammingError:
            return None

    def file_shows(self, message: Delivery) -> bool:
        """Return whether the id of a message is committed, over a new connection to the file."""
        with closing(
            sqlite3.connect(f"{Path(self.path).as_uri()}?mode=ro", uri=True, timeout=BUSY_SECONDS)
        ) as database:
            return is_stored(database, message)


def not_committed(message: Delivery) -> InvalidRequest:
    """Return the error for a block that ended without an exception, and without the id of its message in the file."""
    return InvalidRequest(
        f"the library's block ended without an exception but did not commit, so the effect of {message.id!r} is not in "
        "the file: either it is inside another transaction (it must be the outermost), or the library discarded it "
        "because the handler caught an error of the database (in Django, run the statement that may fail in an "
        "`atomic` block of its own)"
    )


# ── the file ────────────────────────────────────────────────────────────────────────────────────────────────


class FileIdentity:
    """Notices that the file of a connection, or its log, was replaced or removed: then it commits to no file."""

    def __init__(self, path: str) -> None:
        """``path`` is that of a connection that was just opened; empty where its database is in memory."""
        self.lost = False
        self._path = path
        self._file = _identity(path)
        self._log: tuple[int, int] | None = None
        """None while there is no log: before the first write, and in other journal modes."""

    def check(self) -> None:
        """Raise `StorageFailed` where the file is another one. Call it after a commit and before the ack."""
        if not self._path:
            return
        log = _identity(f"{self._path}-wal")
        self.lost = _identity(self._path) != self._file or (self._log is not None and log != self._log)
        if self.lost:
            raise StorageFailed(
                f"{self._path} or its log was replaced or removed while the inbox used it, so what was just applied "
                "may be in no file, and the message is not acked: stop what uses a file before you replace it"
            )
        self._log = log


stat: Final = os.stat
"""It is called for each transaction, and `Path.stat` takes twice as long."""


def _identity(path: str) -> tuple[int, int] | None:
    # `stat` does not open the file: closing a descriptor of it would drop the locks that this process has on it.
    try:
        found = stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino


# ── the disk ────────────────────────────────────────────────────────────────────────────────────────────────


class Disk:
    """Whether the inbox may still rely on the disk of its file."""

    def __init__(self) -> None:
        self.failed = False

    def check(self) -> None:
        """Raise `StorageFailed` if a sync has failed."""
        if self.failed:
            raise StorageFailed(
                "a sync of the application's file has failed, so what is committed now could be lost with the power; "
                "this process applies no more messages: see to the disk, end all programs that use the file, and start "
                "them again"
            )

    def note(self, error: BaseException, database: sqlite3.Connection | None = None) -> None:
        """Note the error of a transaction on a connection. An error of a library may wrap that of sqlite3."""
        while getattr(error, "sqlite_errorcode", None) not in FAILED_SYNCS:
            cause = error.__cause__
            if cause is None:
                return
            error = cause
        if not self.failed and database is not None:
            _keep_open(database)
        self.failed = True


def _keep_open(database: sqlite3.Connection) -> None:
    """Open the file of a connection once more, for as long as this process runs."""
    with suppress(sqlite3.Error):
        if path := Place.of(database).path:
            kept = sqlite3.connect(path, check_same_thread=False)
            kept.execute("select 1 from sqlite_schema").fetchone()
            leak(kept)
