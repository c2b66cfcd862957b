"""The guest inbox: works inside transactions that another library begins and commits, like SQLAlchemy's sessions.

    inbox = eoq.GuestInbox(Session.begin, lambda session: session.connection().connection.driver_connection)
    inbox.process(message, book)        # book(session, message)

The inbox itself enters and leaves the library's ``with`` block, so that it acks only after the library's commit.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Generic, TypeVar

from ..errors import InvalidRequest
from ..message import Message
from .blocking import give_back
from .pruning import KEEP_SECONDS, Pruning
from .tables import Processed

T = TypeVar("T")


class GuestInbox(Generic[T]):
    """An inbox inside the transactions of another library, such as SQLAlchemy. See `Inbox`.

    ``begin`` returns a context manager that begins a transaction, commits it at its end, and rolls it back after an
    exception: ``sessionmaker(engine).begin`` of SQLAlchemy, ``partial(transaction.atomic, durable=True)`` of Django. It
    has to be the outermost transaction, since the message is acked after it. The handler gets what the context manager
    yields, in place of a connection. ``connection`` is called with that value too, and returns the `sqlite3.Connection`
    of the transaction. ``keep`` and ``clock`` are those of `Inbox`.

    If a handler tries to commit or roll back, that is refused, its writes are undone, and its message is given back. A
    handler may use savepoints (``session.begin_nested()``). Each message has a transaction of its own: there is no
    ``process_many``, since the library would not know of savepoints that the inbox rolls back.
    """

    def __init__(
        self,
        begin: Callable[[], AbstractContextManager[T]],
        connection: Callable[[T], sqlite3.Connection],
        *,
        keep: float = KEEP_SECONDS,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._begin = begin
        self._connection_of = connection
        self._pruning = Pruning(keep)
        self._clock = clock

    def process(self, message: Message, handler: Callable[[T, Message], object]) -> bytes | None:
        """Apply a message in one transaction of the library, and ack it after the commit. See `Inbox.process`."""
        try:
            with self._begin() as transaction, self._joined(transaction, [message]) as processed:
                if processed.was_processed(message):
                    result = processed.result(message)
                else:
                    processed.refuse_late(message)
                    processed.savepoint()
                    result = processed.accept(message, handler(transaction, message))
        except Exception as error:
            give_back(message, error)
            raise
        message.ack(result=result)
        return result

    def seen(self, queue: str, id: str) -> bool:
        """Return whether this message was processed. See `Inbox.seen`."""
        with self._begin() as transaction, self._joined(transaction, []) as processed:
            return processed.seen(queue, id)

    def prune(self) -> int:
        """Delete all ids that can be deleted, with a transaction for each step. See `Inbox.prune`."""
        with self._begin() as transaction, self._joined(transaction, []) as processed:
            queues = processed.queues()
        count = 0
        for queue in queues:
            after: int | None = None
            while True:
                with self._begin() as transaction, self._joined(transaction, []) as processed:
                    deleted, after = processed.prune(queue, after)
                count += deleted
                if after is None:
                    break
        return count

    @contextmanager
    def _joined(self, transaction: T, messages: list[Message]) -> Iterator[Processed]:
        database = self._connection_of(transaction)
        if not isinstance(database, sqlite3.Connection):
            raise InvalidRequest(
                f"`connection` returned a {type(database).__name__}, not the sqlite3.Connection of the transaction; "
                "the inbox works only with SQLite files"
            )
        processed = Processed(database, self._pruning, self._clock, owned=False)
        try:
            processed.join(messages)
            yield processed
            processed.finish()
        except BaseException:
            processed.rollback()
            raise
