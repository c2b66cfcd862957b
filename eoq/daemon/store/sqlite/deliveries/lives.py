"""The table ``life``: the starts of daemons with this file, each with the token of its receipts."""

from __future__ import annotations

from typing import Final

from ....store.commands import EndLife
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

    def begin(self, now: float, token: str) -> bool:
        """Begin a life whose receipts have ``token``. Return whether the one before ended with a clean stop."""
        row = self._database.execute("select number, clean from life order by number desc limit 1").fetchone()
        self.before, clean = row or (None, False)
        (self.number,) = self._database.execute(
            "insert into life (token, started_at) values (?, ?) returning number", (token, now)
        ).fetchone()
        self._database.execute("delete from life where number <= ?", (self.number - KEPT,))
        return bool(clean)

    def end(self, _command: EndLife) -> None:
        """See `EndLife`."""
        self._database.execute("update life set clean = 1 where number = ?", (self.number,))

    def find(self, token: str) -> int | None:
        """Return the number of the life with this token, or None. The empty token is that of this life."""
        if not token:
            return self.number
        row = self._database.execute("select number from life where token = ?", (token,)).fetchone()
        return None if row is None else int(row[0])
