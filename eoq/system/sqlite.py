"""The settings of every connection that eoq makes to an application's SQLite file, and errors that end its use."""

from __future__ import annotations

import sqlite3
from typing import Final

BUSY_SECONDS: Final = 30.0
"""How many seconds a transaction waits for another writer of the application's file."""
DURABLE: Final = "pragma synchronous = extra"
"""Makes each commit survive a loss of power.

With a rollback journal, ``full`` is not enough: it does not sync the folder after it deletes the journal. So the
journal may reappear and undo a committed transaction. With a write-ahead log, ``extra`` and ``full`` are the same.
"""
FAILED_SYNCS: Final = (sqlite3.SQLITE_IOERR_FSYNC, sqlite3.SQLITE_IOERR_DIR_FSYNC)
"""The errors after which the system calls pages written that never reached the disk. No later sync tells."""
FOREIGN_KEYS: Final = "pragma foreign_keys = on"
"""Makes SQLite enforce foreign keys, which it does not by itself. Inside a transaction the statement does nothing."""
