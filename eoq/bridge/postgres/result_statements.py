"""The table of results, `eoq_forward_result`, and its statements.

A row stands for a result that somebody waits for. It is inserted with the message, in one transaction, and is filled
when the message has ended on the machine that has taken it. Then the daemon that has forwarded the message stores the
result, and after that the row is deleted. So after a kill between any two of these, the step is repeated, and changes
nothing.

Any application may insert a row beside its message, with an ``origin`` of its own, and read the result there.
"""

from __future__ import annotations

from typing import Final

from ...postgres.sql.common import NOW, make, waking
from ...protocol.limits import MAX_BODY, MAX_ERROR, MAX_ID

TABLE: Final = "eoq_forward_result"
_CREATE: Final = (
    f"""
    create table if not exists eoq_forward_result (
      queue text collate "C" not null,
      id text collate "C" not null,
      origin text collate "C" not null,         -- who waits for it: the file of the daemon that has forwarded it
      asked_at double precision not null default {NOW},
      owner text collate "C",                   -- the machine that has stored the message
      outcome text,                             -- how the message ended there; null until then
      result bytea,
      error text,
      read_at double precision,                 -- when the origin has stored a result that may still change
      primary key (queue, id, origin)
    )
    """,
    # It answers: which results does this machine owe?
    """
    create index if not exists eoq_forward_result_owed on eoq_forward_result (queue, owner, asked_at)
    where outcome is null or outcome = 'dead'
    """,
    # It answers: which results are there for this daemon?
    """
    create index if not exists eoq_forward_result_there on eoq_forward_result (origin, asked_at)
    where outcome is not null and read_at is null
    """,
    # It answers: which results of this queue were asked for long ago?
    "create index if not exists eoq_forward_result_asked on eoq_forward_result (queue, asked_at)",
    *waking(TABLE, "update of outcome"),
)
MAKE: Final = make(TABLE, *_CREATE)

# The name is still that of this machine: another file may have it since it was released.
_MINE: Final = """
    exists (
      select
      from eoq_forward_owner as named
      where named.queue = {row}.queue and named.owner = {row}.owner and named.identity = %s
    )"""
# A message that another daemon has forwarded before may be taken already: so its row is locked, and its owner is noted.
# A result that was read for an earlier record of the message is read again for the new one.
ASK: Final = """
    insert into eoq_forward_result (queue, id, origin, owner)
    select there.queue, there.id, %s, case when there.taken_at is not null then there.owner end
    from (
      select queue, id, owner, taken_at
      from eoq_forward
      where queue = %s and id = any (%s)
      for share
    ) as there
    on conflict (queue, id, origin) do update
    set read_at = null
    where eoq_forward_result.read_at is not null
    """
# Only of messages that this machine has taken: others may have been released, and taken by another machine.
OWE: Final = """
    update eoq_forward_result as row
    set owner = there.owner
    from eoq_forward as there
    where there.queue = %s and there.id = any (%s) and there.owner = %s and there.taken_at is not null
      and row.queue = there.queue and row.id = there.id and row.outcome is null
    returning row.id
    """
# Those of messages that were taken while this machine told no results, or before they were asked for.
ADOPT: Final = f"""
    update eoq_forward_result as row
    set owner = mine.owner
    from (
      select asked.queue, asked.id, asked.origin, there.owner
      from eoq_forward_result as asked
      join eoq_forward as there on there.queue = asked.queue and there.id = asked.id
      where asked.queue = %s and asked.owner is null and asked.outcome is null
        and there.owner = %s and there.taken_at is not null and {_MINE.format(row="there")}
      for update of asked skip locked
    ) as mine
    where row.queue = mine.queue and row.id = mine.id and row.origin = mine.origin
    """  # noqa: S608 # constants
OWED: Final = f"""
    select id
    from eoq_forward_result as row
    where queue = %s and owner = %s and outcome is null and {_MINE.format(row="row")}
      and length(id) between 1 and {MAX_ID}
    order by asked_at
    limit %s
    """  # noqa: S608 # constants
DEAD: Final = f"""
    select asked_at, id
    from eoq_forward_result as row
    where queue = %s and owner = %s and outcome = 'dead' and {_MINE.format(row="row")}
      and length(id) between 1 and {MAX_ID} and (asked_at, id) < (%s, %s)
    order by asked_at desc, id desc
    limit %s
    """  # noqa: S608 # constants
# What a machine owes binds its name to its file, as claims do: another file does not know how the messages ended. The
# table may not be there.
IS_THERE: Final = f"select to_regclass('{TABLE}') is not null"
OWES: Final = """
    select exists (
      select
      from eoq_forward_result
      where queue = %s and owner = %s and (outcome is null or outcome = 'dead')
    )
    """
RELEASE: Final = """
    update eoq_forward_result
    set owner = null
    where queue = %s and owner = %s and (outcome is null or outcome = 'dead')
    """
# A result is kept from its arrival on, since it may come long after it was asked for.
FILL: Final = f"""
    update eoq_forward_result as row
    set outcome = new.outcome, result = new.result, error = new.error, asked_at = {NOW}, read_at = null
    from unnest(%s::text[], %s::text[], %b::bytea[], %s::text[]) as new (id, outcome, result, error)
    where row.queue = %s and row.owner = %s and row.id = new.id and {_MINE.format(row="row")}
      and (row.outcome is null or row.outcome = 'dead' and new.outcome <> 'dead')
    """  # noqa: S608 # constants
# In an order without equals: those that are equal would count together, and none would fit.
READ: Final = f"""
    select
      queue, convert_to(id, 'UTF8'), left(outcome, 20),
      case when octet_length(result) <= {MAX_BODY} then result end, left(error, {MAX_ERROR})
    from (
      select *, sum(size) over (order by asked_at, queue, id) as total
      from (
        select *, coalesce(octet_length(result), 0) + coalesce(octet_length(error), 0) as size
        from eoq_forward_result
        where origin = %s and queue = any (%s) and outcome is not null and read_at is null and id <> all (%s)
          and length(id) between 1 and {MAX_ID}
        order by asked_at, queue, id
        limit %s
      ) as next
    ) as sized
    where total <= %s or total = size
    order by asked_at, queue, id
    """  # noqa: S608 # constants
FINISH: Final = """
    delete from eoq_forward_result
    where queue = %s and origin = %s and id = any (%s) and outcome <> 'dead'
    """
# A message that is dead there may be redriven, and its result then changes.
KEEP_DEAD: Final = f"""
    update eoq_forward_result
    set read_at = {NOW}
    where queue = %s and origin = %s and id = any (%s) and outcome = 'dead'
    """  # noqa: S608 # constants
FORGET_ROWS: Final = 1000
LONGER: Final = 10
"""How many times as long a result is waited for that a machine owes: that machine may be lost."""
# What is still to come is not forgotten: the message is not taken yet, or a machine has it.
FORGET: Final = f"""
    delete from eoq_forward_result
    where (queue, id, origin) in (
      select queue, id, origin
      from eoq_forward_result as asked
      where queue = %(queue)s and asked_at < {NOW} - %(keep)s
        and (owner is null or outcome is not null or asked_at < {NOW} - {LONGER} * %(keep)s)
        and not exists (
          select
          from eoq_forward as there
          where there.queue = asked.queue and there.id = asked.id and there.taken_at is null
        )
      order by asked_at
      limit {FORGET_ROWS}
      for update of asked skip locked
    )
    """  # noqa: S608 # constants
