"""The counts of the queues are written to the file soon after messages were stored or have ended.

Where other transactions follow, they write the counts. This timer writes them where nothing follows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from ....errors import EoqError
from ...clock import Clock, Timer
from ...records import End
from ...session import Submitter
from ...store.commands import StoreTotals

PAUSE: Final = 1.0
"""Seconds from the first change until the counts are written."""


class TotalsService:
    """Writes the counts, a second after the first change."""

    def __init__(self, writer: Submitter, clock: Clock) -> None:
        self._writer = writer
        self._clock = clock
        self._timer: Timer | None = None

    def stored(self, _queue: str, _count: int) -> None:
        """Write soon: messages were stored."""
        if self._timer is None:
            self._timer = self._clock.call_later(PAUSE, self._write)

    def ended(self, _ends: Sequence[End]) -> None:
        """Write soon: messages have ended."""
        if self._timer is None:
            self._timer = self._clock.call_later(PAUSE, self._write)

    def stop(self) -> None:
        """Write no more. The end of the life writes what is left."""
        if self._timer is not None:
            self._timer.cancel()

    def _write(self) -> None:
        def done(outcome: bool | EoqError) -> None:
            self._timer = None  # after a failure, the next change tries again
            if outcome is True:
                self._timer = self._clock.call_later(PAUSE, self._write)

        self._writer.submit(StoreTotals(), done, durable=False)
