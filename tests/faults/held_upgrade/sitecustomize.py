"""Hold a daemon in the middle of bringing its file up to date, for tests that put this folder on ``PYTHONPATH``.

While the file that ``HELD_UPGRADE`` names exists, no daemon commits the second step in which it moves records.
"""

from __future__ import annotations

import functools
import os
import sqlite3
import sys
import time
from pathlib import Path
from typing import Any

HELD_STEP = 2


class _Connection(sqlite3.Connection):
    """A connection that is held before a commit."""

    held = Path(os.environ.get("HELD_UPGRADE", "/nonexistent"))
    _commits = 0

    def execute(self, sql: str, *parameters: Any) -> sqlite3.Cursor:
        if sql == "commit":
            self._commits += 1
            while self._commits == HELD_STEP and self.held.exists():
                time.sleep(0.01)  # between two looks at a file
        return super().execute(sql, *parameters)


def _plant() -> None:
    from eoq.daemon.store.sqlite import migration

    setattr(migration, "STEP_ROWS", 1)  # noqa: B010 # a constant for all others
    setattr(migration, "TELL_SECONDS", 0.0)  # noqa: B010 # a constant for all others
    setattr(sqlite3, "connect", functools.partial(sqlite3.connect, factory=_Connection))  # noqa: B010 # as a test would


if sys.orig_argv[-1:] != ["-c"] and "daemon" in sys.orig_argv:
    _plant()
