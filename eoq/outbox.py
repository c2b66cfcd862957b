"""The outbox: messages written in the application's own transaction, sent if and only if it commits (G6).

`Outbox` writes rows; a relay (``relay.py``, `eoq relay APP.db`) sends them to the daemon, each under its own id, and
removes them once they are confirmed. The table is plain SQL, so that any language, or a trigger, can write to it:

    create table eoq_outbox (
      seq integer primary key autoincrement,               -- the order of sending
      id text not null default (lower(hex(randomblob(16)))), -- the idempotency key
      queue text not null,
      body blob not null,                                  -- text is sent as UTF-8
      headers text,                                        -- a JSON object of texts
      priority integer not null default 0,
      "group" text,
      at real,                                             -- not before, in seconds since the epoch
      error text                                           -- why it can never be sent: set by the relay
    )

(Known as the transactional outbox pattern. Elsewhere it needs polling or the database's log; here the relay is woken
by the writes to the file.)
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from .calls import check_options, check_queue
from .errors import InvalidRequest, MessageTooLarge
from .ids import new_id
from .message import JSON_TYPE, Outgoing, encode_payload
from .protocol import MAX_BODY, MAX_HEADERS

if TYPE_CHECKING:
    import aiosqlite

_SCHEMA: Final = (
    """
    create table if not exists eoq_outbox (
      seq integer primary key autoincrement,
      id text not null default (lower(hex(randomblob(16)))),
      queue text not null,
      body blob not null,
      headers text,
      priority integer not null default 0,
      "group" text,
      at real,
      error text
    )
    """,
    # which groups wait for a row that cannot be sent?
    """
    create index if not exists eoq_outbox_set_aside on eoq_outbox (queue, "group", seq) where error is not null
    """,
)
_EXISTS: Final = "select count(*) from sqlite_schema where name in ('eoq_outbox', 'eoq_outbox_set_aside')"
_INSERT: Final = """
    insert into eoq_outbox (id, queue, body, headers, priority, "group", at)
    values (?, ?, ?, ?, ?, ?, ?)
    """


class Outbox:
    """The outbox of an application, on its own open connection. Makes the table if it is not there."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        if int(_first(connection.execute(_EXISTS).fetchone())) < len(_SCHEMA):
            for statement in _SCHEMA:
                connection.execute(statement)

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
    ) -> str:
        """Writes a message to the outbox, in the transaction the connection is in; returns its id.

        It is sent if that transaction commits, and never if it does not. The arguments are those of `Client.send`;
        ``delay`` counts from now. On a connection in autocommit mode, with no transaction open, the message commits
        by itself. Raises `InvalidRequest` or `MessageTooLarge`; then nothing was written.
        """
        row = _row(Outgoing(body, id, queue, headers, priority, group, delay, at))
        self._connection.execute(_INSERT, row)
        return str(row[0])


class AsyncOutbox:
    """The outbox of an application over aiosqlite. Make it with ``await AsyncOutbox.open(connection)``."""

    def __init__(self, connection: aiosqlite.Connection) -> None:
        self._connection = connection

    @classmethod
    async def open(cls, connection: aiosqlite.Connection) -> AsyncOutbox:
        """The outbox on an open connection; makes the table if it is not there."""
        async with connection.execute(_EXISTS) as cursor:
            found = await cursor.fetchone()
        if int(_first(found)) < len(_SCHEMA):
            for statement in _SCHEMA:
                await connection.execute(statement)
        return cls(connection)

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
    ) -> str:
        """See `Outbox.send`."""
        row = _row(Outgoing(body, id, queue, headers, priority, group, delay, at))
        await self._connection.execute(_INSERT, row)
        return str(row[0])


def _first(row: Any) -> Any:
    """The only column, whatever row factory the application has set."""
    return next(iter(row.values())) if isinstance(row, dict) else row[0]


def _row(message: Outgoing) -> tuple[object, ...]:
    check_queue(message.queue or "")
    check_options(message)
    body, is_json = encode_payload(message.body)
    if len(body) > MAX_BODY:
        raise MessageTooLarge(
            f"the body has {len(body):,} bytes and {MAX_BODY:,} is the limit; store it elsewhere and send its name"
        )
    headers = {**({"content-type": JSON_TYPE} if is_json else {}), **(message.headers or {})}
    text = json.dumps(headers, ensure_ascii=False) if headers else None
    if text is not None and len(text) > MAX_HEADERS:
        raise MessageTooLarge(f"the headers have {len(text):,} characters and {MAX_HEADERS:,} is the limit")
    at = message.at if message.delay is None else time.time() + message.delay
    return message.id or new_id(), message.queue, body, text, message.priority, message.group, at


# ── for the relay ───────────────────────────────────────────────────────────────────────────────────────────


class Row(NamedTuple):
    """A message in an outbox: what is to be sent, or why it never can be."""

    seq: int
    key: bytes
    """Its id as it stands in the file: a seq may mean another row in a file that was restored meanwhile."""
    message: Outgoing | InvalidRequest | MessageTooLarge


def read(connection: sqlite3.Connection, limit: int, most_bytes: int, full: Iterable[str] = ()) -> list[Row]:
    """The next messages to send, in order: at most ``limit``, and ``most_bytes`` of bodies unless the first has more.

    Not those that were set aside, nor those of the same group behind them (G8), nor those of ``full`` queues.
    """
    # A commit becomes visible only when its sync is done, after the writes that woke us, and without another event. Who
    # writes has the write lock until then: waiting for it is waiting for the commit.
    with _Transaction(connection):
        return _next_rows(connection, limit, most_bytes, full)


def _next_rows(connection: sqlite3.Connection, limit: int, most_bytes: int, full: Iterable[str]) -> list[Row]:
    rows: list[Row] = []
    size = 0
    cursor = connection.execute(
        """
        select
          seq, cast(id as blob), id, queue, substr(body, 1, :most + 1),
          substr(headers, 1, :most + 1), priority, "group", at
        from eoq_outbox as next
        where error is null
          and queue not in (select value from json_each(:full))
          and not exists (
            select 1
            from eoq_outbox as aside
            where aside.error is not null
              and aside.queue = next.queue
              and aside."group" = next."group"
              and aside.seq < next.seq
          )
        order by seq
        limit :limit
        """,
        {"most": MAX_BODY, "limit": limit, "full": json.dumps(list(full))},
    )
    for seq, key, id, queue, body, *options in cursor:
        size += len(body) if isinstance(body, str | bytes) else 0
        if rows and size > most_bytes:
            break
        rows.append(Row(seq, key, _read_message(id, queue, body, *options)))
    cursor.close()
    return rows


def _read_message(
    id: Any, queue: Any, body: Any, headers: Any, priority: Any, group: Any, at: Any
) -> Outgoing | InvalidRequest | MessageTooLarge:
    """A row as a message, whoever wrote it; or what is wrong with it."""
    try:
        check_queue(queue)
        if not isinstance(body, str | bytes):
            raise InvalidRequest(f"the body is {type(body).__name__}, not text or a blob")
        if len(encode_payload(body)[0]) > MAX_BODY:
            raise MessageTooLarge(f"the body has more than {MAX_BODY:,} bytes; store it elsewhere and send its name")
        message = Outgoing(body, id, queue, _read_headers(headers), priority, group, None, at)
        check_options(message)
    except (InvalidRequest, MessageTooLarge) as error:
        return error
    return message


def _read_headers(text: object) -> dict[str, str] | None:
    if text is None:
        return None
    try:
        headers = json.loads(text) if isinstance(text, str | bytes) else None
    except (ValueError, RecursionError):
        headers = None
    if not isinstance(headers, dict):
        raise InvalidRequest('the headers are no JSON object of texts: {"name": "value"}')
    return headers


def remove(connection: sqlite3.Connection, rows: Sequence[Row]) -> None:
    """Removes messages that are confirmed. Without effect for those that are gone."""
    with _Transaction(connection):
        connection.executemany(
            """
            delete from eoq_outbox
            where seq = ? and cast(id as blob) is ?
            """,
            [(row.seq, row.key) for row in rows],
        )


def set_aside(connection: sqlite3.Connection, row: Row, error: str) -> None:
    """Marks a message that can never be sent, so that it holds up only its group."""
    with _Transaction(connection):
        connection.execute(
            """
            update eoq_outbox
            set error = ?
            where seq = ? and cast(id as blob) is ?
            """,
            (error, row.seq, row.key),
        )


class _Transaction:
    """A short transaction of the relay's, on a connection in autocommit mode."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def __enter__(self) -> None:
        self._connection.execute("begin immediate")

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._connection.execute("commit" if kind is None else "rollback")
