"""The inner parts of aiosqlite that eoq uses: the installed version has them, and eoq requires the versions that do."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
import tomllib
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, cast

import aiosqlite
import pytest

from eoq.system import aio_sqlite

PROJECT = Path(__file__).parents[2] / "pyproject.toml"


def _with_connection(use: Callable[[aiosqlite.Connection], Awaitable[object]]) -> object:
    async def main() -> object:
        async with aiosqlite.connect(":memory:") as connection:
            return await use(connection)

    return asyncio.run(main())


def test_the_package_requires_the_versions_that_have_the_inner_parts() -> None:
    assert aio_sqlite.REQUIRED in tomllib.loads(PROJECT.read_text())["project"]["dependencies"]


def test_a_function_gets_the_sqlite3_connection_on_the_thread_of_aiosqlite() -> None:
    def function(database: sqlite3.Connection) -> tuple[int, bool]:
        (value,) = database.execute("select 7").fetchone()
        return value, threading.current_thread() is threading.main_thread()

    assert _with_connection(lambda connection: aio_sqlite.run(connection, function)) == (7, False)


def test_calls_run_in_their_order_and_do_not_mix_with_those_of_aiosqlite() -> None:
    def insert(n: int) -> Callable[[sqlite3.Connection], object]:
        return lambda database: database.execute("insert into t values (?)", (n,))

    async def use(connection: aiosqlite.Connection) -> list[tuple[int]]:
        await connection.execute("create table t (n integer)")
        await asyncio.gather(*(aio_sqlite.run(connection, insert(n)) for n in range(9)))
        return list(await connection.execute_fetchall("select n from t order by rowid"))  # type: ignore[arg-type] # rows

    assert _with_connection(use) == [(n,) for n in range(9)]


def test_the_error_of_a_function_reaches_the_caller() -> None:
    with pytest.raises(sqlite3.OperationalError, match="syntax"):
        _with_connection(lambda connection: aio_sqlite.run(connection, lambda db: db.execute("nonsense")))


def test_a_connection_that_is_not_open_is_refused() -> None:
    async def main() -> None:
        await aio_sqlite.run(aiosqlite.connect(":memory:"), lambda _: None)

    with pytest.raises(ValueError, match="no active connection"):
        asyncio.run(main())


def test_a_version_without_the_inner_parts_is_an_error_that_names_the_needed_one() -> None:
    class Renamed:
        """The connection of a version of aiosqlite whose inner parts have other names."""

    with pytest.raises(RuntimeError, match=f"install {aio_sqlite.REQUIRED}"):
        asyncio.run(aio_sqlite.run(cast(Any, Renamed()), lambda _: None))
