"""Snapshots: a copy of an eoq file that is consistent, verified and private, written beside its place and renamed.

SQLite copies, page by page. No file that SQLite may have open in another process is opened in any other way.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import Final, NamedTuple, TypeAlias

from ...errors import EoqError, InvalidRequest, NotFound, StorageFailed
from ..locks import cannot_use
from ..store.sqlite.database import APPLICATION_ID, WrongFile, storage_error
from ..store.sqlite.migration import migrations
from ..store.sqlite.open_mark import remove_mark

COPY_PAGES: Final = 1000
"""How many pages are copied between two calls of a watcher."""

Watch: TypeAlias = Callable[[str, int, int], None]
"""Is called now and then with what is being done, how far it is, and how far it goes. It may raise, to give up."""


class NoEoqFile(InvalidRequest):
    """A database of another program."""


class Snapshot(NamedTuple):
    """What an eoq file contains."""

    identity: str
    """The identity of the file that the daemon made; a copy has the same. Empty for an early version."""
    messages: int
    """Messages that are not settled. Of an early version: all."""
    settled: int
    size: int
    """Bytes."""


def open_read_only(path: Path, *, alone: bool = False) -> sqlite3.Connection:
    """Open an eoq file to read it. Raises `NotFound`, `InvalidRequest` for another file, or an error of the storage.

    ``alone`` says that nobody else has it open: then it may stand on a disk that nobody can write.
    """
    if not path.is_file():
        raise NotFound(f"{path} does not exist, or is no file; name the file of a daemon, or a backup")
    mode = "immutable=1" if alone and not Path(f"{path}-wal").exists() else "mode=ro"
    try:
        database = sqlite3.connect(f"{path.absolute().as_uri()}?{mode}", uri=True, isolation_level=None, timeout=10)
        try:
            (application,) = database.execute("pragma application_id").fetchone()
            (version,) = database.execute("pragma user_version").fetchone()
        except BaseException:
            database.close()
            raise
    except sqlite3.Error as error:
        raise storage_error(error, path) from error
    if application != APPLICATION_ID:
        database.close()
        raise NoEoqFile(f"{path} is no file of an eoq daemon; name the file of a daemon, or a backup")
    if version > len(migrations()):
        database.close()
        raise InvalidRequest(
            f"{path} was written by a newer eoq (schema {version}, this one knows {len(migrations())}); "
            "use that version"
        )
    return database


def require_current(database: sqlite3.Connection, path: Path) -> None:
    """Raise `InvalidRequest` where an eoq file has the tables of an earlier version."""
    (version,) = database.execute("pragma user_version").fetchone()
    if version < len(migrations()):
        raise InvalidRequest(
            f"{path} is of an earlier version; start the daemon once, which brings it over, and try again"
        )


def copy(source: sqlite3.Connection, path: Path, target: Path, watch: Watch) -> Snapshot:
    """Copy what ``source`` reads, which is the file ``path``, to ``target``, in place of a copy that is there.

    One transaction reads all of it, so what others write meanwhile is not in it. The copy takes its name only when it
    was read back, found whole, and is on disk. A kill leaves a file that ends with ``.part``, and the next copy to the
    same place removes it.
    """
    part = target.with_name(f"{target.name}.part")
    try:
        for leftover in (part, Path(f"{part}-journal"), Path(f"{part}-wal"), Path(f"{part}-shm")):
            leftover.unlink(missing_ok=True)
        os.close(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    except OSError as error:
        raise cannot_use(part, error) from error
    try:
        _copy_pages(source, path, part, watch)
        snapshot = verify(part, watch)
        sync(part)
        part.replace(target)
        sync(target.parent)
    except OSError as error:
        raise cannot_use(target, error) from error
    finally:
        part.unlink(missing_ok=True)
    return snapshot


def _copy_pages(source: sqlite3.Connection, path: Path, part: Path, watch: Watch) -> None:
    def progress(_status: int, left: int, total: int) -> None:
        watch("copying", total - left, total)

    try:
        with closing(sqlite3.connect(part, isolation_level=None)) as target:
            target.execute("pragma synchronous = off")  # the whole file is synced before it gets its name
            source.execute("begin")
            try:
                source.execute("select 1 from sqlite_schema limit 1").fetchone()  # it begins to read here
                source.backup(target, pages=COPY_PAGES, progress=progress)
            finally:
                source.execute("rollback")
            remove_mark(target)
    except sqlite3.Error as error:
        # Only the copy is written, so it is the copy that has no room.
        raise storage_error(error, part if _is_about_writing(error) else path) from error


def _is_about_writing(error: sqlite3.Error) -> bool:
    kinds = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN)
    return getattr(error, "sqlite_errorcode", 0) & 0xFF in kinds


def verify(path: Path, watch: Watch) -> Snapshot:
    """Read an eoq file that nobody else uses, and return what it contains. Raises `StorageFailed` if it is damaged."""
    watch("verifying", 0, 1)
    with closing(open_read_only(path, alone=True)) as database:
        stop_at_interrupt(database)
        try:
            problems = [text for (text,) in database.execute("pragma integrity_check(3)") if text != "ok"]
            if problems:
                raise StorageFailed(f"{path} is damaged ({'; '.join(problems)}); use another backup")
            snapshot = _snapshot(database, path)
        except sqlite3.Error as error:
            raise failure(error, path) from error
    watch("verifying", 1, 1)
    return snapshot


def _snapshot(database: sqlite3.Connection, path: Path) -> Snapshot:
    """Return what a file contains, which may be of an earlier version, or half brought over from one."""
    tables = {name for (name,) in database.execute("select name from sqlite_schema")}
    (identity,) = database.execute("select identity from daemon").fetchone() if "daemon" in tables else ("",)
    (messages,) = database.execute("select count(*) from message").fetchone()
    settled = 0
    if "settled" in tables:
        (settled,) = database.execute("select count(*) from settled").fetchone()
    elif "settled_before" in tables:  # the rest of it is being brought over
        (settled,) = database.execute("select count(*) from settled_before").fetchone()
    return Snapshot(identity, messages, settled, path.stat().st_size)


def stop_at_interrupt(database: sqlite3.Connection) -> None:
    """Let Ctrl-C end a long statement: Python notices it only while it runs code of its own. See `failure`."""
    database.set_progress_handler(lambda: None, 1_000_000)


def failure(error: sqlite3.Error, path: Path) -> BaseException:
    """Return the error of eoq for a failure of SQLite, or the interrupt that has ended a statement."""
    if getattr(error, "sqlite_errorcode", 0) == sqlite3.SQLITE_INTERRUPT:
        return KeyboardInterrupt()
    return storage_error(error, path)


def same_file(one: Path, other: Path) -> bool:
    """Return whether two paths lead to the same file."""
    with suppress(OSError):
        return one.samefile(other)
    return False


def require_eoq_file(path: Path) -> None:
    """Raise `InvalidRequest` where ``path`` is neither a backup nor the file of a daemon, and cannot be restored."""
    if not path.is_file():
        raise NotFound(
            f"{path} does not exist, or is no file, so nothing was changed; name a backup of a daemon's file"
        )
    try:
        open_read_only(path, alone=True).close()
    except (WrongFile, NoEoqFile) as error:
        raise InvalidRequest(
            f"{path} is no backup of a daemon's file, so nothing was changed; name one that `eoq backup` has made"
        ) from error


def require_backup(path: Path) -> None:
    """Raise an error unless there is nothing at ``path``, or an eoq file, which a new backup may replace."""
    if not os.path.lexists(path):
        return
    try:
        open_read_only(path).close()
    except EoqError as error:
        raise InvalidRequest(
            f"{path} exists and is no backup of eoq, so it is not replaced; give another name"
        ) from error


def sync(path: Path) -> None:
    """Sync a file, or the names in a folder."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
