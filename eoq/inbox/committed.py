"""Proves that a library's block has committed: what is acked is in the file, and not only believed to be."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

from ..errors import InvalidRequest
from ..message import Delivery
from ..system.sqlite import BUSY_SECONDS
from .tables import is_stored


class Place(NamedTuple):
    """The connection of a transaction, and the path of its file (empty where it is in memory)."""

    database: sqlite3.Connection
    path: str

    @classmethod
    def of(cls, database: sqlite3.Connection) -> Place:
        """Return the place of the transaction that is open on a connection."""
        cursor = database.cursor()
        cursor.row_factory = None  # the library may have set one on its connection
        paths = [path for _seq, name, path in cursor.execute("pragma database_list") if os.fsdecode(name) == "main"]
        return cls(database, os.fsdecode(paths[0] or ""))

    def shows(self, message: Delivery) -> bool | None:
        """Return whether the id of a message is committed, as the connection sees it after the library's block.

        Return None if the connection cannot tell: the library has closed it, it is bound to another thread, another
        thread has taken it from a pool, or a transaction around the block is still open.
        """
        try:
            return None if self.database.in_transaction else is_stored(self.database, message)
        except sqlite3.ProgrammingError:
            return None

    def file_shows(self, message: Delivery) -> bool:
        """Return whether the id of a message is committed, over a new connection to the file."""
        with closing(
            sqlite3.connect(f"{Path(self.path).as_uri()}?mode=ro", uri=True, timeout=BUSY_SECONDS)
        ) as database:
            return is_stored(database, message)


def not_committed(message: Delivery) -> InvalidRequest:
    """Return the error for a block that ended without an exception, and without the id of its message in the file."""
    return InvalidRequest(
        f"the library's block ended without an exception but did not commit, so the effect of {message.id!r} is not in "
        "the file: either it is inside another transaction (it must be the outermost), or the library discarded it "
        "because the handler caught an error of the database (in Django, run the statement that may fail in an "
        "`atomic` block of its own)"
    )
