"""Sweeping: delete the ids that ``pruning.py`` allows to delete from a SQLite file, in small steps.

All functions run inside an open transaction of the caller.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable
from typing import Any, Final

from ..message import Delivery
from .rules.pruning import KEEP_SECONDS, ROWS, KnownWatermark, Pruning, Stream

_STORED: Final = """
    select watermark, retention, forgotten_to, seen_at
    from eoq_watermark
    where queue = ? and source in (?, '')
    order by source desc
    limit 1
    """
_STORE: Final = """
    insert into eoq_watermark (source, queue, watermark, retention, forgotten_to, seen_at)
    values (?, ?, ?, ?, ?, ?)
    on conflict (source, queue) do update
    set watermark = excluded.watermark, retention = excluded.retention, seen_at = excluded.seen_at,
      forgotten_to = max(forgotten_to, excluded.forgotten_to)
    """
# As JSON: the application may have set a text_factory, and its file may be in UTF-16.
_RANGE: Final = """
    select json_array(
      swept_to,
      (
        select id
        from eoq_processed
        where queue = eoq_watermark.queue and id > swept_to
        order by id
        limit 1 offset ?
      )
    )
    from eoq_watermark
    where source = ? and queue = ?
    """
_DELETE: Final = """
    delete from eoq_processed
    where queue = ? and id > ? and id <= ? and seq < ? and processed_at < ?
      and (source is null or source = ?)
    """


def date(database: sqlite3.Connection, pruning: Pruning, now: float) -> float:
    """Return the date for ids that are processed now. See `Pruning.date`."""
    if pruning.known_past is None:
        (past,) = _row(
            database,
            "select max(min(seen_at, forgotten_to + coalesce(?, retention, ?))) from eoq_watermark",
            (pruning.fixed_keep, KEEP_SECONDS),
        )
        pruning.known_past = float("-inf") if past is None else past
    return pruning.date(now)


def note(database: sqlite3.Connection, pruning: Pruning, messages: Iterable[Delivery], now: float) -> None:
    """Note the watermarks of deliveries that were just processed. Make a step for each queue where one is due."""
    for stream in pruning.note(messages, now):
        step(database, pruning, stream, now)


def streams(database: sqlite3.Connection, pruning: Pruning) -> list[Stream]:
    """Return the streams whose watermark is known, to this process or from the file."""
    # As JSON: the application may have set a text_factory, and its file may be in UTF-16.
    (stored,) = _row(database, "select json_group_array(json_array(source, queue)) from eoq_watermark", ())
    return sorted({*[(source, queue) for source, queue in json.loads(stored)], *pruning.streams})


def step(
    database: sqlite3.Connection, pruning: Pruning, stream: Stream, now: float, *, from_start: bool = False
) -> tuple[int, bool]:
    """Read the next `ROWS` ids of a queue, and delete those that may be deleted.

    A step goes on where the last one ended, and begins with the lowest id after the highest, or ``from_start``.
    Return how many ids were deleted, and whether the end was reached.
    """
    (watermark, before), to_store = pruning.limits(stream, stored(database, stream), now)
    source, queue = stream
    if to_store is not None:
        database.execute(_STORE, (source, queue, *to_store))
    if from_start:
        database.execute("update eoq_watermark set swept_to = '' where source = ? and queue = ?", stream)
    found = _row(database, _RANGE, (ROWS - 1, source, queue))
    if found is None:
        return 0, True
    after, last = json.loads(found[0])
    end = b"" if last is None else last  # to SQLite each blob is greater than each text
    cursor = database.execute(_DELETE, (queue, after, end, watermark, before, source))
    database.execute(
        "update eoq_watermark set swept_to = ? where source = ? and queue = ?", (last or "", source, queue)
    )
    return cursor.rowcount, last is None


def stored(database: sqlite3.Connection, stream: Stream) -> KnownWatermark | None:
    """Return what the file has about a stream, or about the queue from the time before there were sources."""
    source, queue = stream
    row = _row(database, _STORED, (queue, source))
    return None if row is None else KnownWatermark(*row)


def _row(database: sqlite3.Connection, sql: str, parameters: tuple[object, ...]) -> Any:
    cursor = database.cursor()
    cursor.row_factory = None  # the application may have set one on its connection
    return cursor.execute(sql, parameters).fetchone()
