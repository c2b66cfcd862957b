"""The spool's own folder: its lock, and the folders of the queues in it."""

from __future__ import annotations

import logging
import os
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, Final, Self

from ....spool.format import is_visible, storage_error
from ...locks import Lock, cannot_use

log = logging.getLogger("eoq.spool")

LOCK: Final = ".daemon.lock"
"""The name of the lock file."""
MAX_LOGGED: Final = 5000
"""How many names that do not belong in a spool are remembered, so that each is logged once."""


class SpoolFolder:
    """The folder of a spool, under a lock, so that only one daemon reads it. It is created if it does not exist."""

    def __init__(self, path: Path, owner: dict[str, Any], *, is_default: bool = False) -> None:
        """Acquire the lock. ``owner`` is written into it. Raises `Locked` or `Forbidden`.

        ``is_default``: nobody has asked for this spool.
        """
        self.path = path
        self.is_default = is_default
        self._owner = owner
        self._stack = ExitStack()
        self._logged: set[str] = set()
        self._is_new = not path.exists()
        try:
            path.mkdir(0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise cannot_use(path, error) from error
        self._open()

    def _open(self) -> None:
        with ExitStack() as stack:
            try:
                descriptor = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            except OSError as error:
                raise cannot_use(self.path, error) from error
            stack.callback(os.close, descriptor)
            stack.callback(Lock(self.path, self._owner, self.path / LOCK).release)
            self.descriptor, self._stack = descriptor, stack.pop_all()

    def close(self) -> None:
        """Release the lock."""
        self._stack.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Release the lock. After a start that failed, remove the folder if it was made for that start."""
        if kind is not None and self._is_new and os.listdir(self.descriptor) == [LOCK]:  # noqa: PTH208 # a descriptor
            with suppress(OSError):
                os.unlink(LOCK, dir_fd=self.descriptor)
                self.path.rmdir()
        self.close()

    def queues(self) -> list[str]:
        """Return the names of the queue folders. If the spool was replaced by another folder, open that one.

        Raises `Forbidden`, `StorageFull` or `StorageFailed` if the spool cannot be used.
        """
        try:
            if not os.path.samestat(self.path.stat(), os.fstat(self.descriptor)):
                old = self._stack
                self._open()
                old.close()
            with os.scandir(self.descriptor) as entries:
                return sorted(entry.name for entry in entries if is_visible(entry.name) and self._is_folder(entry))
        except OSError as error:
            raise storage_error(error, self.path) from error

    def _is_folder(self, entry: os.DirEntry[str]) -> bool:
        if entry.is_dir(follow_symlinks=False):
            return True
        if entry.name not in self._logged and len(self._logged) < MAX_LOGGED:
            self._logged.add(entry.name)
            log.warning(
                "%s: %r is left alone: only folders named after queues belong in a spool", self.path, entry.name
            )
        return False
