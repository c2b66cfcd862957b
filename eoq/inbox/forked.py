"""Why an inbox cannot be used in a forked child. ``system/forks.py`` says what a fork does to SQLite."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

FOREIGN_CONNECTION: Final = (
    "this inbox uses a connection that was opened before this process was forked, and SQLite cannot use it in two "
    "processes: open a connection and make an inbox in the child"
)
FORKED_WITHIN: Final = (
    "this process was forked while the inbox had a transaction open or was in use, so SQLite cannot lock the file in "
    "the child: fork before messages are processed, or start the process with the method `spawn`"
)
LIBRARY_CONNECTION: Final = (
    "the library has a connection that was opened before this process was forked, and SQLite cannot lock the file "
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
