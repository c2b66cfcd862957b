"""Space: sends are refused before the disk or the file is full, so that messages can still be settled (G10)."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from ...config.settings import StorageSettings
from ..commands import Shrink
from .database import Database

KEPT_PAGES: Final = 2048
"""How many unused pages the file keeps, because the next messages need them again: 8 MiB."""
INCREMENTAL: Final = 2
"""``pragma auto_vacuum`` of a file that can give unused pages back step by step."""
FEW_PAGES: Final = 64
"""Pages given back in one step where sends find no room. Each takes a few pages of the log, from what sends leave."""
LOG_PAGES: Final = 4
"""Pages of the log that giving one page back takes, at most: its content moves, and others point to it."""
TIGHT_BYTES: Final = 16 * 1024 * 1024
"""A disk with so many bytes free, besides what sends leave, is looked at before each transaction: a log takes them."""
SPACE_SECONDS: Final = 0.1
"""For how many seconds a check of the disk is valid. A check takes a part of the time of a send."""


class Space:
    """The room that the disk and the file have for sends."""

    def __init__(self, database: Database, storage: Callable[[], StorageSettings]) -> None:
        self._database = database
        self._storage = storage
        self._checked_at = float("-inf")
        self._lacking: str | None = None
        self._is_tight = False
        self._reusable = 0
        """Bytes of the log that the next transactions use again, as far as that is known."""
        self._looked_at = self._written_back_at = float("-inf")
        self._allowance = 0
        """How many bytes of messages may be stored until the disk is checked again."""

    def lacking(self, size: int) -> str | None:
        """Return why there is no room for ``size`` bytes of messages, with what to do about it; None where there is."""
        now = time.monotonic()
        self._allowance -= size
        self._reusable = max(0, self._reusable - size)
        if self._is_due(now, self._checked_at):
            self._lacking = self._check(size)
            self._checked_at = now
        return self._lacking

    @property
    def is_tight(self) -> bool:
        """Whether the disk has little room, so that the log has to be kept short."""
        return self._is_tight

    def look(self) -> None:
        """Find out whether the disk has little room. Call it before each transaction.

        What sends leave free is for one log, and not a long one. So the log is written back, before the disk is checked
        anew: the bytes of the log are used again then, and count as free. Raises `FileLost`.
        """
        now = time.monotonic()
        if not self._is_tight and now < self._looked_at + SPACE_SECONDS:
            return
        self._looked_at = now
        with suppress(OSError):  # a file that was removed: the transaction says so
            disk = os.statvfs(self._database.path)
            free = disk.f_bavail * disk.f_frsize
            least = self._storage().least_free(disk.f_blocks * disk.f_frsize)
            self._is_tight = self._database.has_short_log = free < least + TIGHT_BYTES
            if not self._is_tight:
                self._reusable = 0
            elif self._is_due(now, self._written_back_at) and self._growth() <= _most_of(free):
                self._written_back_at = now
                self._reusable = self._log_bytes() if self._database.write_log_back() else 0
                self.check_again()

    def _is_due(self, now: float, last: float) -> bool:
        """Return whether to look at the disk anew, if that was done ``last`` at that time."""
        return self._lacking is not None or self._allowance <= 0 or now >= last + SPACE_SECONDS

    def shrink(self, command: Shrink) -> int:
        """See `Shrink`."""
        (mode,) = self._database.execute("pragma auto_vacuum").fetchone()
        (unused,) = self._database.execute("pragma freelist_count").fetchone()
        (size,) = self._database.execute("pragma page_size").fetchone()
        kept, pages = KEPT_PAGES, command.pages
        if self.lacking(pages * int(size)) is not None:  # to give pages back takes room in the log first
            if not self._has_reserve(FEW_PAGES * LOG_PAGES * int(size)):
                return 0
            kept, pages = 0, FEW_PAGES
        excess = int(unused) - kept
        if mode != INCREMENTAL or excess <= 0:
            return 0
        pages = min(excess, pages)
        for _ in range(pages):  # sqlite3 runs the statement up to the first page that it gives back, and no further
            self._database.execute("pragma incremental_vacuum(1)")
        return excess - pages

    def _growth(self) -> int:
        """Return by how many bytes the file grows when the log is written back."""
        (pages,) = self._database.execute("pragma page_count").fetchone()
        (page,) = self._database.execute("pragma page_size").fetchone()
        return int(pages) * int(page) - self._database.path.stat().st_size

    def _has_reserve(self, size: int) -> bool:
        """Return whether ``size`` bytes are less than half of what the disk has free: settling needs the rest."""
        disk = os.statvfs(self._database.path)
        return size < disk.f_bavail * disk.f_frsize // 2

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
        # Bytes that the log has already are of no use to the file.
        (unused,) = self._database.execute("pragma freelist_count").fetchone()
        (page,) = self._database.execute("pragma page_size").fetchone()
        for_file = max(0, self._log_bytes() - self._reusable + size - unused * page)
        room_of_file = _most_of(free) - for_file - (0 if self._reusable else size)
        room_in_all = free + self._reusable - least - size - for_file
        room = min(room_in_all, room_of_file)
        if room < 0:
            return (
                f"the disk of {path} is full: {free:,} bytes are free, and {free - room:,} are needed for "
                "this and for settling what is there (min_free_bytes); free some space and try again"
            )
        # Each byte is taken twice: by the log, which uses its own bytes first, and by the file.
        self._allowance = min(room_in_all // 2, room_of_file, (room_of_file + self._reusable) // 2)
        if storage.max_file_bytes is not None:
            (pages,) = self._database.execute("pragma page_count").fetchone()
            if (pages - unused) * page > storage.max_file_bytes:
                return (
                    f"{path} has {(pages - unused) * page:,} bytes and {storage.max_file_bytes:,} is its limit "
                    "(max_file_bytes); settle messages, drop dead letters, or raise it"
                )
        return None


def _most_of(free: int) -> int:
    """Return how many of the free bytes of a disk the file may take when the log is written back.

    The rest is for what other programs write meanwhile. If the disk is full half-way, the log cannot begin again.
    """
    return free // 8 * 7
