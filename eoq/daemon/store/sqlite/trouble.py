"""Trouble of the storage: what does not stop the daemon, but has to be seen to. It stands in `status` and in the log.

SQLite reports no error of a checkpoint that runs by itself after a commit. A log that is not written back to the file
grows until the disk is full. So a log that has grown is checkpointed here, and what keeps it is found out.
"""

from __future__ import annotations

import logging
import sqlite3
import time
from pathlib import Path
from typing import Final

from ....system.file_locks import lock_holders

GROWN_LOG: Final = 8 * 1024 * 1024
"""Bytes. A log of this size was not written back for a while, or one transaction was large."""
CHECK_SECONDS: Final = 60.0
"""How often a grown log is checked, and the same trouble logged, at most."""

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
