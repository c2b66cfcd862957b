"""The table ``remembered``: the retentions under which ids were remembered, and until when some may be forgotten."""

from __future__ import annotations

import msgspec

from ....records import Remembered
from ....store.commands import ReadRemembered, StoreRemembered
from ..database import Database
from ..tables.clock import ClockNotes


class RememberedIds:
    """What the last daemon has stored, for the next one."""

    def __init__(self, database: Database, clock_notes: ClockNotes) -> None:
        self._database = database
        self._clock_notes = clock_notes

    def read(self, _command: ReadRemembered) -> Remembered | None:
        """See `ReadRemembered`."""
        row = self._database.execute("select retentions, forgotten_until from remembered").fetchone()
        if row is None:
            return None
        retentions = msgspec.json.decode(row[0], type=tuple[tuple[str, float], ...])
        return Remembered(retentions, None if row[1] is None else row[1] + self._clock_notes.set_by)

    def store(self, command: StoreRemembered) -> None:
        """See `StoreRemembered`."""
        remembered = command.remembered
        self._database.execute(
            "insert or replace into remembered (only_row, retentions, forgotten_until) values (1, ?, ?)",
            (
                msgspec.json.encode(remembered.retentions).decode(),
                self._clock_notes.unset(remembered.forgotten_until),
            ),
        )
