# Made from aio_transaction.py by .ci/unasync.py. Change that file, then run the script.
"""One transaction on the inbox's tables in PostgreSQL: what its inboxes share.

An inbox in a SQLite file holds the lock of the file. Here other transactions run at the same time. So:

- Two transactions that apply the same message both insert its id. One of them waits, fails, and is repeated: it finds
  the id.
- A slow transaction may end after another one has applied its message and a third one has pruned the id. It finds that
  out at its end, since pruning raises ``forgotten_to`` in the same transaction (`_refuse_late_at_the_end`).
- The clocks of the machines may differ, so all dates are by the database's clock. The date of a delivery is by the
  clock of its machine. It is converted, and the result is never too late.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any, Final, TypeVar

import psycopg
from psycopg.pq import TransactionStatus
from psycopg.rows import tuple_row

from ..errors import InvalidRequest
from ..inbox.rules.effects import Effect, Key, digest_of, result_of, too_late
from ..inbox.rules.pruning import KEEP_SECONDS, ROWS, KnownWatermark, Pruning, Stream
from ..message import Delivery
from ..outcomes import Reject
from ..protocol.unsettled import PROCESSED, owner
from ..protocol.validation import encode_result
from .driver import Conflict, refuse_encoding
from .sql.common import LOCK_TABLES
from .sql.inbox import FIND_SCHEMA, Schema, schema

T = TypeVar("T")

_GUARD_ROWS: Final = 2
"""How many rows `Schema.open` inserts, and `Schema.close` deletes in the same transaction."""


class PgProcessed:
    """The processed messages in a database, and one transaction that adds to them, over an open connection.

    `transaction` makes a transaction of its own. Inside one of a library, call `join`, `apply` for the message, and
    `finish`; the library commits. Raises the errors of psycopg as they are, and `InvalidRequest` for what a caller or a
    handler may not do.
    """

    def __init__(
        self,
        connection: psycopg.Connection[Any],
        tables: Schema,
        pruning: Pruning,
        clock: Callable[[], float] | None,
    ) -> None:
        self.connection = connection
        self.number = 0
        """The number of the transaction, as the database counts them."""
        self._tables = tables
        self._pruning = pruning
        self._clock = clock
        self._ahead = 0.0
        """How many seconds the database's clock is ahead of this machine's, at least."""
        self._joined = False
        self._process = os.getpid()
        self._found: dict[Key, Effect] = {}
        self._new: list[Delivery] = []
        self._again: dict[Key, Delivery] = {}
        self._receipts: list[str] = []
        """The deliveries that cannot be settled now."""

    # ── the transaction ─────────────────────────────────────────────────────────────────────────────────

    def transaction(self, messages: Sequence[Delivery], work: Callable[[PgProcessed], T]) -> T:
        """Begin a transaction, do ``work`` in it, and commit. After an exception, roll back."""
        refuse_open_transaction(self.connection)  # outside: it may be that of a handler which calls this
        autocommit = self.connection.autocommit
        try:
            try:
                if autocommit:
                    self.connection.set_autocommit(False)
                self._open(messages)
                result = work(self)
                self.finish()
                self._commit()
            except BaseException:
                self._roll_back()
                raise
        except BaseException:
            # Ctrl-C may have interrupted the rollback at any of its lines. It is safe to repeat.
            self._roll_back()
            raise
        finally:
            self.forget_receipts()
            if autocommit and self.status == TransactionStatus.IDLE and self._process == os.getpid():
                self.connection.set_autocommit(True)
        return result

    def join(self, messages: Sequence[Delivery]) -> None:
        """Do what the begin of `transaction` does inside a transaction of the caller, who ends it.

        At the end, also after an exception, the caller calls `forget_receipts`.
        """
        self._joined = True
        if self.connection.autocommit and self.status == TransactionStatus.IDLE:
            raise InvalidRequest(
                "the library's connection commits each statement by itself (autocommit), so the effect and the "
                "message's id could not commit together: let the library begin transactions"
            )
        self._open(messages)

    @property
    def status(self) -> TransactionStatus:
        """Whether a transaction is open on the connection, and whether it has failed."""
        return self.connection.info.transaction_status

    def _open(self, messages: Sequence[Delivery]) -> None:
        for message in messages:
            # Another inbox may process the message already, and call this one in its handler.
            if message.receipt not in PROCESSED:
                self._receipts.append(message.receipt)
                PROCESSED[message.receipt] = owner()
        keys = [(message.queue, message.id) for message in messages]
        rows = self._rows(self._tables.open, ([queue for queue, _ in keys], [id for _, id in keys]))
        for now, number, _durable, position, result, digest in rows:
            self.number = number
            if self._clock is None:
                self._ahead = now - time.time()
            if position is not None:
                self._found[keys[position - 1]] = Effect(result, digest)

    def finish(self) -> None:
        """Store what was applied, prune if a step is due, and let the transaction commit."""
        self._refuse_forked()
        self._refuse_closed()
        now = self._now()
        date = self._date(now)
        self._insert(date)
        self._note_redeliveries(date)
        self._refuse_late_at_the_end(now)
        for stream in sorted(self._pruning.note(chain(self._new, self._again.values()), now, self._ahead)):
            self._step(stream, now)
        # In another transaction than the one that was opened, there are no such rows.
        if (self._execute(self._tables.close)).rowcount != _GUARD_ROWS:
            raise InvalidRequest("a handler ended the transaction; leave commit and rollback to the inbox")

    def _commit(self) -> None:
        # The server answers the commit of a failed transaction with a rollback, which is no error.
        done = self._execute("commit")
        if done.statusmessage != "COMMIT":
            raise InvalidRequest(
                f"the transaction was not committed, but ended with {done.statusmessage}; let the error of a statement "
                "that fails raise"
            )

    def _roll_back(self) -> None:
        if self._process != os.getpid():
            return  # the transaction is the parent's
        if not self.connection.closed and self.status != TransactionStatus.IDLE:
            self.connection.rollback()

    def forget_receipts(self) -> None:
        """Let the messages be settled."""
        for receipt in self._receipts:
            PROCESSED.pop(receipt, None)
        self._receipts.clear()

    def _refuse_forked(self) -> None:
        if self._process != os.getpid():
            raise InvalidRequest(
                "this process was forked while the inbox had a transaction open, which belongs to the parent: fork "
                "before messages are processed, or start the process with the method `spawn`"
            )

    # ── messages ────────────────────────────────────────────────────────────────────────────────────────

    def was_processed(self, message: Delivery) -> bool:
        """Return whether a message was processed before, perhaps in this transaction. `finish` notes the redelivery."""
        key = message.queue, message.id
        if key not in self._found:
            return False
        if key not in self._again or self._again[key].seq < message.seq:
            self._again[key] = message
        return True

    def result(self, message: Delivery) -> bytes | None:
        """Return the result of a message that `was_processed`. Raises `Reject`; see `result_of`."""
        return result_of(message, self._found[message.queue, message.id])

    def result_or_refusal(self, message: Delivery) -> bytes | Reject | None:
        """Return the result of a message that `was_processed`, or the `Reject` that `result` raises."""
        try:
            return self.result(message)
        except Reject as refusal:
            return refusal

    def apply(self, message: Delivery, handle: Callable[[], object]) -> bytes | None:
        """Call the handler of a message that was not processed, in a savepoint. Return its result as bytes.

        If the handler raises, its writes are undone, and the exception is raised. Raises `LeaseLost` for a delivery so
        old that its id may have been pruned, `ResultRefused` or `ResultTooLarge` for what cannot be a result, and
        `InvalidRequest` if the handler has ended the transaction.
        """
        self._refuse_late(message)
        self._refuse_ended(message)
        result = (self._apply_joined if self._joined else self._apply_alone)(message, handle)
        self._found[message.queue, message.id] = Effect(result, digest_of(message))
        self._new.append(message)
        return result

    def _apply_alone(self, message: Delivery, handle: Callable[[], object]) -> bytes | None:
        ended = False
        try:
            # psycopg refuses `commit()` and `rollback()` inside this block.
            with self.connection.transaction("eoq_message"):
                returned = handle()
                ended = True
                self._refuse_ended(message)
                return encode_result(returned)
        except psycopg.Error as error:
            if not ended:
                raise
            raise self._lost_savepoint(message, error) from error

    def _apply_joined(self, message: Delivery, handle: Callable[[], object]) -> bytes | None:
        # Not in a block of psycopg: the library rolls back after a failed statement, whose error counts.
        self._execute("savepoint eoq_message")
        returned = handle()
        self._refuse_ended(message)
        result = encode_result(returned)
        try:
            self._execute("release savepoint eoq_message")
        except psycopg.Error as error:
            raise self._lost_savepoint(message, error) from error
        return result

    def _refuse_closed(self) -> None:
        if self.connection.closed:
            if self.connection.broken:
                raise psycopg.OperationalError("the connection to the database was lost")
            raise InvalidRequest("a handler closed the connection; leave it open")

    def _refuse_ended(self, message: Delivery) -> None:
        self._refuse_forked()
        self._refuse_closed()
        if self.status == TransactionStatus.INERROR:
            raise InvalidRequest(
                f"a statement of the handler of {message.id!r} failed, and the handler ignored the error; let it "
                "raise, or run that statement in a savepoint (`with tx.transaction():`)"
            )
        if self.status != TransactionStatus.INTRANS:
            raise self._ended(message)

    def _lost_savepoint(self, message: Delivery, error: psycopg.Error) -> Exception:
        return psycopg.OperationalError(str(error)) if self.connection.broken else self._ended(message)

    def _ended(self, message: Delivery) -> InvalidRequest:
        return InvalidRequest(
            f"the handler of {message.id!r} ended the transaction; leave commit and rollback to the inbox"
        )

    # ── late deliveries ─────────────────────────────────────────────────────────────────────────────────

    def _refuse_late(self, message: Delivery) -> None:
        now = self._now()
        if not self._pruning.is_old(message, now, self._ahead):
            return
        if self._pruning.is_late(message, self._stored((message.source, message.queue)), now, self._ahead):
            raise too_late(message, self._pruning.keep(message.retention))

    def _refuse_late_at_the_end(self, now: float) -> None:
        """Raise `LeaseLost` if the id of a message may have been stored and pruned by others since it was looked up."""
        for message in self._new:
            if self._pruning.is_old(message, now, self._ahead):
                self._refuse_late(message)

    # ── queries and pruning ─────────────────────────────────────────────────────────────────────────────

    def streams(self) -> list[Stream]:
        """Return the streams whose watermark is known, to this process or from the database."""
        stored = self._rows(self._tables.streams)
        return sorted({*[(source, queue) for source, queue in stored], *self._pruning.streams})

    def prune(self, stream: Stream, from_start: bool) -> tuple[int, bool]:
        """Make one step of pruning inside the open transaction. See `sweeping.step`."""
        return self._step(stream, self._now(), from_start=from_start)

    def _now(self) -> float:
        return time.time() + self._ahead if self._clock is None else self._clock()

    def _date(self, now: float) -> float:
        if self._pruning.known_past is None:
            ((past,),) = self._rows(self._tables.known_past, (self._pruning.fixed_keep, KEEP_SECONDS))
            self._pruning.known_past = float("-inf") if past is None else past
        return self._pruning.date(now)

    def _step(self, stream: Stream, now: float, *, from_start: bool = False) -> tuple[int, bool]:
        (watermark, before), to_store = self._pruning.limits(stream, self._stored(stream), now)
        source, queue = stream
        if to_store is not None:
            self._execute(self._tables.store, (source, queue, *to_store))
        if from_start:
            self._execute(self._tables.set_swept_to, ("", source, queue))
        found = self._rows(self._tables.range, (ROWS - 1, source, queue))
        if not found:
            return 0, True
        ((after, last),) = found
        deleted = self._execute(self._tables.delete, (queue, after, last, last, watermark, before, source))
        self._execute(self._tables.set_swept_to, (last or "", source, queue))
        return deleted.rowcount, last is None

    def _stored(self, stream: Stream) -> KnownWatermark | None:
        source, queue = stream
        rows = self._rows(self._tables.stored, (queue, source))
        return KnownWatermark(*rows[0]) if rows else None

    def _insert(self, date: float) -> None:
        if self._new:
            effects = [self._found[message.queue, message.id] for message in self._new]
            columns = self._columns(self._new)
            parameters = (date, *columns, [effect.digest for effect in effects], [effect.result for effect in effects])
            self._execute(self._tables.insert, parameters)

    def _note_redeliveries(self, date: float) -> None:
        if self._again:
            messages = [self._again[key] for key in sorted(self._again)]
            parameters = (date, *self._columns(messages), [digest_of(message) for message in messages])
            if (self._execute(self._tables.note_redeliveries, parameters)).rowcount != len(messages):
                raise Conflict("another transaction has pruned an id that this one has found")

    def _columns(self, messages: Sequence[Delivery]) -> tuple[list[object], ...]:
        return (
            [message.queue for message in messages],
            [message.id for message in messages],
            [message.source or None for message in messages],
            [message.seq for message in messages],
        )

    def seen(self, queue: str, id: str) -> bool:
        """Return whether the database has the id of a processed message."""
        return bool((self._rows(self._tables.seen, (queue, id)))[0][0])

    def is_committed(self, message: Delivery, number: int) -> bool:
        """Return whether the id of a message is committed, seen in another transaction than the one of ``number``."""
        return bool((self._rows(self._tables.committed, (number, message.queue, message.id)))[0][0])

    # ── statements ──────────────────────────────────────────────────────────────────────────────────────

    def _execute(self, sql: str, parameters: Sequence[object] = ()) -> psycopg.Cursor[tuple[Any, ...]]:
        return execute(self.connection, sql, parameters)

    def _rows(self, sql: str, parameters: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        return (execute(self.connection, sql, parameters)).fetchall()


def refuse_open_transaction(connection: psycopg.Connection[Any]) -> None:
    """Raise `InvalidRequest` if the application has a transaction open on its connection."""
    if connection.info.transaction_status in (TransactionStatus.INTRANS, TransactionStatus.INERROR):
        raise InvalidRequest(
            "the connection has a transaction open, so the inbox cannot begin its own: commit or roll back first"
        )


def execute(
    connection: psycopg.Connection[Any], sql: str, parameters: Sequence[object] = ()
) -> psycopg.Cursor[tuple[Any, ...]]:
    """Execute a statement, whatever cursors and rows the application has set for its connection."""
    return psycopg.Cursor(connection, row_factory=tuple_row).execute(sql, parameters)


def find_tables(connection: psycopg.Connection[Any], name: str | None) -> Schema:
    """Return the statements for the tables of the schema ``name``, or of the first in the search path that has them.

    Make the tables if there are none, in the open transaction.
    """
    refuse_encoding(connection)
    found = _find_schema(connection, name)
    if found is None:
        execute(connection, LOCK_TABLES)
        found = _find_schema(connection, name)
    if found is None:
        ((found,),) = (execute(connection, "select coalesce(%s, current_schema()::text)", (name,))).fetchall()
        if found is None:
            raise InvalidRequest("the search path of the database has no schema for the inbox's tables; name one")
        for statement in schema(found).create:
            execute(connection, statement)
    return schema(found)


def _find_schema(connection: psycopg.Connection[Any], name: str | None) -> str | None:
    table = "eoq_processed" if name is None else '"' + name.replace('"', '""') + '".eoq_processed'
    rows = (execute(connection, FIND_SCHEMA, (table,))).fetchall()
    return str(rows[0][0]) if rows else None
