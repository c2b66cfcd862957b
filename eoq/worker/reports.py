"""What the loops log about their messages."""

from __future__ import annotations

import logging
from typing import Any

from ..errors import EoqError, LeaseLost
from ..message import Delivery
from ..outcomes import Reject, Retry, error_text
from .in_flight import Entry

log = logging.getLogger("eoq.worker")


def described(message: Delivery) -> str:
    """Return a message as a line of the log names it."""
    return f"message {message.id!r} of {message.queue!r}"


def report(entry: Entry[Any], error: Exception) -> None:
    """Log how a handler failed, or the settling of its message."""
    name = described(entry.message)
    if isinstance(error, Reject):
        log.warning("%s: rejected: %s", name, error)
    elif isinstance(error, Retry):
        log.warning("%s: to be tried again: %s", name, error)
    elif isinstance(error, LeaseLost) and entry.lost:
        # Without a traceback: the message is delivered again, and an inbox then finds it processed.
        log.warning("%s: its lease was lost before it was settled; it is delivered again", name)
    elif isinstance(error, LeaseLost) and entry.overdue:
        log.warning("%s: its handler ended after its timeout; the message was given back before", name)
    elif isinstance(error, LeaseLost) and entry.settled:
        pass  # the error is about another message of its batch
    elif isinstance(error, EoqError):
        log.error("%s: %s", name, error)
    else:
        log.error("%s: %s", name, error_text(error), exc_info=error if error.__traceback__ else None)
