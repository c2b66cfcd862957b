"""The inbox's tables in PostgreSQL, and their statements. They mean the same as those of SQLite (``inbox/tables.py``).

    create table eoq_processed (
      queue text collate "C" not null,
      id text collate "C" not null,
      source text,                           -- the identity of the daemon's file, from the delivery
      seq bigint not null,                   -- from the delivery
      digest bytea,                          -- of the content, from the delivery
      processed_at double precision not null,  -- seconds since the epoch, by the clock of the database
      result bytea,                          -- what the handler returned, as bytes
      primary key (queue, id)
    );

Every statement names the schema of its table. So a handler may change its search path.

The table ``eoq_open`` keeps a handler from committing. Each transaction of an inbox inserts its number there twice, and
deletes both rows at its end. Their uniqueness is checked only at a commit. So a commit that comes earlier fails,
whoever makes it, and rolls everything back.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final

GUARD: Final = "a handler must not commit: eoq commits after it"
"""The name of the constraint that refuses it, since the error of the database shows that name."""

FIND_SCHEMA: Final = """
    select nspname::text
    from pg_class
    join pg_namespace on pg_namespace.oid = relnamespace
    where pg_class.oid = to_regclass(%s)
    """
"""It answers: in which schema is the table of this name?"""


def quoted(name: str) -> str:
    """Return a name as an identifier of SQL, in a statement with parameters."""
    return '"' + name.replace('"', '""').replace("%", "%%") + '"'


# What is there is no error: a look for it may have been answered from what the connection had read earlier.
_CREATE: Final = (
    """
    create table if not exists {processed} (
      queue text collate "C" not null,
      id text collate "C" not null,
      source text,
      seq bigint not null,
      digest bytea,
      processed_at double precision not null,
      result bytea,
      primary key (queue, id)
    )
    """,
    """
    create table if not exists {watermark} (
      source text collate "C" not null,
      queue text collate "C" not null,
      watermark bigint not null,
      retention double precision,
      forgotten_to double precision not null,
      seen_at double precision not null,
      swept_to text collate "C" not null default '',
      primary key (source, queue)
    )
    """,
    """
    create table if not exists {opened} (
      transaction bigint not null,
      constraint {guard} unique (transaction) deferrable initially deferred
    )
    """,
)
# One round trip: guard the transaction, read the clock, make its commit durable, and look the messages up.
_OPEN: Final = """
    with guard as (
      insert into {opened} (transaction)
      select txid_current()
      from generate_series(1, 2)
    )
    select moment.now, moment.transaction, moment.durable, found.number, found.result, found.digest
    from (
      select
        extract(epoch from clock_timestamp())::double precision as now,
        txid_current() as transaction,
        case
          when current_setting('synchronous_commit') = 'off'
          then set_config('synchronous_commit', 'local', true)
        end as durable
    ) as moment
    left join (
      select asked.number, processed.result, processed.digest
      from unnest(%s::text[], %s::text[]) with ordinality as asked (queue, id, number)
      join {processed} as processed on processed.queue = asked.queue and processed.id = asked.id
    ) as found on true
    """
_CLOSE: Final = "delete from {opened} where transaction = txid_current()"
_INSERT: Final = """
    insert into {processed} (queue, id, source, seq, digest, result, processed_at)
    select queue, id, source, seq, digest, result, %s
    from unnest(%s::text[], %s::text[], %s::text[], %s::bigint[], %s::bytea[], %s::bytea[])
      as new (queue, id, source, seq, digest, result)
    order by queue collate "C", id collate "C"  -- all transactions in one order, so that none waits in a circle
    """
# In another file of the daemon the same message may have another seq. The higher one is kept longer.
_NOTE_REDELIVERIES: Final = """
    update {processed} as processed
    set seq = greatest(processed.seq, again.seq), source = coalesce(again.source, processed.source),
      digest = coalesce(processed.digest, again.digest), processed_at = greatest(processed.processed_at, %s)
    from unnest(%s::text[], %s::text[], %s::text[], %s::bigint[], %s::bytea[])
      as again (queue, id, source, seq, digest)
    where processed.queue = again.queue and processed.id = again.id
    """
_SEEN: Final = """
    select exists (select from {processed} where queue = %s and id = %s)
    """
_COMMITTED: Final = """
    select coalesce(txid_current_if_assigned(), 0) <> %s
      and exists (select from {processed} where queue = %s and id = %s)
    """
_KNOWN_PAST: Final = """
    select max(least(seen_at, forgotten_to + coalesce(%s::double precision, retention, %s)))
    from {watermark}
    """
_STREAMS: Final = "select source, queue from {watermark}"
# Locked, since what is read decides whether ids may be deleted, or a message be applied.
_STORED: Final = """
    select watermark, retention, forgotten_to, seen_at
    from {watermark}
    where queue = %s and source in (%s, '')
    order by source desc
    limit 1
    for update
    """
_STORE: Final = """
    insert into {watermark} as known (source, queue, watermark, retention, forgotten_to, seen_at)
    values (%s, %s, %s, %s, %s, %s)
    on conflict (source, queue) do update
    set watermark = excluded.watermark, retention = excluded.retention, seen_at = excluded.seen_at,
      forgotten_to = greatest(known.forgotten_to, excluded.forgotten_to)
    """
_RANGE: Final = """
    select
      swept_to,
      (
        select id
        from {processed} as processed
        where processed.queue = swept.queue and id > swept_to
        order by id
        limit 1 offset %s
      )
    from {watermark} as swept
    where source = %s and queue = %s
    """
_DELETE: Final = """
    delete from {processed}
    where queue = %s and id > %s and (%s::text is null or id <= %s) and seq < %s and processed_at < %s
      and (source is null or source = %s)
    """
_SET_SWEPT_TO: Final = "update {watermark} set swept_to = %s where source = %s and queue = %s"


class Schema:
    """The statements for the tables in the schema ``name``."""

    def __init__(self, name: str) -> None:
        self._names = {
            "processed": f"{quoted(name)}.eoq_processed",
            "watermark": f"{quoted(name)}.eoq_watermark",
            "opened": f"{quoted(name)}.eoq_open",
            "guard": quoted(GUARD),
        }
        self.create = tuple(self._named(statement) for statement in _CREATE)
        self.open = self._named(_OPEN)
        self.close = self._named(_CLOSE)
        self.insert = self._named(_INSERT)
        self.note_redeliveries = self._named(_NOTE_REDELIVERIES)
        self.seen = self._named(_SEEN)
        self.committed = self._named(_COMMITTED)
        self.known_past = self._named(_KNOWN_PAST)
        self.streams = self._named(_STREAMS)
        self.stored = self._named(_STORED)
        self.store = self._named(_STORE)
        self.range = self._named(_RANGE)
        self.delete = self._named(_DELETE)
        self.set_swept_to = self._named(_SET_SWEPT_TO)

    def _named(self, statement: str) -> str:
        return statement.format_map(self._names)


schema = lru_cache(maxsize=64)(Schema)
"""Return the statements for a schema, made once."""
