"""Who listens on a socket: messages go only to a daemon of this user or of root."""

from __future__ import annotations

import os
import socket as sockets
import struct
from pathlib import Path
from typing import Final

from ..errors import Forbidden

SOL_LOCAL: Final = 0
LOCAL_PEERCRED: Final = 1
"""The socket option of macOS for the user at the other end. Python has no name for it."""


def require_own(connection: sockets.socket, path: Path) -> None:
    """Raise `Forbidden` if a program of another user listens at the other end: it would get the messages.

    Root may use the daemons of all users, and everybody a daemon of root.
    """
    own = os.geteuid()
    if own == 0:
        return
    owner = _owner(connection)
    if owner not in (None, 0, own):
        raise Forbidden(
            f"the program on the socket {path} is that of another user (uid {owner}), who would get your messages; "
            "name the socket of your own daemon with --socket or EOQ_SOCKET"
        )


def _owner(connection: sockets.socket) -> int | None:
    """Return the user of the program that listens, or None where the kernel does not say."""
    try:
        if hasattr(sockets, "SO_PEERCRED"):
            _, user, _ = struct.unpack("3i", connection.getsockopt(sockets.SOL_SOCKET, sockets.SO_PEERCRED, 12))
        else:
            _, user = struct.unpack_from("2I", connection.getsockopt(SOL_LOCAL, LOCAL_PEERCRED, 80))
    except OSError:
        return None
    return int(user)
