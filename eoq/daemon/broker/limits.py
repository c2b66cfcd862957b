"""How much a queue may hand out, by its settings: messages leased at once, and deliveries a second."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from ..clock import Clock
from ..config.settings import QueueSettings, SettingsOf

MAX_BUCKETS: Final = 20_000
"""Queues whose rate is kept account of, before those that have taken nothing are looked through."""


@dataclass(slots=True)
class _Bucket:
    """Deliveries that are allowed at a moment (known as a token bucket)."""

    tokens: float
    filled_at: float


class DeliveryLimits:
    """Allowances of all queues. ``leased`` tells how many messages of a queue are leased."""

    def __init__(self, settings: SettingsOf, clock: Clock, leased: Callable[[str], int]) -> None:
        self._settings = settings
        self._clock = clock
        self._leased = leased
        self._reserved: dict[str, int] = {}
        self._buckets: dict[str, _Bucket] = {}

    def allow(self, queue: str, wanted: int) -> int:
        """How many of ``wanted`` messages may be leased now; they are set aside until `claimed`."""
        if not self.limits(queue):
            return wanted
        settings = self._settings(queue)
        allowed = wanted
        if settings.max_in_flight is not None:
            allowed = min(allowed, settings.max_in_flight - self._leased(queue) - self._reserved.get(queue, 0))
        if settings.rate is not None:
            allowed = min(allowed, int(self._fill(queue, settings).tokens))
        allowed = max(allowed, 0)
        if allowed and settings.rate is not None:
            self._buckets[queue].tokens -= allowed
        if allowed:
            self._reserved[queue] = self._reserved.get(queue, 0) + allowed
        return allowed

    def limits(self, queue: str) -> bool:
        """Whether a queue's settings hold anything back."""
        settings = self._settings(queue)
        return settings.max_in_flight is not None or settings.rate is not None

    def claimed(self, queue: str, allowed: int, taken: int) -> None:
        """Of ``allowed`` messages so many were there; the others may be leased by somebody else."""
        reserved = self._reserved.get(queue)
        if reserved is not None:
            if reserved > allowed:
                self._reserved[queue] = reserved - allowed
            else:
                del self._reserved[queue]
        bucket = self._buckets.get(queue)
        if bucket is not None:
            bucket.tokens += allowed - taken

    def undecided(self, queue: str) -> bool:
        """Whether something is set aside for claims under way, which they may not need."""
        return queue in self._reserved

    def seconds(self, queue: str) -> float | None:
        """How long until the queue's rate allows one more, since `allow` has refused; None where no rate has.

        What comes between two looks at the clock would be told to nobody: this takes no look of its own.
        """
        settings = self._settings(queue)
        bucket = self._buckets.get(queue)
        if settings.rate is None:
            self._buckets.pop(queue, None)
            return None
        if bucket is None or bucket.tokens >= 1.0:
            return None
        return (1.0 - bucket.tokens) / settings.rate

    def _fill(self, queue: str, settings: QueueSettings) -> _Bucket:
        now = self._clock.monotonic()
        # Not full at first: a daemon that is started again and again would exceed the rate.
        bucket = self._buckets.get(queue)
        if bucket is None:
            if len(self._buckets) >= MAX_BUCKETS:
                # Somebody asks for queues that are not there: theirs have nothing taken out.
                self._buckets = {name: one for name, one in self._buckets.items() if one.tokens < 1.0}
            bucket = self._buckets[queue] = _Bucket(1.0, now)
        assert settings.rate is not None  # noqa: S101 # who asks has looked
        bucket.tokens = min(bucket.tokens + (now - bucket.filled_at) * settings.rate, float(settings.burst))
        bucket.filled_at = now
        return bucket
