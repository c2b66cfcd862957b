"""The table ``life``: the starts of daemons with this file, each with the token of its receipts."""

from __future__ import annotations

from functools import partial
from typing import Final

from ..database import Database

KEPT: Final = 10_000
"""How many lives are kept. A receipt of an earlier one repeats nothing."""


class Lives:
    """The life of this daemon, and those before."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.number = 0
        """The life that has begun here."""
        self.before: int | None = None
        """The life before it."""
        self._unstored: tuple[int, str, float] | None = None

    def begin(self, now: float, token: str) -> bool:
        """Begin a life whose receipts have ``token``. Return whether the one before ended with a clean stop.

        It is stored with the first delivery, so that a daemon can start on a full disk.
        """
        row = self._database.execute("select number, clean from life order by number desc limit 1").fetchone()
        self.before, clean = row or (None, False)
        self.number = (self.before or 0) + 1
        self._unstored = (self.number, token, now)
        return bool(clean)

    def store(self) -> None:
        """Store this life, if it is not stored yet."""
        if self._unstored is None:
            return
        self._database.on_rollback(partial(self._set_unstored, self._unstored))
        self._database.execute("insert into life (number, token, started_at) values (?, ?, ?)", self._unstored)
        self._database.execute("delete from life where number <= ?", (self.number - KEPT,))
        self._unstored = None

    def _set_unstored(self, unstored: tuple[int, str, float]) -> None:
        self._unstored = unstored

    def end(self) -> None:
        """Store that this life ends with a clean stop. It also removes the mark that the file is open (`open_mark`)."""
        self._database.execute("update daemon set open_as = null")
        self._database.execute("update life set clean = 1 where number = ?", (self.number,))

    def find(self, token: str) -> int | None:
        """Return the number of the life with this token, or None. The empty token is that of this life."""
        if not token:
            return self.number
        row = self._database.execute("select number from life where token = ?", (token,)).fetchone()
        return None if row is None else int(row[0])
