"""Delivery limits: how much the settings of a queue allow, in messages in flight and in deliveries a second."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from ..clock import Clock
from ..config.settings import QueueSettings, SettingsOf
from .leases import Leases

MAX_BUCKETS: Final = 20_000
"""How many buckets are kept in memory. Above it, the full ones are dropped."""


@dataclass(slots=True)
class _Bucket:
    """The token bucket of one queue: how many deliveries were allowed at a moment."""

    tokens: float
    filled_at: float


class DeliveryLimits:
    """The limits of all queues. The messages that a claim may lease are reserved for it until it is done."""

    def __init__(self, settings: SettingsOf, clock: Clock, leases: Leases) -> None:
        self._settings = settings
        self._clock = clock
        self._leases = leases
        self._reserved: dict[str, int] = {}
        self._buckets: dict[str, _Bucket] = {}

    def allow(self, queue: str, wanted: int) -> int:
        """Return how many of ``wanted`` messages may be leased now, where a queue has limits.

        They are reserved until `claimed`.
        """
        settings = self._settings(queue)
        allowed = wanted
        if settings.max_in_flight is not None:
            allowed = min(allowed, settings.max_in_flight - self._leases.count(queue) - self._reserved.get(queue, 0))
        if settings.rate is not None:
            allowed = min(allowed, int(self._fill(queue, settings).tokens))
        allowed = max(allowed, 0)
        if allowed and settings.rate is not None:
            self._buckets[queue].tokens -= allowed
        if allowed:
            self._reserved[queue] = self._reserved.get(queue, 0) + allowed
        return allowed

    def is_limited(self, queue: str) -> bool:
        """Return whether the settings of a queue limit its deliveries."""
        settings = self._settings(queue)
        return settings.max_in_flight is not None or settings.rate is not None

    def claimed(self, queue: str, allowed: int, leased: int) -> None:
        """Note that a claim is done: of the ``allowed`` messages it ``leased`` some. Others may lease the rest."""
        reserved = self._reserved.get(queue)
        if reserved is not None:
            if reserved > allowed:
                self._reserved[queue] = reserved - allowed
            else:
                del self._reserved[queue]
        bucket = self._buckets.get(queue)
        if bucket is not None:
            bucket.tokens += allowed - leased

    def has_reserved(self, queue: str) -> bool:
        """Return whether messages are reserved for claims under way, which may not need all of them."""
        return queue in self._reserved

    def seconds_left(self, queue: str) -> float | None:
        """Return how long until the rate of a queue allows one more, after `allow` has refused it.

        Return None where it was not the rate that refused. This does not read the clock again: no receiver would be
        told of tokens that were added between two readings.
        """
        settings = self._settings(queue)
        bucket = self._buckets.get(queue)
        if settings.rate is None:
            self._buckets.pop(queue, None)
            return None
        if bucket is None or bucket.tokens >= 1.0:
            return None
        return (1.0 - bucket.tokens) / settings.rate

    def in_flight_is_full(self, queue: str) -> bool:
        """Return whether a queue has as many messages in flight as its settings allow."""
        most = self._settings(queue).max_in_flight
        return most is not None and self._leases.count(queue) + self._reserved.get(queue, 0) >= most

    def seconds_until_rate_allows(self, queue: str) -> float:
        """Return how long the rate of a queue allows no delivery; 0 where it allows one, or there is none."""
        rate, bucket = self._settings(queue).rate, self._buckets.get(queue)
        if rate is None or bucket is None:
            return 0.0
        tokens = bucket.tokens + (self._clock.monotonic() - bucket.filled_at) * rate
        return max(0.0, (1.0 - tokens) / rate)

    def _fill(self, queue: str, settings: QueueSettings) -> _Bucket:
        now = self._clock.monotonic()
        # A new bucket is not full. Otherwise a daemon that is started again and again would exceed the rate.
        bucket = self._buckets.get(queue)
        if bucket is None:
            if len(self._buckets) >= MAX_BUCKETS:
                # A client asks for many queues that do not exist. Their buckets are full, so nothing is lost.
                self._buckets = {name: one for name, one in self._buckets.items() if one.tokens < 1.0}
            bucket = self._buckets[queue] = _Bucket(1.0, now)
        assert settings.rate is not None  # noqa: S101 # the caller has checked it
        bucket.tokens = min(bucket.tokens + (now - bucket.filled_at) * settings.rate, float(settings.burst))
        bucket.filled_at = now
        return bucket
