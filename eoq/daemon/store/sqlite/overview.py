"""The query of all queues: how many messages each has in each state, and its totals.

The state of a message is in one of five partial indexes, so that no row of a message is read, however many there are.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from ...measures import COUNTERS, Counter, Counts

QUEUES: Final = """
    with
      delayed as (
        select queue, count(*) as number
        from message indexed by message_delayed
        where state = 'delayed'
        group by queue
      ),
      blocked as (
        select queue, count(*) as number
        from message
        where "group" is not null and state = 'blocked'
        group by queue
      ),
      leased as (
        select delivery.queue, count(*) as number
        from delivery
        cross join json_each(delivery.seqs) as delivered
        cross join message on message.seq = delivered.value and message.state = 'ready'
        group by delivery.queue
      )
    select
      queue.number as queue_id,
      name,
      paused,
      (
        select count(*)
        from message indexed by message_ready
        where queue = queue.number and state = 'ready'
      ) - coalesce(leased.number, 0) as ready,
      coalesce(leased.number, 0) as leased,
      coalesce(delayed.number, 0) as delayed,
      coalesce(blocked.number, 0) as blocked,
      (
        select count(*)
        from message indexed by message_dead
        where queue = queue.number and state = 'dead'
      ) as dead,
      (
        select enqueued_at
        from message
        where seq = (
          select min(seq)
          from (
            select min(seq) as seq from message where queue = queue.number and state = 'ready' and priority = 0
            union all
            select min(seq) from message where queue = queue.number and state = 'ready' and priority <> 0
            union all
            select min(seq) from message where queue = queue.number and state in ('delayed', 'blocked')
            union all
            select min(seq) from message where queue = queue.number and state = 'dead'
          )
        )
      ) as oldest,
      (
        select enqueued_at
        from message
        where seq = (
          select min(seq)
          from (
            select min(seq) as seq from message where queue = queue.number and state = 'ready' and priority = 0
            union all
            select min(seq) from message where queue = queue.number and state = 'ready' and priority <> 0
          )
        )
      ) as oldest_ready
    from queue
    left join delayed on delayed.queue = queue.number
    left join blocked on blocked.queue = queue.number
    left join leased on leased.queue = queue.number
    order by name
    """
_TOTALS: Final = f"select queue, {', '.join(COUNTERS)} from total"  # noqa: S608 # our own columns


class Overview(NamedTuple):
    """All queues at one moment."""

    names: list[str]
    """The names of the fields of each row."""
    rows: list[tuple[Any, ...]]
    """The queues by name."""
    totals: dict[int, tuple[int, ...]]
    """The totals of each queue as they are in the file, by its id. The id 0 stands for all that were deleted."""

    def queue(self, index: int) -> dict[str, Any]:
        """Return the fields of one queue. It is left to the caller when to do how many of them."""
        return dict(zip(self.names, self.rows[index], strict=True))

    def totals_of(self, queue_id: int, more: Mapping[Counter, int]) -> Counts:
        """Return the totals of one queue, with what was counted since."""
        row = self.totals.get(queue_id, (0,) * len(COUNTERS))
        return {name: count + more[name] for name, count in zip(COUNTERS, row, strict=True)}


def read_overview(database: sqlite3.Connection) -> Overview:
    """Return all queues. The rows stay as SQLite returns them: with many queues, this thread must not keep Python."""
    cursor = database.execute(QUEUES)
    names = [column[0] for column in cursor.description]
    rows = cursor.fetchall()
    return Overview(names, rows, {row[0]: row[1:] for row in database.execute(_TOTALS)})
