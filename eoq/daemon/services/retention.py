"""Retention: it deletes settled records whose retention has passed, old dead letters, queues of which nothing is left,
and expired keys. Then it gives the room back to the disk.

It works in small steps, each behind the requests that arrived meanwhile, so that no send waits for a million deletions.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

from ...errors import EoqError
from ...system.boot import boot_id
from ..broker.due_times import DueTimes
from ..clock import Clock, Timer
from ..config.model import LiveConfig
from ..records import End, Forgotten
from ..session import Submitter
from ..store.commands import DeleteIdleQueues, Forget, NoteClock, OnceForget, Shrink

log = logging.getLogger("eoq.daemon")

STEP_ROWS: Final = 200
"""Rows examined in one step."""
STEP_PAUSE: Final = 0.005
"""Seconds between two steps, where the first has found nothing to delete: a round over millions takes some minutes."""
LONGEST_PAUSE: Final = 600.0
"""Seconds between two rounds, at most."""
SHRINK_AFTER: Final = 5.0
"""Seconds after a message has ended until the file is looked at: it may have room to give back."""
SHRINK_PAGES: Final = 100
"""Pages given back in one step."""
SHRINK_PAUSE: Final = 0.02
"""Seconds between two of these steps, so that they take a part of the time only."""


class Retention:
    """Rounds of deletion over all queues, with pauses between them."""

    def __init__(
        self,
        writer: Submitter,
        clock: Clock,
        config: LiveConfig,
        kept_queues: Callable[[], frozenset[str]],
        due_times: DueTimes,
    ) -> None:
        """``kept_queues`` returns the queues that stay, although nothing is left of them."""
        self._writer = writer
        self._clock = clock
        self._config = config
        self._kept_queues = kept_queues
        self._due_times = due_times
        self._timer: Timer | None = None
        self._shrinking: Timer | None = None
        self._pausing = False
        self._stopped = False

    def start(self) -> None:
        """Begin the first round."""
        self._forget_messages(None, False)
        self._shrink_in(SHRINK_AFTER)

    def stop(self) -> None:
        """Stop after the step that is under way."""
        self._stopped = True
        for timer in (self._timer, self._shrinking):
            if timer is not None:
                timer.cancel()

    def hurry(self) -> None:
        """End the pause, if there is one: a retention may have become shorter."""
        if self._pausing and self._timer is not None and not self._stopped:
            self._timer.cancel()
            self._forget_messages(None, True)

    # ── rounds ──────────────────────────────────────────────────────────────────────────────────────────

    def _forget_messages(self, after: tuple[int, str | None] | None, hurry: bool) -> None:
        self._pausing = False

        def done(outcome: Forgotten | EoqError) -> None:
            if isinstance(outcome, EoqError):
                self._pause()
                return
            for letters in outcome.letters:
                about = {"queue": letters.queue}
                log.warning(
                    "%s: %d dead letters dropped (%s)", letters.queue, letters.number, letters.setting, extra=about
                )
            self._due_times.ended(outcome.ended)
            if outcome.after is None:
                self._delete_queues(0)
            elif not self._stopped:
                # So that the next step runs behind the requests that have arrived meanwhile.
                pause = 0 if outcome.rows else STEP_PAUSE
                self._timer = self._clock.call_later(pause, partial(self._forget_messages, outcome.after, hurry))

        command = Forget(self._clock.wall(), after, STEP_ROWS, self._config.queue, hurry)
        self._writer.submit(command, done, durable=False)

    def _delete_queues(self, after: int) -> None:
        """Delete the queues of which nothing is left, so that names that are used once do not pile up."""

        def done(outcome: Forgotten | EoqError) -> None:
            if not isinstance(outcome, EoqError) and outcome.after is not None and not self._stopped:
                self._timer = self._clock.call_later(0, partial(self._delete_queues, outcome.after[0]))
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
            pause = min(max(self._config.config.shortest_kept / 10, 1.0), LONGEST_PAUSE)
            self._timer = self._clock.call_later(pause, partial(self._forget_messages, None, False))

    # ── the room ────────────────────────────────────────────────────────────────────────────────────────

    def ended(self, _ends: Sequence[End]) -> None:
        """Look at the file soon: messages have ended."""
        if self._shrinking is None:
            self._shrink_in(SHRINK_AFTER)

    def _shrink_in(self, seconds: float) -> None:
        if not self._stopped:
            self._shrinking = self._clock.call_later(seconds, self._shrink)

    def _shrink(self) -> None:
        def done(outcome: int | EoqError) -> None:
            self._shrinking = None
            if isinstance(outcome, EoqError):
                self._shrink_in(SHRINK_AFTER)  # the disk may have room later
            elif outcome:
                self._shrink_in(SHRINK_PAUSE)

        self._writer.submit(Shrink(SHRINK_PAGES), done, durable=False)
