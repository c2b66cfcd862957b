"""What the file says of why a message is not delivered now."""

from __future__ import annotations

import sqlite3
from typing import Any, Final, NamedTuple

from .shown import SET_BY

MOST_AHEAD: Final = 10_000
"""How many messages that come before are counted at most."""
_LIVE: Final = f"""
    select
      message.seq, message.queue, message.state, message.attempts, message.deliveries, message.priority,
      message."group", message.due_at + iif(message.fixed, 0.0, {SET_BY}) as due_at, message.failed_at,
      message.error, message.fixed, message.cancelled_at,
      delivery.number, delivery.delivered_at, delivery.consumer, queue.paused
    from queue
    join known_id on known_id.queue = queue.number and known_id.id = ?2
    join message on message.seq = known_id.seq
    left join delivery
      on message.state = 'ready' and delivery.queue = message.queue
      and message.seq in (select value from json_each(delivery.seqs))
    where queue.name = ?1
    """  # noqa: S608 # a constant
_SETTLED: Final = """
    select outcome, settled_at, error
    from settled
    left join result using (seq)
    where queue = (select number from queue where name = ?) and id = ?
    """
_AHEAD_IN_GROUP: Final = """
    select id, state
    from message
    where queue = :queue and "group" = :group and state in ('ready', 'delayed', 'blocked') and seq < :seq
    order by seq
    limit 1
    """
_AHEAD: Final = f"""
    select count(*)
    from (
      select 1
      from message
      where queue = ?1 and state = 'ready' and priority > ?2
      union all
      select 1
      from message
      where queue = ?1 and state = 'ready' and priority = ?2 and seq < ?3
      limit {MOST_AHEAD}
    )
    """  # noqa: S608 # a constant


class Waiting(NamedTuple):
    """A message that is stored, and what is before it."""

    row: dict[str, Any]
    group: dict[str, Any] | None
    """The first message of its group that is before it."""
    ahead: int
    """How many messages come before it in its queue, leased ones included, up to `MOST_AHEAD`."""


def read_settled(database: sqlite3.Connection, queue: str, id: str) -> dict[str, Any] | None:
    """Return how a message was settled, or None."""
    return _one(database.execute(_SETTLED, (queue, id)))


def read_waiting(database: sqlite3.Connection, queue: str, id: str) -> Waiting | None:
    """Return a message that is stored, or None."""
    row = _one(database.execute(_LIVE, (queue, id)))
    if row is None:
        return None
    group, ahead = None, 0
    if row["state"] == "blocked":
        group = _one(database.execute(_AHEAD_IN_GROUP, row))
    elif row["state"] == "ready" and row["number"] is None:
        (ahead,) = database.execute(_AHEAD, (row["queue"], row["priority"], row["seq"])).fetchone()
    return Waiting(row, group, ahead)


def _one(cursor: sqlite3.Cursor) -> dict[str, Any] | None:
    names = [column[0] for column in cursor.description]
    values = cursor.fetchone()
    return None if values is None else dict(zip(names, values, strict=True))
