"""The one place that uses aiosqlite's inner parts: its thread and its sqlite3 connection."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from typing import TypeVar

import aiosqlite

T = TypeVar("T")


async def run(connection: aiosqlite.Connection, function: Callable[[sqlite3.Connection], T]) -> T:
    """Run ``function`` with the inner sqlite3 connection, as one call on aiosqlite's thread."""
    inner: sqlite3.Connection = connection._conn  # see the first line of this file
    return await connection._execute(function, inner)  # type: ignore[no-any-return,no-untyped-call]
