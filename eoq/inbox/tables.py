"""The inbox's tables in the application's file, and the statements that read and write the processed ids.

The tables are plain SQL, so that a consumer in any language can write them:

    create table eoq_processed (
      queue text not null,
      id text not null,
      seq integer not null,        -- from the delivery
      result blob,                 -- what the handler returned, as bytes
      processed_at real not null,  -- seconds since the epoch: when it was processed, or last delivered again
      primary key (queue, id)
    ) without rowid

    create table eoq_watermark (
      queue text not null primary key,
      watermark integer not null,  -- as a delivery brought it
      seen_at real not null        -- when that delivery was requested, seconds since the epoch
    ) without rowid

For a message that is found no handler runs. Its ``seq`` and ``processed_at`` are only ever raised, to those of the
new delivery. ``pruning.py`` says which rows may be deleted.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any, Final, TypeAlias

from ..message import Delivery

Key: TypeAlias = tuple[str, str]
"""A queue and an id."""

MANY: Final = 50
"""How many rows one statement inserts at once. Running a statement costs Python as much as it costs SQLite."""

# The index is for pruning: without it each step would read all rows. Index and steps together cost a message that is
# processed alone some 6 µs of 600, and one of many about 1 µs of 35.
_SCHEMA: Final = (
    """
    create table if not exists eoq_processed (
      queue text not null,
      id text not null,
      seq integer not null,
      result blob,
      processed_at real not null,
      primary key (queue, id)
    ) without rowid
    """,
    """
    create index if not exists eoq_processed_by_seq on eoq_processed (queue, seq, processed_at)
    """,
    """
    create table if not exists eoq_watermark (
      queue text not null primary key,
      watermark integer not null,
      seen_at real not null
    ) without rowid
    """,
)
# It deletes nothing. SQLite takes the write lock all the same.
_LOCK: Final = """
    delete from eoq_watermark
    where false
    """
_FIND: Final = """
    select cast(result as blob)
    from eoq_processed
    where queue = ? and id = ?
    """
# It returns positions in the list and not ids: the application may have set a text_factory.
_FIND_MANY: Final = """
    select asked.key, cast(eoq_processed.result as blob)
    from json_each(?) as asked
    cross join eoq_processed on eoq_processed.queue = ? and eoq_processed.id = asked.value
    """
_INSERT: Final = """
    insert into eoq_processed (queue, id, seq, result, processed_at)
    values {rows}
    """
_NEW_ROW: Final = "(?, ?, ?, ?, ?)"
_INSERT_ONE: Final = _INSERT.format(rows=_NEW_ROW)
_INSERT_MANY: Final = _INSERT.format(rows=", ".join([_NEW_ROW] * MANY))
_REPEATED: Final = """
    update eoq_processed
    set seq = max(seq, ?), processed_at = max(processed_at, ?)
    where queue = ? and id = ?
    """


def create(database: sqlite3.Connection) -> None:
    """Create the tables if they are missing, inside the open transaction."""
    for statement in _SCHEMA:
        database.execute(statement)


def lock(database: sqlite3.Connection) -> None:
    """Take the file's write lock for a transaction that has read nothing yet, and wait for it if needed.

    A transaction that reads first, as one of `begin` does by itself, could fail at its first write instead of waiting.
    """
    try:
        database.execute(_LOCK)
    except sqlite3.OperationalError as error:
        if "no such table" not in str(error):
            raise
        create(database)  # it writes, which takes the lock as well


def find(database: sqlite3.Connection, messages: Sequence[Delivery]) -> dict[Key, bytes | None]:
    """Return the results of the messages that were processed before."""
    results: dict[Key, bytes | None] = {}
    if len(messages) == 1:
        (message,) = messages
        for (result,) in rows(database, _FIND, (message.queue, message.id)):
            results[message.queue, message.id] = result
        return results
    by_queue: dict[str, list[str]] = {}
    for message in messages:
        by_queue.setdefault(message.queue, []).append(message.id)
    for queue, ids in by_queue.items():
        for index, result in rows(database, _FIND_MANY, (json.dumps(ids), queue)):
            results[queue, ids[index]] = result
    return results


def insert(
    database: sqlite3.Connection, messages: Sequence[Delivery], results: dict[Key, bytes | None], now: float
) -> None:
    """Store the ids and the results of messages that were just processed."""
    new = [(m.queue, m.id, m.seq, results[m.queue, m.id], now) for m in messages]
    whole = len(new) // MANY * MANY
    for start in range(0, whole, MANY):
        database.execute(_INSERT_MANY, [*chain.from_iterable(new[start : start + MANY])])
    for row in new[whole:]:
        database.execute(_INSERT_ONE, row)


def note_redeliveries(database: sqlite3.Connection, messages: Iterable[Delivery], now: float) -> None:
    """Raise the seq and the time of processed messages to those of a new delivery."""
    # In another file of the daemon the same message may have another seq. The higher one is kept longer.
    for message in messages:
        database.execute(_REPEATED, (message.seq, now, message.queue, message.id))


def is_found(database: sqlite3.Connection, queue: str, id: str) -> bool:
    """Return whether the file has the id of a processed message."""
    return bool(rows(database, _FIND, (queue, id)))


def is_stored(database: sqlite3.Connection, message: Delivery) -> bool:
    """Return whether the id of a message is among the processed ones that ``database`` sees."""
    try:
        return is_found(database, message.queue, message.id)
    except sqlite3.OperationalError as error:
        if "no such table" in str(error):
            return False  # the transaction that created it was rolled back
        raise


def rows(database: sqlite3.Connection, sql: str, parameters: tuple[object, ...]) -> list[tuple[Any, ...]]:
    """Return the rows of a query as plain tuples."""
    cursor = database.cursor()
    cursor.row_factory = None  # the application may have set one on its connection
    return cursor.execute(sql, parameters).fetchall()
