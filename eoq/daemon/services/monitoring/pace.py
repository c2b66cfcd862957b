"""Long work on the event loop is done at a pace: in short slices, with rests in which the others have all the time."""

from __future__ import annotations

import asyncio
import time
from typing import Final

SLICE: Final = 0.001
"""Seconds of work until a rest. A send that arrives meanwhile waits so long, at most."""
REST: Final = 4
"""A rest is so many times as long as the work before it.

Without a rest in which the loop waits, the threads that read and write the file would get Python's lock only after its
switch interval of 5 ms, again and again, and a commit needs it several times.
"""


class Pace:
    """The slices of one piece of work. It may wait for something else between them."""

    def __init__(self) -> None:
        self.worked = 0.0
        """Seconds of all slices that have ended, and of the work of others between them."""
        self._began = self._ended = time.perf_counter()

    def begin(self) -> None:
        """Begin a slice, after another thread has done a part of the work."""
        self._began = time.perf_counter()
        self.worked += self._began - self._ended

    def end(self) -> None:
        """Count the slice, before such a part."""
        self._ended = time.perf_counter()
        self.worked += self._ended - self._began

    async def rest(self) -> None:
        """Rest, if the slice has been long enough. Call it after each small step."""
        worked = time.perf_counter() - self._began
        if worked >= SLICE:
            self.worked += worked
            await asyncio.sleep(worked * REST)
            self._began = time.perf_counter()
