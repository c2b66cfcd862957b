"""What the loops of both workers share: their times and bounds, what they log, and the signals that stop them."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

from ..errors import EoqError, IdConflict, InvalidRequest, LeaseLost, MessageTooLarge, NotFound, QueueFull
from ..outcomes import Reject, Retry, error_text
from ..protocol.limits import MAX_LEASE
from .in_flight import Entry

log = logging.getLogger("eoq.worker.blocking")

BEATS: Final = 3
"""How often a lease is extended within its length: two beats may be late before it ends."""
RECHECK_SECONDS: Final = 1.0
"""How soon a loop that ends when the queue is empty looks again while its own handlers run."""
STOP_SECONDS: Final = 2.0
"""How long the end of the loop waits for a daemon that is asked to take back what waited here."""
LAST_SECONDS: Final = 0.1
"""How long the end of the loop waits for what was delivered meanwhile to be given back. Mostly there is nothing."""
UNCONFIRMED: Final = 32
"""Acks that are under way while the next message is handled: so many share one commit of the daemon's."""
OF_THE_MESSAGE: Final = (LeaseLost, MessageTooLarge, InvalidRequest, IdConflict, QueueFull, NotFound)
"""Errors of settling that concern one message; any other ends the loop."""


def check_arguments(
    concurrency: int, prefetch: int, lease: float | None, timeout: float | None, idle: float | None
) -> None:
    """Raises `InvalidRequest` for what is out of bounds."""
    if concurrency < 1 or prefetch < 0:
        raise InvalidRequest(f"concurrency is 1 or more and prefetch 0 or more, not {concurrency!r} and {prefetch!r}")
    if lease is not None and not 0 < lease <= MAX_LEASE:
        raise InvalidRequest(f"a lease has up to {MAX_LEASE:,.0f} seconds, and not {lease!r}")
    if timeout is not None and not timeout > 0:
        raise InvalidRequest(f"a timeout is more than 0 seconds, and not {timeout!r}")
    if idle is not None and not idle >= 0:
        raise InvalidRequest(f"idle is 0 or more seconds, and not {idle!r}")


def check_batch(batch: int, inbox: object) -> None:
    """Raises `InvalidRequest` for a batch that there cannot be."""
    if batch < 1 or (batch > 1 and inbox is None):
        raise InvalidRequest(f"batch is 1, or more with an inbox, and not {batch!r}")
    if batch > 1 and not hasattr(inbox, "process_many"):
        raise InvalidRequest(f"a {type(inbox).__name__} processes one message at a time; leave batch at 1")


def described(message: Any) -> str:
    """A message in a line of the log."""
    return f"message {message.id!r} of {message.queue!r}"


def tell(entry: Entry[Any], error: Exception) -> None:
    """Logs how a handler, or the settling behind it, failed."""
    what = described(entry.message)
    if isinstance(error, Reject):
        log.warning("%s: rejected: %s", what, error)
    elif isinstance(error, Retry):
        log.warning("%s: to be tried again: %s", what, error)
    elif isinstance(error, LeaseLost) and entry.lost:
        # Knowingly no more than a line: the message comes again, and with an inbox it is found processed.
        log.warning("%s: its lease was lost before it was settled; it is delivered again", what)
    elif isinstance(error, LeaseLost) and entry.overdue:
        log.warning("%s: its handler has ended after its time; it was given back before", what)
    elif isinstance(error, LeaseLost) and entry.settled:
        pass  # another one's of its batch
    elif isinstance(error, EoqError):
        log.error("%s: %s", what, error)
    else:
        log.error("%s: %s", what, error_text(error), exc_info=error if error.__traceback__ else None)


@contextmanager
def on_signals(stop: Callable[[], object]) -> Iterator[None]:
    """Calls ``stop`` at the first SIGTERM or SIGINT, in the main thread; the next one does what it did before.

    One that is ignored (SIGINT, in a shell's background job) stays so.
    """
    previous: dict[int, Any] = {}

    def restore() -> None:
        while previous:
            signal.signal(*previous.popitem())

    def first(_number: int, _frame: object) -> None:
        restore()
        stop()

    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGINT):
            if signal.getsignal(number) not in (None, signal.SIG_IGN):
                previous[number] = signal.signal(number, first)
    try:
        yield
    finally:
        restore()
