"""Pruning: which processed ids an inbox may delete, and deleting them in small steps (G9).

An id may be deleted when its message can no longer be delivered. The daemon knows when that is. Each delivery carries
the watermark W of its queue: the lowest seq that is not settled. Ready, delayed, blocked, leased and dead messages all
hold the watermark back. A message that was delivered, and then expired or was dropped by an operator or by a full
queue, counts as unsettled for the retention of its queue.

The inbox keeps W together with the time L at which the delivery was requested. This pair, a dated watermark, states:
"at time L, all messages below W were settled". The rule of this file is:

    An id is deleted if its seq is below W, and it was processed, or last delivered again, before L - keep.

The rule is safe when the daemon's file is restored. Let a backup be made at time B and restored at time R, and be no
older than ``keep``: R - B <= keep. A message that is unsettled in the backup is delivered again after R. Before the
restore it was settled after B, in one of two ways:

- It was processed and acked. Then it was processed at B or later, or it was delivered again and found at B or later.
- It was given up (it expired or was dropped). Then W stayed below it for the retention of the queue, which is not
  shorter than ``keep``. So each watermark above it has a date L > B + keep >= R.

Now look at the date L of the watermark that the rule uses:

- If R > L, the rule deletes only ids that were processed before L - keep < R - keep <= B. That is none of the first
  kind. Messages of the second kind are not below W yet.
- If R <= L, the watermark comes from the restored file. What is unsettled in that file is not below W.

The rule is safe when a worker is slow. Let a delivery be requested at time r, and let its worker pause until the lease
has ended and the id was deleted. Another consumer settled the message, by a later delivery. So it processed the
message, or found it processed, after r. Therefore the id was deleted by a watermark with r < L - keep. The inbox
refuses each delivery that is older than that and whose id is not found, with `LeaseLost`. If the lease of a refused
delivery is still alive, the message is just delivered again.

L and r are the times at which the deliveries were requested. The deliveries arrived then or later: a reply may wait in
the socket of a process that is stopped. So the inbox deletes less, and refuses more, than by the times of arrival.

What follows for the code:

- W is never used without its own L. The highest W is never combined with the latest L.
- ``keep`` is counted back from L and not from now. An inbox without deliveries for a week deletes nothing that week.
- A new file of the daemon begins with seq 1. Its low watermarks only delay deletion.
- A wall clock that jumps ahead shortens ``keep`` by as much. Then only the watermark protects an id, which is enough
  as long as no backup is restored.

The rule does not cover: a backup that is older than ``keep``; a second restore of a backup from before the first
restore; a restore of both files (a new file of the daemon counts as one); a queue whose retention is shorter than
``keep``; and a worker that pauses for longer than ``keep`` while the clock is set back.
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
"""How many seconds a processed id is kept at least, even if its message can no longer be delivered."""
EVERY: Final = 100
"""How many messages of a queue are processed between two automatic steps."""
ROWS: Final = 200
"""How many rows a step reads: twice as many as were added since the last step, so that pruning catches up."""

_BELOW_ALL: Final = -1
"""A seq below every seq of a daemon."""


@dataclass(slots=True)
class _Watermark:
    """The dated watermark that the latest delivery of a queue brought to this process."""

    watermark: int
    requested_at: float
    since_step: int = EVERY
    """Messages processed since the last step. It starts with `EVERY`, so that a short-lived process makes one step."""


class Pruning:
    """The watermarks that this process has received, and the deletion of ids below them.

    ``keep`` is in seconds; with ``math.inf`` no id is ever deleted. Raises `InvalidRequest` if it is not such a number.
    All methods with a ``database`` run inside a transaction of the caller.
    """

    def __init__(self, keep: float) -> None:
        if not isinstance(keep, int | float) or isinstance(keep, bool) or math.isnan(keep) or keep < 0:
            raise InvalidRequest(f"`keep` is a number of seconds, 0 or more, not {keep!r}")
        self.keep = keep
        self._received: dict[str, _Watermark] = {}

    def note(self, database: sqlite3.Connection, messages: Iterable[Delivery], now: float) -> None:
        """Note the watermarks of deliveries that were just processed. Make a step for each queue where one is due."""
        by_queue: dict[str, list[Delivery]] = {}
        for message in messages:
            by_queue.setdefault(message.queue, []).append(message)
        for queue, deliveries in by_queue.items():
            received = self._received.setdefault(queue, _Watermark(0, -math.inf))
            received.since_step += len(deliveries)
            if now < received.requested_at:
                # The clock was set back. Beside the old date, ids processed from now on would seem older than they are.
                # A step replaces the dated watermark, also in the file.
                received.since_step = EVERY
            # Any of the deliveries may be the latest, so take the lowest watermark and the earliest time.
            received.watermark = min([message.watermark for message in deliveries])
            received.requested_at = min([message.received_at for message in deliveries])
            if received.since_step >= EVERY:
                received.since_step = 0
                # Each automatic step starts at the lowest seq. If the first rows are all too young (ids that were
                # delivered again lately), it gets no further; `prune` does.
                self.step(database, queue, None, now)

    def queues(self, database: sqlite3.Connection) -> list[str]:
        """Return the queues whose watermark is known, to this process or from the file."""
        # As JSON: the application may have set a text_factory, and its file may be in UTF-16.
        (stored,) = _row(database, "select json_group_array(queue) from eoq_watermark", ())
        return sorted({*json.loads(stored), *self._received})

    def step(self, database: sqlite3.Connection, queue: str, after: int | None, now: float) -> tuple[int, int | None]:
        """Read the next `ROWS` ids of a queue below the watermark, and delete those that are old enough.

        The step reads ids whose seq is over ``after``, or from the lowest on if ``after`` is None. Return how many ids
        were deleted, and the ``after`` of the next step, or None at the end.
        """
        watermark, at = self._latest(database, queue, now)
        after = _BELOW_ALL if after is None else after
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
        """Return whether a delivery was requested so long ago that `is_late` has to be called for it."""
        return now > message.received_at + self.keep

    def is_late(self, database: sqlite3.Connection, message: Delivery, now: float) -> bool:
        """Return whether the id of an old delivery may have been deleted, if it is not found."""
        received, (_, stored_at) = self._received.get(message.queue), self._stored(database, message.queue, now)
        received_at = 0.0 if received is None or received.requested_at > now else received.requested_at
        return message.received_at < max(received_at, stored_at) - self.keep

    def _stored(self, database: sqlite3.Connection, queue: str, now: float) -> tuple[int, float]:
        """Return the dated watermark in the file. One with a date in the future, by a wrong clock, does not count."""
        row = _row(database, "select watermark, seen_at from eoq_watermark where queue = ?", (queue,))
        return (0, 0.0) if row is None or row[1] > now else row

    def _latest(self, database: sqlite3.Connection, queue: str, now: float) -> tuple[int, float]:
        """Return the later one of this process's dated watermark and the stored one. Store the former for others."""
        received, stored = self._received.get(queue), self._stored(database, queue, now)
        if received is None or received.requested_at > now or received.requested_at < stored[1]:
            return stored
        database.execute(
            """
            insert into eoq_watermark (queue, watermark, seen_at)
            values (?, ?, ?)
            on conflict (queue) do update set watermark = excluded.watermark, seen_at = excluded.seen_at
            """,
            (queue, received.watermark, received.requested_at),
        )
        return received.watermark, received.requested_at


def _row(database: sqlite3.Connection, sql: str, parameters: tuple[object, ...]) -> Any:
    cursor = database.cursor()
    cursor.row_factory = None  # the application may have set one on its connection
    return cursor.execute(sql, parameters).fetchone()
