"""What waits because the daemon would not take it for now: tried again after pauses that grow, and told of once."""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from .errors import (
    EoqError,
    Forbidden,
    IdConflict,
    InvalidRequest,
    MessageTooLarge,
    Overloaded,
    StorageFailed,
    StorageFull,
)

if TYPE_CHECKING:
    import logging  # its import takes several ms, and a client that only sends does not need it

FIRST_PAUSE: Final = 0.1
LONGEST_PAUSE: Final = 10.0
"""Seconds between two tries of what was refused for now; they double from the first to the longest."""
NEVER: Final = (IdConflict, InvalidRequest, MessageTooLarge)
"""Refusals that trying again does not change."""
NOBODY: Final = (Forbidden, Overloaded, StorageFull, StorageFailed)
"""Refusals that have nothing to do with what was sent. Any other concerns one queue."""


@dataclass(slots=True)
class _Hold:
    error: EoqError
    pause: float
    until: float


class Backoff:
    """What waits: queues, or under None everything. ``name`` says in the log for whom."""

    def __init__(self, name: str, log: logging.Logger) -> None:
        self._name = name
        self._log = log
        self._holds: dict[str | None, _Hold] = {}

    def hold(self, what: str | None, error: EoqError) -> None:
        """It waits from now on, or for longer than the last time."""
        before = self._holds.get(what)
        pause = FIRST_PAUSE if before is None else min(before.pause * 2, LONGEST_PAUSE)
        self._holds[what] = _Hold(error, pause, time.monotonic() + pause)
        if before is None:
            self._log.warning("%s: waiting, since %s", self._name, error)

    def waits(self, what: str | None) -> bool:
        """Whether its pause is not over."""
        hold = self._holds.get(what)
        return hold is not None and time.monotonic() < hold.until

    def waiting(self) -> list[str]:
        """The queues whose pause is not over."""
        return [queue for queue in self._holds if queue is not None and self.waits(queue)]

    def release(self, what: Iterable[str | None]) -> None:
        """It was taken: no more pauses."""
        for one in what:
            if self._holds.pop(one, None) is not None:
                self._log.info("%s: %s takes messages again", self._name, one or "the daemon")

    def forget_due(self, without: Collection[str] = ()) -> None:
        """What has been tried again by now has nothing left that waits. ``without`` are queues that were left out."""
        self._holds = {what: hold for what, hold in self._holds.items() if what in without or self.waits(what)}

    def errors(self) -> list[EoqError]:
        """Why what waits does, the oldest first."""
        return [hold.error for hold in self._holds.values()]

    def seconds(self, most: float) -> float:
        """Until the first of them may be tried again, or ``most``."""
        now = time.monotonic()
        return min([most, *(max(hold.until - now, 0.0) for hold in self._holds.values())])


# ── pauses ──────────────────────────────────────────────────────────────────────────────────────────────────


def pauses(first: float, longest: float, total: float = math.inf) -> Iterator[float]:
    """Yield the pauses between tries, in seconds. They double from ``first`` to ``longest``; ``total`` is their sum."""
    pause = first
    while total > 0:
        yield min(pause, total)
        total -= pause
        pause = min(pause * 2, longest)
