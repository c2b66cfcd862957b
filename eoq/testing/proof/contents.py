"""The contents of a database, compared row by row: the order of rows and the layout of the file do not count."""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Final

Row = tuple[str, ...]
Column = tuple[str, str]
"""A table and one of its columns."""

_SKIPPED: Final = ("eoq_watermark", "sqlite_stat1", "sqlite_stat4")
"""Tables that are bookkeeping and no effect."""
DATES: Final[frozenset[Column]] = frozenset([("eoq_processed", "processed_at")])
"""Columns that are never compared: when an id was processed."""
_HEADER: Final = b"SQLite format 3\0"
_SHOWN: Final = 200
"""Characters of a row in a text."""


@dataclass(frozen=True, slots=True)
class Table:
    """The columns of a table, and how often each row is there."""

    columns: Row
    rows: Counter[Row]

    def without(self, name: str, volatile: frozenset[Column]) -> Counter[Row]:
        """Return the rows without the columns that are not compared."""
        kept = [index for index, column in enumerate(self.columns) if (name, column) not in volatile]
        if len(kept) == len(self.columns):
            return self.rows
        rows: Counter[Row] = Counter()
        for row, count in self.rows.items():
            rows[tuple(row[index] for index in kept)] += count
        return rows


Contents = dict[str, Table]
"""The tables of a database by name. The schema itself is one of them."""


def read(path: Path) -> Contents:
    """Return the contents of a database. The process keeps no connection to it."""
    with closing(sqlite3.connect(path, timeout=30)) as database:
        database.text_factory = bytes
        schema = database.execute("select type, name, sql from sqlite_schema where sql is not null").fetchall()
        contents: Contents = {"the schema": Table(("type", "name", "sql"), Counter(map(_shown, schema)))}
        names = [name.decode() for kind, name, _ in schema if kind == b"table"]
        if database.execute("select 1 from sqlite_schema where name = 'sqlite_sequence'").fetchone():
            names.append("sqlite_sequence")
        for name in names:
            if name not in _SKIPPED:
                contents[name] = _table(database, name)
    return contents


def _table(database: sqlite3.Connection, name: str) -> Table:
    quoted = '"' + name.replace('"', '""') + '"'
    try:
        cursor = database.execute(f"select * from {quoted}")  # noqa: S608 # a name of the schema, quoted
    except sqlite3.OperationalError:  # a virtual table of a module that is not here; its real tables are compared
        return Table((), Counter())
    columns = tuple(column[0] for column in cursor.description)
    return Table(columns, Counter(map(_shown, cursor)))


def _shown(row: tuple[object, ...]) -> Row:
    return tuple(_value(value) for value in row)


def _value(value: object) -> str:
    if isinstance(value, bytes):
        try:
            return repr(value.decode())
        except UnicodeDecodeError:
            return f"x'{value.hex()}'"
    return repr(value)


def count_difference(first: Contents, second: Contents) -> str | None:
    """Return the first table with another number of rows, in words, or None."""
    for name in sorted({*first, *second}):
        counts = [one[name].rows.total() if name in one else 0 for one in (first, second)]
        if counts[0] != counts[1]:
            return f"{name} has {counts[0]:,} rows once, and {counts[1]:,} another time"
    return None


def volatile_columns(first: Contents, second: Contents) -> frozenset[Column]:
    """Return the columns in which two runs without a kill differ."""
    return frozenset(
        (name, column)
        for name, table in first.items()
        if name in second and second[name].columns == table.columns
        for index, column in enumerate(table.columns)
        if _column(table, index) != _column(second[name], index)
    )


def _column(table: Table, index: int) -> Counter[str]:
    values: Counter[str] = Counter()
    for row, count in table.rows.items():
        values[row[index]] += count
    return values


def difference(expected: Contents, found: Contents, volatile: frozenset[Column]) -> str | None:
    """Return the first difference in words, or None. Columns that are ``volatile`` do not count."""
    volatile |= DATES
    for name in (*expected, *(name for name in found if name not in expected)):
        wanted = expected[name].without(name, volatile) if name in expected else Counter()
        there = found[name].without(name, volatile) if name in found else Counter()
        if wanted != there:
            return f"{name}: " + "; ".join(_changes(wanted, there))
    return None


def _changes(wanted: Counter[Row], there: Counter[Row]) -> Iterator[str]:
    for text, rows in (("missing", wanted - there), ("more than without a kill", there - wanted)):
        if rows:
            count = sum(rows.values())
            first = ", ".join(next(iter(rows)))
            shown = first if len(first) <= _SHOWN else first[:_SHOWN] + "…"
            yield f"{count:,} row{'' if count == 1 else 's'} {text}, such as ({shown})"


# ── the folder of a run ─────────────────────────────────────────────────────────────────────────────────────


def read_others(folder: Path, database: Path) -> dict[str, Contents | bytes]:
    """Return the contents of all other files that the handler has left beside the copy of the database."""
    own = {database.name + suffix for suffix in ("", "-wal", "-shm", "-journal")}
    found: dict[str, Contents | bytes] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if name in own or not path.is_file() or ".pyc" in path.name:
            continue
        if name.endswith(("-wal", "-shm", "-journal")) and path.with_name(path.name.rpartition("-")[0]).is_file():
            continue
        content = path.read_bytes()
        found[name] = read(path) if content.startswith(_HEADER) else content
    return found


def other_difference(
    expected: dict[str, Contents | bytes], found: dict[str, Contents | bytes], volatile: frozenset[Column]
) -> str | None:
    """Return the first difference of other files in words, or None."""
    for name in sorted({*expected, *found}):
        wanted, there = expected.get(name), found.get(name)
        if isinstance(wanted, dict) and isinstance(there, dict):
            text = difference(wanted, there, volatile)
            if text is not None:
                return f"the second file {name} differs: {text}"
        elif wanted != there:
            sizes = [f"{len(one):,} bytes" if isinstance(one, bytes) else "absent" for one in (there, wanted)]
            return f"the second file {name} differs: {sizes[0]}, and {sizes[1]} without a kill"
    return None
