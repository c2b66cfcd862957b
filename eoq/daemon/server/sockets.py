"""Unix sockets as the server needs them: to listen on one, and to know the client at the other end."""

from __future__ import annotations

import os
import socket
import struct
import sys
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

from ...errors import Forbidden, InvalidRequest
from ..locks import Locked, cannot_use
from ..session import Peer

SOL_LOCAL: Final = 0
LOCAL_PEERCRED: Final = 1
LOCAL_PEERPID: Final = 2
"""The socket options of macOS for the process at the other end and its user. Python has no names for them."""
XUCRED: Final = struct.Struct("IIh2x16I")
"""What the former tells: a version, the user, and up to 16 groups."""
SO_PEERGROUPS: Final = 59
"""The socket option of Linux for the groups of the process at the other end. Python has no name for it."""
MOST_GROUPS: Final = 256
"""As many as Python reads from the kernel."""


class SocketAccess(NamedTuple):
    """Who may connect: the mode and the group of the socket's file. None leaves the group as it is."""

    mode: int = 0o600
    group: int | None = None


OWNER_ONLY: Final = SocketAccess()

KEEPING_FILE: Final[dict[str, Any]] = {"cleanup_socket": False} if sys.version_info >= (3, 13) else {}
"""The option of a server that leaves the file of its socket alone when it is closed, as before Python 3.13. It may be
a service manager's, or that of the next daemon."""


def listen(path: Path, access: SocketAccess = OWNER_ONLY) -> socket.socket:
    """Return a socket bound to ``path``, which only those can connect to whom ``access`` allows it.

    A stale socket there is replaced. Raises `Locked` where a program still answers on it, `InvalidRequest` where the
    path cannot be that of a socket, `Forbidden` where it cannot be written.
    """
    listening = socket.socket(socket.AF_UNIX)
    try:
        if path.is_socket():
            _require_stale(path)
            path.unlink()
        elif path.exists() or path.is_symlink():
            raise InvalidRequest(f"{path} exists and is no socket; give another path with --socket, or move it away")
        old_mask = os.umask(0o177)
        try:
            listening.bind(str(path))
        finally:
            os.umask(old_mask)
        _give_access(path, access)
    except OSError as error:
        listening.close()
        if "too long" in str(error):
            raise InvalidRequest(
                f"{path} is too long for a socket (about 100 bytes); give a shorter --socket"
            ) from error
        raise cannot_use(path, error) from error
    except BaseException:
        listening.close()
        raise
    listening.setblocking(False)
    return listening


def require_at(passed: socket.socket, path: Path) -> None:
    """Raise `InvalidRequest` where a socket that a service manager passed is not the one at ``path``."""
    name = passed.getsockname()
    if not isinstance(name, str) or not name or os.path.realpath(name) != os.path.realpath(path):
        raise InvalidRequest(
            f"the service manager passed the socket {name!r}, and the settings say {path}; let `ListenStream` of its "
            "unit and --socket name the same path"
        )


def _give_access(path: Path, access: SocketAccess) -> None:
    """Set group and mode of a socket that nobody can connect to yet."""
    try:
        if access.group is not None:
            os.chown(path, -1, access.group)
        if access.mode != 0o600:
            path.chmod(access.mode)
    except OSError as error:
        path.unlink()
        if not isinstance(error, PermissionError):
            raise
        raise Forbidden(
            f"the group {access.group} cannot be given to {path} ({error.strerror}); make the daemon's user a member "
            "of the group that `socket_group` names"
        ) from error


def who_cannot_pass(path: Path, access: SocketAccess) -> str | None:
    """Return which of those who may connect cannot reach the socket through its folder: text for the log, or None."""
    folder = path.parent.stat()
    if access.mode & 0o002 and not folder.st_mode & 0o001:
        return "other users"
    in_group = access.group is None or folder.st_gid == access.group
    if access.mode & 0o020 and not folder.st_mode & (0o010 if in_group else 0o001):
        return "the members of its group"
    return None


def identity_of(path: Path) -> tuple[int, int] | None:
    """Return the device and the number of the file at ``path``, or None where there is none."""
    try:
        found = path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return found.st_dev, found.st_ino


def _require_stale(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(2.0)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            return
        except TimeoutError:
            pass
    raise Locked(f"another program answers on {path}; stop it (`eoq stop`), or give this daemon another --socket")


def peer_of(connection: socket.socket) -> tuple[str | None, Peer | None]:
    """Return the process at the other end, such as ``pid 4711``, and its user. None is what the kernel does not say."""
    try:
        if hasattr(socket, "SO_PEERCRED"):
            pid, user, group = struct.unpack("iII", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
            return f"pid {pid}", Peer(user, partial(_groups_of, connection, user, group))
        pid = connection.getsockopt(SOL_LOCAL, LOCAL_PEERPID)
        told = connection.getsockopt(SOL_LOCAL, LOCAL_PEERCRED, XUCRED.size)
        _, user, count, *groups = XUCRED.unpack(told.ljust(XUCRED.size, b"\0"))
        return f"pid {pid}", Peer(user, lambda: frozenset(groups[:count]))
    except OSError:
        return None, None


def _groups_of(connection: socket.socket, user: int, group: int) -> frozenset[int]:
    """Return the groups of the process at the other end, which it had when it connected."""
    try:
        told = connection.getsockopt(socket.SOL_SOCKET, SO_PEERGROUPS, MOST_GROUPS * 4)
        return frozenset((group, *struct.unpack(f"{len(told) // 4}I", told)))
    except OSError:  # an old kernel, or more groups than fit
        import pwd

        try:
            return frozenset((group, *os.getgrouplist(pwd.getpwuid(user).pw_name, group)))
        except (KeyError, OSError):
            return frozenset((group,))
