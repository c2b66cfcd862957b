"""Which daemon has the lock of a file or a socket, and what state it is in. It is found without asking the daemon.

So a client can tell a daemon that does not run from one that does not answer, or whose socket was removed.
"""

from __future__ import annotations

import fcntl
import json
import os
import stat
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import EoqError
from .paths import database_path


class Opening(NamedTuple):
    """What a daemon does before it serves, and how far it is."""

    what: str
    done: int
    total: int
    """0 where it is not known how much there is."""
    upgrades: bool
    """Whether it brings the file of an earlier version up to date, which takes as long as the file is large."""

    @property
    def text(self) -> str:
        """One line for the operator."""
        how_far = f", {100 * self.done // self.total} %" if self.total else ""
        return f"{'bringing its file up to date: ' if self.upgrades else ''}{self.what}{how_far}"


class Holder(NamedTuple):
    """A daemon that has a lock: its process, its socket, and what it does before it serves."""

    pid: int
    socket: str
    opening: Opening | None = None
    """None once it serves, and where an earlier version does not say it."""

    @property
    def is_stopped(self) -> bool:
        """Whether the process was stopped by a signal or a debugger. False where the system does not tell."""
        try:
            return Path(f"/proc/{self.pid}/stat").read_bytes().rpartition(b")")[2].split()[0] in b"Tt"
        except (OSError, IndexError):
            return False

    @property
    def is_here(self) -> bool:
        """Whether the pid is that of an eoq process. In another container it may be the pid of something else."""
        try:
            return b"eoq" in Path(f"/proc/{self.pid}/cmdline").read_bytes()
        except OSError:
            return not Path("/proc/self/cmdline").exists()


def lock_file(path: Path) -> Path:
    """Return the lock file of a database or a socket."""
    return path.with_name(path.name + ".lock")


def read_holder(descriptor: int) -> Holder | None:
    """Return the daemon that an open lock file names, or None if it names none."""
    try:
        fields = json.loads(os.pread(descriptor, 4096, 0))
        return Holder(int(fields["pid"]), str(fields["socket"]), _opening_of(fields.get("opening")))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _opening_of(fields: dict[str, Any] | None) -> Opening | None:
    if fields is None:
        return None
    return Opening(str(fields["what"]), int(fields["done"]), int(fields["total"]), bool(fields["upgrades"]))


def holder_of(path: Path) -> Holder | None:
    """Return the daemon that has the lock of ``path``. None where none has it, or where that cannot be found out."""
    try:
        descriptor = os.open(lock_file(path.resolve()), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, RuntimeError, ValueError):
        return None
    try:
        # Shared, and for a moment only: a daemon that starts now tries again (`locks.py`).
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return read_holder(descriptor)
    finally:
        os.close(descriptor)
    return None


def daemon_on(socket: Path, database: Path | None = None) -> Holder | None:
    """Return the daemon of a socket, or None where none is found.

    Where the folder of the socket was removed, its lock is gone as well. Then the lock of ``database`` tells, which is
    by default the user's.
    """
    found = holder_of(socket)
    # The lock is another's where the path is not that of a socket, but of a daemon's database.
    if found is not None and os.path.realpath(found.socket) == os.path.realpath(socket):
        return found
    with suppress(EoqError):
        found = holder_of(database_path() if database is None else database)
    return found if found is not None and found.socket == str(socket.absolute()) else None


def advice(socket: Path) -> str:
    """Return what to do about a daemon that cannot be reached: whether it does not run, is stopped, or is busy."""
    found = daemon_on(socket)
    if found is None:
        start = "start one with `eoq start`, or name another socket with --socket or EOQ_SOCKET"
        ended = _why_ended(socket)
        return start if ended is None else f"{start}. The last daemon there has stopped: {ended}"
    if found.is_stopped:
        return (
            f"the daemon with pid {found.pid} is stopped, by a signal or a debugger; "
            f"`kill -CONT {found.pid}` lets it go on"
        )
    if found.opening is not None:
        return (
            f"the daemon with pid {found.pid} is starting ({found.opening.text}): try again when it is ready; "
            "`eoq status` says how far it is"
        )
    kind = _kind_of(socket)
    if kind not in (0, stat.S_IFSOCK):
        return (
            f"the daemon with pid {found.pid} runs, but something else is in the place of its socket; move that "
            "away, and it makes its socket again within seconds"
        )
    if kind == 0:
        return (
            f"the daemon with pid {found.pid} runs, but its socket is not there: it makes it again within seconds, if "
            "it can. Try again; if that does not help, see its log, or stop it with `eoq stop`"
        )
    return f"the daemon with pid {found.pid} runs, but does not answer: try again later, or see its log"


def _why_ended(socket: Path) -> str | None:
    """Return why the last daemon of a socket stopped by itself, as its lock file says. None where it does not."""
    try:
        descriptor = os.open(lock_file(socket.resolve()), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, RuntimeError, ValueError):
        return None
    try:
        if os.fstat(descriptor).st_uid not in (0, os.geteuid()):
            return None
        ended = json.loads(os.pread(descriptor, 4096, 0)).get("ended")
    except (OSError, ValueError, AttributeError):
        return None
    finally:
        os.close(descriptor)
    return ended if isinstance(ended, str) and ended.isprintable() else None


def _kind_of(path: Path) -> int:
    """Return the kind of the file at ``path``, as ``stat.S_IFMT`` does; 0 where there is none."""
    try:
        return stat.S_IFMT(path.stat().st_mode)
    except OSError:
        return 0
