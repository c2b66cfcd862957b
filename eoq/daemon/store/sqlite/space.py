"""Space: sends are refused before the disk or the file is full, so that messages can still be settled (G10)."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Final

from ...config.settings import StorageSettings
from ..commands import Shrink
from .database import Database

KEPT_PAGES: Final = 2048
"""How many unused pages the file keeps, because the next messages need them again: 8 MiB."""
INCREMENTAL: Final = 2
"""``pragma auto_vacuum`` of a file that can give unused pages back step by step."""
SPACE_SECONDS: Final = 0.1
"""For how many seconds a check of the disk is valid. A check takes a part of the time of a send."""


class Space:
    """The room that the disk and the file have for sends."""

    def __init__(self, database: Database, storage: Callable[[], StorageSettings]) -> None:
        self._database = database
        self._storage = storage
        self._checked_at = float("-inf")
        self._lacking: str | None = None
        self._allowance = 0
        """How many bytes of messages may be stored until the disk is checked again."""

    def lacking(self, size: int) -> str | None:
        """Return why there is no room for ``size`` bytes of messages, with what to do about it; None where there is."""
        now = time.monotonic()
        self._allowance -= size
        if self._lacking is not None or self._allowance < 0 or now >= self._checked_at + SPACE_SECONDS:
            self._lacking = self._check(size)
            self._checked_at = now
        return self._lacking

    def shrink(self, command: Shrink) -> int:
        """See `Shrink`."""
        (mode,) = self._database.execute("pragma auto_vacuum").fetchone()
        (unused,) = self._database.execute("pragma freelist_count").fetchone()
        excess = int(unused) - KEPT_PAGES
        if mode != INCREMENTAL or excess <= 0:
            return 0
        pages = min(excess, command.pages)
        (size,) = self._database.execute("pragma page_size").fetchone()
        if self.lacking(pages * int(size)) is not None:
            return 0  # to give pages back takes room in the log first
        for _ in range(pages):  # sqlite3 runs the statement up to the first page that it gives back, and no further
            self._database.execute("pragma incremental_vacuum(1)")
        return excess - pages

    def _log_bytes(self) -> int:
        try:
            return os.stat(f"{self._database.path}-wal").st_size  # noqa: PTH116 # in the path of a send
        except FileNotFoundError:
            return 0

    def describe(self) -> dict[str, int | None]:
        """Return the bytes of the file and of its log, and how many the disk has, and has free.

        They are None where the system does not say it, for example because the file was removed.
        """
        try:
            size, disk = self._database.path.stat().st_size, os.statvfs(self._database.path)
        except OSError:
            return dict.fromkeys(("file_bytes", "log_bytes", "disk_free_bytes", "disk_bytes"))
        return {
            "file_bytes": size,
            "log_bytes": self._log_bytes(),
            "disk_free_bytes": disk.f_bavail * disk.f_frsize,
            "disk_bytes": disk.f_blocks * disk.f_frsize,
        }

    def check_again(self) -> None:
        """Check the disk at the next call of `lacking`."""
        self._checked_at = float("-inf")

    def _check(self, size: int) -> str | None:
        storage = self._storage()
        path = self._database.path
        disk = os.statvfs(path)
        free = disk.f_bavail * disk.f_frsize
        least = storage.least_free(disk.f_blocks * disk.f_frsize)
        # A message is written to the log, and from there, as all that the log has, to unused pages or the file's end.
        (unused,) = self._database.execute("pragma freelist_count").fetchone()
        (page,) = self._database.execute("pragma page_size").fetchone()
        room = free - least - size - max(0, self._log_bytes() + size - unused * page)
        if room < 0:
            return (
                f"the disk of {path} is full: {free:,} bytes are free, and {free - room:,} are needed for "
                "this and for settling what is there (min_free_bytes); free some space and try again"
            )
        self._allowance = room // 2
        if storage.max_file_bytes is not None:
            (pages,) = self._database.execute("pragma page_count").fetchone()
            if (pages - unused) * page > storage.max_file_bytes:
                return (
                    f"{path} has {(pages - unused) * page:,} bytes and {storage.max_file_bytes:,} is its limit "
                    "(max_file_bytes); settle messages, drop dead letters, or raise it"
                )
        return None
