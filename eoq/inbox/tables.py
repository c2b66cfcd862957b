"""The inbox's tables in the application's file, and the statements that read and write the processed ids.

The tables are plain SQL, so that a consumer in any language can write them:

    create table eoq_processed (
      queue text not null,
      id text not null,
      source text,                 -- the identity of the daemon's file, from the delivery
      seq integer not null,        -- from the delivery
      digest blob,                 -- of the content, from the delivery
      processed_at real not null,  -- seconds since the epoch: when it was processed, or last delivered again
      result blob,                 -- what the handler returned, as bytes
      primary key (queue, id)
    ) without rowid

No handler runs for a message that is found. Its ``seq`` and ``processed_at`` are raised to those of the new delivery,
and never lowered. ``pruning.py`` says which rows may be deleted, and what the table ``eoq_watermark`` holds. The result
is the last column, so that pruning does not read large ones. There is no index: it would hold each id a second time.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any, Final

from ..message import Delivery
from .rules.effects import Effect, Key, digest_of

MANY: Final = 50
"""How many rows one statement inserts at once. Running a statement costs Python as much as it costs SQLite."""

_PROCESSED: Final = """
    create table if not exists eoq_processed (
      queue text not null,
      id text not null,
      source text,
      seq integer not null,
      digest blob,
      processed_at real not null,
      result blob,
      primary key (queue, id)
    ) without rowid
    """
_WATERMARK: Final = """
    create table if not exists eoq_watermark (
      source text not null,
      queue text not null,
      watermark integer not null,
      retention real,
      forgotten_to real not null,
      seen_at real not null,
      swept_to text not null default '',
      primary key (source, queue)
    ) without rowid
    """
# The tables of earlier versions: ids without source and digest, watermarks by queue alone, and an index.
_UPGRADE_PROCESSED: Final = (
    "alter table eoq_processed add column source text",
    "alter table eoq_processed add column digest blob",
    "drop index if exists eoq_processed_by_seq",
)
_EARLIER_KEEP: Final = 86400.0
"""How many seconds earlier versions kept an id at least, if they were not told otherwise."""
_COPY_WATERMARKS: Final = """
    insert into eoq_watermark (source, queue, watermark, forgotten_to, seen_at)
    select '', queue, watermark, seen_at - ?, seen_at
    from eoq_watermark_before
    """

# It deletes nothing. SQLite takes the write lock all the same. With tables of an earlier version it fails.
_LOCK: Final = """
    delete from eoq_watermark
    where false and forgotten_to is null
    """
_FIND: Final = """
    select cast(result as blob), cast(digest as blob)
    from eoq_processed
    where queue = ? and id = ?
    """
# It returns positions in the list and not ids: the application may have set a text_factory.
_FIND_MANY: Final = """
    select asked.key, cast(eoq_processed.result as blob), cast(eoq_processed.digest as blob)
    from json_each(?) as asked
    cross join eoq_processed on eoq_processed.queue = ? and eoq_processed.id = asked.value
    """
_INSERT: Final = """
    insert into eoq_processed (queue, id, source, seq, digest, processed_at, result)
    values {rows}
    """
_NEW_ROW: Final = "(?, ?, ?, ?, ?, ?, ?)"
_INSERT_ONE: Final = _INSERT.format(rows=_NEW_ROW)
_INSERT_MANY: Final = _INSERT.format(rows=", ".join([_NEW_ROW] * MANY))
# In another file of the daemon the same message may have another seq. The higher one is kept longer.
_REPEATED: Final = """
    update eoq_processed
    set seq = max(seq, ?), source = coalesce(?, source), digest = coalesce(digest, ?),
      processed_at = max(processed_at, ?)
    where queue = ? and id = ?
    """


def create(database: sqlite3.Connection) -> None:
    """Create the tables if they are missing, and bring those of an earlier version up to date.

    It runs inside the open transaction, so that a process that is killed leaves all of it or nothing. It copies no ids.
    """
    if not _has_column(database, "eoq_processed", "id"):
        database.execute(_PROCESSED)
    elif not _has_column(database, "eoq_processed", "source"):
        for statement in _UPGRADE_PROCESSED:
            database.execute(statement)
    if not _has_column(database, "eoq_watermark", "queue"):
        database.execute(_WATERMARK)
    elif not _has_column(database, "eoq_watermark", "forgotten_to"):
        # Not renamed: that fails if the application has a view in its file that does not work.
        database.execute("create table eoq_watermark_before as select * from eoq_watermark")
        database.execute("drop table eoq_watermark")
        database.execute(_WATERMARK)
        database.execute(_COPY_WATERMARKS, (_EARLIER_KEEP,))
        database.execute("drop table eoq_watermark_before")


def _has_column(database: sqlite3.Connection, table: str, column: str) -> bool:
    return bool(rows(database, "select 1 from pragma_table_info(?) where name = ?", (table, column)))


def lock(database: sqlite3.Connection) -> None:
    """Take the file's write lock for a transaction that has read nothing yet, and wait for it if needed.

    A deferred transaction that reads before it writes fails at its first write, instead of waiting for the lock. This
    also makes the tables if they are missing or of an earlier version.
    """
    try:
        database.execute(_LOCK)
    except sqlite3.OperationalError as error:
        if "no such table" not in str(error) and "no such column" not in str(error):
            raise
        database.execute(_WATERMARK)  # it takes the lock if there is no such table
        database.execute("delete from eoq_watermark where false")  # and this if there is one
        create(database)


def find(database: sqlite3.Connection, messages: Sequence[Delivery]) -> dict[Key, Effect]:
    """Return what is stored about the messages that were processed before."""
    found: dict[Key, Effect] = {}
    if len(messages) == 1:
        (message,) = messages
        for row in rows(database, _FIND, (message.queue, message.id)):
            found[message.queue, message.id] = Effect(*row)
        return found
    by_queue: dict[str, list[str]] = {}
    for message in messages:
        by_queue.setdefault(message.queue, []).append(message.id)
    for queue, ids in by_queue.items():
        for index, result, digest in rows(database, _FIND_MANY, (json.dumps(ids), queue)):
            found[queue, ids[index]] = Effect(result, digest)
    return found


def insert(database: sqlite3.Connection, messages: Sequence[Delivery], found: dict[Key, Effect], now: float) -> None:
    """Store the ids and the results of messages that were just processed."""
    new = [
        (m.queue, m.id, m.source or None, m.seq, digest, now, result)
        for m in messages
        for result, digest in (found[m.queue, m.id],)
    ]
    whole = len(new) // MANY * MANY
    for start in range(0, whole, MANY):
        database.execute(_INSERT_MANY, [*chain.from_iterable(new[start : start + MANY])])
    for row in new[whole:]:
        database.execute(_INSERT_ONE, row)


def note_redeliveries(database: sqlite3.Connection, messages: Iterable[Delivery], now: float) -> None:
    """Raise the seq and the time of processed messages to those of a new delivery."""
    for message in messages:
        database.execute(
            _REPEATED, (message.seq, message.source or None, digest_of(message), now, message.queue, message.id)
        )


def is_found(database: sqlite3.Connection, queue: str, id: str) -> bool:
    """Return whether the file has the id of a processed message."""
    return bool(rows(database, _FIND, (queue, id)))


def is_stored(database: sqlite3.Connection, message: Delivery) -> bool:
    """Return whether the id of a message is among the processed ones that ``database`` sees."""
    try:
        return is_found(database, message.queue, message.id)
    except sqlite3.OperationalError as error:
        if "no such table" in str(error) or "no such column" in str(error):
            return False  # the transaction that created it was rolled back
        raise


def rows(database: sqlite3.Connection, sql: str, parameters: tuple[object, ...]) -> list[tuple[Any, ...]]:
    """Return the rows of a query as plain tuples."""
    cursor = database.cursor()
    cursor.row_factory = None  # the application may have set one on its connection
    return cursor.execute(sql, parameters).fetchall()
