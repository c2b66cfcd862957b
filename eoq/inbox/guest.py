"""The guest inbox: works inside transactions that another library begins and commits, like SQLAlchemy's sessions.

    inbox = eoq.GuestInbox(Session.begin, lambda session: session.connection().connection.driver_connection)
    inbox.process(message, book)        # book(session, message)

The inbox itself enters and leaves the library's ``with`` block, so that it acks only after the library's commit.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Generic, TypeVar

from ..errors import InvalidRequest
from ..message import Message
from ..outcomes import error_text
from .committed import Disk, Place, not_committed
from .forked import LibraryConnections, file_of, is_open
from .rules.pruning import Pruning, Stream
from .rules.settling import give_back
from .transaction import Processed

T = TypeVar("T")
R = TypeVar("R")


class GuestInbox(Generic[T]):
    """An inbox inside the transactions of another library, such as SQLAlchemy. See `Inbox`.

    ``begin`` returns a context manager that begins a transaction, commits it at its end, and rolls it back after an
    exception: ``sessionmaker(engine).begin`` of SQLAlchemy, ``partial(transaction.atomic, durable=True)`` of Django. It
    has to be the outermost transaction, since the message is acked after it. The handler gets what the context manager
    yields, in place of a connection. ``connection`` is called with that value too, and returns the `sqlite3.Connection`
    of the transaction. ``keep`` and ``clock`` are those of `Inbox`.

    A handler cannot commit: that is refused. If it tries, or rolls back, its writes are undone, and its message is
    given back. It may use savepoints (``session.begin_nested()``). Each message has a transaction of its own: there is
    no ``process_many``, since the library would not know of savepoints that the inbox rolls back.
    """

    def __init__(
        self,
        begin: Callable[[], AbstractContextManager[T]],
        connection: Callable[[T], sqlite3.Connection],
        *,
        keep: float | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._begin = begin
        self._connection_of = connection
        self._pruning = Pruning(keep)
        self._clock = clock
        self._disk = Disk()
        self._connections = LibraryConnections(is_open, file_of)

    def process(self, message: Message, handler: Callable[[T, Message], object]) -> bytes | None:
        """Apply a message once, in one transaction of the library, and ack it after the commit. Return its result.

        The result is the handler's as bytes, from now or from the first time. If the handler raises, the library rolls
        back, the message is given back with the error's text (or as `Reject` and `Retry` say), and the exception
        reaches the caller.

        Raises `LeaseLost` if the lease ended before the ack. The effect is then committed; the message is delivered
        again, and is then only acked. Raises `LeaseLost`, and runs no handler, if the delivery is older than ``keep``
        and its id may have been pruned.

        Raises `InvalidRequest` if the library's block ended without an exception, but did not commit: Django discards a
        block in which an error of the database was caught.
        """

        def apply(transaction: T, processed: Processed) -> bytes | None:
            if processed.was_processed(message):
                return processed.result(message)
            processed.refuse_late(message)
            processed.savepoint()
            return processed.accept(message, handler(transaction, message))

        self._connections.refuse_inherited()  # outside: the message is the parent's, and must not be given back here
        try:
            result, place = self._in_transaction([message], apply)
            # Also the id of a message that was processed before may be in a transaction around this one.
            if not self._is_committed(message, place):
                raise not_committed(message)
            self._connections.note(place.database).check()
        except Exception as error:
            give_back(message, error)
            raise
        message.ack(result=result)
        return result

    def seen(self, queue: str, id: str) -> bool:
        """Return whether the file has the id of this message: it was processed, and its id was not pruned since."""
        found, _place = self._in_transaction([], lambda _transaction, processed: processed.seen(queue, id))
        return found

    def prune(self) -> int:
        """Delete all ids that can be deleted, in transactions of a few rows each. Return how many were deleted.

        An inbox that processes messages prunes by itself. Call this where an application processes no more messages,
        or after ``keep`` was made shorter.
        """
        streams, _place = self._in_transaction([], lambda _transaction, processed: processed.streams())
        return sum(self._prune(stream) for stream in streams)

    def _prune(self, stream: Stream) -> int:
        count, from_start, ended = 0, True, False
        while not ended:

            def step(_transaction: T, processed: Processed, from_start: bool = from_start) -> tuple[int, bool]:
                return processed.prune(stream, from_start)

            (deleted, ended), _place = self._in_transaction([], step)
            count += deleted
            from_start = False
        return count

    # ── the library's transaction ───────────────────────────────────────────────────────────────────────

    def _in_transaction(self, messages: list[Message], work: Callable[[T, Processed], R]) -> tuple[R, Place]:
        """Call ``work`` in a transaction of the library. Return what it returned, and where it was."""
        self._connections.refuse_inherited()
        own: BaseException | None = None
        try:
            with self._begin() as transaction:
                database = self._sqlite_connection(transaction)
                processed = Processed(database, self._pruning, self._clock, owned=False, disk=self._disk)
                try:
                    try:
                        processed.join(messages)
                        result = work(transaction, processed)
                        place = Place.of(database)
                        processed.finish()
                    except BaseException as error:
                        own = error
                        processed.rollback(error)
                        raise
                except BaseException:
                    # Ctrl-C may have interrupted the rollback at any of its lines. It is safe to repeat.
                    processed.rollback()
                    raise
        except Exception as error:
            self._disk.note(error)
            if own is None or error is own:
                raise
            # The rollback above leaves the library nothing to roll back, and some libraries raise then.
            own.add_note(f"eoq: the library's block then ended with {error_text(error)}")
            raise own from own.__cause__
        if own is not None:
            raise own  # the library's block has suppressed it
        return result, place

    def _sqlite_connection(self, transaction: T) -> sqlite3.Connection:
        database = self._connection_of(transaction)
        if not isinstance(database, sqlite3.Connection):
            raise InvalidRequest(
                f"`connection` returned a {type(database).__name__}, not the sqlite3.Connection of the transaction; "
                "the inbox works only with SQLite files"
            )
        self._connections.note(database)
        return database

    def _is_committed(self, message: Message, place: Place) -> bool:
        shown = place.shows(message)
        if shown is None and place.path:
            shown = place.file_shows(message)
        return self.seen(message.queue, message.id) if shown is None else shown
