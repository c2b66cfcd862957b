"""Why an inbox cannot be used in a forked child. ``system/forks.py`` says what a fork does to SQLite."""

from __future__ import annotations

import os
import sqlite3
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Final, Generic, TypeVar

from ..errors import InvalidRequest
from ..system.forks import watch_forks
from .committed import FileIdentity, Place

C = TypeVar("C")
F = TypeVar("F")

RECENT: Final = 16
"""How many connections of a library are remembered, to know them in a forked child."""

FOREIGN_CONNECTION: Final = (
    "this inbox uses a connection that was opened before this process was forked, and SQLite cannot use it in two "
    "processes: open a connection and make an inbox in the child"
)
FORKED_WITHIN: Final = (
    "this process was forked while the inbox had a transaction open or was in use, so SQLite cannot lock the file in "
    "the child: fork before messages are processed, or start the process with the method `spawn`"
)
LIBRARY_CONNECTION: Final = (
    "the library has a connection that was opened before this process was forked, and the database cannot be used "
    "beside it: close the library's connections before the fork (SQLAlchemy: `engine.dispose()`, Django: "
    "`connections.close_all()`), or at the start of the child"
)


def absolute(database: str | os.PathLike[str]) -> str:
    """Return the path to open a database by, now and after a change of the folder."""
    path = os.fspath(database)
    return str(Path(path).absolute()) if is_file(path) else path


def is_file(path: str) -> bool:
    """Return whether SQLite stores the database of this path in a file that several processes can open."""
    return path not in ("", ":memory:")


def is_there(path: str | None) -> bool:
    """Return whether an inbox of a path (None for a connection) can open its file again, because there is one."""
    return path is not None and Path(path).exists()


class LibraryConnections(Generic[C, F]):
    """The connections of a library that an inbox has used lately: a forked child must not use them.

    ``is_open`` tells whether one of them is open, and ``file_of`` what is kept of its file from its first use on.
    """

    def __init__(self, is_open: Callable[[C], bool], file_of: Callable[[C], F]) -> None:
        self._is_open = is_open
        self._file_of = file_of
        self._recent: deque[tuple[C, F]] = deque(maxlen=RECENT)
        self._inherited: list[C] = []
        """Those that this process has inherited in a fork, and that are still open."""
        watch_forks(self)

    def note(self, connection: C) -> F:
        """Remember a connection of the library. Return what is kept of its file."""
        for known, file in self._recent:
            if known is connection:
                return file
        file = self._file_of(connection)
        self._recent.append((connection, file))
        return file

    def forked(self) -> None:
        """Note in a child which connections must not be used in it."""
        self._inherited += [connection for connection, _file in self._recent]
        self._recent.clear()

    def refuse_inherited(self) -> None:
        """Raise `InvalidRequest` in a forked child as long as a connection of the parent is open in it."""
        if self._inherited:
            self._inherited = [connection for connection in self._inherited if self._is_open(connection)]
        if self._inherited:
            # The library must neither commit nor roll back here: the transaction is the parent's as well.
            raise InvalidRequest(LIBRARY_CONNECTION)


def file_of(connection: sqlite3.Connection) -> FileIdentity:
    """Return the identity that the file of a connection has now."""
    return FileIdentity(Place.of(connection).path)


def is_open(connection: sqlite3.Connection) -> bool:
    """Return whether a connection to a SQLite file is open."""
    try:
        return connection.total_changes >= 0
    except sqlite3.ProgrammingError:
        return False
