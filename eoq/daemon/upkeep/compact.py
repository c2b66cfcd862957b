"""The daemon's file is made as small as what it contains, while the daemon does not run."""

from __future__ import annotations

import os
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

from ...errors import StorageFull
from ..locks import Lock
from ..store.sqlite.open_mark import remove_mark
from .snapshots import Watch, failure, open_read_only, stop_at_interrupt


class Compacted(NamedTuple):
    """The bytes of the file before and after."""

    before: int
    after: int


def compact(database: Path, watch: Watch) -> Compacted:
    """Write the file anew without its unused pages. From then on it gives such pages back while the daemon runs.

    A kill changes nothing: SQLite then undoes what it has begun. Raises `Locked` while a daemon uses the file,
    `StorageFull` without room for a second copy of what it contains, and errors of the storage.
    """
    open_read_only(database).close()
    database = database.resolve()
    with Lock(database, {"pid": os.getpid(), "socket": ""}):
        before = database.stat().st_size
        free = shutil.disk_usage(database.parent).free
        # The new content is written to a temporary file first, then to the log, then to the file.
        if free < 2 * before:
            raise StorageFull(
                f"compacting needs up to {2 * before:,} bytes beside {database}, and {free:,} are free; free some"
            )
        try:
            with closing(sqlite3.connect(database, isolation_level=None, timeout=1)) as file:
                file.execute("pragma synchronous = full")
                file.execute("pragma auto_vacuum = incremental")
                stop_at_interrupt(file)
                watch("compacting", 0, 1)
                file.execute("vacuum")
                remove_mark(file)
                file.execute("pragma wal_checkpoint(truncate)")
        except sqlite3.Error as error:
            raise failure(error, database) from error
        watch("compacting", 1, 1)
        return Compacted(before, database.stat().st_size)
