"""What a loop logs about its messages, and how it pauses where they all fail alike.

A locked file, a full disk or an absent service fails for every message, and so does a handler with a typing error. The
loop then says so once and pauses between messages, instead of using up the attempts of a whole queue within seconds.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeAlias

from ..errors import EoqError, LeaseLost
from ..message import Delivery
from ..outcomes import Reject, Retry, error_text, is_outage
from .in_flight import Entry

log = logging.getLogger("eoq.worker")

Failures: TypeAlias = list[tuple[Entry[Any], Exception]]
"""Messages whose handling failed, each with its error."""

ALIKE: Final = 10
"""So many failures alike, with none handled in between, are no chance."""
FIRST_PAUSE: Final = 0.25
LONGEST_PAUSE: Final = 30.0
"""Seconds between two messages. The pauses double from the first to the longest."""


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


class FailureLog:
    """The failures of one loop since it last handled a message.

    ``until`` is the monotonic time before which no handler begins; 0 while nothing is wrong. The loop with threads may
    call it in several at once: at worst a line is logged twice.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.until = 0.0
        self._clock = clock
        self._kind: object = None
        self._count = 0
        self._pause = 0.0

    def seconds_left(self) -> float:
        """Return how long the loop is to pause from now on."""
        return max(0.0, self.until - self._clock()) if self.until else 0.0

    def ended(self, entries: Sequence[Entry[Any]], failures: Failures) -> None:
        """Note how the handling of ``entries`` ended, and log the ``failures``."""
        if not failures:
            if self._count:
                self._recover()
            return
        if len(failures) < len(entries):
            self._recover()
        paused = False
        for entry, error in failures:
            paused |= self._failed(entry, error)
        if paused:
            self._pause = min(self._pause * 2 or FIRST_PAUSE, LONGEST_PAUSE)
            self.until = self._clock() + self._pause

    def _failed(self, entry: Entry[Any], error: Exception) -> bool:
        """Note and log one failure. Return whether the loop is to pause."""
        if isinstance(error, Reject | LeaseLost) or (isinstance(error, Retry) and error.delay is not None):
            report(entry, error)  # the handler has decided about this one message, or another worker has it
            return False
        if (kind := _kind(error)) != self._kind:
            self._kind, self._count = kind, 0
        self._count += 1
        if is_outage(error):
            if self._count == 1:
                log.error(
                    "%s: %s: %s; no message causes that, so it counts no attempt; the loop tries again, with pauses of "
                    "up to %g s, and logs it no more until it is over",
                    *(described(entry.message), type(error).__name__, error, LONGEST_PAUSE),
                )
            return True
        if self._count <= ALIKE:
            report(entry, error)
        if self._count == ALIKE:
            log.error(
                "the last %d messages failed alike, and none was handled in between; the loop goes on with pauses of "
                "up to %g s, and logs such failures no more until a message is handled",
                *(ALIKE, LONGEST_PAUSE),
            )
        return self._count >= ALIKE

    def _recover(self) -> None:
        if self.until:
            log.warning("messages are handled again")
        self.until, self._kind, self._count, self._pause = 0.0, None, 0, 0.0


def _kind(error: Exception) -> object:
    """Return what two failures have in common that are alike: the class, and the line that raised it.

    The text may name the message. But for an outage and a `Retry`, which one line of a handler may raise for many
    reasons, the text counts.
    """
    if isinstance(error, Retry) or is_outage(error):
        return type(error), str(error)
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return type(error), trace and (trace.tb_frame.f_code, trace.tb_lineno)
