"""A clock and a source of chance that a test owns: time stands still unless the test moves it.

All moments and lengths are multiples of 1/64 s, so that sums of them are exact and a timer fires at its very moment.
"""

from __future__ import annotations

import random
from collections.abc import Callable


class ManualTimer:
    """A timer of `ManualClock`."""

    def __init__(self, due: float, callback: Callable[[], None]) -> None:
        self.due = due
        self.callback = callback
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


class ManualClock:
    """An `eoq.daemon.clock.Clock` that stands still until it is told to move."""

    def __init__(self) -> None:
        self._monotonic = 1000.0
        self._wall = 1_700_000_000.0
        self._timers: list[ManualTimer] = []
        self.creeps = 0.0
        """Seconds that pass each time it is read."""

    def wall(self) -> float:
        return self._wall

    def monotonic(self) -> float:
        moment = self._monotonic
        self._monotonic += self.creeps
        return moment

    def elapsed(self) -> float:
        return self._monotonic

    def call_later(self, seconds: float, callback: Callable[[], None]) -> ManualTimer:
        timer = ManualTimer(self._monotonic + seconds, callback)
        self._timers.append(timer)
        return timer

    def next_due(self) -> float | None:
        """Return when the next timer fires, or None where there is none."""
        self._timers = [timer for timer in self._timers if not timer.cancelled]
        return min((timer.due for timer in self._timers), default=None)

    @property
    def waits(self) -> bool:
        """Whether a timer is due that has not fired."""
        due = self.next_due()
        return due is not None and due <= self._monotonic

    def fire(self) -> None:
        """Run the next timer. Of several that are due at one moment, run the one that was set first."""
        timer = min((timer for timer in self._timers if not timer.cancelled), key=lambda timer: timer.due)
        self._timers.remove(timer)
        timer.callback()

    def move_to(self, monotonic: float) -> None:
        """Let time pass."""
        seconds = max(0.0, monotonic - self._monotonic)
        self._monotonic += seconds
        self._wall += seconds

    def jump(self, seconds: float) -> None:
        """Set the wall clock forward or back."""
        self._wall += seconds

    def forget(self) -> None:
        """Drop all timers: their process has ended."""
        self._timers.clear()


class Dice(random.Random):
    """A random generator for the jitter of retries. It always returns what the test chose."""

    def __init__(self, jitter: float) -> None:
        super().__init__(0)
        self.jitter = jitter

    def uniform(self, a: float, b: float) -> float:
        assert a <= self.jitter <= b
        return self.jitter
