"""Open a daemon's file, and kill this process by itself when it commits for the nth time.

python planted_migration.py DATABASE NTH
"""

from __future__ import annotations

import asyncio
import functools
import os
import signal
import sqlite3
import sys
from pathlib import Path
from typing import Any

from eoq.daemon.store.sqlite import migration
from eoq.daemon.store.sqlite.store import SqliteStore

STEP_ROWS = 2
"""Few, so that there are several steps."""


class _Connection(sqlite3.Connection):
    """A connection that ends the process before or after a commit: odd numbers before, even numbers after."""

    nth = 0
    _passed = 0

    def execute(self, sql: str, *parameters: Any) -> sqlite3.Cursor:
        if sql.strip() != "commit":
            return super().execute(sql, *parameters)
        self._reached()
        done = super().execute(sql, *parameters)
        self._reached()
        return done

    def executescript(self, sql: str) -> sqlite3.Cursor:
        before, commit, _ = sql.rpartition("commit;")
        if commit and self._is_next():
            super().executescript(before)  # a script commits what was done before it, so it cannot be halved otherwise
        self._reached()
        done = super().executescript(sql)
        self._reached()
        return done

    def _is_next(self) -> bool:
        return _Connection._passed + 1 == self.nth

    def _reached(self) -> None:
        ends = self._is_next()
        _Connection._passed += 1
        if ends:
            os.kill(os.getpid(), signal.SIGKILL)


async def _open(path: Path) -> None:
    store = await SqliteStore.open(path)
    await store.close()


if __name__ == "__main__":
    setattr(migration, "STEP_ROWS", STEP_ROWS)  # noqa: B010 # a constant for all others
    _Connection.nth = int(sys.argv[2])
    setattr(sqlite3, "connect", functools.partial(sqlite3.connect, factory=_Connection))  # noqa: B010 # as a test would
    asyncio.run(_open(Path(sys.argv[1])))
