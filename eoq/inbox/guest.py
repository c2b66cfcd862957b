"""The guest inbox: works inside transactions that another library begins and commits, like SQLAlchemy's sessions.

    inbox = eoq.GuestInbox(Session.begin, lambda session: session.connection().connection.driver_connection)
    inbox.process(message, book)        # book(session, message)

The inbox itself enters and leaves the library's ``with`` block, so that it acks only after the library's commit.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager, closing, suppress
from pathlib import Path
from typing import Final, Generic, NamedTuple, TypeVar

from ..errors import InvalidRequest
from ..message import Message
from ..outcomes import error_text
from ..system.forks import watch_forks
from ..system.sqlite import BUSY_SECONDS
from .blocking import give_back
from .forked import LIBRARY_CONNECTION
from .pruning import KEEP_SECONDS, Pruning
from .tables import is_stored
from .transaction import Processed

T = TypeVar("T")
R = TypeVar("R")

_RECENT: Final = 16
"""How many connections of the library an inbox remembers, to know them in a forked child."""


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
        keep: float = KEEP_SECONDS,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._begin = begin
        self._connection_of = connection
        self._pruning = Pruning(keep)
        self._clock = clock
        self._recent: deque[sqlite3.Connection] = deque(maxlen=_RECENT)
        """Connections that the library has used lately."""
        self._inherited: list[sqlite3.Connection] = []
        """Those that this process has inherited in a fork, and that are still open."""
        watch_forks(self)

    def forked(self) -> None:
        """Note which connections must not be used in the child."""
        self._inherited = [*self._inherited, *self._recent]
        self._recent.clear()

    def process(self, message: Message, handler: Callable[[T, Message], object]) -> bytes | None:
        """Apply a message in one transaction of the library, and ack it after the commit. See `Inbox.process`.

        Raise `InvalidRequest` if the library's block ended without an exception, but did not commit: Django discards a
        block in which an error of the database was caught.
        """

        def apply(transaction: T, processed: Processed) -> tuple[bytes | None, bool]:
            if processed.was_processed(message):
                return processed.result(message), False
            processed.refuse_late(message)
            processed.savepoint()
            return processed.accept(message, handler(transaction, message)), True

        if self._inherited:
            self._refuse_inherited()
        try:
            (result, is_new), ended = self._in_transaction([message], apply)
            if is_new:
                self._refuse_uncommitted(message, ended)
        except Exception as error:
            give_back(message, error)
            raise
        message.ack(result=result)
        return result

    def seen(self, queue: str, id: str) -> bool:
        """Return whether this message was processed. See `Inbox.seen`."""
        found, _ended = self._in_transaction([], lambda _transaction, processed: processed.seen(queue, id))
        return found

    def prune(self) -> int:
        """Delete all ids that can be deleted, with a transaction for each step. See `Inbox.prune`."""
        queues, _ended = self._in_transaction([], lambda _transaction, processed: processed.queues())
        return sum(self._prune(queue) for queue in queues)

    def _prune(self, queue: str) -> int:
        count = 0
        after: int | None = None
        while True:

            def step(_transaction: T, processed: Processed, after: int | None = after) -> tuple[int, int | None]:
                return processed.prune(queue, after)

            (deleted, after), _ended = self._in_transaction([], step)
            count += deleted
            if after is None:
                return count

    # ── the library's transaction ───────────────────────────────────────────────────────────────────────

    def _in_transaction(self, messages: list[Message], work: Callable[[T, Processed], R]) -> tuple[R, _Ended]:
        """Call ``work`` in a transaction of the library. Return what it returned, and where it was."""
        if self._inherited:
            self._refuse_inherited()
        own: BaseException | None = None
        try:
            with self._begin() as transaction:
                database = self._sqlite_connection(transaction)
                processed = Processed(database, self._pruning, self._clock, owned=False)
                try:
                    try:
                        processed.join(messages)
                        result = work(transaction, processed)
                        ended = _Ended(database, _path(database))
                        processed.finish()
                    except BaseException as error:
                        own = error
                        processed.rollback()
                        raise
                except BaseException:
                    # Ctrl-C may have interrupted the rollback at any of its lines. It is safe to repeat.
                    processed.rollback()
                    raise
        except Exception as error:
            if own is None or error is own:
                raise
            # The rollback above leaves the library nothing to roll back, and some libraries raise then.
            own.add_note(f"eoq: the library's block then ended with {error_text(error)}")
            raise own from own.__cause__
        if own is not None:
            raise own  # the library's block has suppressed it
        return result, ended

    def _sqlite_connection(self, transaction: T) -> sqlite3.Connection:
        database = self._connection_of(transaction)
        if not isinstance(database, sqlite3.Connection):
            raise InvalidRequest(
                f"`connection` returned a {type(database).__name__}, not the sqlite3.Connection of the transaction; "
                "the inbox works only with SQLite files"
            )
        if database not in self._recent:
            self._recent.append(database)
        return database

    def _refuse_uncommitted(self, message: Message, ended: _Ended) -> None:
        """Raise `InvalidRequest` if the id of a message is not committed although the library's block has ended."""
        if not self._is_committed(message, ended):
            raise InvalidRequest(
                f"the library's block ended without an exception but did not commit, so the effect of {message.id!r} "
                "is not in the file: either it is inside another transaction (it must be the outermost), or the "
                "library discarded it because the handler caught an error of the database (in Django, run the "
                "statement that may fail in an `atomic` block of its own)"
            )

    def _is_committed(self, message: Message, ended: _Ended) -> bool:
        # The library may have closed the connection, or it is bound to another thread.
        with suppress(sqlite3.ProgrammingError):
            if not ended.database.in_transaction:
                return is_stored(ended.database, message)
        # Another thread may have taken the connection from a pool, or a transaction around the block is still open.
        if ended.path:
            uri = f"{Path(ended.path).as_uri()}?mode=ro"
            with closing(sqlite3.connect(uri, uri=True, timeout=BUSY_SECONDS)) as database:
                return is_stored(database, message)
        found, _ended = self._in_transaction([], lambda _transaction, found: found.seen(message.queue, message.id))
        return found

    def _refuse_inherited(self) -> None:
        """Raise `InvalidRequest` in a forked child as long as a connection of the parent is open in it."""
        self._inherited = [connection for connection in self._inherited if _is_open(connection)]
        if self._inherited:
            # The library must neither commit nor roll back here: the transaction is the parent's as well.
            raise InvalidRequest(LIBRARY_CONNECTION)


class _Ended(NamedTuple):
    """The connection of a transaction that has ended, and the path of its file (empty where it is in memory)."""

    database: sqlite3.Connection
    path: str


def _path(database: sqlite3.Connection) -> str:
    cursor = database.cursor()
    cursor.row_factory = None  # the library may have set one on its connection
    paths = [path for _seq, name, path in cursor.execute("pragma database_list") if os.fsdecode(name) == "main"]
    return os.fsdecode(paths[0] or "")


def _is_open(connection: sqlite3.Connection) -> bool:
    try:
        return connection.total_changes >= 0
    except sqlite3.ProgrammingError:
        return False
