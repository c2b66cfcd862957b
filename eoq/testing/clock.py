"""The clock of a private daemon: real time, and the time that the test has added.

It only goes forward. Wall clock, monotonic clock and timers move together: for the daemon the time has really passed.
"""

from __future__ import annotations

import asyncio
import heapq
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from typing import Final

from ..errors import InvalidRequest

PATIENCE: Final = 60.0
"""Seconds after which a move that does not end fails the test."""
_ELAPSED: Final[int] = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


class _Timer:
    """A callback that has not run yet. Timers of one moment run in the order in which they were set."""

    __slots__ = ("_callback", "due", "number")

    def __init__(self, due: float, number: int, callback: Callable[[], None]) -> None:
        self.due = due
        self.number = number
        self._callback: Callable[[], None] | None = callback

    def __lt__(self, other: _Timer) -> bool:
        return (self.due, self.number) < (other.due, other.number)

    def cancel(self) -> None:
        self._callback = None

    @property
    def cancelled(self) -> bool:
        return self._callback is None

    def run(self) -> None:
        """Run the callback, unless it was cancelled."""
        if self._callback is not None:
            self._callback()


class MovableClock:
    """A clock for the daemon, of the type `eoq.daemon.clock.Clock`. The test calls `move` and `move_to`."""

    def __init__(self) -> None:
        self._ahead = 0.0
        self._timers: list[_Timer] = []
        self._count = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._settled: Callable[[], Awaitable[None]] | None = None
        self._ringing: asyncio.TimerHandle | None = None

    # ── for the test ────────────────────────────────────────────────────────────────────────────────────

    def now(self) -> float:
        """Return the time of the daemon, in seconds since the epoch."""
        return self.wall()

    def move(self, seconds: float) -> None:
        """Let ``seconds`` pass for the daemon, and wait until it has done all that was due by then.

        Everything happens in its order and at its moment: messages become due, leases end, schedules send, ids are
        forgotten. Raises `InvalidRequest` for a negative number and without a daemon that runs.
        """
        if not seconds >= 0:
            raise InvalidRequest(f"the clock only moves forward, by 0 seconds or more, and not {seconds!r}")
        loop = self._loop
        if loop is None:
            raise InvalidRequest("no daemon runs on this clock: move it while its daemon runs")
        moved: Future[None] = asyncio.run_coroutine_threadsafe(self._move(seconds), loop)
        moved.result(PATIENCE)

    def move_to(self, moment: float) -> None:
        """Move to ``moment``, in seconds since the epoch. Do nothing if it has passed already."""
        self.move(max(0.0, moment - self.wall()))

    # ── for the daemon ──────────────────────────────────────────────────────────────────────────────────

    def attach(self, settled: Callable[[], Awaitable[None]]) -> None:
        """Serve the daemon of the running event loop. ``settled`` waits until it has done what it has begun."""
        self._loop = asyncio.get_running_loop()
        self._settled = settled

    def detach(self) -> None:
        """Forget the daemon and its timers. The time that the test has added stays."""
        self._loop = self._settled = None
        self._timers.clear()
        if self._ringing is not None:
            self._ringing.cancel()
            self._ringing = None

    def wall(self) -> float:
        return time.time() + self._ahead

    def monotonic(self) -> float:
        return time.monotonic() + self._ahead

    def elapsed(self) -> float:
        return time.clock_gettime(_ELAPSED) + self._ahead

    def call_later(self, seconds: float, callback: Callable[[], None]) -> _Timer:
        self._count += 1
        timer = _Timer(self.monotonic() + seconds, self._count, callback)
        heapq.heappush(self._timers, timer)
        if self._timers[0] is timer:
            self._arm()
        return timer

    # ── timers ──────────────────────────────────────────────────────────────────────────────────────────

    def _next_due(self) -> float | None:
        while self._timers and self._timers[0].cancelled:
            heapq.heappop(self._timers)
        return self._timers[0].due if self._timers else None

    def _arm(self) -> None:
        """Let the event loop ring when the first timer is due in real time."""
        if self._ringing is not None:
            self._ringing.cancel()
        due = self._next_due()
        loop = asyncio.get_running_loop()
        self._ringing = None if due is None else loop.call_later(max(0.0, due - self.monotonic()), self._ring)

    def _ring(self) -> None:
        self._run_due(self.monotonic())
        self._arm()

    def _run_due(self, moment: float) -> None:
        """Run the timers that are due at ``moment``, each as a callback of its own: one that fails stops no other."""
        loop = asyncio.get_running_loop()
        while (due := self._next_due()) is not None and due <= moment:
            loop.call_soon(heapq.heappop(self._timers).run)

    async def _move(self, seconds: float) -> None:
        target = self.monotonic() + seconds
        await self._until_settled()
        while (due := self._next_due()) is not None and due <= target:
            self._ahead += max(0.0, due - self.monotonic())
            self._run_due(due)
            await self._until_settled()
        self._ahead += max(0.0, target - self.monotonic())
        self._run_due(target)
        await self._until_settled()
        self._arm()

    async def _until_settled(self) -> None:
        await asyncio.sleep(0)  # the callbacks that are due run
        if self._settled is not None:
            await self._settled()
