"""An export of the daemon's file as lines of JSON, while the daemon runs or not. See ``portable.py``."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Final

from ...errors import NotFound
from ..config.settings import StorageSettings
from ..measures import COUNTERS
from ..portable import (
    FORMAT,
    BindingLine,
    CountsLine,
    EndedMessage,
    EndOfExport,
    Export,
    Failure,
    Key,
    Line,
    LiveMessage,
    Queue,
    encode_line,
    schedule_line,
    with_bytes,
)
from ..records import ScheduleRecord
from ..rules.schedule_rules import Definition, Timing
from ..store.sqlite.totals import DELETED
from .backup import require_room
from .snapshots import Watch, failure, open_read_only, require_current, stop_at_interrupt

STEP: Final = 500
"""After how many lines the room on the disk is checked, and the watcher is called."""

_MESSAGES: Final = """
    select
      queue.name as queue, message.seq, message.id, state, priority, enqueued_at, due_at, fixed, expires_at, digest,
      "group", headers, body, attempts, deliveries, message.delivered_at, message.consumer, failed_at, error,
      cancelled_at
    from message
    join queue on queue.number = message.queue
    where :queues is null or queue.name in (select value from json_each(:queues))
    order by message.seq
    """
_SETTLED: Final = """
    select
      queue.name as queue, settled.seq, settled.id, outcome, digest, settled_at, delivery, result.result, result.error,
      result.far_outcome, result.far_error
    from settled
    join queue on queue.number = settled.queue
    left join result on result.seq = settled.seq
    where :queues is null or queue.name in (select value from json_each(:queues))
    order by settled.queue, settled.id
    """


_COUNTS: Final = f"""
    select queue.name, {", ".join(f"total.{name}" for name in COUNTERS)}
    from total
    left join queue on queue.number = total.queue
    where iif(:queues is null, queue.number is not null or total.queue = {DELETED},
              queue.name in (select value from json_each(:queues)))
    order by queue.name
    """  # noqa: S608 # our own columns
_BINDINGS: Final = """
    select topic, queue, headers
    from binding
    where :queues is null or queue in (select value from json_each(:queues))
    order by topic, queue
    """
_SCHEDULES: Final = """
    select
      name, queue, cron, timezone, every, at, catch_up, content, origin, seen_at, next_at, last_at, error, paused
    from schedule
    where :queues is null or queue in (select value from json_each(:queues))
    order by name
    """


def export(database: Path, queues: Sequence[str], storage: StorageSettings, watch: Watch) -> Iterator[bytes]:
    """Yield the lines of an export of some queues, or of all and the keys of `once` where none is named.

    They are one state of the file. Raises `NotFound` where a file or queue does not exist, `StorageFull` where the
    daemon's log would grow too large meanwhile, and errors of the storage.
    """
    with closing(open_read_only(database)) as source:
        stop_at_interrupt(source)
        source.row_factory = sqlite3.Row
        try:
            require_current(source, database)
            source.execute("begin")
            reading = _Reading(source, queues)
            reading.require_queues()
            total = reading.count()
            yield encode_line(Export(format=FORMAT, source=reading.identity, exported_at=time.time()))
            number = 0
            for number, line in enumerate(reading.lines(), 1):
                if number % STEP == 0:
                    require_room(database, storage, "export")
                    watch("exporting", min(number, total), total)
                yield encode_line(line)
            yield encode_line(EndOfExport(lines=number))
        except sqlite3.Error as error:
            raise failure(error, database) from error


class _Reading:
    """One state of the file, as lines."""

    def __init__(self, source: sqlite3.Connection, queues: Sequence[str]) -> None:
        self._execute = source.execute
        self._queues = json.dumps(list(queues)) if queues else None
        (self.identity,) = self._execute("select identity from daemon").fetchone()
        row = self._execute("select set_by from clock").fetchone()
        self._set_by: float = 0.0 if row is None else row[0]
        self._has_failures = self._execute("select 1 from failure limit 1").fetchone() is not None
        self._delivered: dict[int, tuple[float, str | None]] = {
            seq: (delivered_at, consumer)
            for delivered_at, consumer, seqs in self._execute("select delivered_at, consumer, seqs from delivery")
            for seq in json.loads(seqs)
        }

    def require_queues(self) -> None:
        """Raise `NotFound` where a queue that was named does not exist."""
        for (name,) in self._execute(
            "select value from json_each(coalesce(?, '[]')) where value not in (select name from queue)",
            (self._queues,),
        ):
            raise NotFound(f"there is no queue {name!r}; `eoq queues` lists them")

    def count(self) -> int:
        """Return about how many lines there are, for the progress."""
        (count,) = self._execute(
            "select (select count(*) from message) + (select count(*) from outcome) + (select count(*) from once)"
        ).fetchone()
        return int(count)

    def lines(self) -> Iterator[Line]:
        """Yield all lines between the first and the last."""
        for (name,) in self._rows(
            """
            select name from queue
            where paused and (:queues is null or name in (select value from json_each(:queues)))
            order by name
            """
        ):
            yield Queue(queue=name, paused=True)
        yield from self._setups()
        for row in self._rows(_SETTLED):
            yield self._ended(row)
        for row in self._rows(_MESSAGES):
            yield self._live(row)
        if self._queues is None:
            for row in self._rows("select * from once where state = 'done' order by number"):
                yield self._key(row)

    def _setups(self) -> Iterator[Line]:
        """Yield the lines of counts, bindings and schedules."""
        for queue, *counts in self._rows(_COUNTS):
            yield CountsLine(
                queue=queue, counts={name: count for name, count in zip(COUNTERS, counts, strict=True) if count}
            )
        for topic, queue, headers in self._rows(_BINDINGS):
            yield BindingLine(topic=topic, queue=queue, headers=json.loads(headers or "{}"))
        for row in self._rows(_SCHEDULES):
            name, queue, cron, timezone, every, at, catch_up, content, *state = row
            definition = Definition(name, queue, Timing(cron, timezone, every, at), catch_up, content)
            yield schedule_line(ScheduleRecord._make((definition, *state, 0)))

    def _rows(self, sql: str) -> sqlite3.Cursor:
        return self._execute(sql, {"queues": self._queues})

    def _live(self, row: sqlite3.Row) -> LiveMessage:
        seq = row["seq"]
        last = self._delivered.get(seq)
        delivered_at, consumer = last or (row["delivered_at"], row["consumer"])
        return LiveMessage(
            **self._common(row),
            **with_bytes("body", row["body"]),
            state=row["state"],
            headers=None if row["headers"] is None else json.loads(row["headers"]),
            priority=row["priority"],
            group=row["group"],
            enqueued_at=row["enqueued_at"],
            due_at=row["due_at"] if row["fixed"] else self._wall(row["due_at"]),
            fixed=bool(row["fixed"]),
            expires_at=self._wall(row["expires_at"]),
            attempts=row["attempts"],
            # What is leased now is delivered again by the daemon that imports it. This delivery has been one.
            deliveries=row["deliveries"] + (last is not None),
            delivered_at=delivered_at,
            consumer=consumer,
            failed_at=row["failed_at"],
            cancelled_at=row["cancelled_at"],
        )

    def _ended(self, row: sqlite3.Row) -> EndedMessage:
        return EndedMessage(
            **self._common(row),
            **with_bytes("result", row["result"]),
            outcome=row["outcome"],
            settled_at=row["settled_at"],
            delivered=row["delivery"] is not None,
            far_outcome=row["far_outcome"],
            far_error=row["far_error"],
        )

    def _common(self, row: sqlite3.Row) -> dict[str, Any]:
        return {
            "queue": row["queue"],
            "id": row["id"],
            "digest": row["digest"].hex(),
            "error": row["error"],
            "failures": self._failures(row["seq"]),
        }

    def _failures(self, seq: int) -> list[Failure]:
        if not self._has_failures:
            return []
        rows = self._execute(
            "select delivery, delivered_at, consumer, failed_at, error from failure where seq = ? order by delivery",
            (seq,),
        )
        return [Failure(**dict(row)) for row in rows]

    def _key(self, row: sqlite3.Row) -> Key:
        return Key(
            key=row["key"],
            fingerprint=row["fingerprint"],
            status=row["status"] or 0,
            **with_bytes("output", row["output"]),
            output_bytes=row["output_bytes"] or 0,
            expires_at=self._wall(row["expires_at"]),
        )

    def _wall(self, moment: float | None) -> float | None:
        """Return a stored moment as that of the wall clock. See `ClockNotes`."""
        return None if moment is None else moment + self._set_by
