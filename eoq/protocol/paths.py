"""The default paths of the socket, the database and the configuration, and how to open one that its user has closed.

All paths that are returned are absolute.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

from ..errors import Forbidden
from .socket_name import socket_name


def socket_path(path: str | os.PathLike[str] | None = None) -> Path:
    """Return the socket: ``path``, else ``EOQ_SOCKET``, else ``eoq/eoq.sock`` in the user's runtime directory.

    Raises `Forbidden` where there is no such directory that only this user can write.
    """
    if path is None:
        path = os.environ.get("EOQ_SOCKET")
    return Path(socket_name(Path(path) if path else ""))


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


def spool_path(database: Path) -> Path:
    """Return the spool that the daemon of this database reads where no other is named: the folder beside it."""
    return database.with_name(database.name + ".spool")


def config_path() -> Path | None:
    """Return the default configuration of the daemon: ``eoq/eoq.toml`` in the user's configuration directory.

    It is None for a user without a home folder.
    """
    from platformdirs import user_config_path

    folder = _user_folder(user_config_path, "XDG_CONFIG_HOME")
    return None if folder is None else folder / "eoq.toml"


def how_to_open(path: Path) -> str | None:
    """Return what opens ``path`` to this user, or None where the mode of a path of its own is not what closes it.

    Of the path and the folders on the way to it, the innermost that can be seen is looked at.
    """
    for place in (path, *path.parents):
        try:
            found = place.stat()
        except OSError:
            continue  # it is not there, or the folder that it is in may not be entered
        is_folder = stat.S_ISDIR(found.st_mode)
        wanted = 0o700 if is_folder else 0o600
        if found.st_uid != os.geteuid() or found.st_mode & wanted == wanted:
            return None
        import shlex  # only where it is needed: it takes a millisecond

        return f"give yourself access with `chmod u+{'rwx' if is_folder else 'rw'} {shlex.quote(str(place))}`"
    return None


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
