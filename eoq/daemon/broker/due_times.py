"""Due times: delayed messages become ready when they are due, and messages expire when their ttl has passed."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial
from typing import Final

from ...errors import EoqError
from ...system.boot import boot_id
from ..clock import Alarm, NoticingClock
from ..config.settings import SettingsOf
from ..records import Advanced, End, Shifted
from ..session import Submitter
from ..store.commands import Advance, NoteClock, ShiftTimes
from .events import Events

ADVANCE_BATCH: Final = 500
"""How many messages one step makes ready, or ends, so that no send waits behind a million of them."""
LONGEST_TIMER: Final = 60.0
"""Seconds after which the due times are checked in any case, since the wall clock may have jumped."""
RETRY_SECONDS: Final = 1.0
"""Seconds until a command that the disk refused is tried again."""

log = logging.getLogger("eoq.clock")


class DueTimes:
    """One alarm, for the next message of all queues that is due or expires."""

    def __init__(self, writer: Submitter, clock: NoticingClock, settings: SettingsOf, events: Events) -> None:
        self._writer = writer
        self._clock = clock
        self._settings = settings
        self._events = events
        self._alarm = Alarm(clock, self._advance, LONGEST_TIMER)
        self._stopping = False
        self._note_at = 0.0
        clock.on_jump.append(self._shift)

    def start(self) -> None:
        """Find out when the first delayed message is due, and when the first message expires."""
        self._note_clock(starting=True)
        self._advance()

    def stop(self) -> None:
        """Make no more messages ready."""
        self._stopping = True
        self._alarm.stop()

    def watch(self, moment: float) -> None:
        """Check the due times at ``moment`` of the wall clock: a message is due then, or expires."""
        self._alarm.set(moment)

    def check_again(self) -> None:
        """Check the due times now: the next one may be earlier than the alarm."""
        self._alarm.set(self._clock.wall())

    def ended(self, ends: Sequence[End]) -> None:
        """Announce messages that have ended without a consumer. The next of their groups may be ready, or due."""
        if not ends:
            return
        self._events.ended(ends)
        self._events.room()
        for queue in {end.queue for end in ends}:
            self._events.ready(queue, len(ends))
        self.check_again()

    def _advance(self) -> None:
        def done(outcome: Advanced | EoqError) -> None:
            if isinstance(outcome, EoqError):
                self._alarm.set(self._clock.wall() + RETRY_SECONDS)
                return
            for queue, count in outcome.ready.items():
                self._events.ready(queue, count)
            if outcome.next_at is not None:
                self._alarm.set(outcome.next_at)
            self.ended(outcome.ended)

        if self._clock.monotonic() >= self._note_at:
            self._note_clock(starting=False)
        self._writer.submit(Advance(self._clock.wall(), ADVANCE_BATCH, self._settings), done)

    def _note_clock(self, *, starting: bool) -> None:
        """Store what the clocks show, so that the next daemon can tell whether the wall clock was set meanwhile."""

        def done(outcome: Shifted | EoqError) -> None:
            if isinstance(outcome, Shifted) and outcome.seconds:
                log.warning(
                    "while the daemon was stopped the clock was set by %.0f s; delays and times to live take the time "
                    "that they had left",
                    outcome.seconds,
                )

        self._note_at = self._clock.monotonic() + LONGEST_TIMER
        note = NoteClock(self._clock.wall(), self._clock.elapsed(), boot_id(), starting)
        self._writer.submit(note, done, durable=False)

    def _shift(self, seconds: float) -> None:
        """Move waits and times to live with the wall clock, which was set by ``seconds``."""

        def done(outcome: Shifted | EoqError) -> None:
            if isinstance(outcome, EoqError) and not self._stopping:
                self._clock.call_later(RETRY_SECONDS, partial(self._shift, seconds))

        self._writer.submit(ShiftTimes(seconds, self._clock.wall(), self._clock.elapsed(), boot_id()), done)
        self.check_again()
