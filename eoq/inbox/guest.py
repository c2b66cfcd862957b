"""The inbox as a guest: inside transactions that another library begins and commits, like SQLAlchemy's sessions.

    inbox = eoq.GuestInbox(Session.begin, lambda session: session.connection().connection.driver_connection)
    inbox.process(message, book)        # book(session, message)

The library's ``with`` block is entered and left in here, so the ack can only come after its commit.
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
    """`Inbox` in a transaction of the application's own library.

    ``begin`` gives a context manager that begins a transaction, commits it at its end, and rolls it back after an
    exception: ``sessionmaker(engine).begin`` of SQLAlchemy, ``partial(transaction.atomic, durable=True)`` of Django.
    It has to be the outermost one, since the message is acked at its end. What it yields is handed to the handler
    in place of a connection. ``connection`` finds the `sqlite3.Connection` of the transaction, given what ``begin``
    yielded. ``keep`` and ``clock`` are those of `Inbox`.

    A handler that tries to commit or roll back is refused, its writes are undone, and its message is given back. It
    may use savepoints (``session.begin_nested()``). Each message has a transaction of its own: undoing one of
    several is the library's business.
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
        self._forgetting = Pruning(keep)
        self._clock = clock

    def process(self, message: Message, handler: Callable[[T, Message], object]) -> bytes | None:
        """See `Inbox.process`: one transaction of the library's, and after its commit the ack."""
        try:
            with self._begin() as transaction, self._joined(transaction, [message]) as processed:
                if processed.known(message):
                    result = processed.result(message)
                else:
                    processed.refuse_late(message)
                    processed.mark()
                    result = processed.accept(message, handler(transaction, message))
        except Exception as error:
            give_back(message, error)
            raise
        message.ack(result=result)
        return result

    def seen(self, queue: str, id: str) -> bool:
        """See `Inbox.seen`."""
        with self._begin() as transaction, self._joined(transaction, []) as processed:
            return processed.seen(queue, id)

    def prune(self) -> int:
        """See `Inbox.prune`: a transaction for each step."""
        with self._begin() as transaction, self._joined(transaction, []) as processed:
            queues = processed.forgettable()
        count = 0
        for queue in queues:
            after: int | None = None
            while True:
                with self._begin() as transaction, self._joined(transaction, []) as processed:
                    forgotten, after = processed.forget_here(queue, after)
                count += forgotten
                if after is None:
                    break
        return count

    @contextmanager
    def _joined(self, transaction: T, messages: list[Message]) -> Iterator[Processed]:
        database = self._connection_of(transaction)
        if not isinstance(database, sqlite3.Connection):
            raise InvalidRequest(
                f"`connection` gave a {type(database).__name__}, not the sqlite3.Connection of the transaction; "
                "the inbox works in SQLite files only"
            )
        processed = Processed(database, self._forgetting, self._clock, owned=False)
        try:
            processed.join(messages)
            yield processed
            processed.finish()
        except BaseException:
            processed.undo()
            raise
