"""The deliveries that an inbox processes at this moment: nobody may settle them before its transaction has committed.

A handler that acks its message inside the transaction loses the effect if the commit then fails.
"""

from __future__ import annotations

from threading import get_ident
from typing import Final

from ..errors import InvalidRequest

ANY_THREAD: Final = 0
"""In place of the identity of a thread: the handler runs as a task, which may use any."""
PROCESSED: Final[dict[str, int]] = {}
"""The receipts in open transactions of inboxes, each with the thread of the handlers. A time-out of a worker, which
runs in another thread, may give a message back."""


def owner() -> int:
    """Return the value of `PROCESSED` for a handler that runs in the calling thread."""
    return get_ident()


def async_owner() -> int:
    """Return the value of `PROCESSED` for a handler that runs as a task."""
    return ANY_THREAD


def refuse_unsettled(receipt: str) -> None:
    """Raise `InvalidRequest` if a handler tries to settle a message in the transaction of an inbox."""
    thread = PROCESSED.get(receipt)
    if thread is not None and thread in (ANY_THREAD, get_ident()):
        raise InvalidRequest(
            "the inbox settles this message after its transaction has committed, so a handler cannot settle it: "
            "return the result to ack it, or raise `Reject` or `Retry`; to send messages with the effect, use `Outbox`"
        )
