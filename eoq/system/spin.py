"""Adaptive spinning: where one request follows the other, staying awake is cheaper than falling asleep and being woken.

To wake a sleeping processor takes a good part of what a send takes besides its commit (``tests/bench/run.py`` measures
sends: with ``ROW`` at 0 nobody spins). So whoever waits for the other side looks again and again for a moment, but only

- in a row: the last wait was short, and this one begins soon after it;
- for a moment: after that it sleeps as before;
- while nobody else wants the processor, which is offered at every turn: if somebody takes it, there is no spinning for
  a while.

The blocking client leaves it be where its program has other threads, which need the interpreter's lock meanwhile.
Hypervisors (halt polling) and adaptive mutexes do the same.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Final

ROW: Final = 0.002
"""Seconds from the end of a wait within which the next one counts as in a row with it."""
TAKEN: Final = 0.0002
"""Seconds that an offered processor is away before somebody must want it for work of his own. With more, many clients
spin for each other; with less, one alone rests since the system took a moment for itself."""
REST: Final = 0.05
"""Seconds without spinning after that."""


class Spin:
    """Says of each wait whether to look again (``again``) or to sleep. A wait has a ``begin`` and an ``end``."""

    def __init__(self, longest: float, clock: Callable[[], float] = time.monotonic) -> None:
        """``longest``: the seconds of one wait that are spent awake."""
        self._longest = longest
        self._clock = clock
        self._since = 0.0
        self._until = 0.0
        self._in_row_until = 0.0
        self._rests_until = 0.0

    def begin(self) -> bool:
        """A wait begins. Returns whether to spin."""
        self._since = now = self._clock()
        spins = self._rests_until <= now < self._in_row_until
        self._until = now + self._longest if spins else 0.0
        return spins

    def again(self) -> bool:
        """Offers the processor to others; then returns whether to look once more."""
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
        """What was waited for is here."""
        now = self._clock()
        self._until = 0.0
        self._in_row_until = now + ROW if now < self._since + self._longest else 0.0
