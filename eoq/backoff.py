"""Pauses between retries, and the queues that wait for their next retry because the daemon refused a message."""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from .errors import (
    EoqError,
    Forbidden,
    IdConflict,
    InvalidRequest,
    MessageTooLarge,
    Overloaded,
    StorageFailed,
    StorageFull,
)

if TYPE_CHECKING:
    import logging  # its import takes several ms, and a client that only sends does not need it

FIRST_PAUSE: Final = 0.1
"""Seconds before the first retry."""
LONGEST_PAUSE: Final = 10.0
"""Seconds between two retries, at most."""
PERMANENT: Final = (IdConflict, InvalidRequest, MessageTooLarge)
"""Refusals of a message that a retry does not change."""
DAEMON_WIDE: Final = (Forbidden, Overloaded, StorageFull, StorageFailed)
"""Refusals that do not depend on the message. Every other refusal that a retry may change concerns one queue."""


def pauses(first: float = FIRST_PAUSE, longest: float = LONGEST_PAUSE, total: float = math.inf) -> Iterator[float]:
    """Yield the pauses between tries, in seconds. They double from ``first`` to ``longest``; ``total`` is their sum."""
    pause = first
    while total > 0:
        yield min(pause, total)
        total -= pause
        pause = min(pause * 2, longest)


@dataclass(slots=True)
class _Failure:
    error: EoqError
    pauses: Iterator[float]
    until: float


class Backoff:
    """The queues that wait for their next retry. The key None means the daemon as a whole.

    Each log line begins with ``name``. The first failure and the recovery are logged; the failures between are not.
    """

    def __init__(self, name: str, log: logging.Logger) -> None:
        self._name = name
        self._log = log
        self._failures: dict[str | None, _Failure] = {}

    def failed(self, queue: str | None, error: EoqError) -> None:
        """Note that a message was refused with ``error``. The pause of its queue begins, longer after each failure."""
        failure = self._failures.get(queue)
        if failure is None:
            failure = self._failures[queue] = _Failure(error, pauses(), 0.0)
            self._log.warning("%s: waiting, since %s", self._name, error)
        failure.error = error
        failure.until = time.monotonic() + next(failure.pauses)

    def succeeded(self, queues: Iterable[str | None]) -> None:
        """End the pauses of these queues: the daemon took a message."""
        for queue in queues:
            if self._failures.pop(queue, None) is not None:
                self._log.info("%s: %s accepts messages again", self._name, queue or "the daemon")

    def is_waiting(self, queue: str | None) -> bool:
        """Return whether the pause of a queue is not over yet."""
        failure = self._failures.get(queue)
        return failure is not None and time.monotonic() < failure.until

    def waiting_queues(self) -> list[str]:
        """Return the queues whose pause is not over yet."""
        return [queue for queue in self._failures if queue is not None and self.is_waiting(queue)]

    def forget_retried(self, left_out: Collection[str] = ()) -> None:
        """Forget the queues whose pause is over, except those in ``left_out``, which were not retried.

        Call it after a round of retries: a queue whose pause is still over then has no message left.
        """
        self._failures = {
            queue: failure for queue, failure in self._failures.items() if queue in left_out or self.is_waiting(queue)
        }

    def errors(self) -> list[EoqError]:
        """Return the last error of each queue that waits, in the order in which they began to wait."""
        return [failure.error for failure in self._failures.values()]

    def seconds_left(self, most: float) -> float:
        """Return the seconds until the first retry is due, ``most`` at most."""
        now = time.monotonic()
        return min([most, *(max(failure.until - now, 0.0) for failure in self._failures.values())])
