"""Where the socket of a daemon is, as text: short commands need nothing else, and ``pathlib`` takes long to import."""

from __future__ import annotations

import os
import stat
import sys

from ..errors import Forbidden

TYPE_CHECKING = False  # without an import of `typing`, which takes milliseconds
if TYPE_CHECKING:
    from typing import Final

MAX_SOCKET: Final = 103
"""Bytes of a socket's path that every system allows."""


def socket_name(path: str | os.PathLike[str] | None = None) -> str:
    """Return the socket: ``path``, else ``EOQ_SOCKET``, else ``eoq/eoq.sock`` in the user's runtime directory.

    The path is absolute, except where only the relative one is short enough. Raises `Forbidden` where there is no
    runtime directory that only this user can write.
    """
    named = os.environ.get("EOQ_SOCKET", "") if path is None else os.fspath(path)
    if not named:
        return f"{_runtime_folder()}/eoq/eoq.sock"
    absolute = named if named.startswith("/") else f"{os.getcwd()}/{named}"  # noqa: PTH109 # without pathlib
    return named if len(os.fsencode(absolute)) > MAX_SOCKET >= len(os.fsencode(named)) else absolute


def _runtime_folder() -> str:
    if sys.platform != "linux":
        import warnings

        from platformdirs import user_runtime_dir

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # without a runtime directory, it would warn at each command
            return user_runtime_dir()
    # Not by platformdirs: its versions choose different folders, and a daemon and its clients must agree.
    named = os.environ.get("XDG_RUNTIME_DIR", "")
    if named.startswith("/"):
        return named
    user = os.getuid()
    usual = f"/run/user/{user}"
    return usual if os.access(usual, os.W_OK) else _private(f"/tmp/runtime-{user}", user)  # noqa: S108 # checked


def _private(folder: str, user: int) -> str:
    """Return ``folder``. Raise `Forbidden` where another user could put a socket of his own into it."""
    try:
        found = os.lstat(folder)
    except FileNotFoundError:
        return folder
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != user or found.st_mode & 0o022:
        raise Forbidden(
            f"{folder} is not a folder that only this user can write, so no socket in it can be trusted; "
            "name a socket with --socket or EOQ_SOCKET"
        )
    return folder
