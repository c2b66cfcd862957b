"""The outbox: messages written in the application's own transaction, and sent if and only if it commits (G6).

`Outbox` writes rows. A relay (``relay.py``, `eoq relay APP.db`) sends each to the daemon under its own id, and removes
it when the daemon has confirmed it. The table is plain SQL, so that any language, or a trigger, can write to it:

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
      error text,                                            -- why it is set aside; written by the relay
      failed_at real                                         -- and when
    );
    create index eoq_outbox_set_aside on eoq_outbox (queue, "group", seq) where error is not null;

The application must not change a row that waits. It may correct a row that is set aside, and set its `error` to null:
then the relay sends it again.

(This is the transactional outbox pattern. Elsewhere it needs polling or the database's log. Here the writes to the file
wake the relay.)
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Mapping
from functools import partial
from sys import modules
from typing import TYPE_CHECKING, Final, Unpack

from ..errors import InvalidRequest
from ..ids import new_id
from ..message import Outgoing, SendOptions, complete_headers, encode_payload
from ..protocol.limits import MAX_BODY, MAX_HEADERS
from ..protocol.validation import body_too_large, check_options, check_queue, headers_too_large
from ..spans import API, with_context
from ..system.aio_sqlite import run
from ..system.forks import watch_forks

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
# It answers: which groups wait for a row that is set aside? It has no entries for other rows.
INDEX: Final = """
    create index if not exists eoq_outbox_set_aside on eoq_outbox (queue, "group", seq) where error is not null
"""
_INSERT: Final = """
    insert into eoq_outbox (id, queue, body, headers, priority, "group", at, ttl, created_at)
    values (?, ?, ?, ?, ?, ?, ?, ?, ?)
"""


class Outbox:
    """The outbox of an application, on the application's own open connection. It creates the table if needed.

    With SQLAlchemy, inside a session: ``Outbox(session.connection().connection.driver_connection)``.
    """

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._forked = False
        _create_table(connection)
        watch_forks(self)

    def forked(self) -> None:
        """Refuse to send from now on. Called in a forked child, which must not use the connection."""
        self._forked = True

    def send(self, queue: str, body: object, **options: Unpack[SendOptions]) -> str:
        """Write a message to the outbox, in the transaction of the connection. Return the message's id.

        The message is sent if that transaction commits, and never if it does not. The arguments are those of
        `Client.send`. ``delay`` and ``ttl`` count from now, not from when the message is relayed.

        Raises `InvalidRequest` or `MessageTooLarge` for what the daemon would refuse. Raises `InvalidRequest` also if
        the connection is in autocommit mode and no transaction is open, since the message would then not be tied to
        other writes. After an error, nothing was written.
        """
        _refuse_forked(self._forked)
        return _write(self._connection, _row(Outgoing(body, queue=queue, **options)))


class AsyncOutbox:
    """The outbox of an application over aiosqlite. It creates the table in `open`, or at the first send."""

    def __init__(self, connection: aiosqlite.Connection) -> None:
        self._connection = connection
        self._forked = False
        watch_forks(self)

    def forked(self) -> None:
        """Refuse to send from now on. Called in a forked child, which must not use the connection."""
        self._forked = True

    @classmethod
    async def open(cls, connection: aiosqlite.Connection) -> AsyncOutbox:
        """Return the outbox on an open connection. Creates the table if it does not exist."""
        await run(connection, _create_table)
        return cls(connection)

    async def send(self, queue: str, body: object, **options: Unpack[SendOptions]) -> str:
        """Write a message to the outbox, as `Outbox.send` does. Return the message's id."""
        _refuse_forked(self._forked)
        row = _row(Outgoing(body, queue=queue, **options))
        # On aiosqlite's thread: since Python 3.12 only that thread may read how the connection commits.
        return await run(self._connection, partial(_write, row=row))


def _create_table(connection: sqlite3.Connection) -> None:
    # Not with `executescript`, which would commit the application's transaction.
    connection.execute(_TABLE)
    connection.execute(INDEX)


def _write(connection: sqlite3.Connection, row: tuple[object, ...]) -> str:
    _refuse_autocommit(connection)
    try:
        connection.execute(_INSERT, row)
    except sqlite3.OperationalError as error:
        if "no such table: eoq_outbox" not in str(error):
            raise
        # The transaction that created it was rolled back.
        _create_table(connection)
        connection.execute(_INSERT, row)
    return str(row[0])


def checked(message: Outgoing) -> tuple[str, bytes, str | None]:
    """Return the id, the body and the headers of a message as they are stored in an outbox.

    Raises the errors with which the daemon would refuse the message later.
    """
    check_queue(message.queue or "")
    check_options(message)
    body, is_json = encode_payload(message.body)
    if len(body) > MAX_BODY:
        raise body_too_large(len(body))
    headers = complete_headers(message, is_json)
    if API in modules:
        headers = with_context(headers)
    return new_id() if message.id is None else message.id, body, _headers_text(headers) if headers else None


def _row(message: Outgoing) -> tuple[object, ...]:
    """Return the parameters of `_INSERT`."""
    id, body, headers = checked(message)
    now = time.time()
    at = message.at if message.delay is None else now + message.delay
    return id, message.queue, body, headers, message.priority, message.group, at, message.ttl, now


def _headers_text(headers: Mapping[str, str]) -> str:
    text = json.dumps(headers, ensure_ascii=False, separators=(",", ":"))
    if len(text) > MAX_HEADERS:
        raise headers_too_large(len(text))
    return text


def _refuse_forked(forked: bool) -> None:
    if forked:
        raise InvalidRequest(
            "this outbox uses a connection that was opened before this process was forked, and SQLite cannot use it "
            "in two processes: open a connection and make an outbox in the child"
        )


def _refuse_autocommit(connection: sqlite3.Connection) -> None:
    # Since Python 3.12 a connection has this attribute: true, false, or a number for the older way by isolation level.
    autocommit = getattr(connection, "autocommit", None)
    commits_each = autocommit is True or (autocommit is not False and connection.isolation_level is None)
    if commits_each and not connection.in_transaction:
        raise InvalidRequest(
            "no transaction is open, and this connection commits each statement by itself, so the message would be "
            "sent even if your other writes are undone: begin a transaction first (`begin immediate`), or use "
            "`Client.send`"
        )
