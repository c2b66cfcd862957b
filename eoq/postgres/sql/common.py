"""What the statements of all tables share: clock, locks, how a table is made, and the trigger that wakes readers.

The trigger notifies only while a reader waits (``waking.py``), since a notification takes a lock of the whole database
at the commit. Two advisory locks of the table tell who is at work, and both are shared:

- ``WRITING``: held by each transaction that has inserted, until its end.
- ``WAITING``: held by each reader that waits.
"""

from __future__ import annotations

from typing import Final

LOCK_CLASS: Final = 0x656F71
"""The first of the two numbers of all advisory locks of eoq: its name in ASCII."""
WRITING: Final = LOCK_CLASS
WAITING: Final = LOCK_CLASS + 1
LOCK_TABLES: Final = f"select pg_advisory_xact_lock({LOCK_CLASS}, 0)"
"""Held while tables are made: `create table if not exists` fails if two do it at once."""
NOW: Final = "extract(epoch from clock_timestamp())::double precision"
SIZE: Final = "(octet_length(body) + coalesce(octet_length(headers), 0))"
"""The bytes of a row, without reading a long body."""


def make(table: str, *statements: str) -> str:
    """Return one statement that runs ``statements`` if there is no such table in the search path."""
    body = ";\n".join(statements)
    return f"""
    do $make$
    begin
      if to_regclass('{table}') is null then
        perform pg_advisory_xact_lock({LOCK_CLASS}, 0);
        if to_regclass('{table}') is null then  -- nobody has made it meanwhile
          {body};
        end if;
      end if;
    end
    $make$
    """


def waking(table: str, events: str) -> tuple[str, str]:
    """Return the statements for the trigger that notifies after ``events`` in a table while a reader waits.

    To look whether any reader holds its shared lock, a writer tries to take it exclusively, and gives it back at once.
    The error does that, as it undoes its block, and so does a cancelled statement. Two writers that look in the same
    moment see each other: then one notifies for nothing.
    """
    return (
        f"""
    create or replace function {table}_wake() returns trigger language plpgsql as $$
    declare
      waited boolean := true;
    begin
      if pg_try_advisory_xact_lock_shared({WRITING}, tg_relid::integer) then
        begin
          waited := not pg_try_advisory_xact_lock({WAITING}, tg_relid::integer);
          raise exception using errcode = 'EOQ00';
        exception when sqlstate 'EOQ00' then
          null;
        end;
      end if;
      if waited then
        perform pg_notify('{table}', '');
      end if;
      return null;
    end
    $$
    """,
        f"""
    create or replace trigger {table}_wake after {events} on {table}
    for each statement execute function {table}_wake()
    """,
    )
