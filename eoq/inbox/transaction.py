"""One transaction on the inbox's tables: what all inboxes share.

`Inbox` calls it, `AsyncInbox` runs it on the thread of its connection, and `GuestInbox` uses it inside a transaction
of another library. For a message that is found no handler runs: only its ``seq`` and its time are raised to those of
the new delivery. ``pruning.py`` says which rows may be deleted.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from itertools import chain
from threading import get_ident
from typing import Any, Final, TypeVar

from ..errors import InvalidRequest
from ..message import Delivery
from ..outcomes import Reject, note_lock
from ..protocol.unsettled import ANY_THREAD, PROCESSED
from ..protocol.validation import encode_result
from ..system.sqlite import DURABLE
from . import sweeping
from .committed import Disk, FileIdentity, Place
from .guard import TransactionGuard
from .rules.effects import Effect, Key, digest_of, result_of, too_late
from .rules.pruning import Pruning, Stream
from .tables import create, find, insert, is_found, lock, note_redeliveries, rows

T = TypeVar("T")

_EXTRA: Final = 3
"""``pragma synchronous`` as a number: the value that `DURABLE` sets."""
_LEGACY: Final = -1
"""`sqlite3.LEGACY_TRANSACTION_CONTROL` of Python 3.12: in this mode Python begins a transaction before a write."""

# The comment makes these texts different from a handler's. Otherwise a handler's `commit` could be a statement that is
# in the connection's cache, prepared while it was allowed, and would pass the guard.
_BEGIN: Final = "begin immediate /* eoq inbox */"
_COMMIT: Final = "commit /* eoq inbox */"
_ROLLBACK: Final = "rollback /* eoq inbox */"


class Processed:
    """The processed messages in the file of one SQLite connection, and at most one transaction that adds to them.

    Call `begin`. Then for each message call `was_processed`. If it was not, call `savepoint`, the handler and `accept`.
    At the end call `finish`, or `rollback` after an error. Raises the errors of `sqlite3` as they are, and
    `InvalidRequest` for what a caller or a handler may not do.

    ``owned`` says that the inbox has opened the connection, so that its settings need not be restored.
    ``in_tasks`` says that handlers do not run in the thread that calls these methods.
    """

    def __init__(
        self,
        database: sqlite3.Connection,
        pruning: Pruning,
        clock: Callable[[], float],
        *,
        owned: bool,
        disk: Disk,
        in_tasks: bool = False,
    ) -> None:
        self._database = database
        self._pruning = pruning
        self._clock = clock
        self._owned = owned
        self._disk = disk
        self.file = FileIdentity("")
        """The file of an inbox that makes its own transactions."""
        self._began = False
        """Whether there is something to roll back or to restore."""
        self._joined = False
        self._restore_level = False
        """Whether the isolation level of a joined connection is to be None again after the handler."""
        self._guard = TransactionGuard(database)
        self._isolation_level = database.isolation_level
        self._autocommit = _LEGACY
        self._synchronous = _EXTRA
        self._results: dict[Key, Effect] = {}
        self._new: list[Delivery] = []
        self._again: list[Delivery] = []
        self._in_tasks = in_tasks
        self._receipts: list[str] = []
        """The deliveries that cannot be settled now."""
        if owned:
            self._guard.install()

    def create(self) -> None:
        """Create the tables if they are missing, in a transaction of its own."""
        self.file = FileIdentity(Place.of(self._database).path)
        self.transaction((), partial(create, self._database))

    # ── the transaction ─────────────────────────────────────────────────────────────────────────────────

    def transaction(self, messages: Sequence[Delivery], work: Callable[[], T]) -> T:
        """Call `begin`, ``work``, and `finish`, or `rollback` after an exception. Return what ``work`` returned."""
        self.refuse_open_transaction()  # outside: it may be the open transaction of a handler that calls this
        try:
            try:
                self.begin(messages)
                result = work()
                self.finish()
            except BaseException as error:
                self.rollback(error)
                raise
        except BaseException:
            # Ctrl-C may have interrupted the rollback at any of its lines. It is safe to repeat.
            self.rollback()
            raise
        return result

    def begin(self, messages: Sequence[Delivery] = ()) -> None:
        """Begin a transaction that may process ``messages``, and find those that were processed before.

        The caller calls `rollback` if this raises.
        """
        self.refuse_open_transaction()
        self._disk.check()
        if not self._owned:
            self._isolation_level = self._database.isolation_level
            self._autocommit = _autocommit(self._database)
            ((self._synchronous,),) = rows(self._database, "pragma synchronous", ())
        self._began = True
        self._refuse_settling(messages)
        if not self._owned:
            self._guard.install()
            if self._synchronous < _EXTRA:
                self._database.execute(DURABLE)
        # Not in autocommit mode. If a statement of a handler undoes the transaction (`insert or rollback`), the
        # next statement that writes would then be committed at once. In this mode Python begins a transaction
        # first, which the guard refuses.
        if self._autocommit != _LEGACY:
            _set_autocommit(self._database, _LEGACY)
        if self._database.isolation_level is None:
            self._database.isolation_level = "IMMEDIATE"
        self._database.execute(_BEGIN)
        self._results = find(self._database, messages)

    def join(self, messages: Sequence[Delivery]) -> None:
        """Do what `begin` does inside a transaction of the caller, who ends it. Begin it if that was not done yet."""
        if _autocommit(self._database) != _LEGACY:
            raise InvalidRequest(
                "the library's connection was made with `autocommit=True` or `False`, so that a write after a failed "
                "statement could be committed without the message's id: leave `autocommit` at its default"
            )
        self._disk.check()
        self._began = self._joined = self._guard.may_roll_back = True
        self._refuse_settling(messages)
        self._guard.install()
        if not self._database.in_transaction:
            # Immediate, because a transaction that begins by reading cannot write after another one has written.
            self._database.execute(_BEGIN)
        lock(self._database)  # Django, for one, begins its transactions `deferred`
        self._results = find(self._database, messages)

    def _refuse_settling(self, messages: Sequence[Delivery]) -> None:
        thread = ANY_THREAD if self._in_tasks else get_ident()
        for message in messages:
            # Another inbox may process the message already, and call this one in its handler.
            if message.receipt not in PROCESSED:
                self._receipts.append(message.receipt)
                PROCESSED[message.receipt] = thread

    def finish(self) -> None:
        """Store what was accepted, prune if a step is due, and commit a transaction of `begin`."""
        now = self._clock()
        date = sweeping.date(self._database, self._pruning, now)
        insert(self._database, self._new, self._results, date)
        note_redeliveries(self._database, self._again, date)
        sweeping.note(self._database, self._pruning, chain(self._new, self._again), now)
        if not self._joined:
            self._database.execute(_COMMIT)
        self._reset()
        if not self._joined:
            self.file.check()

    def rollback(self, error: BaseException | None = None) -> None:
        """Roll back the transaction of `begin` or `join`, if it began and has not ended. ``error`` is the reason."""
        if error is not None:
            if self._guard.active:
                note_lock(error)
            self._disk.note(error, self._database)
        if self._restore_level:
            self._restore_isolation_level()
        self._guard.active = False
        if not self._began:
            return
        try:
            # Also a joined transaction: its library may no longer know of it, and would return it open to a pool.
            if self._database.in_transaction:
                self._database.execute(_ROLLBACK)
        finally:
            if not self._is_in_transaction():
                self._reset()

    def abandon(self) -> None:
        """Forget a transaction whose connection was closed meanwhile, which has rolled it back."""
        self._release_receipts()
        self._restore_level = self._guard.active = self._began = False

    def _is_in_transaction(self) -> bool:
        try:
            return self._database.in_transaction
        except sqlite3.ProgrammingError:
            return False  # the handler has closed the connection

    def _release_receipts(self) -> None:
        for receipt in self._receipts:
            PROCESSED.pop(receipt, None)
        self._receipts.clear()
        self._results.clear()
        self._new.clear()
        self._again.clear()

    def _reset(self) -> None:
        self._release_receipts()
        if not self._owned:
            self._guard.uninstall()
            # Setting the isolation level would commit an open transaction.
            if not self._joined and not self._database.in_transaction:
                self._database.isolation_level = self._isolation_level
                if self._autocommit != _LEGACY:
                    _set_autocommit(self._database, self._autocommit)
                if self._synchronous < _EXTRA:
                    self._database.execute(f"pragma synchronous = {self._synchronous}")
        self._began = False

    def refuse_open_transaction(self) -> None:
        """Raise `InvalidRequest` if the application has a transaction open on its connection."""
        if self._database.in_transaction:
            raise InvalidRequest(
                "the connection has a transaction open, so the inbox cannot begin its own: commit or roll back first "
                "(a connection made with autocommit=False always has one; use the default, or isolation_level=None)"
            )

    # ── messages ────────────────────────────────────────────────────────────────────────────────────────

    def was_processed(self, message: Delivery) -> bool:
        """Return whether a message was processed before, perhaps in this transaction. `finish` notes the redelivery."""
        if (message.queue, message.id) not in self._results:
            return False
        self._again.append(message)
        return True

    def is_old(self, message: Delivery) -> bool:
        """Return whether `refuse_late` has to be called for a delivery."""
        return self._pruning.is_old(message, self._clock())

    def refuse_late(self, message: Delivery) -> None:
        """Raise `LeaseLost` for a delivery that is so old that its id, which was not found, may have been pruned."""
        now = self._clock()
        if self._pruning.is_old(message, now):
            stored = sweeping.stored(self._database, (message.source, message.queue))
            if self._pruning.is_late(message, stored, now):
                raise too_late(message, self._pruning.keep(message.retention))

    def result(self, message: Delivery) -> bytes | None:
        """Return the result of a message that `was_processed`.

        Raises `Reject` if the message has other content than the one that was processed under this id: the daemon has
        forgotten that one. To ack it with the old result would lose it.
        """
        return result_of(message, self._results[message.queue, message.id])

    def result_or_refusal(self, message: Delivery) -> bytes | Reject | None:
        """Return the result of a message that `was_processed`, or the `Reject` that `result` raises."""
        try:
            return self.result(message)
        except Reject as refusal:
            return refusal

    def accept(self, message: Delivery, returned: object) -> bytes | None:
        """Make what a handler returned the message's result. Return the result as bytes.

        Raises `ResultRefused` or `ResultTooLarge` if it cannot be a result: after the commit the message could not be
        acked with it. Raises `InvalidRequest` if the handler has ended the transaction.
        """
        if self._restore_level:
            self._restore_isolation_level()
        self._guard.active = False
        # In a joined transaction the refusal of a commit is enough: the library that tried it believes that the
        # transaction has ended, and will not commit it later.
        if not self._database.in_transaction or (self._joined and self._guard.refused):
            raise InvalidRequest(
                f"the handler of {message.id!r} ended the transaction; leave commit and rollback to the inbox"
            )
        result = encode_result(returned)
        try:
            self._database.execute("release eoq_message")
        except sqlite3.OperationalError as error:
            if "in progress" in str(error):
                raise InvalidRequest(
                    f"the handler of {message.id!r} has left a statement unfinished (such as `insert … returning`): "
                    "read all its rows, or close its cursor"
                ) from error
            raise InvalidRequest(
                f"a statement of the handler of {message.id!r} failed and rolled back the whole transaction (a full "
                "disk, or `on conflict rollback`), and the handler ignored the error; let it raise"
            ) from error
        self._results[message.queue, message.id] = Effect(result, digest_of(message))
        self._new.append(message)
        return result

    def seen(self, queue: str, id: str) -> bool:
        """Return whether the file has the id of a processed message."""
        return is_found(self._database, queue, id)

    # ── handlers ────────────────────────────────────────────────────────────────────────────────────────

    def savepoint(self) -> None:
        """Set a savepoint before a handler runs. From now on until `accept` the transaction cannot be ended.

        The savepoint shows later whether the transaction is still the same. It also lets a failing handler undo only
        its own writes.
        """
        self._database.execute("savepoint eoq_message")
        self._guard.active = True
        if self._joined and self._database.isolation_level is None:
            self._restore_level = True
            self._database.isolation_level = "IMMEDIATE"  # see `begin`

    def _restore_isolation_level(self) -> None:
        # Python also commits here, which the guard has to refuse. The level is set all the same.
        refused, self._guard.active = self._guard.refused, True
        with suppress(sqlite3.DatabaseError):
            self._database.isolation_level = None
        self._restore_level, self._guard.refused = False, refused

    def rollback_to_savepoint(self, error: Exception) -> None:
        """Undo the writes of a handler that raised ``error``. Raises it if the whole transaction was rolled back."""
        if self._guard.active:
            note_lock(error)
        self._guard.active = False
        if not self._database.in_transaction:
            raise error
        self._database.execute("rollback to eoq_message")
        self._database.execute("release eoq_message")

    # ── pruning ─────────────────────────────────────────────────────────────────────────────────────────

    def streams(self) -> list[Stream]:
        """Return the queues whose watermark is known, so that their ids can be pruned. See `sweeping.streams`."""
        return sweeping.streams(self._database, self._pruning)

    def prune(self, stream: Stream, from_start: bool) -> tuple[int, bool]:
        """Make one step of pruning inside the open transaction. See `sweeping.step`."""
        return sweeping.step(self._database, self._pruning, stream, self._clock(), from_start=from_start)


def refuse_foreign_keys(refused: bool) -> None:
    """Raise `InvalidRequest` if an inbox shall enforce foreign keys on a connection that it has not opened."""
    if refused:
        raise InvalidRequest(
            "`foreign_keys` is for an inbox that opens the file itself; on a connection of your own, run "
            "`pragma foreign_keys = on` right after you open it"
        )


def _autocommit(database: sqlite3.Connection) -> int:
    """Return the attribute that Python 3.12 has added to connections."""
    return getattr(database, "autocommit", _LEGACY)


def _set_autocommit(database: Any, value: int) -> None:
    database.autocommit = value if value == _LEGACY else bool(value)
