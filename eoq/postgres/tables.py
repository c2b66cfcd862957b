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

LOCK_CLASS: Final = 0x656F71
"""The first of the two numbers of all advisory locks of eoq: its name in ASCII."""
LOCK_TABLES: Final = f"select pg_advisory_xact_lock({LOCK_CLASS}, 0)"
"""Held while tables are made: `create table if not exists` fails if two do it at once."""

GUARD: Final = "a handler must not commit: eoq commits after it"
"""The name of the constraint that refuses it, since the error of the database shows that name."""

_FIND_SCHEMA: Final = """
    select nspname::text
    from pg_class
    join pg_namespace on pg_namespace.oid = relnamespace
    where pg_class.oid = to_regclass(%s)
    """
"""It answers: in which schema is the table of this name?"""


def quoted(name: str) -> str:
    """Return a name as an identifier of SQL, in a statement with parameters."""
    return '"' + name.replace('"', '""').replace("%", "%%") + '"'


class Schema:
    """The statements for the tables in one schema."""

    FIND: Final = _FIND_SCHEMA

    def __init__(self, name: str) -> None:
        processed, watermark, opened = (
            f"{quoted(name)}.{table}" for table in ("eoq_processed", "eoq_watermark", "eoq_open")
        )
        self.name = name
        # What is there is no error: a look for it may have been answered from what the connection had read earlier.
        self.create = (
            f"""
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
            f"""
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
            f"""
            create table if not exists {opened} (
              transaction bigint not null,
              constraint {quoted(GUARD)} unique (transaction) deferrable initially deferred
            )
            """,
        )
        # One round trip: guard the transaction, read the clock, make its commit durable, and look the messages up.
        self.open = f"""
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
            """  # noqa: S608 # quoted
        self.close = f"delete from {opened} where transaction = txid_current()"  # noqa: S608 # quoted
        self.insert = f"""
            insert into {processed} (queue, id, source, seq, digest, result, processed_at)
            select queue, id, source, seq, digest, result, %s
            from unnest(%s::text[], %s::text[], %s::text[], %s::bigint[], %s::bytea[], %s::bytea[])
              as new (queue, id, source, seq, digest, result)
            order by queue collate "C", id collate "C"  -- all transactions in one order, so that none waits in a circle
            """  # noqa: S608 # quoted
        # In another file of the daemon the same message may have another seq. The higher one is kept longer.
        self.note_redeliveries = f"""
            update {processed} as processed
            set seq = greatest(processed.seq, again.seq), source = coalesce(again.source, processed.source),
              digest = coalesce(processed.digest, again.digest), processed_at = greatest(processed.processed_at, %s)
            from unnest(%s::text[], %s::text[], %s::text[], %s::bigint[], %s::bytea[])
              as again (queue, id, source, seq, digest)
            where processed.queue = again.queue and processed.id = again.id
            """  # noqa: S608 # quoted
        self.seen = f"""
            select exists (select from {processed} where queue = %s and id = %s)
            """  # noqa: S608 # quoted
        self.committed = f"""
            select coalesce(txid_current_if_assigned(), 0) <> %s
              and exists (select from {processed} where queue = %s and id = %s)
            """  # noqa: S608 # quoted
        self.known_past = f"""
            select max(least(seen_at, forgotten_to + coalesce(%s::double precision, retention, %s)))
            from {watermark}
            """  # noqa: S608 # quoted
        self.streams = f"select source, queue from {watermark}"  # noqa: S608 # quoted
        # Locked, since what is read decides whether ids may be deleted, or a message be applied.
        self.stored = f"""
            select watermark, retention, forgotten_to, seen_at
            from {watermark}
            where queue = %s and source in (%s, '')
            order by source desc
            limit 1
            for update
            """  # noqa: S608 # quoted
        self.store = f"""
            insert into {watermark} as known (source, queue, watermark, retention, forgotten_to, seen_at)
            values (%s, %s, %s, %s, %s, %s)
            on conflict (source, queue) do update
            set watermark = excluded.watermark, retention = excluded.retention, seen_at = excluded.seen_at,
              forgotten_to = greatest(known.forgotten_to, excluded.forgotten_to)
            """  # noqa: S608 # quoted
        self.range = f"""
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
            """  # noqa: S608 # quoted
        self.delete = f"""
            delete from {processed}
            where queue = %s and id > %s and (%s::text is null or id <= %s) and seq < %s and processed_at < %s
              and (source is null or source = %s)
            """  # noqa: S608 # quoted
        self.set_swept_to = f"update {watermark} set swept_to = %s where source = %s and queue = %s"  # noqa: S608 # quoted


schema = lru_cache(maxsize=64)(Schema)
"""Return the statements for a schema, made once."""
