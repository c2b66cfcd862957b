"""Unix sockets as the server needs them: to listen on one, and to know the client at the other end."""

from __future__ import annotations

import os
import select
import socket
import struct
from pathlib import Path
from typing import Final

from ...errors import InvalidRequest
from ..locks import Locked, cannot_use

SOL_LOCAL: Final = 0
LOCAL_PEERPID: Final = 2
"""The socket option of macOS for the process at the other end. Python has no name for it."""


def listen(path: Path) -> socket.socket:
    """Return a socket bound to ``path``, which only its owner can connect to.

    A stale socket there is replaced. Raises `Locked` where a program still answers on it, `InvalidRequest` where the
    path cannot be that of a socket, `Forbidden` where it cannot be written.
    """
    listening = socket.socket(socket.AF_UNIX)
    try:
        if path.is_socket():
            _require_stale(path)
            path.unlink()
        elif path.exists():
            raise InvalidRequest(f"{path} exists and is no socket; remove it, or give another path with --socket")
        old_mask = os.umask(0o177)
        try:
            listening.bind(str(path))
        finally:
            os.umask(old_mask)
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


def peer_of(connection: socket.socket) -> str | None:
    """Return the process at the other end, such as ``pid 4711``, or None where the kernel does not say."""
    try:
        if hasattr(socket, "SO_PEERCRED"):
            pid, _, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        else:
            pid = connection.getsockopt(SOL_LOCAL, LOCAL_PEERPID)
    except OSError:
        return None
    return f"pid {pid}"


def has_hung_up(descriptor: int) -> bool:
    """Return whether the other end of a connection is closed for reading as well."""
    poll = select.poll()
    poll.register(descriptor, 0)
    return any(event & select.POLLHUP for _, event in poll.poll(0))
