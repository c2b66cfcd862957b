"""Who listens on a socket: messages go only to a daemon of this user, of root, or of a user whom the operator means."""

from __future__ import annotations

import os
import socket as sockets
import sys

from ..errors import Forbidden

TYPE_CHECKING = False  # without an import of `typing`, which takes milliseconds
if TYPE_CHECKING:
    from typing import Final

SOL_LOCAL: Final = 0
LOCAL_PEERCRED: Final = 1
"""The socket option of macOS for the user at the other end. Python has no name for it."""
CREDENTIALS: Final = 80
"""Bytes that are enough for what either system tells of the user. The second four bytes of it are the user's number."""


def require_own(connection: sockets.socket, path: object) -> None:
    """Raise `Forbidden` if a program of a user whom nobody meant listens at the other end: it would get the messages.

    Root may use the daemons of all users, and everybody a daemon of root. The daemon of another user is meant where
    only that user, this one and root could have put its socket there, and where ``EOQ_SOCKET_OWNER`` names that user.
    """
    own = os.geteuid()
    if own == 0:
        return
    owner = _owner(connection)
    if owner in (None, 0, own):
        return
    from .owners import is_meant, why_not_safe

    if not is_meant(owner) and (why := why_not_safe(str(path), owner, own)) is not None:
        raise Forbidden(
            f"the program on the socket {path} is that of another user (uid {owner}), who would get your messages, and "
            f"{why}; name the socket of your own daemon with --socket or EOQ_SOCKET, or, if you mean the daemon of "
            f"that user, set EOQ_SOCKET_OWNER={owner}"
        )


def _owner(connection: sockets.socket) -> int | None:
    """Return the user of the program that listens, or None where the kernel does not say."""
    try:
        if hasattr(sockets, "SO_PEERCRED"):
            told = connection.getsockopt(sockets.SOL_SOCKET, sockets.SO_PEERCRED, CREDENTIALS)
        else:
            told = connection.getsockopt(SOL_LOCAL, LOCAL_PEERCRED, CREDENTIALS)
    except OSError:
        return None
    return int.from_bytes(told[4:8], sys.byteorder)
