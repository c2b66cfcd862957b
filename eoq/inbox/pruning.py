"""Safe forgetting: which processed ids an inbox may drop, and dropping them in small steps (G9).

An id may go when its message can no longer come. The daemon knows that: each delivery carries its queue's
watermark, the lowest place in the daemon's file that is not settled; ready, delayed, blocked, leased and dead
messages all hold it back. What an inbox keeps of it is a sentence with a date: "at L, when this delivery came,
everything below W was settled". (What was delivered and then expired or was dropped, by a person or a full queue,
counts as not settled for its queue's retention.) By it an id goes when its place is below W *and* it was processed,
or last came again, before L - keep.

Why a sentence stays true whatever happens after it. Let the daemon's file be replaced at R by a backup made at B, no
older than ``keep``: R - B <= keep. Then a message that the backup holds unsettled comes again. But it was
processed at B or later, or came again to be settled after B, if it was settled by being processed and acked. If it
was given up after B, W was below it for the retention, which is no shorter than ``keep``: L > B + keep >= R.

- R > L: an id goes only if it was processed before L - keep < R - keep <= B. So it is none of these.
- R <= L: the sentence is of the new file. What is not settled there is not below W.

A worker may also sleep over all that: it holds a delivery whose lease is long gone, and hands it to the inbox when the
id is forgotten. Who settled the message had a later delivery, and so processed it, or found it processed, after this
one came at r. So the id went by a sentence with r < L - keep. A delivery that is older than that, and whose id is not
found, is refused as `LeaseLost`; if its lease is alive after all, the message just comes again.

L and r are the moments at which those deliveries were asked for. They came then or later (a reply may lie in the socket
of a process that is stopped), so less is forgotten, and more is refused, than by the moments at which they came.

Therefore W is never taken without its date, the highest W never beside the latest L, and ``keep`` is counted back
from L and not from now: an inbox that has heard nothing for a week does not forget for a week. A new daemon's
file that begins with seq 1 has low watermarks, which only hold back. A wall clock that jumps ahead shortens
``keep`` by as much, so that only the watermark protects: enough as long as no backup is restored.

What this does not cover: a backup that is older than ``keep``; a second restore that goes back behind the first, or
one of each file (a new daemon's file counts as one); a queue whose retention is set shorter than ``keep``; and a worker
that sleeps for longer than ``keep`` while the clock is set back.
"""

from __future__ import annotations

import json
import math
import sqlite3
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

from ..errors import InvalidRequest
from ..message import Delivery

KEEP_SECONDS: Final = 86400.0
"""How long a processed id is kept at least, even when its message can no longer come."""
EVERY: Final = 100
"""Messages of a queue between two steps that are made on the way."""
ROWS: Final = 200
"""Rows that a step looks at. Twice as many as came in since the last one, so that it catches up."""

_START: Final = -1
"""Below every place in a daemon's file."""


@dataclass(slots=True)
class _Heard:
    """The last sentence of a queue's watermark, and how many messages came since the last step."""

    watermark: int
    at: float
    since: int = EVERY  # a process that is too short-lived for more makes one step


class Pruning:
    """What is known of the watermarks, and what follows from it.

    ``keep`` is in seconds; with ``math.inf`` nothing is ever forgotten. Everything here runs inside a transaction
    of the caller's.
    """

    def __init__(self, keep: float) -> None:
        if not isinstance(keep, int | float) or isinstance(keep, bool) or math.isnan(keep) or keep < 0:
            raise InvalidRequest(f"`keep` is a number of seconds from 0, not {keep!r}")
        self.keep = keep
        self._heard: dict[str, _Heard] = {}

    def go_on(self, database: sqlite3.Connection, messages: Iterable[Delivery], now: float) -> None:
        """Learns from deliveries that were just processed; makes a step where enough came since the last one."""
        by_queue: dict[str, list[Delivery]] = {}
        for message in messages:
            by_queue.setdefault(message.queue, []).append(message)
        for queue, together in by_queue.items():
            heard = self._heard.setdefault(queue, _Heard(0, -math.inf))
            heard.since += len(together)
            if now < heard.at:
                # The clock was set back, and what is processed now looks older than it is to a sentence of before:
                # the step replaces it, also where it is stored.
                heard.since = EVERY
            # Of several that were processed together any may have come last.
            heard.watermark = min([message.watermark for message in together])
            heard.at = min([message.received_at for message in together])
            if heard.since >= EVERY:
                heard.since = 0
                # Always from the lowest place on. What it cannot get past (ids that came again lately), `prune` can.
                self.forget(database, queue, None, now)

    def queues(self, database: sqlite3.Connection) -> list[str]:
        """The queues of which a watermark is known."""
        # As JSON: the application may have set a text_factory, and its file may be in UTF-16.
        (stored,) = _row(database, "select json_group_array(queue) from eoq_watermark", ())
        return sorted({*json.loads(stored), *self._heard})

    def forget(self, database: sqlite3.Connection, queue: str, after: int | None, now: float) -> tuple[int, int | None]:
        """One step: looks at the next `ROWS` ids of a queue whose place is over ``after`` (None: all)
        and below the watermark.

        Returns how many were forgotten, and where the next step goes on; None at the end.
        """
        watermark, at = self._latest(database, queue, now)
        after = _START if after is None else after
        (last,) = _row(
            database,
            """
            select max(seq)
            from (
              select seq
              from eoq_processed
              where queue = ? and seq > ? and seq < ?
              order by seq
              limit ?
            )
            """,
            (queue, after, watermark, ROWS),
        )
        if last is None:
            return 0, None
        cursor = database.execute(
            """
            delete from eoq_processed
            where queue = ? and seq > ? and seq <= ? and processed_at < ?
            """,
            (queue, after, last, at - self.keep),
        )
        return cursor.rowcount, last

    def is_old(self, message: Delivery, now: float) -> bool:
        """Whether a delivery came so long ago that it may be late."""
        return now > message.received_at + self.keep

    def is_late(self, database: sqlite3.Connection, message: Delivery, now: float) -> bool:
        """Whether the id of an old delivery, if it is not found, may be one that was forgotten."""
        heard, (_, stored_at) = self._heard.get(message.queue), self._stored(database, message.queue, now)
        heard_at = 0.0 if heard is None or heard.at > now else heard.at
        return message.received_at < max(heard_at, stored_at) - self.keep

    def _stored(self, database: sqlite3.Connection, queue: str, now: float) -> tuple[int, float]:
        """The sentence that stands in the file. One that is dated in the future, by a clock that was ahead, is none."""
        row = _row(database, "select watermark, seen_at from eoq_watermark where queue = ?", (queue,))
        return (0, 0.0) if row is None or row[1] > now else row

    def _latest(self, database: sqlite3.Connection, queue: str, now: float) -> tuple[int, float]:
        """The latest sentence: what was heard here, which is then stored for other processes, or what they stored."""
        heard, stored = self._heard.get(queue), self._stored(database, queue, now)
        if heard is None or heard.at > now or heard.at < stored[1]:
            return stored
        database.execute(
            """
            insert into eoq_watermark (queue, watermark, seen_at)
            values (?, ?, ?)
            on conflict (queue) do update set watermark = excluded.watermark, seen_at = excluded.seen_at
            """,
            (queue, heard.watermark, heard.at),
        )
        return heard.watermark, heard.at


def _row(database: sqlite3.Connection, sql: str, parameters: tuple[object, ...]) -> Any:
    cursor = database.cursor()
    cursor.row_factory = None  # the application may have set one on its connection
    return cursor.execute(sql, parameters).fetchone()
