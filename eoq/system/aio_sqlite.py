"""The only module that uses aiosqlite's inner parts: its thread and its sqlite3 connection.

aiosqlite offers one call for each statement, and each call is a hop to its thread and back. A transaction of many
statements should be one hop. Also, some settings of the sqlite3 connection have no name in aiosqlite.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, TypeVar

from . import forks

if TYPE_CHECKING:
    import aiosqlite

T = TypeVar("T")

REQUIRED: Final = "aiosqlite>=0.20"
"""The versions that have these inner parts and wait for calls without polling. ``pyproject.toml`` requires the same."""


async def run(connection: aiosqlite.Connection, function: Callable[[sqlite3.Connection], T]) -> T:
    """Run ``function`` with the sqlite3 connection on aiosqlite's thread, as one call, and return what it returns.

    The thread runs such calls and aiosqlite's own in their order, one at a time. Cancelling this coroutine does not
    stop ``function``. Raises `ValueError` if the connection is not open, and `RuntimeError` if the installed version
    of aiosqlite does not have these inner parts.
    """
    # Both are private names of aiosqlite. `_conn` raises `ValueError` if the connection is not open.
    execute, database = getattr(connection, "_execute", None), getattr(connection, "_conn", None)
    if execute is None or database is None:
        raise RuntimeError(f"this version of aiosqlite cannot run a function on its thread: install {REQUIRED}")
    result: T = await execute(function, database)
    return result


def shut(connection: aiosqlite.Connection) -> None:
    """Close the sqlite3 connection from another thread. The thread of ``connection`` must be idle, and remains."""
    database: sqlite3.Connection | None = getattr(connection, "_connection", None)
    if database is not None:
        database.close()


def leak(connection: aiosqlite.Connection) -> None:
    """Keep the connection for ever in a forked child."""
    forks.leak(connection)
    forks.leak(getattr(connection, "_connection", None))
