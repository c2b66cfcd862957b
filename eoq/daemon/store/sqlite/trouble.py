"""Trouble of the storage: what ends the daemon, and what is only to be seen to, and stands in `status` and in the log.

SQLite reports no error of a checkpoint that runs by itself after a commit. A log that is not written back to the file
grows until the disk is full. So a log that has grown is checkpointed here, and what keeps it is found out.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import time
from pathlib import Path
from typing import Final

from ....errors import StorageFailed
from ....system.file_locks import lock_holders

GROWN_LOG: Final = 8 * 1024 * 1024
"""Bytes. A log of this size was not written back for a while, or one transaction was large."""
CHECK_SECONDS: Final = 60.0
"""How often a grown log is checked, and the same trouble logged, at most."""

LOG_LIMIT: Final = 64 * 1024 * 1024
"""Bytes to which SQLite truncates the log when it begins again at its start."""
OWNERSHIP_SECONDS: Final = 0.001
"""How often to check that the file is still this daemon's alone."""

log = logging.getLogger("eoq.store")


class StorageTrouble:
    """What is wrong with the storage now."""

    def __init__(self, database: sqlite3.Connection, path: Path) -> None:
        self._database = database
        self._path = path
        self._shared_memory = path.with_name(f"{path.name}-shm")
        self._found: dict[str, str] = {}
        self._logged: dict[str, float] = {}
        self._check_at = 0.0

    @property
    def found(self) -> list[str]:
        """One sentence for each trouble."""
        return list(self._found.values())

    def report(self, kind: str, text: str | None) -> None:
        """Set or clear the trouble of this kind. Log it, once in `CHECK_SECONDS` at most."""
        if text is None:
            if self._found.pop(kind, None) is not None:
                log.info("the trouble with the %s of %s is over", kind, self._path)
            return
        self._found[kind] = text
        now = time.monotonic()
        if now >= self._logged.get(kind, float("-inf")) + CHECK_SECONDS:
            self._logged[kind] = now
            log.error(text)

    def holders(self) -> str:
        """Return who else has locks on the file, for a sentence."""
        return ", ".join(lock_holders(self._shared_memory)) or "another program"

    def check_log(self, size: int) -> None:
        """Find out why a log of ``size`` bytes was not written back. Call it after a commit."""
        now = time.monotonic()
        if (size < GROWN_LOG and "log" not in self._found) or now < self._check_at:
            return
        self._check_at = now + CHECK_SECONDS
        try:
            _, pages, written = self._database.execute("pragma wal_checkpoint(passive)").fetchone()
        except sqlite3.OperationalError as error:
            self.report(
                "log",
                f"the log of {self._path} cannot be written to the file ({error}); what is confirmed is safe in the "
                f"log, which has {size:,} bytes and grows: see to the disk",
            )
            return
        if written < pages and size >= GROWN_LOG:
            self.report(
                "log",
                f"the log of {self._path} has {size:,} bytes and grows, because {self.holders()} reads an old state of "
                "the file; end its transaction",
            )
        else:
            self.report("log", None)


class FileLost(StorageFailed):
    """The daemon cannot rely on its file any more: a sync failed, or another program has changed the file.

    The daemon has to end without a checkpoint and without closing the file, since both could copy pages of the log that
    never reached the disk. The next start recovers.
    """


class Ownership:
    """Notices that the file is not this daemon's alone any more.

    Another writer changes SQLite's data version. A file or log that was replaced or removed has another identity, or
    none: this daemon would go on writing to a file that has no name. A log that was truncated is shorter than it was,
    unless the daemon has written to it again before the next check.

    The check takes a tenth of the time of a send (tests/bench/run.py, `send, 1 producer`), so it is made once in
    `OWNERSHIP_SECONDS` at most.
    """

    def __init__(self, database: sqlite3.Connection, path: Path) -> None:
        self._execute = database.execute
        self._path = str(path)
        self._log = f"{path}-wal"
        self._version: int | None = None
        self._identity: tuple[int, int] | None = None
        self._log_identity: tuple[int, int] | None = None
        self.log_size = 0
        self._checked_at = float("-inf")

    def check(self) -> None:
        """Raise `FileLost` where the file was changed by others. Call it with a transaction open."""
        now = time.monotonic()
        if now < self._checked_at + OWNERSHIP_SECONDS:
            return
        self._checked_at = now
        stat = os.stat  # in the path of a send, where `Path.stat` takes twice as long
        (version,) = self._execute("pragma data_version").fetchone()
        try:
            file, log = stat(self._path), stat(self._log)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise FileLost(
                f"{error.filename} was removed while the daemon used it, so nothing more is stored; what was confirmed "
                "since is lost with it. Restart the daemon, and keep other programs away from its files"
            ) from error
        identity, log_identity = (file.st_dev, file.st_ino), (log.st_dev, log.st_ino)
        if self._version is None:
            self._version, self._identity, self._log_identity = version, identity, log_identity
        elif version != self._version:
            raise FileLost(
                f"another program has written to {self._path} (a second daemon, whose lock file was removed?), so this "
                "daemon stops; nothing was changed. Stop the other program, and start one daemon again"
            )
        elif (identity, log_identity) != (self._identity, self._log_identity):
            raise FileLost(
                f"{self._path} or its log was replaced while the daemon used it, so nothing was changed and the daemon "
                "stops; restart it to serve the new file"
            )
        elif log.st_size < self.log_size <= LOG_LIMIT:
            raise FileLost(
                f"{self._log} was truncated by another program, so nothing was changed and the daemon stops; restart it"
            )
        self.log_size = log.st_size
