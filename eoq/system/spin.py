"""Adaptive spinning: in a row of requests, polling for a moment is cheaper than falling asleep and being woken.

Apart from the commit, waking a sleeping processor is a large part of the time of a send. (``tests/bench/run.py``
measures sends; with ``ROW`` at 0 nothing spins.) So a thread that waits for the other side polls again and again, but
only

- in a row: the last wait was short, and this one begins soon after it;
- for a moment: after that it sleeps as usual;
- while no other process wants the processor. The thread offers it at every turn, and does not spin for a while after
  another process took it.

The blocking client does not spin in a program with other threads, which need the interpreter's lock meanwhile.
Hypervisors (halt polling) and adaptive mutexes do the same.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Final

ROW: Final = 0.002
"""Seconds after the end of a wait within which the next wait counts as in a row with it."""
TAKEN: Final = 0.0002
"""Seconds after which an offered processor that has not come back counts as taken by another process.

With more, many clients spin at each other's cost. With less, a single client stops spinning because of the system's own
short tasks.
"""
REST: Final = 0.05
"""Seconds without spinning after the processor was taken."""


class Spin:
    """The decision, at each wait, to poll again or to sleep. A wait starts with `begin` and stops with `end`."""

    def __init__(self, longest: float, clock: Callable[[], float] = time.monotonic) -> None:
        """``longest``: the seconds of one wait that are spent polling."""
        self._longest = longest
        self._clock = clock
        self._since = 0.0
        self._until = 0.0
        self._in_row_until = 0.0
        self._rests_until = 0.0

    def begin(self) -> bool:
        """Begin a wait. Return whether to poll."""
        self._since = now = self._clock()
        spins = self._rests_until <= now < self._in_row_until
        self._until = now + self._longest if spins else 0.0
        return spins

    def again(self) -> bool:
        """Offer the processor to others. Then return whether to poll once more."""
        now = self._clock()
        if now >= self._until:
            return False
        os.sched_yield()
        back = self._clock()
        if back > now + TAKEN:
            self._until = 0.0
            self._rests_until = back + REST
            return False
        return True

    def end(self) -> None:
        """End a wait, because the awaited data has come."""
        now = self._clock()
        self._until = 0.0
        self._in_row_until = now + ROW if now < self._since + self._longest else 0.0
