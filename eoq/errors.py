"""Every error of eoq: its code on the wire, and the exit status of a command that ends with it.

The text of an error says what happened, to what, and what to do next. No other file invents codes or statuses.
"""

from __future__ import annotations

TYPE_CHECKING = False  # without an import of `typing`, which takes milliseconds
if TYPE_CHECKING:
    from typing import ClassVar


class EoqError(Exception):
    """The base of every error of eoq.

    ``code`` is the stable name of the kind of error, as it travels on the wire. ``exit_status`` is the exit status of
    a command that ends with it.
    """

    code: ClassVar[str] = "internal_error"
    exit_status: ClassVar[int] = 70


class Unavailable(EoqError):
    """The daemon cannot be reached, or it went away and did not come back in time.

    ``ids`` are the ids of the messages that were sent without an answer. They may be stored or not: repeat them with
    the same ids. It is empty where nothing was sent.
    """

    code = "unavailable"
    exit_status = 69
    ids: tuple[str, ...] = ()


class InvalidRequest(EoqError):
    """The request is malformed or out of bounds. Repeating it unchanged cannot succeed."""

    code = "invalid_request"
    exit_status = 65


class IdConflict(EoqError):
    """The id, key or name is already in use for something else. Nothing was changed.

    The id of a message is stored in this queue with other content, the key of `Client.once` has another fingerprint, or
    the name of a schedule has another definition.
    """

    code = "id_conflict"
    exit_status = 65


class LeaseLost(EoqError):
    """The lease of a receipt has ended, so nothing was changed under it.

    The message is delivered again, or already was. Go on with the next one. `Client.once` raises this if another caller
    has taken the key.
    """

    code = "lease_lost"
    exit_status = 65


class MessageTooLarge(EoqError):
    """A body, a result or a request is over its limit. Nothing was stored."""

    code = "message_too_large"
    exit_status = 65


class NotFound(EoqError):
    """There is no such queue, message, binding or schedule."""

    code = "not_found"
    exit_status = 1


class QueueFull(EoqError):
    """A limit on stored messages, queues, bindings or schedules is reached. Nothing was stored; try again later."""

    code = "queue_full"
    exit_status = 75


class TooLate(EoqError):
    """The moment until which a message was to be stored (``not_after``) has passed. Nothing was stored by this request.

    An earlier try may have stored the message, and the daemon may have forgotten its id since.
    """

    code = "too_late"
    exit_status = 65


class StorageFull(EoqError):
    """The disk is full. Nothing was stored, and all that was confirmed stays. Free space and try again."""

    code = "storage_full"
    exit_status = 75


class StorageFailed(EoqError):
    """The daemon's database could not be read or written. All that was confirmed before stays."""

    code = "storage_failed"
    exit_status = 75


class Overloaded(EoqError):
    """A limit on connections or requests is reached, or another caller still runs a key of `once`. Try again later."""

    code = "overloaded"
    exit_status = 75


class Forbidden(EoqError):
    """This user may not do this: the socket or the file belongs to another user."""

    code = "forbidden"
    exit_status = 77


_KINDS: dict[str, type[EoqError]] = {kind.code: kind for kind in EoqError.__subclasses__()}


def from_wire(code: str, message: str) -> EoqError:
    """Return the error that a reply names. A code that this version does not know becomes a plain `EoqError`."""
    return _KINDS.get(code, EoqError)(message)
