"""What a handler may raise to say more than that it failed, and what each exception does to its message.

These exceptions never travel on the wire: a handler raises them, and the inbox or the worker acts on them.
"""

from __future__ import annotations

import errno
from typing import Final

from .errors import InvalidRequest, MessageTooLarge, Overloaded, StorageFailed, StorageFull, Unavailable
from .message import MAX_DELAY, AsyncMessage, Message


class Reject(Exception):
    """Raised by a handler: its message can never be handled. It becomes a dead letter, kept with ``reason``."""

    def __init__(self, reason: object = None) -> None:
        """``reason`` is a text, or anything with a text, such as an exception."""
        self.reason = None if reason is None else _text(reason)
        super().__init__(self.reason or "rejected")


class Retry(Exception):
    """Raised by a handler: its message is to be tried again after ``delay`` seconds. ``reason`` is kept with it.

    Without a delay, the daemon waits a little longer after each attempt, as after any other exception. Raises
    `InvalidRequest` for a delay out of bounds.
    """

    def __init__(self, delay: float | None = None, reason: object = None) -> None:
        if delay is not None and not 0 <= delay <= MAX_DELAY:
            raise InvalidRequest(f"a retry can wait 0 to {MAX_DELAY:,.0f} seconds, and not {delay!r}")
        self.delay = delay
        self.reason = None if reason is None else _text(reason)
        super().__init__(self.reason or "retried by its handler")


class ResultRefused(InvalidRequest):
    """Raised for a handler's result that is neither bytes, text nor JSON. Its message becomes a dead letter."""


class ResultTooLarge(MessageTooLarge):
    """Raised for a handler's result that has too many bytes. Its message becomes a dead letter."""


_OUTAGES: Final = (Unavailable, StorageFull, StorageFailed, Overloaded)
_SQLITE_OUTAGES: Final = frozenset({5, 7, 8, 10, 13, 15})
"""Primary codes of SQLite: busy, out of memory, read-only, input or output failed, full, locking protocol. By number,
since the import of sqlite3 takes long."""
_SQLITE_BUSY: Final = 5
_HANDLERS_LOCK: Final = (
    "eoq: while a handler runs, the inbox's transaction holds the lock of the application's file; write to that file "
    "over the connection that the handler gets, and not over another one"
)
"""Is noted in an error by `note_lock`."""
_POSTGRES_OUTAGES: Final = ("08", "53", "57P", "58", "25006", "55P03")
"""How the codes of PostgreSQL (SQLSTATE) begin: connection lost, disk or memory full, shutdown, input or output failed,
read-only, locked."""
_SYSTEM_OUTAGES: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EMFILE, errno.ENFILE})


def is_outage(error: BaseException) -> bool:
    """Return whether ``error`` is no fault of a message: a file is locked, a disk is full or fails, a daemon is absent.

    The message is then given back without counting an attempt. An error by which a library replaces that of the driver
    is recognised, if it is called ``OperationalError`` or ``InternalError``.
    """
    if _is_handlers_lock(error):
        return False
    code = getattr(error, "sqlite_errorcode", None)
    if isinstance(code, int):
        return code & 0xFF in _SQLITE_OUTAGES
    if hasattr(error, "sqlstate"):  # without a code it is the driver's own error: there is no connection
        state = error.sqlstate
        return state.startswith(_POSTGRES_OUTAGES) if isinstance(state, str) else _is_operational(error)
    if isinstance(error, OSError):
        return error.errno in _SYSTEM_OUTAGES
    if (replaced := _replaced(error)) is not None:
        return is_outage(replaced)
    return isinstance(error, _OUTAGES)


def note_lock(error: BaseException) -> None:
    """Note that a handler raised ``error`` inside an inbox's transaction, if it says that a file is locked.

    That is most likely the lock of this very transaction, and would be so each time. So it counts an attempt.
    """
    replaced = _replaced(error)
    code = getattr(error if replaced is None else replaced, "sqlite_errorcode", None)
    if isinstance(code, int) and code & 0xFF == _SQLITE_BUSY and not _is_handlers_lock(error):
        error.add_note(_HANDLERS_LOCK)


def _is_handlers_lock(error: BaseException) -> bool:
    return _HANDLERS_LOCK in getattr(error, "__notes__", ())


def _replaced(error: BaseException) -> BaseException | None:
    """Return the error that a library has replaced by its own, or None."""
    if type(error).__name__ not in ("OperationalError", "InternalError") or hasattr(error, "sqlite_errorcode"):
        return None
    return error.__cause__ or error.__context__


def _is_operational(error: BaseException) -> bool:
    return any(kind.__name__ == "OperationalError" for kind in type(error).__mro__)


def error_text(error: BaseException) -> str:
    """Return an exception as it is kept with its message: ``Type: text``."""
    text = f"{type(error).__name__}: {_text(error)}"
    return f"{text} ({_HANDLERS_LOCK})" if _is_handlers_lock(error) else text


def _text(value: object) -> str:
    try:
        return str(value)
    except Exception as error:  # noqa: BLE001 # a broken __str__ must not keep the message from being settled
        return f"(its text raised {type(error).__name__})"


def give_back(message: Message, error: BaseException) -> None:
    """Reject, release or nack ``message``, depending on what its handler raised. Raises what that raises."""
    if isinstance(error, Reject):
        message.reject(error.reason)
    elif isinstance(error, ResultRefused | ResultTooLarge):
        message.reject(str(error))  # another run would give such a result again
    elif is_outage(error):
        message.release()
    else:
        message.nack(*_retry(error))


async def give_back_async(message: AsyncMessage, error: BaseException) -> None:
    """Reject, release or nack ``message``, depending on what its handler raised. Raises what that raises."""
    if isinstance(error, Reject):
        await message.reject(error.reason)
    elif isinstance(error, ResultRefused | ResultTooLarge):
        await message.reject(str(error))  # another run would give such a result again
    elif is_outage(error):
        await message.release()
    else:
        await message.nack(*_retry(error))


def _retry(error: BaseException) -> tuple[float | None, str | None]:
    """Return the delay and the error text of the nack after ``error``. A delay of None leaves it to the daemon."""
    return (error.delay, error.reason) if isinstance(error, Retry) else (None, error_text(error))
