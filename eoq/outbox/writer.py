"""The outbox: messages written in the application's own transaction, sent if and only if it commits (G6).

`Outbox` writes rows; a relay (``relay.py``, `eoq relay APP.db`) sends them to the daemon, each under its own id, and
removes them once they are confirmed. The table is plain SQL, so that any language, or a trigger, can write to it:

    create table eoq_outbox (
      seq integer primary key autoincrement,                 -- the order of sending
      id text not null default (lower(hex(randomblob(16)))), -- the idempotency key
      queue text not null,
      body blob not null,                                    -- text is sent as UTF-8
      headers text,                                          -- a JSON object of texts
      priority integer not null default 0,
      "group" text,
      at real,                                               -- not before, in seconds since the epoch
      ttl real,                                              -- seconds from created_at; then it is not delivered
      created_at real not null default ((julianday('now') - 2440587.5) * 86400.0),
      error text,                                            -- why it is set aside: written by the relay
      failed_at real                                         -- and when
    );
    create index eoq_outbox_set_aside on eoq_outbox (queue, "group", seq) where error is not null;

A row is not changed while it waits. One that is set aside may be mended: its `error` set to null sends it again.

(Known as the transactional outbox pattern. Elsewhere it needs polling or the database's log; here the relay is woken
by the writes to the file.)
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from ..errors import InvalidRequest, MessageTooLarge
from ..ids import new_id
from ..message import JSON_TYPE, Outgoing, encode_payload
from ..protocol.limits import MAX_BODY, MAX_HEADERS
from ..protocol.validation import check_options, check_queue

if TYPE_CHECKING:
    import aiosqlite

_TABLE: Final = """
    create table if not exists eoq_outbox (
      seq integer primary key autoincrement,
      id text not null default (lower(hex(randomblob(16)))),
      queue text not null,
      body blob not null,
      headers text,
      priority integer not null default 0,
      "group" text,
      at real,
      ttl real,
      created_at real not null default ((julianday('now') - 2440587.5) * 86400.0),
      error text,
      failed_at real
    )
"""
# It answers: which groups wait for a row that is set aside? It costs the other rows nothing.
INDEX: Final = """
    create index if not exists eoq_outbox_set_aside on eoq_outbox (queue, "group", seq) where error is not null
"""
_INSERT: Final = """
    insert into eoq_outbox (id, queue, body, headers, priority, "group", at, ttl, created_at)
    values (?, ?, ?, ?, ?, ?, ?, ?, ?)
"""


class Outbox:
    """The outbox of an application, on its own open connection. Makes the table if it is not there.

    With SQLAlchemy, inside a session: ``Outbox(session.connection().connection.driver_connection)``.
    """

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._make_table()

    def send(
        self,
        queue: str,
        body: object,
        *,
        id: str | None = None,
        headers: Mapping[str, str] | None = None,
        priority: int = 0,
        group: str | None = None,
        delay: float | None = None,
        at: float | None = None,
        ttl: float | None = None,
    ) -> str:
        """Writes a message to the outbox, in the transaction the connection is in; returns its id.

        It is sent if that transaction commits, and never if it does not. The arguments are those of `Client.send`;
        ``delay`` and ``ttl`` count from now, not from when it is relayed. Raises `InvalidRequest` or
        `MessageTooLarge` for what the daemon would refuse, and `InvalidRequest` where the connection is in autocommit
        mode and no transaction is open, since then the message would not be tied to anything. Then nothing was written.
        """
        row = _row(Outgoing(body, id, queue, headers, priority, group, delay, at, ttl))
        _refuse_autocommit(self._connection, getattr(self._connection, "autocommit", None))
        try:
            self._connection.execute(_INSERT, row)
        except sqlite3.OperationalError as error:
            if not _table_is_missing(error):
                raise
            # The transaction that made it was rolled back.
            self._make_table()
            self._connection.execute(_INSERT, row)
        return str(row[0])

    def _make_table(self) -> None:
        # Not with `executescript`, which would commit the application's transaction.
        self._connection.execute(_TABLE)
        self._connection.execute(INDEX)


class AsyncOutbox:
    """The outbox of an application over aiosqlite, for asyncio. Makes the table at the first send, or in `open`."""

    def __init__(self, connection: aiosqlite.Connection) -> None:
        self._connection = connection

    @classmethod
    async def open(cls, connection: aiosqlite.Connection) -> AsyncOutbox:
        """The outbox on an open connection; makes the table if it is not there."""
        outbox = cls(connection)
        await outbox._make_table()
        return outbox

    async def send(
        self,
        queue: str,
        body: object,
        *,
        id: str | None = None,
        headers: Mapping[str, str] | None = None,
        priority: int = 0,
        group: str | None = None,
        delay: float | None = None,
        at: float | None = None,
        ttl: float | None = None,
    ) -> str:
        """See `Outbox.send`."""
        row = _row(Outgoing(body, id, queue, headers, priority, group, delay, at, ttl))
        # aiosqlite does not show this attribute of the connection it wraps.
        _refuse_autocommit(self._connection, getattr(self._connection._conn, "autocommit", None))
        try:
            await self._connection.execute(_INSERT, row)
        except sqlite3.OperationalError as error:
            if not _table_is_missing(error):
                raise
            await self._make_table()
            await self._connection.execute(_INSERT, row)
        return str(row[0])

    async def _make_table(self) -> None:
        await self._connection.execute(_TABLE)
        await self._connection.execute(INDEX)


def _row(message: Outgoing) -> tuple[object, ...]:
    """The columns of `_INSERT`; refuses what the daemon would refuse, while the application can still do something."""
    check_queue(message.queue or "")
    check_options(message)
    body, is_json = encode_payload(message.body)
    if len(body) > MAX_BODY:
        raise MessageTooLarge(
            f"the body has {len(body):,} bytes and {MAX_BODY:,} is the limit; store it elsewhere and send its name"
        )
    headers = {**({"content-type": JSON_TYPE} if is_json else {}), **(message.headers or {})}
    now = time.time()
    at = message.at if message.delay is None else now + message.delay
    return (
        new_id() if message.id is None else message.id,
        message.queue,
        body,
        _headers_text(headers) if headers else None,
        message.priority,
        message.group,
        at,
        message.ttl,
        now,
    )


def _headers_text(headers: Mapping[str, str]) -> str:
    text = json.dumps(headers, ensure_ascii=False, separators=(",", ":"))
    if len(text) > MAX_HEADERS:
        raise MessageTooLarge(f"the headers have {len(text):,} characters and {MAX_HEADERS:,} is the limit")
    return text


def _refuse_autocommit(connection: sqlite3.Connection | aiosqlite.Connection, autocommit: object) -> None:
    """``autocommit`` is the attribute that connections have since Python 3.12: true, false, or the legacy control."""
    commits_itself = autocommit is True or (autocommit is not False and connection.isolation_level is None)
    if commits_itself and not connection.in_transaction:
        raise InvalidRequest(
            "no transaction is open, and this connection commits each statement by itself, so the message would be "
            "sent whatever becomes of your other writes: begin one first (`begin immediate`), or use `Client.send`"
        )


def _table_is_missing(error: sqlite3.Error) -> bool:
    return "no such table: eoq_outbox" in str(error)
