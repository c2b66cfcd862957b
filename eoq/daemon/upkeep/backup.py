"""A backup of the daemon's file while the daemon runs.

As long as the copy is read, SQLite keeps the log from being written back, so the log grows with each send. The backup
is given up before the disk has so little room that the daemon refuses sends.
"""

from __future__ import annotations

import os
import shutil
from contextlib import closing
from pathlib import Path
from typing import Final

from ...errors import InvalidRequest, StorageFull
from ..config.settings import StorageSettings
from .snapshots import Snapshot, Watch, copy, open_read_only, require_backup, same_file

ROOM: Final = 64 * 1024 * 1024
"""Bytes that the disk keeps free for sends, beyond what the daemon keeps for settling, while a backup is made."""


def backup(database: Path, target: Path, storage: StorageSettings, watch: Watch) -> Snapshot:
    """Copy the file ``database`` to ``target``, and return what is in the copy.

    Raises `NotFound` without such a file, `InvalidRequest` where ``target`` is something else than a backup,
    `StorageFull` where the disk of the one or the other has no room, `StorageFailed` where the file is damaged.
    """
    for used in (database, Path(f"{database}-wal"), Path(f"{database}-shm")):
        if same_file(used, target):
            raise InvalidRequest(f"{target} belongs to the daemon's file itself; give the backup another name")
    require_backup(target)

    def watch_space(what: str, done: int, total: int) -> None:
        require_room(database, storage)
        watch(what, done, total)

    with closing(open_read_only(database)) as source:
        size = database.stat().st_size
        free = shutil.disk_usage(target.parent).free if target.parent.is_dir() else size
        if free < size:
            raise StorageFull(f"the backup needs {size:,} bytes, and the disk of {target} has {free:,}; free some")
        return copy(source, database, target, watch_space)


def require_room(database: Path, storage: StorageSettings, what: str = "backup") -> None:
    """Raise `StorageFull` before the daemon would refuse sends, because its log cannot be written back.

    ``what`` is what reads the file meanwhile.
    """
    disk = os.statvfs(database)
    free = disk.f_bavail * disk.f_frsize
    try:
        log = Path(f"{database}-wal").stat().st_size
    except FileNotFoundError:
        return  # nothing grows: no daemon writes
    # What the log has may be written to the file's end later, so it is needed twice.
    least = storage.least_free(disk.f_blocks * disk.f_frsize) + log + min(ROOM, free // 20)
    if free < least:
        raise StorageFull(
            f"the {what} was given up: the disk of {database} has {free:,} bytes free and needs {least:,}, since the "
            f"log grows while a {what} is made; free some space and try again"
        )
