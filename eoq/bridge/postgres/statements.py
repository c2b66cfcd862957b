"""The table between the machines, `eoq_forward`, and its statements.

A row is first claimed by the name of a machine, in a committed transaction. Then it is stored in that machine's daemon,
and then marked as taken. So after a kill between any two of these, only the same machine takes it again, and its daemon
knows the id. A row that was taken is remembered (``keep``), so that a repeated forward finds its id.

Messages of one group go to one machine: the first that claimed one of them, as long as the table remembers it. Claims
of one queue are made one after the other, so that two machines do not begin the same group.

Any application may insert a row: that is a send to whichever machine takes it, once, if its transaction commits.
"""

from __future__ import annotations

from typing import Final

from ...postgres.sql.common import NOW, SIZE, make, waking
from ...protocol.limits import MAX_BODY, MAX_HEADERS, MAX_ID

_CREATE: Final = (
    """
    create table if not exists eoq_forward (
      queue text collate "C" not null,
      id text collate "C" not null,
      seq bigint generated always as identity,  -- the order of taking, within a priority, and in a group
      body bytea not null,
      headers text,                             -- a JSON object of texts
      "group" text collate "C",
      priority integer not null default 0,
      expires_at double precision,              -- then it is not delivered any more; in seconds since the epoch
      digest text,                              -- of the content, by the daemon that has forwarded it
      owner text collate "C",                   -- the machine that has claimed it
      claimed_at double precision,
      tried_at double precision,                -- since when its daemon may have stored it
      taken_at double precision,                -- when it was stored there
      error text,                               -- why it was not stored there
      primary key (queue, id)
    )
    """,
    # Which daemon's file a name belongs to: another file does not know what this one has stored.
    """
    create table if not exists eoq_forward_owner (
      queue text collate "C" not null,
      owner text collate "C" not null,
      identity text not null,
      primary key (queue, owner)
    )
    """,
    # It answers: which row is the next to be claimed?
    """
    create index if not exists eoq_forward_open
    on eoq_forward (queue, (case when "group" is null then priority else 0 end) desc, seq)
    where owner is null and taken_at is null
    """,
    # It answers: what has this machine claimed, and not taken yet?
    """
    create index if not exists eoq_forward_claimed on eoq_forward (queue, owner, seq)
    where owner is not null and taken_at is null
    """,
    # It answers: to which machine does this group go? It has the groups alone.
    """
    create index if not exists eoq_forward_group on eoq_forward (queue, "group", owner)
    where "group" is not null and owner is not null
    """,
    # It answers: which rows of this queue were taken long ago?
    "create index if not exists eoq_forward_taken on eoq_forward (queue, taken_at) where taken_at is not null",
    *waking("eoq_forward", "insert"),
)
MAKE: Final = make("eoq_forward", *_CREATE)

# The ids of those whose content is another one than that of the row that is there.
PUBLISH: Final = """
    insert into eoq_forward (queue, id, body, headers, "group", priority, expires_at, digest)
    select %s, id, body, headers, "group", priority, expires_at, digest
    from unnest(
      %s::text[], %b::bytea[], %s::text[], %s::text[], %s::integer[], %s::double precision[], %s::text[]
    ) with ordinality as new (id, body, headers, "group", priority, expires_at, digest, number)
    order by number
    on conflict (queue, id) do nothing
    """
CONFLICTS: Final = """
    select there.id
    from unnest(%s::text[], %b::bytea[], %s::text[], %s::text[]) as new (id, body, "group", digest)
    join eoq_forward as there on there.queue = %s and there.id = new.id
    where case
      when there.digest is not null and new.digest is not null then there.digest <> new.digest
      else there.body <> new.body or there."group" is distinct from new."group"
    end
    """

LOCK_NAME: Final = "select pg_try_advisory_lock(hashtextextended(%s, 0))"
NAME_OWNER: Final = """
    insert into eoq_forward_owner (queue, owner, identity)
    values (%s, %s, %s)
    on conflict (queue, owner) do nothing
    """
# Also what was taken binds the name to its file, where it is in a group: that machine may not have settled it yet, and
# what follows in the group goes to the same name.
OWNER: Final = """
    select
      identity,
      exists (select from eoq_forward where queue = named.queue and owner = named.owner and taken_at is null)
        or exists (select from eoq_forward where queue = named.queue and owner = named.owner and "group" is not null)
    from eoq_forward_owner as named
    where queue = %s and owner = %s
    """
RENAME_OWNER: Final = "update eoq_forward_owner set identity = %s where queue = %s and owner = %s"
LOCK_QUEUE: Final = "select pg_advisory_xact_lock(hashtextextended(%s, 1))"
# Bodies that are not returned are not read: `octet_length` knows the length of a long one without it.
_MESSAGE: Final = f"""
      seq,
      convert_to(id, 'UTF8'),
      {NOW} - nullif(tried_at, 'NaN'),
      "group",
      case when octet_length(body) <= {MAX_BODY} then body else substr(body, 1, {MAX_BODY} + 1) end,
      left(headers, {4 * MAX_HEADERS}),
      left(id, {4 * MAX_ID}),
      priority,
      expires_at - {NOW}
    """
OWN: Final = f"""
    select {_MESSAGE}
    from (
      select *, sum({SIZE}) over (order by seq) as total
      from (
        select *
        from eoq_forward as one
        where queue = %s and owner = %s and taken_at is null and error is null
          and not exists (
            select
            from eoq_forward as aside
            where aside.queue = one.queue and aside."group" = one."group" and aside.owner = one.owner
              and aside.error is not null and aside.taken_at is null and aside.seq < one.seq
          )
        order by seq
        limit %s
      ) as next
    ) as sized
    where total <= %s or total = {SIZE}
    order by seq
    """  # noqa: S608 # constants
# What is claimed is sent at once, so its first try is noted with the claim: one statement and one commit less. `UNMARK`
# takes that back where it was not sent. Groups that another machine has are left to it. Behind a row that is set aside,
# its group waits. Rows that do not fit are left to the next claim, of any machine.
CLAIM: Final = f"""
    with next as (
      select queue, id, seq, {SIZE} as size, case when "group" is null then priority else 0 end as rank
      from eoq_forward as one
      where queue = %s and owner is null and taken_at is null
        and not exists (
          select
          from eoq_forward as other
          where other.queue = one.queue and other."group" = one."group" and other.owner is not null
            and (other.owner <> %s or other.error is not null and other.taken_at is null)
        )
      order by case when "group" is null then priority else 0 end desc, seq
      limit %s
      for update skip locked
    ), sized as (
      select queue, id, size, sum(size) over (order by rank desc, seq) as total
      from next
    ), claimed as (
      update eoq_forward as row
      set owner = %s, claimed_at = {NOW}, tried_at = {NOW}
      from sized
      where row.queue = sized.queue and row.id = sized.id and (total <= %s or total = size)
      returning row.*
    )
    select {_MESSAGE}
    from claimed
    order by seq
    """  # noqa: S608 # constants
PREPARE_CLAIM: Final = f"prepare eoq_claim (text, text, bigint, bigint) as {CLAIM % ('$1', '$2', '$3', '$2', '$4')}"
# Two statements in one transaction and in one request. Each sees what was committed before it.
CLAIM_AT_ONCE: Final = f"{LOCK_QUEUE}; execute eoq_claim (%s, %s, %s, %s)"
# The first try is noted before the daemon is asked, and stays the first.
MARK: Final = f"""
    update eoq_forward
    set tried_at = coalesce(nullif(tried_at, 'NaN'), {NOW})
    where queue = %s and id = any (%s) and owner = %s and taken_at is null and error is null
    returning id, {NOW} - tried_at
    """  # noqa: S608 # constants
UNMARK: Final = """
    update eoq_forward
    set tried_at = null
    where queue = %s and id = any (%s) and owner = %s and taken_at is null
    """
TAKEN: Final = f"""
    update eoq_forward
    set taken_at = {NOW}
    where queue = %s and id = any (%s) and owner = %s and taken_at is null
    """  # noqa: S608 # constants
SET_ASIDE: Final = """
    update eoq_forward
    set error = %s, tried_at = null
    where queue = %s and id = %s and owner = %s and taken_at is null
    """
COUNT_SET_ASIDE: Final = """
    select count(*)
    from eoq_forward
    where queue = %s and owner = %s and error is not null and taken_at is null
    """
LIST_SET_ASIDE: Final = """
    select seq, queue, id, "group", error, claimed_at
    from eoq_forward
    where queue = %s and owner = %s and taken_at is null and error is not null
    order by seq
    limit %s
    """
FORGET_ROWS: Final = 1000
FORGET: Final = f"""
    delete from eoq_forward
    where (queue, id) in (
      select queue, id
      from eoq_forward
      where queue = %s and taken_at < {NOW} - %s
      order by taken_at
      limit {FORGET_ROWS}
      for update skip locked
    )
    """  # noqa: S608 # constants
CLAIMS: Final = """
    select
      queue, owner,
      count(*) filter (where taken_at is null and error is null) as claimed,
      count(*) filter (where taken_at is null and error is not null) as set_aside,
      count(*) filter (where taken_at is not null) as taken,
      -- any program may have written the dates
      min(claimed_at) filter (where taken_at is null and claimed_at between 0 and 253402300799) as oldest
    from eoq_forward
    where %s::text is null or queue = %s
    group by queue, owner
    order by queue, owner nulls first
    """
# Bounded, since it is asked again and again.
WAITING: Final = """
    select
      (
        select count(*)
        from (
          select
          from eoq_forward
          where queue = %(queue)s and owner is null and taken_at is null
          limit 10000
        ) as unclaimed
      ),
      (
        select count(*)
        from (
          select
          from eoq_forward
          where queue = %(queue)s and owner is not null and taken_at is null
            and (%(owner)s::text is null or owner = %(owner)s)
          limit 10000
        ) as claimed
      )
    """
WAITING_LIKE: Final = WAITING.replace("queue = %(queue)s", "queue ~ %(queue)s")
"""The same for all queues of a pattern."""
HAS_CLAIMED: Final = "select exists (select from eoq_forward where queue = %s and owner = %s and taken_at is null)"
COUNT_CLAIMED: Final = "select count(*) from eoq_forward where queue = %s and owner = %s and taken_at is null"
RELEASE: Final = """
    update eoq_forward
    set owner = null, claimed_at = null, tried_at = null, error = null
    where queue = %s and owner = %s
    """
