"""Locks: only one daemon at a time uses a file, a socket and a spool. A lock ends with its process.

The lock is on a file of its own (``NAME.lock``), never on the database: closing any descriptor of a database drops all
locks that SQLite has on it in this process. The lock file names the daemon that has it, and stays behind. A lock file
that was made for a daemon that then failed to start is removed.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

from ..errors import EoqError, Forbidden, Unavailable


class Locked(Unavailable):
    """Another daemon uses the file, the socket or the spool."""

    exit_status = 75


class Lock:
    """An exclusive lock on the lock file of ``path``, until `release` or the end of the process."""

    def __init__(self, path: Path, holder: dict[str, Any], file: Path | None = None) -> None:
        """Take the lock. Raises `Locked`, which names the daemon that has it, or `Forbidden`.

        ``holder`` is what that text says of this daemon. The lock file is ``file``, or stands beside ``path``.
        """
        self._file = file or path.with_name(path.name + ".lock")
        while not self._take(path):
            pass
        text = json.dumps(holder).encode()
        try:
            os.ftruncate(self._descriptor, 0)
            os.pwrite(self._descriptor, text, 0)
        except OSError:
            # The disk is full. Then the next daemon does not learn the name of this one.
            os.ftruncate(self._descriptor, 0)

    def _take(self, path: Path) -> bool:
        """Try once. Return False where the lock file was removed meanwhile, by the daemon that had it."""
        try:
            self._new = not self._file.exists()
            self._descriptor = os.open(self._file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise cannot_use(self._file, error) from error
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            held_by = _holder(self._descriptor)
            os.close(self._descriptor)
            raise Locked(
                f"{path} is in use by {held_by}; stop that daemon (`eoq stop`), or give this one another path"
            ) from error
        with suppress(OSError):
            if os.path.samestat(os.fstat(self._descriptor), self._file.stat()):
                return True
        os.close(self._descriptor)
        return False

    def release(self) -> None:
        """Give the lock back."""
        os.close(self._descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Give the lock back. After a failure, remove a lock file that was made for it."""
        if kind is not None and self._new:
            with suppress(OSError):
                self._file.unlink()
        self.release()


def _holder(descriptor: int) -> str:
    try:
        holder = json.loads(os.pread(descriptor, 4096, 0))
        return f"the eoq daemon with pid {holder['pid']} on the socket {holder['socket']}"
    except (ValueError, KeyError, TypeError):
        return "another eoq daemon"


def cannot_use(path: Path, error: OSError) -> EoqError:
    """Return the error to raise where a path of the daemon cannot be made or opened."""
    if isinstance(error, PermissionError) or error.errno == errno.EROFS:
        return Forbidden(f"{path} cannot be written by this user ({error.strerror}); choose a folder of your own")
    if isinstance(error, FileNotFoundError):
        return Forbidden(f"the folder {path.parent} does not exist; make it with `mkdir -p {path.parent}`")
    return Forbidden(f"{path} cannot be used ({error.strerror}); choose another path")
