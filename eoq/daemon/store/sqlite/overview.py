"""The queries of queues: how many messages each has in each state, and its totals.

The state of a message is in one of five partial indexes, so that no row of a message is read, however many there are.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from ...measures import COUNTERS, Counter, Counts

_BEHIND: Final = "~"
"""A character behind all those of names: what begins with a prefix is before the prefix with this one."""

_LEASED: Final = """
    leased as materialized (
      select delivery.queue, count(*) as number
      from delivery
      cross join json_each(delivery.seqs) as delivered
      cross join message on message.seq = delivered.value and message.state = 'ready'
      where delivery.queue in (select number from page)
      group by delivery.queue
    )
    """
_COUNTS: Final = """
      (
        select count(*)
        from message indexed by message_ready
        where queue = page.number and state = 'ready'
      ) - coalesce(leased.number, 0) as ready,
      coalesce(leased.number, 0) as leased,
      (
        select count(*)
        from message indexed by message_later
        where queue = page.number and state in ('delayed', 'blocked')
      ) - (
        select count(*)
        from message indexed by message_group
        where queue = page.number and "group" is not null and state = 'blocked'
      ) as delayed,
      (
        select count(*)
        from message indexed by message_group
        where queue = page.number and "group" is not null and state = 'blocked'
      ) as blocked,
      (
        select count(*)
        from message indexed by message_dead
        where queue = page.number and state = 'dead'
      ) as dead
    """
_FIRST_READY: Final = """
            select min(seq) as seq from message where queue = page.number and state = 'ready' and priority = 0
            union all
            select min(seq) from message where queue = page.number and state = 'ready' and priority <> 0
    """
_OLDEST_READY: Final = f"(select enqueued_at from message where seq = (select min(seq) from ({_FIRST_READY})))"  # noqa: S608 # constants
_OLDEST: Final = f"""
      (
        select enqueued_at
        from message
        where seq = (
          select min(seq)
          from (
            {_FIRST_READY}
            union all
            select min(seq) from message where queue = page.number and state in ('delayed', 'blocked')
            union all
            select min(seq) from message where queue = page.number and state = 'dead'
          )
        )
      )
    """  # noqa: S608 # constants
_DETAILS: Final = f"""
    {_LEASED}
    select
      page.number as queue_id, name, paused,
      {_COUNTS},
      {_OLDEST} as oldest,
      {_OLDEST_READY} as oldest_ready,
      {", ".join(f"coalesce(total.{name}, 0)" for name in COUNTERS)}
    from page
    left join leased on leased.queue = page.number
    left join total on total.queue = page.number
    """  # noqa: S608 # our own columns
PAGE: Final = f"""
    with
      page as materialized (
        select number, name, paused
        from queue
        where name >= :first and name < :end and name <> :after
        order by name
        limit :limit
      ),
      {_DETAILS}
    order by name
    """  # noqa: S608 # our own columns
"""The next queues by their names."""
_NAMED: Final = f"""
    with
      page as materialized (
        select queue.number, name, paused, key as place
        from json_each(:queues) as wanted
        join queue on queue.number = wanted.value
      ),
      {_DETAILS}
    order by page.place
    """  # noqa: S608 # our own columns
_ORDERS: Final = {
    "name": "name",
    "busy": "sent_rate + done_rate desc, leased desc, ready + leased + delayed + blocked desc, dead desc, name",
    "depth": "ready + leased + delayed + blocked desc, name",
    "ready": "ready desc, name",
    "dead": "dead desc, name",
    "sent": "sent_rate desc, name",
    "done": "done_rate desc, name",
    "age": "oldest_ready is null, oldest_ready, name",
}
_RATES: Final = ("sent_rate", "done_rate")
SUMMED: Final = ("ready", "leased", "delayed", "blocked", "dead", *_RATES)
_RANKED: Final = f"""
    with
      page as materialized (select number, name from queue),
      {_LEASED},
      rate as materialized (select key as name, value ->> 0 as sent, value ->> 1 as done from json_each(:rates)),
      every as materialized (
        select
          page.number, page.name,
          {_COUNTS},
          coalesce(rate.sent, 0.0) as sent_rate,
          coalesce(rate.done, 0.0) as done_rate,
          {{oldest_ready}} as oldest_ready,
          instr(lower(page.name), lower(:contains)) > 0 as matches
        from page
        left join leased on leased.queue = page.number
        left join rate on rate.name = page.name
      )
    select summed.*, ranked.number
    from (
      select count(*), total(matches), {", ".join(f"total({name})" for name in SUMMED)}
      from every
    ) as summed
    left join (
      select number, row_number() over (order by {{order}}) as place
      from every
      where matches
      order by {{order}}
      limit :limit offset :skip
    ) as ranked
    order by place
    """  # noqa: S608 # our own columns
"""The sums of all queues, and which of them come first."""
_SIMPLE: Final = ("name", "paused", "ready", "leased", "delayed", "blocked", "dead", "oldest", "oldest_ready")


class QueueState(NamedTuple):
    """What the file says of one queue."""

    queue_id: int
    name: str
    paused: int
    ready: int
    leased: int
    delayed: int
    blocked: int
    dead: int
    oldest: float | None
    """When the oldest message that is not settled was stored."""
    oldest_ready: float | None
    """When the oldest message that is ready or leased was stored."""
    counted: tuple[int, ...]
    """Its totals, as they are in the file."""

    def fields(self) -> dict[str, Any]:
        """Return what the reply to a request has of it."""
        values = zip(_SIMPLE, self[1:], strict=False)
        return {**dict(values), "paused": bool(self.paused)}

    def totals(self, more: Mapping[Counter, int]) -> Counts:
        """Return its totals, with what was counted since."""
        return {name: count + more[name] for name, count in zip(COUNTERS, self.counted, strict=True)}


class Ranking(NamedTuple):
    """The sums of all queues, and the first ones in an order."""

    queues: int
    """How many queues there are."""
    matching: int
    """How many of them were asked for."""
    sums: dict[str, float]
    """The sums over all queues."""
    first: list[QueueState]


def read_page(database: sqlite3.Connection, after: str, prefix: str, limit: int) -> list[QueueState]:
    """Return the next queues by their names: behind ``after``, and beginning with ``prefix``."""
    bounds = {"first": max(after, prefix), "after": after, "end": prefix + _BEHIND, "limit": limit}
    return _states(database.execute(PAGE, bounds))


def read_ranking(
    database: sqlite3.Connection, order: str, contains: str, skip: int, limit: int, rates: bytes
) -> Ranking:
    """Return the sums of all queues, and the ones with a text in their names, in one of the orders of `_ORDERS`.

    ``rates`` has, as JSON, messages sent and done a second for each queue that has any.
    """
    text = ranked(order)
    asked = {"contains": contains, "skip": skip, "limit": limit, "rates": rates.decode()}
    rows = database.execute(text, asked).fetchall()
    queues, matching, *sums = rows[0][:-1]
    numbers = [row[-1] for row in rows if row[-1] is not None]
    first = _states(database.execute(_NAMED, {"queues": json.dumps(numbers)}))
    summed = {name: round(total, 3) if name in _RATES else int(total) for name, total in zip(SUMMED, sums, strict=True)}
    return Ranking(int(queues), int(matching), summed, first)


def ranked(order: str) -> str:
    """Return the statement that ranks all queues. The age of each is read only where it is needed."""
    return _RANKED.format(order=_ORDERS[order], oldest_ready=_OLDEST_READY if order == "age" else "null")


def _states(rows: sqlite3.Cursor) -> list[QueueState]:
    simple = len(_SIMPLE) + 1
    return [QueueState._make((*row[:simple], row[simple:])) for row in rows]
