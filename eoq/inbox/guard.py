"""The guard of an inbox's transaction: a handler cannot end it.

If a handler committed, its writes would be stored without the message's id, and a redelivery would repeat them. So
while a handler runs, the authorizer of the sqlite3 connection refuses statements that end the transaction, and those
that would leave the file (attach).
"""

from __future__ import annotations

import sqlite3
from typing import Final

_ENDING: Final = (sqlite3.SQLITE_TRANSACTION, sqlite3.SQLITE_ATTACH, sqlite3.SQLITE_DETACH)
_READING: Final = (sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION, sqlite3.SQLITE_RECURSIVE)


class TransactionGuard:
    """The authorizer of a connection. It refuses something only while it is ``active``."""

    def __init__(self, database: sqlite3.Connection) -> None:
        self.active = False
        """Whether a handler runs."""
        self.refused = False
        """Whether anything was refused."""
        self.may_roll_back = False
        """Whether a rollback is allowed: a library rolls back after a failed statement, and its error counts."""
        self._database = database

    def install(self) -> None:
        """Set the authorizer of the connection, in place of the application's."""
        self._database.set_authorizer(self._authorize)

    def uninstall(self) -> None:
        """Remove the authorizer of the connection."""
        self._database.set_authorizer(None)

    def _authorize(self, action: int, detail: object, *_details: object) -> int:
        if self.may_roll_back and action == sqlite3.SQLITE_TRANSACTION and detail == "ROLLBACK":
            return sqlite3.SQLITE_OK
        # A statement may also have undone the transaction by itself (`insert or rollback`). Then a statement that
        # writes would be committed at once, so it is refused as well.
        if self.active and (action in _ENDING or (action not in _READING and not self._database.in_transaction)):
            self.refused = True
            return sqlite3.SQLITE_DENY
        return sqlite3.SQLITE_OK
