"""Throughput: how many messages a second each queue has stored and completed in the last minute."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from ..clock import Clock
from ..records import End

WINDOW: Final = 60.0
"""The seconds of one window."""
PRUNE_FROM: Final = 1000
"""With how many queues to begin to drop those without traffic."""


class Rate(NamedTuple):
    """Messages a second that were stored, and that ended as done."""

    sent: float
    done: float


@dataclass(slots=True)
class _Window:
    """The counts of the current minute, and of the one before."""

    begun: float
    sent: int = 0
    done: int = 0
    sent_before: int = 0
    done_before: int = 0


class Throughput:
    """The counts of all queues since the daemon started."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._windows: dict[str, _Window] = {}
        self._prune_at = PRUNE_FROM

    def stored(self, queue: str, count: int) -> None:
        """Count messages that were stored."""
        self._window(queue).sent += count

    def ended(self, ends: Sequence[End]) -> None:
        """Count the messages among ``ends`` that are done."""
        queue = None
        for end in ends:
            if end.outcome == "done":
                if end.queue != queue:  # mostly all are of one queue
                    queue = end.queue
                    window = self._window(queue)
                window.done += 1

    def rate(self, queue: str) -> Rate:
        """Return the rates of the last minute. They include the part of the window before that still belongs to it."""
        if queue not in self._windows:
            return Rate(0.0, 0.0)
        window = self._window(queue)
        rest = 1.0 - (self._clock.monotonic() - window.begun) / WINDOW
        return Rate(
            round((window.sent_before * rest + window.sent) / WINDOW, 3),
            round((window.done_before * rest + window.done) / WINDOW, 3),
        )

    def active(self) -> list[str]:
        """Return the queues whose rates may be above zero."""
        return list(self._windows)

    def _prune(self, now: float) -> None:
        """Drop the windows of queues without traffic: names may be used once and never again."""
        self._windows = {name: window for name, window in self._windows.items() if now - window.begun < 2 * WINDOW}
        self._prune_at = max(PRUNE_FROM, 2 * len(self._windows))

    def _window(self, queue: str) -> _Window:
        now = self._clock.monotonic()
        window = self._windows.get(queue)
        if window is None:
            if len(self._windows) >= self._prune_at:
                self._prune(now)
            window = self._windows[queue] = _Window(now)
        elapsed = now - window.begun
        if elapsed >= WINDOW:
            if elapsed < 2 * WINDOW:
                window.sent_before, window.done_before = window.sent, window.done
                window.begun += WINDOW
            else:
                window.sent_before = window.done_before = 0
                window.begun = now
            window.sent = window.done = 0
        return window
