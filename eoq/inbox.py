"""The inbox: a message's processed id, its result and its handler's writes in one transaction of the
application's own SQLite file (G5).

The idempotent consumer: on arrival ask whether this id was processed. If so, give the stored result and run
nothing; if not, run the handler, and commit its writes together with the id and the result. The table is plain
SQL, so that a consumer in any language can keep it:

    create table eoq_processed (
      queue text not null,
      id text not null,
      seq integer not null,        -- the message's place in the daemon's file
      result blob,                 -- what the handler returned, as bytes
      processed_at real not null,  -- seconds since the epoch
      primary key (queue, id)
    ) without rowid
"""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final, TypeAlias

from .errors import EoqError, InvalidRequest, LeaseLost, MessageTooLarge
from .message import Message, encode_payload
from .protocol import MAX_BODY
from .verdicts import Retry, error_text, give_back

Handler: TypeAlias = Callable[[sqlite3.Connection, Message], object]
"""Gets the connection, inside the open transaction, and the message; returns the result (or None)."""

BUSY_SECONDS: Final = 30.0
"""How long a transaction waits for another writer of the application's file."""
KEEP_SECONDS: Final = 86400.0
"""How long a processed id is kept at least, even when its message can no longer come."""

_SCHEMA: Final = """
    create table if not exists eoq_processed (
      queue text not null,
      id text not null,
      seq integer not null,
      result blob,
      processed_at real not null,
      primary key (queue, id)
    ) without rowid
"""
# Our own words for what a handler may not do: a statement of the same text, prepared while it was allowed, would
# come from the connection's cache and pass the guard.
_BEGIN: Final = "begin immediate /* eoq inbox */"
_COMMIT: Final = "commit /* eoq inbox */"
_ROLLBACK: Final = "rollback /* eoq inbox */"


class Inbox:
    """Processed messages of one SQLite file.

    ``database`` is the path of the application's file, which is then opened and closed here, or an open
    connection, which stays the application's. ``keep`` is in seconds. An inbox of a path may be shared by
    threads; its transactions run one after the other, as SQLite would have it anyway.

    A handler gets the connection inside a transaction. It may use savepoints; it cannot commit or roll back:
    trying raises `sqlite3.DatabaseError` ("not authorized"), and the message is given back like after any other
    exception. On a connection of the application's this takes the connection's authorizer while a handler runs.
    """

    def __init__(self, database: str | os.PathLike[str] | sqlite3.Connection, *, keep: float = KEEP_SECONDS) -> None:
        self.keep = keep
        self._owned = not isinstance(database, sqlite3.Connection)
        if isinstance(database, sqlite3.Connection):
            self._database = database
            self._refuse_open_transaction()
        else:
            self._database = sqlite3.connect(
                database, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False
            )
            self._database.execute("pragma synchronous = full")
        self._lock = threading.RLock()
        self._in_handler = False
        if self._owned:
            self._database.set_authorizer(self._authorize)
        with self._transaction():
            self._database.execute(_SCHEMA)

    def __enter__(self) -> Inbox:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the file, if it was opened here."""
        if self._owned:
            self._database.close()

    # ── processing ──────────────────────────────────────────────────────────────────────────────────────

    def process(self, message: Message, handler: Handler) -> bytes | None:
        """Applies a message once, and acks it. Returns the handler's result as bytes, now or from the first time.

        If the handler raises, its writes are rolled back, the message is given back with the error's text (or as
        `Reject` and `Retry` say), and the exception goes on to the caller. Raises `LeaseLost` if the lease ended
        before the ack: the effect is in place, the message comes again, and is then only acked.
        """
        try:
            with self._transaction():
                result = self._apply(message, handler)
        except Exception as error:
            self._give_back(message, error)
            raise
        message.ack(result=result)
        return result

    def process_many(self, messages: Iterable[Message], handler: Handler) -> list[bytes | Exception | None]:
        """Applies many messages in one transaction, each in a savepoint of its own, and acks them together.

        A message whose handler raises undoes only itself and is given back; in its place stands the exception.
        For the others stands what `process` would return. Raises `LeaseLost` if some leases ended before the
        acks; the others are acked nevertheless.
        """
        batch = list(messages)
        outcomes: list[bytes | Exception | None] = []
        try:
            with self._transaction():
                for message in batch:
                    outcomes.append(self._apply_alone(message, handler))
        except Exception as error:
            for index, message in enumerate(batch):
                # What a handler says (`Reject`, say) it says of its own message alone.
                self._give_back(message, error if index == len(outcomes) else Retry(reason=error_text(error)))
            raise
        for message, outcome in zip(batch, outcomes, strict=True):
            if isinstance(outcome, Exception):
                self._give_back(message, outcome)
        _ack_all(
            [(m, outcome) for m, outcome in zip(batch, outcomes, strict=True) if not isinstance(outcome, Exception)]
        )
        return outcomes

    def _apply(self, message: Message, handler: Handler) -> bytes | None:
        found = self._find(message.queue, message.id)
        if found is not None:
            return None if found[0] is None else bytes(found[0])
        with self._guarded():
            returned = handler(self._database, message)
        if not self._database.in_transaction:
            raise InvalidRequest(
                f"the handler of {message.id!r} ended the transaction; leave commit and rollback to the inbox"
            )
        result = None if returned is None else encode_payload(returned)[0]
        if result is not None and len(result) > MAX_BODY:
            raise MessageTooLarge(
                f"the handler's result has {len(result):,} bytes and {MAX_BODY:,} is the limit; store it elsewhere"
            )
        self._database.execute(
            """
            insert into eoq_processed (queue, id, seq, result, processed_at)
            values (?, ?, ?, ?, ?)
            """,
            (message.queue, message.id, message.seq, result, time.time()),
        )
        return result

    def _apply_alone(self, message: Message, handler: Handler) -> bytes | Exception | None:
        self._database.execute("savepoint eoq_message")
        try:
            result = self._apply(message, handler)
        except Exception as error:  # whatever the handler raised is this message's outcome
            if not self._database.in_transaction:
                raise
            self._database.execute("rollback to eoq_message")
            self._database.execute("release eoq_message")
            return error
        self._database.execute("release eoq_message")
        return result

    def _give_back(self, message: Message, error: Exception) -> None:
        try:
            give_back(message, error)
        except EoqError as failure:
            # The lease ends by itself; what the handler raised is the news.
            error.add_note(f"eoq: the message {message.id!r} could not be given back: {failure}")

    # ── looking ─────────────────────────────────────────────────────────────────────────────────────────

    def seen(self, queue: str, id: str) -> bool:
        """Whether this message was processed."""
        with self._lock:
            return self._find(queue, id) is not None

    def _find(self, queue: str, id: str) -> tuple[Any, ...] | None:
        cursor = self._database.cursor()
        cursor.row_factory = None  # the application may have set one on its connection
        cursor.execute(
            """
            select result
            from eoq_processed
            where queue = ? and id = ?
            """,
            (queue, id),
        )
        found: tuple[Any, ...] | None = cursor.fetchone()
        return found

    # ── the transaction and its guard ───────────────────────────────────────────────────────────────────

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._lock:
            self._refuse_open_transaction()
            self._database.execute(_BEGIN)
            try:
                yield
                self._database.execute(_COMMIT)
            except BaseException:
                if self._database.in_transaction:
                    self._database.execute(_ROLLBACK)
                raise

    def _refuse_open_transaction(self) -> None:
        if self._database.in_transaction:
            raise InvalidRequest(
                "the connection has a transaction open, so the inbox cannot begin its own: commit or roll back first "
                "(a connection made with autocommit=False always has one; use the default, or isolation_level=None)"
            )

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        self._in_handler = True
        if not self._owned:
            self._database.set_authorizer(self._authorize)
        try:
            yield
        finally:
            self._in_handler = False
            if not self._owned:
                self._database.set_authorizer(None)

    def _authorize(self, action: int, *_details: object) -> int:
        """Keeps a handler from ending the transaction it runs in."""
        if self._in_handler and action in (
            sqlite3.SQLITE_TRANSACTION,
            sqlite3.SQLITE_ATTACH,
            sqlite3.SQLITE_DETACH,
        ):
            return sqlite3.SQLITE_DENY
        return sqlite3.SQLITE_OK


def _ack_all(acks: Sequence[tuple[Message, bytes | None]]) -> None:
    """Acks together where the client can; one by one where a lease was lost, so that it stops no other."""
    lost: LeaseLost | None = None
    by_settler: dict[int, list[tuple[Message, bytes | None]]] = {}
    for message, result in acks:
        by_settler.setdefault(id(message.settler), []).append((message, result))
    for group in by_settler.values():
        try:
            group[0][0].settler.ack_many(group)
        except (LeaseLost, MessageTooLarge):
            for message, result in group:
                try:
                    message.ack(result=result)
                except LeaseLost as error:
                    lost = error
    if lost is not None:
        raise lost
