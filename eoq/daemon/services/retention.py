"""Forgetting: settled records whose retention is over, and keys of the dedup service that have expired.

In small steps, each behind what came meanwhile, so that no send waits for a million deletions.
"""

from __future__ import annotations

from functools import partial
from typing import Final

from ...errors import EoqError
from ..clock import Clock, Timer
from ..config.model import LiveConfig
from ..records import Forgotten
from ..session import Submitter
from ..store.commands import Forget, OnceForget

STEP_ROWS: Final = 200
"""Rows dropped in one step."""
LONGEST_PAUSE: Final = 600.0
"""Seconds between two rounds."""


class Retention:
    """Goes round all queues now and then."""

    def __init__(self, writer: Submitter, clock: Clock, current: LiveConfig) -> None:
        self._writer = writer
        self._clock = clock
        self._current = current
        self._timer: Timer | None = None
        self._pausing = False
        self._stopped = False

    def start(self) -> None:
        """Begins the first round."""
        self._messages(0)

    def stop(self) -> None:
        """Ends with the step that is under way."""
        self._stopped = True
        if self._timer is not None:
            self._timer.cancel()

    def hurry(self) -> None:
        """Ends the pause, if it is one: some retention may be shorter now."""
        if self._pausing and self._timer is not None and not self._stopped:
            self._timer.cancel()
            self._messages(0)

    def _messages(self, after: int) -> None:
        self._pausing = False

        def done(outcome: Forgotten | EoqError) -> None:
            if isinstance(outcome, EoqError):
                self._pause()
            elif outcome.after is None:
                self._keys()
            elif not self._stopped:
                # Behind what has arrived meanwhile.
                self._timer = self._clock.call_later(0, partial(self._messages, outcome.after))

        self._writer.submit(Forget(self._clock.wall(), after, STEP_ROWS, self._current.queue), done, durable=False)

    def _keys(self) -> None:
        def done(outcome: int | EoqError) -> None:
            if outcome == STEP_ROWS and not self._stopped:
                self._timer = self._clock.call_later(0, self._keys)
            else:
                self._pause()

        self._writer.submit(OnceForget(self._clock.wall(), STEP_ROWS), done, durable=False)

    def _pause(self) -> None:
        if not self._stopped:
            self._pausing = True
            pause = min(max(self._current.config.shortest_retention / 10, 1.0), LONGEST_PAUSE)
            self._timer = self._clock.call_later(pause, partial(self._messages, 0))
