"""The rule by which a loop ends when it has nothing to do. Shared by both loops."""

from __future__ import annotations

import time
from typing import Any

from ..protocol.limits import POLL_SECONDS
from .in_flight import InFlight


class IdleRule:
    """A rule: how long to wait for messages, and whether the loop has been idle for ``seconds`` (None: never end)."""

    def __init__(self, seconds: float | None) -> None:
        self._seconds = seconds
        self._since = time.monotonic()

    @property
    def may_end(self) -> bool:
        """Whether the loop ends by itself at all."""
        return self._seconds is not None

    def wait(self, in_flight: InFlight[Any]) -> float:
        """Return how many seconds the next request for messages is to wait."""
        now = time.monotonic()
        busy = len(in_flight) > 0
        self._since = now if busy else max(self._since, in_flight.ended_at)
        if self._seconds is None:
            return POLL_SECONDS
        # While handlers run, the loop waits for their end: they may make more messages ready, or none.
        return 0.0 if busy else min(POLL_SECONDS, max(self._since + self._seconds - now, 0.0))

    def is_over(self) -> bool:
        """Return whether the loop has been idle for long enough to end."""
        return self._seconds is not None and time.monotonic() >= self._since + self._seconds
