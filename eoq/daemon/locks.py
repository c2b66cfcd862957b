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
import stat
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, Self

from ..errors import EoqError, Forbidden, Unavailable
from ..protocol.holder import lock_file, read_holder
from ..protocol.paths import how_to_open

_IN_THE_WAY: Final = {errno.EISDIR, errno.ENOTDIR, errno.EEXIST, errno.ELOOP, errno.ENXIO}
"""What the system says where a folder, a link or a pipe is in the place of a file, or a file in that of a folder."""
PROBE_SECONDS: Final = 0.02
"""How long to wait before the lock is tried once more: a client may have it for a moment, to see whether it is free."""


class Locked(Unavailable):
    """Another daemon uses the file, the socket or the spool."""

    exit_status = 75


class Lock:
    """An exclusive lock on the lock file of ``path``, until `release` or the end of the process."""

    def __init__(self, path: Path, owner: dict[str, Any], file: Path | None = None) -> None:
        """Acquire the lock. Raises `Locked`, which names the daemon that has it, or `Forbidden`.

        ``owner`` describes this daemon in that text: its ``pid``, and its ``socket``, which is empty for a command. The
        lock file is ``file``, or stands beside ``path``.
        """
        self._path = path
        self._file = file or lock_file(path)
        self._owner = owner
        self._text = json.dumps(owner).encode()
        self._descriptor = self._take()

    @property
    def is_in_place(self) -> bool:
        """Whether the lock file is still there. If not, another daemon could take the lock."""
        try:
            return os.path.samestat(os.fstat(self._descriptor), self._file.stat())
        except OSError:
            return False

    def restore(self) -> None:
        """Take the lock again, where its file was removed. Raises what the constructor raises."""
        old, self._descriptor = self._descriptor, self._take()
        os.close(old)

    def note(self, **more: Any) -> None:
        """Write ``more`` about the owner into the lock file, in place of what it said before. Ignore a full disk.

        The text is written over at once, and never gets shorter: whoever reads meanwhile finds the one or the other.
        """
        self._text = json.dumps({**self._owner, **more}).encode().ljust(len(self._text))
        with suppress(OSError):  # the daemon works without it
            os.pwrite(self._descriptor, self._text, 0)

    def _take(self) -> int:
        descriptor = self._try()
        while descriptor is None:
            descriptor = self._try()
        try:
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, self._text, 0)
        except OSError:
            # The disk is full. Another daemon then cannot say which daemon has the lock.
            os.ftruncate(descriptor, 0)
        return descriptor

    def _try(self) -> int | None:
        """Try once. Return None where the lock file was removed meanwhile, by the daemon that had it."""
        try:
            self._new = not self._file.exists()
            descriptor = os.open(self._file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise cannot_use(self._file, error) from error
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise Forbidden(f"{self._file} is not a regular file, and the lock has to be one; remove it")
            self._lock(descriptor)
            if os.path.samestat(os.fstat(descriptor), self._file.stat()):
                return descriptor
        except FileNotFoundError:
            pass
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
        return None

    def _lock(self, descriptor: int) -> None:
        with suppress(BlockingIOError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        time.sleep(PROBE_SECONDS)  # a client that only looks has gone by then
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = read_holder(descriptor)
            if holder is None:
                raise Locked(f"{self._path} is in use by another eoq daemon; give this one another path") from error
            if not holder.socket:
                raise Locked(
                    f"{self._path} is in use by the eoq command with pid {holder.pid}; try again when it has ended"
                ) from error
            raise Locked(
                f"{self._path} is in use by the eoq daemon with pid {holder.pid} on the socket {holder.socket}; stop "
                f"that daemon (`eoq stop --socket {holder.socket}`), or give this one another path"
            ) from error

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


def cannot_use(path: Path, error: OSError) -> EoqError:
    """Return the error for a path of the daemon that cannot be created or opened."""
    if isinstance(error, PermissionError) or error.errno == errno.EROFS:
        hint = how_to_open(path) or "choose a folder of your own"
        return Forbidden(f"{path} cannot be written by this user ({error.strerror}); {hint}")
    if isinstance(error, FileNotFoundError):
        return Forbidden(f"the folder {path.parent} does not exist; make it with `mkdir -p {path.parent}`")
    if error.errno in _IN_THE_WAY:
        wrong = next(place for place in (path, *path.parents) if os.path.lexists(place))
        return Forbidden(
            f"{path} cannot be used: {wrong} is something else ({error.strerror}); remove that, or choose another path"
        )
    return Forbidden(f"{path} cannot be used ({error.strerror}); choose another path")
