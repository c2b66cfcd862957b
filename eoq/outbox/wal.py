"""The write-ahead log of an application's file: kept small by the relay while the application writes nothing.

Normally the application's own connections do the checkpoints. The relay leaves them to it, since SQLite before 3.51.3
can corrupt a file if one connection commits while another one checkpoints a second time. But while a relay drains a
large backlog beside an idle application, nobody would do them, and the log would grow with each row removed.

So the relay does one when the log is large, and nobody else has committed since its last step. It asks for the kind
that holds the write lock, during which nobody commits.
"""

from __future__ import annotations

import sqlite3
import time
from pathlib import Path
from typing import Final

from ..system.sqlite import FAILED_SYNCS

LARGE_BYTES: Final = 4 * 1024 * 1024
"""The size from which on a log is made smaller: as large as SQLite's own checkpoints let it become."""
PAUSE_SECONDS: Final = 30.0
"""How long no checkpoint is tried after one that another program's transaction has hindered."""


class WriteAheadLog:
    """The log of the SQLite file ``path``, whose connection does no checkpoints by itself."""

    def __init__(self, path: Path) -> None:
        self._log = Path(f"{path}-wal")
        self._version: object = None
        self._next_try = 0.0
        self._is_disk_trusted = True

    def distrust_disk(self) -> None:
        """Do no more checkpoints in this process, since the disk has failed.

        After a failed sync the system may have dropped pages that it calls written. A checkpoint would then take the
        only good copy of them, the log, away.
        """
        self._is_disk_trusted = False

    def shrink(self, database: sqlite3.Connection) -> None:
        """Empty the log if it is large, and if only this connection has committed since the last call.

        Raises only the error of a failed sync.
        """
        try:
            (version,) = database.execute("pragma data_version").fetchone()
            alone, self._version = version == self._version, version
            if not alone or not self._is_disk_trusted or time.monotonic() < self._next_try or not self._is_large():
                return
            (busy, *_pages) = database.execute("pragma wal_checkpoint(truncate)").fetchone()
        except sqlite3.Error as error:
            if error.sqlite_errorcode in FAILED_SYNCS:
                raise
            busy = getattr(error, "sqlite_errorcode", -1) & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
            if not busy:
                self.distrust_disk()
        if busy:
            self._next_try = time.monotonic() + PAUSE_SECONDS

    def _is_large(self) -> bool:
        try:
            return self._log.stat().st_size > LARGE_BYTES
        except OSError:
            return False  # no such mode, or no log yet
