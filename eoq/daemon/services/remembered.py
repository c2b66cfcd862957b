"""Remembered: for how long after its first try the id of a message is surely known (G2).

A longer retention does not bring back the ids that were forgotten under a shorter one. So what was first tried before
it was raised counts as forgotten when the shorter one would have forgotten it. The file keeps that for the next daemon.
"""

from __future__ import annotations

import asyncio
import math
from typing import Final, TypeAlias

from ...errors import EoqError
from ..clock import Clock
from ..config.model import Config, LiveConfig
from ..config.settings import resend_within
from ..records import Remembered
from ..session import Submitter
from ..store.commands import ReadRemembered, StoreRemembered

Retentions: TypeAlias = tuple[tuple[str, float], ...]

RETRY_SECONDS: Final = 60.0
"""Seconds until the note is stored again where that failed: the disk may be full."""


class RememberedService:
    """Knows for how many seconds ids are remembered."""

    def __init__(self, writer: Submitter, clock: Clock, config: LiveConfig) -> None:
        self._writer = writer
        self._clock = clock
        self._config = config
        self._retentions = config.config.retentions
        self._forgotten_until = -math.inf
        """What was first tried before may be forgotten, in the time of `Clock.elapsed`."""

    async def start(self) -> None:
        """Go on from what the last daemon with this file has stored. Raises `EoqError`."""
        read: asyncio.Future[Remembered | EoqError | None] = asyncio.get_running_loop().create_future()
        self._writer.submit(ReadRemembered(), read.set_result)
        stored = await read
        if isinstance(stored, EoqError):
            raise stored
        if stored is None:
            self._store()
            return
        if stored.forgotten_until is not None:
            self._forgotten_until = self._clock.elapsed() - (self._clock.wall() - stored.forgotten_until)
        self._change(stored.retentions, self._retentions)

    def follow(self, _old: Config, new: Config) -> None:
        """Note the retentions of a new configuration."""
        self._change(self._retentions, new.retentions)

    @property
    def surely(self) -> float:
        """For how many seconds after a first try every id is surely remembered, also of a queue behind a topic."""
        return self._at_most(resend_within(_shortest(self._retentions)))

    def of_queue(self, name: str) -> float:
        """Return the same for the ids of one queue."""
        return self._at_most(resend_within(self._config.queue(name).retention))

    def _at_most(self, seconds: float) -> float:
        return max(0.0, min(seconds, self._clock.elapsed() - self._forgotten_until))

    def _change(self, old: Retentions, new: Retentions) -> None:
        self._retentions = new
        if old == new:
            return
        if _may_be_longer(old, new):
            before = self._clock.elapsed() - resend_within(_shortest(old))
            self._forgotten_until = max(self._forgotten_until, before)
        self._store()

    def _store(self) -> None:
        def done(outcome: EoqError | None) -> None:
            if isinstance(outcome, EoqError):
                self._clock.call_later(RETRY_SECONDS, self._store)

        until = None
        if self._forgotten_until != -math.inf:
            until = self._clock.wall() - (self._clock.elapsed() - self._forgotten_until)
        # Not durable: it is stored before anything is forgotten by what it says.
        self._writer.submit(StoreRemembered(Remembered(self._retentions, until)), done, durable=False)


def _shortest(retentions: Retentions) -> float:
    return min(seconds for _, seconds in retentions)


def _may_be_longer(old: Retentions, new: Retentions) -> bool:
    """Return whether the ids of some queue may be remembered for longer than before."""
    same = [pattern for pattern, _ in old] == [pattern for pattern, _ in new]
    return not same or any(after > before for (_, before), (_, after) in zip(old, new, strict=True))
