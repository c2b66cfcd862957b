"""The mark in the file that a daemon has it open. It tells a copy that was made meanwhile, without the log.

The log is there for as long as the mark is: only a clean stop removes both. Without the log, the newest of what was
confirmed may be missing. A file with the mark and without the log is one of three:

- a copy that SQLite has made (``.backup``, ``vacuum into``), if the version of its schema differs: it is whole. SQLite
  counts a backup's version up from 0, or from that of the former backup, so the daemon's own file begins far above;
- another copy, if it has another number in its file system than the mark says: no daemon serves it;
- the daemon's own file after a kill. Another program may have opened it since, and written the log back; then nothing
  is missing. That cannot be told from a log that was removed, so it is reported.
"""

from __future__ import annotations

import logging
import secrets
import sqlite3
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import Final

from ....errors import StorageFailed

SCHEMA: Final = 16
"""The first schema that has the mark."""
FIRST_VERSION: Final = 1 << 24
"""The lowest version, as SQLite counts it, of the schema of a file that a daemon has opened.

The version itself is random, so that no number of backups to one place comes to it.
"""

log = logging.getLogger("eoq.store")


class LogMissing(StorageFailed):
    """The file is a copy that was made while a daemon used it, without the log."""


def require_log(path: Path) -> str | None:
    """Return what is to be reported of the log of the file at ``path``, if anything.

    Raises `LogMissing` where the file is such a copy. Nothing in this process may have it open yet.
    """
    path = path.resolve()  # the log is beside the file, not beside a link
    if not path.exists() or Path(f"{path}-wal").exists():
        return None
    open_as = None
    # Without making a log. SQLite finds out later what else may be wrong with the file.
    with suppress(sqlite3.Error), closing(sqlite3.connect(f"{path.as_uri()}?immutable=1", uri=True)) as file:
        (schema,) = file.execute("pragma schema_version").fetchone()
        open_as = _read(file)
    if open_as is None:
        return None
    number, _, marked_schema = open_as.partition(" ")
    if marked_schema != str(schema):
        return None
    if number != str(path.stat().st_ino):
        raise LogMissing(
            f"{path} is a copy that was made while a daemon used the file, without the log beside it "
            f"({path.name}-wal), so what was confirmed last may be missing. Nothing was changed. Copy both files while "
            "no daemon runs. Or go on with what it has: move it to another name, and give that to `eoq restore`"
        )
    return (
        f"the last daemon of {path} was killed, and its log ({path.name}-wal) is gone. If another program has opened "
        "the file since, nothing is missing; if the log was removed, what was confirmed last is lost: send it again "
        "under the same ids"
    )


def _read(file: sqlite3.Connection) -> str | None:
    (version,) = file.execute("pragma user_version").fetchone()
    if version < SCHEMA:
        return None
    (open_as,) = file.execute("select open_as from daemon").fetchone()
    return None if open_as is None else str(open_as)


def set_mark(file: sqlite3.Connection, path: Path) -> None:
    """Set the mark, and write the log back: the mark has to be in the file without the log.

    Then the log gets a first page, so that a log that others truncate is noticed from the start (`Ownership`).
    A full disk, or another program that holds the file, must not keep the daemon from starting. Then there is no mark.
    """
    try:
        (schema,) = file.execute("pragma schema_version").fetchone()
        if schema < FIRST_VERSION:
            schema = FIRST_VERSION + secrets.randbelow(FIRST_VERSION)
            file.execute(f"pragma schema_version = {schema}")  # statements are compiled anew, and nothing else happens
        update, mark = "update daemon set open_as = ?", f"{path.stat().st_ino} {schema}"
        file.execute(update, (mark,))
        file.execute("pragma wal_checkpoint(truncate)").fetchone()
        file.execute(update, (mark,))
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode & 0xFF not in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_BUSY):
            raise
        log.warning("%s could not be marked as open (%s), so a copy of it without its log is not noticed", path, error)


@contextmanager
def log_kept_with_mark(file: sqlite3.Connection, path: Path) -> Iterator[None]:
    """Keep the log when the daemon closes ``file`` in this block, if the file has the mark: the stop was not clean.

    SQLite writes the log back and removes it when the last connection is closed. Here the last one may not write.
    """
    with ExitStack() as stack:
        with suppress(sqlite3.Error):
            if _read(file) is not None:
                reader = stack.enter_context(closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)))
                _read(reader)  # it opens the log
        yield


def remove_mark(file: sqlite3.Connection) -> None:
    """Remove the mark from a file that has all of its log. A file of an earlier schema has none."""
    if _read(file) is not None:
        file.execute("update daemon set open_as = null")
