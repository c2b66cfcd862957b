"""The clock and the timers of the daemon. Tests replace them.

Deadlines that outlive the daemon are wall-clock seconds since the epoch. Waiting inside the daemon is monotonic.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from functools import partial
from typing import Final, Protocol

JUMP: Final = 1.0
"""By how many seconds the wall clock must be off to count as set. Smaller steps are normal clock discipline."""
_ELAPSED: Final[int] = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
"""The clock that also counts sleep. On macOS that is the monotonic clock itself."""


class Timer(Protocol):
    """A callback that has not run yet."""

    def cancel(self) -> None: ...


class Clock(Protocol):
    """Time, as the parts of the daemon use it."""

    def wall(self) -> float:
        """Return the seconds since the epoch. They may jump."""
        ...

    def monotonic(self) -> float:
        """Return the seconds since some moment. They never go back."""
        ...

    def elapsed(self) -> float:
        """Return monotonic seconds that also count the time that the machine slept, where the system can tell."""
        ...

    def call_later(self, seconds: float, callback: Callable[[], None]) -> Timer:
        """Run ``callback`` once, ``seconds`` from now."""
        ...


class NoticingClock:
    """A clock that notices when the wall clock was set. It tells its listeners before it returns the new time.

    So the times that were stored before can be moved with the clock, and times that are stored later are not moved.
    """

    def __init__(self, clock: Clock) -> None:
        self.on_jump: list[Callable[[float], None]] = []
        """Called with the seconds by which the wall clock was set."""
        self._wall = clock.wall
        self._ahead = clock.wall() - clock.elapsed()
        self.monotonic = clock.monotonic
        self.elapsed = clock.elapsed
        self.call_later = clock.call_later

    def wall(self) -> float:
        """Return the seconds since the epoch. Call the listeners first if the clock was set."""
        while True:
            before = self.elapsed()
            wall = self._wall()
            if self.elapsed() - before < JUMP / 2:
                break  # otherwise this process was stopped between the two readings, and they do not belong together
        ahead = wall - before
        jump = ahead - self._ahead
        self._ahead = ahead
        if abs(jump) >= JUMP:
            for listener in self.on_jump:
                listener(jump)
        return wall


class Alarm:
    """An alarm that rings once, at the earliest of the moments that it was set to."""

    def __init__(self, clock: Clock, ring: Callable[[], None], longest: float = float("inf")) -> None:
        """``ring`` is called when the alarm rings, and may set it again.

        ``longest``: the seconds after which it rings in any case, in case the wall clock has jumped.
        """
        self._clock = clock
        self._ring = ring
        self._longest = longest
        self._planned: tuple[float, Timer] | None = None
        self._stopped = False

    def set(self, moment: float) -> None:
        """Ring at ``moment`` of the wall clock, or earlier if that is planned already."""
        if not self._stopped:
            self.set_in(min(moment - self._clock.wall(), self._longest))

    def set_in(self, seconds: float) -> None:
        """Ring in ``seconds``, or earlier if that is planned already."""
        if self._stopped:
            return
        seconds = max(0.0, seconds)
        # Compared by the monotonic clock: the wall clock may have jumped since the alarm was set.
        moment = self._clock.monotonic() + seconds
        if self._planned is not None:
            if self._planned[0] <= moment:
                return
            self._planned[1].cancel()
        self._planned = (moment, self._clock.call_later(seconds, self._on_timer))

    def stop(self) -> None:
        """Never ring again."""
        self._stopped = True
        if self._planned is not None:
            self._planned[1].cancel()

    def _on_timer(self) -> None:
        self._planned = None
        self._ring()


class LoopClock:
    """The real clock, with the timers of the running event loop.

    Its methods are the functions of the system themselves: each message reads the clock several times.
    """

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.wall: Callable[[], float] = time.time
        self.monotonic: Callable[[], float] = loop.time
        self.elapsed: Callable[[], float] = partial(time.clock_gettime, _ELAPSED)
        self.call_later: Callable[[float, Callable[[], None]], Timer] = loop.call_later
