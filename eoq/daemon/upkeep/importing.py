"""An import of the lines of an export into the daemon's file, while the daemon does not run.

It is done in steps, each in one transaction. What the file knows already stays as it is. So an import that was killed
is repeated as a whole, and the file is then as if it had not been killed.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, Final, NamedTuple

from ...errors import EoqError, InvalidRequest, MessageTooLarge
from ...protocol.limits import MAX_LINE
from ..config.settings import SettingsOf, StorageSettings
from ..locks import Lock, cannot_use
from ..portable import EndOfExport, Entry, Export, decode_line
from ..store.commands import EndLife, Import
from ..store.sqlite.store import SqliteStore

STEP_LINES: Final = 1000
"""Lines of one transaction."""
STEP_BYTES: Final = 8 * 1024 * 1024
"""Bytes of the lines of one transaction, unless the first alone has more."""

Progress = Callable[[int], None]
"""Is called now and then with the number of lines that were read."""


class Imported(NamedTuple):
    """What an import has done."""

    lines: int
    new: int
    """Entries that were stored; the others were known."""


async def import_lines(
    source: BinaryIO, database: Path, settings: SettingsOf, storage: StorageSettings, progress: Progress
) -> Imported:
    """Store the lines of an export in the file ``database``, which is made where it does not exist.

    Raises `Locked` while a daemon uses the file; `InvalidRequest`, `MessageTooLarge` or `IdConflict` for a line that
    cannot be stored, with its number; and errors of the storage. The steps before stay.
    """
    try:
        database.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_use(database.parent, error) from error
    with Lock(database.resolve(), {"pid": os.getpid(), "socket": ""}):
        store = await SqliteStore.open(database, settings=settings, storage=lambda: storage)
        try:
            lines = new = 0
            for lines, entries in _steps(source):
                new += await store.execute(Import(time.time(), entries))
                progress(lines)
            await store.execute(EndLife())
            return Imported(lines, new)
        finally:
            await store.close()


def _steps(source: BinaryIO) -> Iterator[tuple[int, list[tuple[int, Entry]]]]:
    """Yield the entries of each step with the numbers of their lines, and how many lines were read.

    Where a line is wrong, what stands before it is yielded first.
    """
    entries: list[tuple[int, Entry]] = []
    size = count = 0
    wrong: EoqError | None = None
    ended = False
    for number, line in _lines(source):
        try:
            if ended:
                raise InvalidRequest("it follows the last line of the export; import one export at a time")
            found = decode_line(line)
            _require_place(found, number, count)
        except EoqError as error:
            wrong = type(error)(f"line {number}: {error}")
            break
        if isinstance(found, EndOfExport):
            ended = True
        elif not isinstance(found, Export):
            entries.append((number, found))
            count += 1
            size += len(line)
        if len(entries) >= STEP_LINES or size >= STEP_BYTES:
            yield number, entries
            entries, size = [], 0
    yield count, entries
    if wrong is not None:
        raise wrong
    if not ended:
        raise InvalidRequest(
            f"the export ends after {count:,} entries without its last line, so it was cut off; these are imported: "
            "find the whole export, and import it"
        )


def _require_place(found: object, number: int, count: int) -> None:
    if isinstance(found, Export) != (number == 1):
        raise InvalidRequest('an export begins with one line of the type "export"; give the output of `eoq export`')
    if isinstance(found, EndOfExport) and found.lines != count:
        raise InvalidRequest(f"the export had {found.lines:,} entries, and here are {count:,}; find the whole export")


def _lines(source: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """Yield each line with its number. Raises `MessageTooLarge` for one that is too long to be read."""
    number = 0
    while line := source.readline(MAX_LINE + 2):
        number += 1
        if len(line) > MAX_LINE + 1:
            raise MessageTooLarge(f"line {number}: it has more than {MAX_LINE:,} bytes")
        yield number, line
