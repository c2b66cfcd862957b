"""A backup becomes the daemon's file again. The daemon must not run: its lock is held meanwhile.

    copy beside the file, verified → the log of the old file goes → a second name for the old file → rename

A kill or a loss of power at each arrow leaves the old file or the new one in place, whole. A log that stayed behind
would be written into the new file. So it goes first, and is gone from the disk before the rename.
"""

from __future__ import annotations

import os
import sqlite3
import time
from contextlib import closing, suppress
from itertools import count
from pathlib import Path
from typing import NamedTuple

from ...errors import InvalidRequest
from ..locks import Lock, cannot_use
from ..store.sqlite.open_mark import remove_mark
from .snapshots import Snapshot, Watch, copy, open_read_only, require_eoq_file, same_file, sync, verify


class Restored(NamedTuple):
    """What was restored, and where the file is that was there before."""

    snapshot: Snapshot
    kept: Path | None


def restore(backup: Path, database: Path, watch: Watch) -> Restored:
    """Put a copy of ``backup`` in the place of ``database``.

    Raises `Locked` while a daemon uses the file, `NotFound` or `InvalidRequest` where ``backup`` is none, and
    `StorageFailed` where it is damaged. Then nothing was changed.
    """
    if same_file(backup, database):
        raise InvalidRequest(f"{backup} is the daemon's file itself; name a backup")
    database = database.resolve()  # the daemon's own name for it, where a link leads to it
    require_eoq_file(backup)
    verify(backup, watch)
    if not database.parent.is_dir():
        raise cannot_use(database, FileNotFoundError())
    with Lock(database, {"pid": os.getpid(), "socket": ""}):
        new = database.with_name(f"{database.name}.restored")
        with closing(open_read_only(backup, alone=True)) as source:
            snapshot = copy(source, backup, new, watch)
        kept = None
        try:
            kept = _keep_old(database, _new_name(database))
            sync(database.parent)
            new.replace(database)
            sync(database.parent)
        except OSError as error:
            raise cannot_use(database, error) from error
    return Restored(snapshot, kept)


def _new_name(database: Path) -> Path:
    """Return a name beside the file that nothing has yet: with the time, and a number where it is the same second."""
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    names = (f"{database.name}.before-restore-{stamp}{'-' * bool(n)}{n or ''}" for n in count())
    return next(path for name in names if not (path := database.with_name(name)).exists())


def _keep_old(database: Path, kept: Path) -> Path | None:
    """Give the old file a second name, with all that its log has. Return the name, or None without an old file."""
    log, index = Path(f"{database}-wal"), Path(f"{database}-shm")
    if not database.exists():
        log.unlink(missing_ok=True)
        index.unlink(missing_ok=True)
        return None
    # SQLite writes the log back into the file, and removes it when its last connection is closed.
    with suppress(sqlite3.Error), closing(sqlite3.connect(database, isolation_level=None, timeout=1)) as old:
        old.execute("pragma wal_checkpoint(truncate)")
        remove_mark(old)
    for rest, suffix in ((log, "-wal"), (index, "-shm")):
        if rest.exists():  # the old file is damaged, and may still be of use together with its log
            rest.replace(Path(f"{kept}{suffix}"))
    os.link(database, kept)
    return kept
