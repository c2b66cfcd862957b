"""Time and randomness come in through here, so that tests can own them.

Deadlines that outlive the daemon are wall-clock seconds since the epoch; waiting inside it is monotonic.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from functools import partial
from typing import Final, Protocol

JUMP: Final = 1.0
"""Seconds by which a wall clock must be off to have been set; less is how clocks are kept right."""
_ELAPSED: Final[int] = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
"""On macOS the monotonic clock itself counts sleep."""


class Timer(Protocol):
    """A callback that has not run yet."""

    def cancel(self) -> None: ...


class Clock(Protocol):
    """What the broker knows of time."""

    def wall(self) -> float:
        """Seconds since the epoch; may jump."""
        ...

    def monotonic(self) -> float:
        """Seconds since some moment; never goes back."""
        ...

    def elapsed(self) -> float:
        """As `monotonic`, and counts the time that the machine slept, where the system can tell."""
        ...

    def call_later(self, seconds: float, callback: Callable[[], None]) -> Timer:
        """Runs ``callback`` once, ``seconds`` from now."""
        ...


class NoticingClock:
    """A clock that tells ``jumped`` when the wall clock was set, before it gives the time to anybody.

    So whatever was stored before can be moved with it, and nothing that comes after.
    """

    def __init__(self, clock: Clock, jumped: Callable[[float], None]) -> None:
        self._wall = clock.wall
        self._jumped = jumped
        self._ahead = clock.wall() - clock.elapsed()
        self.monotonic = clock.monotonic
        self.elapsed = clock.elapsed
        self.call_later = clock.call_later

    def wall(self) -> float:
        while True:
            before = self.elapsed()
            wall = self._wall()
            if self.elapsed() - before < JUMP / 2:
                break  # else this process was stopped between the two, and they do not belong together
        ahead = wall - before
        jump = ahead - self._ahead
        self._ahead = ahead
        if abs(jump) >= JUMP:
            self._jumped(jump)
        return wall


class Alarm:
    """Rings at the earliest of the moments that it was set to; what rings sets it again."""

    def __init__(self, clock: Clock, ring: Callable[[], None], longest: float = float("inf")) -> None:
        """``longest``: the seconds after which it rings in any case, should the wall clock have jumped."""
        self._clock = clock
        self._ring = ring
        self._longest = longest
        self._planned: tuple[float, Timer] | None = None
        self._stopped = False

    def set(self, moment: float) -> None:
        """Rings at ``moment`` of the wall clock, or earlier if that is planned already."""
        if not self._stopped:
            self.set_in(min(moment - self._clock.wall(), self._longest))

    def set_in(self, seconds: float) -> None:
        """As `set`, so many seconds from now."""
        if self._stopped:
            return
        seconds = max(0.0, seconds)
        # What is planned is compared by the monotonic clock: the wall clock may have jumped since.
        moment = self._clock.monotonic() + seconds
        if self._planned is not None:
            if self._planned[0] <= moment:
                return
            self._planned[1].cancel()
        self._planned = (moment, self._clock.call_later(seconds, self._rings))

    def stop(self) -> None:
        """Never rings again."""
        self._stopped = True
        if self._planned is not None:
            self._planned[1].cancel()

    def _rings(self) -> None:
        self._planned = None
        self._ring()


class LoopClock:
    """The real clock, with the timers of the running event loop. Each message asks it several times."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.wall: Callable[[], float] = time.time
        self.monotonic: Callable[[], float] = loop.time
        self.elapsed: Callable[[], float] = partial(time.clock_gettime, _ELAPSED)
        self.call_later: Callable[[float, Callable[[], None]], Timer] = loop.call_later
