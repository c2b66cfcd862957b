"""The default paths of the socket, the database and the configuration. All paths that are returned are absolute."""

from __future__ import annotations

import os
import stat
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Final

from ..errors import Forbidden

MAX_SOCKET: Final = 103
"""Bytes of a socket's path that every system allows."""


def socket_path(path: str | os.PathLike[str] | None = None) -> Path:
    """Return the socket: ``path``, else ``EOQ_SOCKET``, else ``eoq/eoq.sock`` in the user's runtime directory.

    Raises `Forbidden` where there is no such directory that only this user can write.
    """
    if path is None:
        path = os.environ.get("EOQ_SOCKET")
    if not path:
        return _runtime_folder() / "eoq" / "eoq.sock"
    relative, absolute = Path(path), Path(path).absolute()
    # A relative path may be short enough for a socket where the absolute one is not.
    return relative if len(os.fsencode(absolute)) > MAX_SOCKET >= len(os.fsencode(relative)) else absolute


def database_path(path: str | os.PathLike[str] | None = None) -> Path:
    """Return the daemon's database: ``path``, else ``EOQ_DB``, else ``eoq/eoq.db`` in the user's data directory.

    Raises `Forbidden` where the user has no such directory.
    """
    if path is None:
        path = os.environ.get("EOQ_DB")
    if path:
        return Path(path).absolute()
    from platformdirs import user_data_path

    folder = _user_folder(user_data_path, "XDG_DATA_HOME")
    if folder is None:
        raise Forbidden(
            "this user has no home folder (HOME), so there is no default for the daemon's database; "
            "name it with --db or EOQ_DB"
        )
    return folder / "eoq.db"


def config_path() -> Path | None:
    """Return the default configuration of the daemon: ``eoq/eoq.toml`` in the user's configuration directory.

    It is None for a user without a home folder.
    """
    from platformdirs import user_config_path

    folder = _user_folder(user_config_path, "XDG_CONFIG_HOME")
    return None if folder is None else folder / "eoq.toml"


def _user_folder(find: Callable[[str], Path], variable: str) -> Path | None:
    """Return a folder of the user for eoq, or None if the user has no home. ``variable`` names it without a home."""
    if not os.environ.get(variable):
        if os.environ.get("HOME") == "":
            return None
        try:
            Path.home()
        except RuntimeError:
            return None
    return find("eoq").absolute()


def _runtime_folder() -> Path:
    if sys.platform != "linux":
        from platformdirs import user_runtime_path

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # without a runtime directory, it would warn at each command
            return user_runtime_path()
    # Not by platformdirs: its versions choose different folders, and a daemon and its clients must agree.
    named = os.environ.get("XDG_RUNTIME_DIR", "")
    if os.path.isabs(named):  # noqa: PTH117 # an empty text is no `Path`
        return Path(named)
    user = os.getuid()
    usual = Path(f"/run/user/{user}")
    return usual if os.access(usual, os.W_OK) else _private(Path(f"/tmp/runtime-{user}"), user)  # noqa: S108 # checked


def _private(folder: Path, user: int) -> Path:
    """Return ``folder``. Raise `Forbidden` where another user could put a socket of his own into it."""
    try:
        found = folder.lstat()
    except FileNotFoundError:
        return folder
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != user or found.st_mode & 0o022:
        raise Forbidden(
            f"{folder} is not a folder that only this user can write, so no socket in it can be trusted; "
            "name a socket with --socket or EOQ_SOCKET"
        )
    return folder
