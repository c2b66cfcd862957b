"""Locks: only one daemon at a time uses a file, a socket and a spool. A lock ends with its process.

The lock is on a file of its own (``NAME.lock``), never on the database: closing any descriptor of a database drops all
locks that SQLite has on it in this process. The lock file names the daemon that has it, and stays there when the daemon
ends. If the daemon fails to start, it removes a lock file that it has created.
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

    def __init__(self, path: Path, owner: dict[str, Any], file: Path | None = None) -> None:
        """Acquire the lock. Raises `Locked`, which names the daemon that has it, or `Forbidden`.

        ``owner`` describes this daemon in that text. The lock file is ``file``, or stands beside ``path``.
        """
        self._file = file or path.with_name(path.name + ".lock")
        while not self._try_lock(path):
            pass
        text = json.dumps(owner).encode()
        try:
            os.ftruncate(self._descriptor, 0)
            os.pwrite(self._descriptor, text, 0)
        except OSError:
            # The disk is full. Another daemon then cannot say which daemon has the lock.
            os.ftruncate(self._descriptor, 0)

    def _try_lock(self, path: Path) -> bool:
        """Try once. Return False where the lock file was removed meanwhile, by the daemon that had it."""
        try:
            self._new = not self._file.exists()
            self._descriptor = os.open(self._file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise cannot_use(self._file, error) from error
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            owner = _owner(self._descriptor)
            os.close(self._descriptor)
            raise Locked(
                f"{path} is in use by {owner}; stop that daemon (`eoq stop`), or give this one another path"
            ) from error
        with suppress(OSError):
            if os.path.samestat(os.fstat(self._descriptor), self._file.stat()):
                return True
        os.close(self._descriptor)
        return False

    def release(self) -> None:
        """Release the lock."""
        os.close(self._descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Release the lock. After a failure, remove the lock file if it was created for this lock."""
        if kind is not None and self._new:
            with suppress(OSError):
                self._file.unlink()
        self.release()


def _owner(descriptor: int) -> str:
    try:
        owner = json.loads(os.pread(descriptor, 4096, 0))
        return f"the eoq daemon with pid {owner['pid']} on the socket {owner['socket']}"
    except (ValueError, KeyError, TypeError):
        return "another eoq daemon"


def cannot_use(path: Path, error: OSError) -> EoqError:
    """Return the error for a path of the daemon that cannot be created or opened."""
    if isinstance(error, PermissionError) or error.errno == errno.EROFS:
        return Forbidden(f"{path} cannot be written by this user ({error.strerror}); choose a folder of your own")
    if isinstance(error, FileNotFoundError):
        return Forbidden(f"the folder {path.parent} does not exist; make it with `mkdir -p {path.parent}`")
    return Forbidden(f"{path} cannot be used ({error.strerror}); choose another path")
