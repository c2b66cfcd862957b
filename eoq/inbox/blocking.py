"""The inbox: a message's processed id, its result and its handler's writes in one transaction of the
application's own SQLite file (G5).

The idempotent consumer: on arrival ask whether this id was processed. If so, give the stored result and run
nothing; if not, run the handler, and commit its writes together with the id and the result. The tables and the
transaction are in ``processed.py``; this is the waiting: for the file, for the handler, for the daemon.
"""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import TypeAlias

from .. import outcomes as verdicts
from ..errors import EoqError, LeaseLost, MessageTooLarge
from ..message import Message
from ..outcomes import Retry, error_text
from ..protocol.calls import portions
from ..system.sqlite import BUSY_SECONDS, DURABLE
from .pruning import KEEP_SECONDS, Pruning
from .tables import Processed

Handler: TypeAlias = Callable[[sqlite3.Connection, Message], object]
"""Gets the connection, inside the open transaction, and the message; returns the result (or None)."""


class Inbox:
    """Processed messages of one SQLite file.

    ``database`` is the path of the application's file, which is then opened and closed here, or an open
    connection, which stays the application's. An inbox of a path may be shared by threads; its transactions run one
    after the other, as SQLite would have it anyway. For a connection that only a library's transactions can reach
    (SQLAlchemy, Django) there is `GuestInbox`.

    ``keep`` is how many seconds a processed id is kept at least: one day. It should be longer than the age of any
    backup that the daemon's file may be restored from. Ids older than that are forgotten on the way, a few with
    every hundred messages, once the daemon's watermark has passed them: ``forgetting.py`` says why that is safe.
    ``clock`` gives seconds since the epoch.

    A handler gets the connection inside a transaction. It may use savepoints; it cannot commit or roll back:
    trying raises `sqlite3.DatabaseError` ("not authorized"), and the message is given back like after any other
    exception. On a connection of the application's this takes the connection's authorizer during a transaction, and
    raises its ``synchronous`` where that is lower, so that what is acked is on disk.
    """

    def __init__(
        self,
        database: str | os.PathLike[str] | sqlite3.Connection,
        *,
        keep: float = KEEP_SECONDS,
        clock: Callable[[], float] = time.time,
    ) -> None:
        forgetting = Pruning(keep)
        self._lock = threading.RLock()
        self._owned = not isinstance(database, sqlite3.Connection)
        self._database = (
            database
            if isinstance(database, sqlite3.Connection)
            else sqlite3.connect(database, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)
        )
        try:
            if self._owned:
                self._database.execute(DURABLE)
            self._processed = Processed(self._database, forgetting, clock, owned=self._owned)
            self._processed.create()
        except BaseException:
            self.close()
            raise

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
        before the ack: the effect is in place, the message comes again, and is then only acked. It raises that too,
        and runs nothing, for a delivery that has waited for longer than ``keep``, and whose id may be forgotten by now.
        """
        try:
            with self._transaction([message]) as processed:
                if processed.known(message):
                    result = processed.result(message)
                else:
                    processed.refuse_late(message)
                    processed.mark()
                    result = processed.accept(message, handler(self._database, message))
        except Exception as error:
            give_back(message, error)
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
            with self._transaction(batch) as processed:
                for message in batch:
                    if processed.known(message):
                        outcomes.append(processed.result(message))
                    else:
                        outcomes.append(self._apply_alone(processed, message, handler))
        except Exception as error:
            for index, message in enumerate(batch):
                # What a handler says (`Reject`, say) it says of its own message alone.
                give_back(message, error if index == len(outcomes) else Retry(reason=error_text(error)))
            raise
        acks: list[tuple[Message, bytes | None]] = []
        for message, outcome in zip(batch, outcomes, strict=True):
            if isinstance(outcome, Exception):
                give_back(message, outcome)
            else:
                acks.append((message, outcome))
        _ack_all(acks)
        return outcomes

    def _apply_alone(self, processed: Processed, message: Message, handler: Handler) -> bytes | Exception | None:
        processed.mark()
        try:
            processed.refuse_late(message)
            return processed.accept(message, handler(self._database, message))
        except Exception as error:  # noqa: BLE001 # whatever the handler raised is this message's outcome
            processed.back_to_mark(error)
            return error

    # ── looking and forgetting ──────────────────────────────────────────────────────────────────────────

    def seen(self, queue: str, id: str) -> bool:
        """Whether this message was processed, and is not forgotten."""
        with self._lock:
            return self._processed.seen(queue, id)

    def prune(self) -> int:
        """Forgets all ids that can be forgotten; returns how many they were.

        An inbox that processes messages does that by itself. This is for a cron job of an application that has
        processed its last, or after ``keep`` was made shorter. It goes by the watermarks that the last deliveries
        brought, in transactions of a few rows each.
        """
        with self._lock:
            self._processed.refuse_open_transaction()
            return sum(self._prune(queue) for queue in self._processed.forgettable())

    def _prune(self, queue: str) -> int:
        count = 0
        after: int | None = None
        while True:
            forgotten, after = self._processed.forget(queue, after)
            count += forgotten
            if after is None:
                return count

    @contextmanager
    def _transaction(self, messages: Sequence[Message]) -> Iterator[Processed]:
        with self._lock:
            self._processed.begin(messages)
            try:
                yield self._processed
                self._processed.finish()
            except BaseException:
                self._processed.undo()
                raise


def give_back(message: Message, error: Exception) -> None:
    """Rejects or nacks a message, as what its handler raised says."""
    try:
        verdicts.give_back(message, error)
    except EoqError as failure:
        # The lease ends by itself; what the handler raised is the news.
        error.add_note(f"eoq: the message {message.id!r} could not be given back: {failure}")


def _ack_all(acks: Sequence[tuple[Message, bytes | None]]) -> None:
    """Acks together where the client can; one by one where a lease was lost, so that it stops no other."""
    lost: LeaseLost | None = None
    by_settler: dict[int, list[tuple[Message, bytes | None]]] = {}
    for message, result in acks:
        by_settler.setdefault(id(message.settler), []).append((message, result))
    for group in chain.from_iterable(portions(acks) for acks in by_settler.values()):
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
