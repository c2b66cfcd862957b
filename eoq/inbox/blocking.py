"""The inbox: a message's processed id, its result and its handler's writes in one transaction of the
application's own SQLite file (G5).

This is the idempotent consumer. When a message is delivered, the inbox looks up its id among the processed ones. If it
is there, no handler runs and the stored result is returned. If not, the handler runs, and its writes are committed
together with the id and the result. The transaction is in ``transaction.py``. This file calls the handler, and acks.
"""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import TypeAlias

from .. import outcomes
from ..errors import InvalidRequest
from ..message import Message
from ..system.forks import WAIT_SECONDS, close_before_forks, leak, watch_forks
from ..system.sqlite import BUSY_SECONDS, DURABLE, FOREIGN_KEYS
from .committed import Disk
from .forked import FOREIGN_CONNECTION, FORKED_WITHIN, absolute, is_file, is_there
from .rules.batch import Results, split
from .rules.pruning import Pruning, Stream
from .rules.settling import ack_all, give_back
from .transaction import Processed, refuse_foreign_keys

Handler: TypeAlias = Callable[[sqlite3.Connection, Message], object]
"""Called with the connection, inside the open transaction, and the message. It returns the result (or None)."""


class Inbox:
    """The processed messages of one SQLite file.

    ``database`` is the path of the application's file, which the inbox opens and closes, or an open connection, which
    remains the application's. Threads may share an inbox of a path. Its transactions run one after the other, since
    SQLite has one writer at a time. For a connection that only a library's transactions can reach (SQLAlchemy, Django)
    use `GuestInbox`.

    A forked child may use an inbox of a path: the file is closed before the fork, and each process opens it again. A
    fork waits up to 2 seconds for a message that another thread processes; the child cannot use the inbox if that is
    not enough, nor an inbox of a connection. All other connections of the program to this file must be closed before a
    fork as well.

    ``keep`` is how many seconds a processed id is kept at least; the default is the retention of its queue. It should
    be longer than the age of any backup that the daemon's file may be restored from, and the same for all inboxes of a
    file. Older ids are pruned automatically, a few with every hundred messages, once the daemon's watermark has passed
    them. ``pruning.py`` proves that this is safe. ``clock`` returns seconds since the epoch.

    A message whose id was processed with other content is rejected: it becomes a dead letter that says so. This happens
    if an id is used again after the daemon has forgotten it.

    ``foreign_keys`` makes SQLite enforce the foreign keys of the file on the connection that the inbox opens. SQLite
    does not do so by itself, and it cannot be switched on inside a transaction.

    A handler gets the connection inside a transaction. It may use savepoints, but it cannot commit or roll back. If it
    tries, `sqlite3.DatabaseError` ("not authorized") is raised, and the message is given back like after any other
    exception. On a connection of the application, the inbox sets the connection's authorizer for the transaction. It
    also raises the connection's ``synchronous`` for it, if that is lower than ``extra``, so that what is acked is on
    disk.
    """

    def __init__(
        self,
        database: str | os.PathLike[str] | sqlite3.Connection,
        *,
        keep: float | None = None,
        foreign_keys: bool = False,
        clock: Callable[[], float] = time.time,
    ) -> None:
        refuse_foreign_keys(foreign_keys and isinstance(database, sqlite3.Connection))
        self._foreign_keys = foreign_keys
        self._lock = threading.RLock()
        self._pruning = Pruning(keep)
        self._clock = clock
        self._disk = Disk()
        self._path = None if isinstance(database, sqlite3.Connection) else absolute(database)
        self._processed: Processed | None = None
        """None while the file is closed: before the first use after a fork, and after `close`."""
        self._closed = False
        self._refusal: str | None = None
        """Why this process cannot use the inbox."""
        if isinstance(database, sqlite3.Connection):
            self._database = database
            self._prepare()
        else:
            self._open()
        (watch_forks if self._path is None or not is_file(self._path) else close_before_forks)(self)

    def __enter__(self) -> Inbox:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file, if the inbox has opened it."""
        self._closed = True
        if self._path is not None and self._refusal is None:
            self._database.close()

    def check_threads(self, concurrency: int) -> None:
        """Raise `InvalidRequest` if so many threads, the calling one among them, cannot use the connection."""
        if self._path is not None:
            return
        usable = [self._is_usable()]
        if concurrency > 1:
            other = threading.Thread(target=lambda: usable.append(self._is_usable()))
            other.start()
            other.join()
        if not all(usable):
            raise InvalidRequest(
                "the connection of this inbox can be used only in the thread that opened it: leave concurrency at 1 "
                "and work in that thread, give the inbox a path, or open the connection with `check_same_thread=False`"
            )

    def _is_usable(self) -> bool:
        try:
            self._database.cursor().close()
        except sqlite3.ProgrammingError:
            return False
        return True

    # ── the file ────────────────────────────────────────────────────────────────────────────────────────

    def _usable(self) -> Processed:
        """Return what is open, after opening what is not. The caller has the lock."""
        if self._processed is not None and self._processed.file.lost and is_there(self._path):
            self._processed = None
            self._database.close()  # it leaves the new file alone: SQLite notices as well that its own has moved
        return self._processed or self._open()

    def _open(self) -> Processed:
        """Open the file, at first and after a fork. The caller has the lock."""
        if self._refusal is not None:
            raise InvalidRequest(self._refusal)
        if self._closed or self._path is None:
            raise InvalidRequest("this inbox is closed; make a new one")
        database = sqlite3.connect(self._path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)
        try:
            database.execute(DURABLE)
            if self._foreign_keys:
                database.execute(FOREIGN_KEYS)
            self._database = database
            return self._prepare()
        except BaseException:
            database.close()
            raise

    def _prepare(self) -> Processed:
        processed = Processed(self._database, self._pruning, self._clock, owned=self._path is not None, disk=self._disk)
        processed.create()
        self._processed = processed
        return processed

    def close_before_fork(self) -> bool:
        """Close the file before a fork, unless a message is being processed. See ``system/forks.py``."""
        if not self._lock.acquire(timeout=WAIT_SECONDS):
            return False
        if self._processed is not None and not self._closed and not self._database.in_transaction:
            self._processed = None
            self._database.close()
        return True

    def after_fork(self) -> None:
        """Let the other threads of the parent go on."""
        self._lock.release()

    def forked(self) -> None:
        """Start anew in the child, or refuse to."""
        self._lock = threading.RLock()
        if self._path is None or not is_file(self._path):
            self._processed, self._refusal = None, FOREIGN_CONNECTION
        elif self._processed is not None and not self._closed:
            self._processed, self._refusal = None, FORKED_WITHIN
            leak(self._database)

    # ── processing ──────────────────────────────────────────────────────────────────────────────────────

    def process(self, message: Message, handler: Handler) -> bytes | None:
        """Apply a message once, and ack it. Return the handler's result as bytes, from now or from the first time.

        If the handler raises, its writes are rolled back, the message is given back with the error's text (or as
        `Reject` and `Retry` say), and the exception reaches the caller.

        Raises `LeaseLost` if the lease ended before the ack. The effect is then committed; the message is delivered
        again, and is then only acked. Raises `LeaseLost`, and runs no handler, if the delivery is older than ``keep``
        and its id may have been pruned.
        """
        try:
            with self._lock:
                processed = self._usable()
                result = processed.transaction([message], partial(self._apply, processed, message, handler))
        except Exception as error:
            give_back(message, error)
            raise
        message.ack(result=result)
        return result

    def _apply(self, processed: Processed, message: Message, handler: Handler) -> bytes | None:
        if processed.was_processed(message):
            return processed.result(message)
        processed.refuse_late(message)
        processed.savepoint()
        return processed.accept(message, handler(self._database, message))

    def process_many(self, messages: Iterable[Message], handler: Handler) -> list[bytes | Exception | None]:
        """Apply many messages in one transaction, each in a savepoint of its own, and ack them together.

        Return a list with one entry for each message: what `process` would return, or the exception that its handler
        raised. A message whose handler raises undoes only its own writes, and is given back.

        Raises `LeaseLost` if some leases ended before the acks; the other messages are acked all the same. If the whole
        transaction fails, each message is processed again in one of its own. If that fails because the file is locked,
        say, or its disk is full, raises the error, and gives back all messages that are left.
        """
        batch = list(messages)
        results: Results = []
        try:
            with self._lock:
                processed = self._usable()
                processed.transaction(batch, partial(self._apply_many, processed, batch, handler, results))
        except Exception as error:
            if len(batch) > 1 and (results or not outcomes.is_outage(error)):
                return self._one_by_one(batch, handler)
            for message in batch:
                give_back(message, error)
            raise
        acks, failed = split(batch, results)
        for message, reason in failed:
            give_back(message, reason)
        ack_all(acks)
        return results

    def _one_by_one(self, batch: Sequence[Message], handler: Handler) -> list[bytes | Exception | None]:
        """Process each message in a transaction of its own, since they could not be committed together."""
        results: Results = []
        for index, message in enumerate(batch):
            try:
                results.append(self.process(message, handler))
            except Exception as error:
                if outcomes.is_outage(error):
                    for other in batch[index + 1 :]:
                        give_back(other, error)
                    raise
                results.append(error)
        return results

    def _apply_many(self, processed: Processed, batch: list[Message], handler: Handler, results: Results) -> None:
        for message in batch:
            if processed.was_processed(message):
                results.append(processed.result_or_refusal(message))
            else:
                results.append(self._apply_alone(processed, message, handler))

    def _apply_alone(self, processed: Processed, message: Message, handler: Handler) -> bytes | Exception | None:
        processed.savepoint()
        try:
            processed.refuse_late(message)
            return processed.accept(message, handler(self._database, message))
        except Exception as error:  # noqa: BLE001 # whatever the handler raised is this message's result
            processed.rollback_to_savepoint(error)
            return error

    # ── queries and pruning ─────────────────────────────────────────────────────────────────────────────

    def seen(self, queue: str, id: str) -> bool:
        """Return whether the file has the id of this message: it was processed, and its id was not pruned since."""
        with self._lock:
            return self._usable().seen(queue, id)

    def prune(self) -> int:
        """Delete all ids that can be deleted. Return how many were deleted.

        An inbox that processes messages prunes by itself. Call this from a cron job of an application that processes
        no more messages, or after ``keep`` was made shorter. It uses the watermarks of the last deliveries, and makes
        transactions of a few rows each.
        """
        with self._lock:
            processed = self._usable()
            processed.refuse_open_transaction()
            return sum(_prune(processed, stream) for stream in processed.streams())


def _prune(processed: Processed, stream: Stream) -> int:
    count, ended = processed.transaction((), partial(processed.prune, stream, True))
    while not ended:
        deleted, ended = processed.transaction((), partial(processed.prune, stream, False))
        count += deleted
    return count
