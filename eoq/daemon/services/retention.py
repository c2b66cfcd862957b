"""Retention: it deletes settled records whose retention has passed, queues of which nothing is left, and expired keys.

It works in small steps, each behind the requests that arrived meanwhile, so that no send waits for a million deletions.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Final

from ...errors import EoqError
from ...system.boot import boot_id
from ..clock import Clock, Timer
from ..config.model import LiveConfig
from ..config.settings import resend_within
from ..records import Forgotten
from ..session import Submitter
from ..store.commands import DeleteIdleQueues, Forget, NoteClock, OnceForget

STEP_ROWS: Final = 200
"""Rows deleted in one step."""
LONGEST_PAUSE: Final = 600.0
"""Seconds between two rounds, at most."""


class Retention:
    """Rounds of deletion over all queues, with pauses between them."""

    def __init__(
        self, writer: Submitter, clock: Clock, config: LiveConfig, kept_queues: Callable[[], frozenset[str]]
    ) -> None:
        """``kept_queues`` returns the queues that stay, although nothing is left of them."""
        self._writer = writer
        self._clock = clock
        self._config = config
        self._kept_queues = kept_queues
        self.surely_remembered = resend_within(config.config.shortest_retention)
        """For how many seconds after a first try every id is surely remembered, also of a queue behind a topic.

        A longer retention does not make it longer: it does not bring back the ids that were forgotten before.
        """
        self._timer: Timer | None = None
        self._pausing = False
        self._stopped = False

    def start(self) -> None:
        """Begin the first round."""
        self._forget_messages(0)

    def stop(self) -> None:
        """Stop after the step that is under way."""
        self._stopped = True
        if self._timer is not None:
            self._timer.cancel()

    def hurry(self) -> None:
        """End the pause, if there is one: a retention may have become shorter."""
        shortest = resend_within(self._config.config.shortest_retention)
        self.surely_remembered = min(self.surely_remembered, shortest)
        if self._pausing and self._timer is not None and not self._stopped:
            self._timer.cancel()
            self._forget_messages(0)

    def _forget_messages(self, after: int) -> None:
        self._pausing = False

        def done(outcome: Forgotten | EoqError) -> None:
            if isinstance(outcome, EoqError):
                self._pause()
            elif outcome.after is None:
                self._delete_queues(0)
            elif not self._stopped:
                # So that the next step runs behind the requests that have arrived meanwhile.
                self._timer = self._clock.call_later(0, partial(self._forget_messages, outcome.after))

        self._writer.submit(Forget(self._clock.wall(), after, STEP_ROWS, self._config.queue), done, durable=False)

    def _delete_queues(self, after: int) -> None:
        """Delete the queues of which nothing is left, so that names that are used once do not pile up."""

        def done(outcome: Forgotten | EoqError) -> None:
            if not isinstance(outcome, EoqError) and outcome.after is not None and not self._stopped:
                self._timer = self._clock.call_later(0, partial(self._delete_queues, outcome.after))
            elif not self._stopped:
                self._forget_keys()

        self._writer.submit(DeleteIdleQueues(after, STEP_ROWS, self._kept_queues()), done, durable=False)

    def _forget_keys(self) -> None:
        def done(outcome: int | EoqError) -> None:
            if outcome == STEP_ROWS and not self._stopped:
                self._timer = self._clock.call_later(0, self._forget_keys)
            else:
                self._pause()

        self._writer.submit(OnceForget(self._clock.wall(), STEP_ROWS), done, durable=False)

    def _pause(self) -> None:
        if not self._stopped:
            # What passed until here counts for retention, even if the machine is restarted. See `ClockNotes`.
            note = NoteClock(self._clock.wall(), self._clock.elapsed(), boot_id(), starting=False)
            self._writer.submit(note, lambda _: None, durable=False)
            self._pausing = True
            pause = min(max(self._config.config.shortest_retention / 10, 1.0), LONGEST_PAUSE)
            self._timer = self._clock.call_later(pause, partial(self._forget_messages, 0))
