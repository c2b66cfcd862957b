"""What the daemon counts and measures: the names of the counters, and histograms of seconds.

A histogram has fixed buckets, so that a measurement costs one addition, and its size never changes.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate
from typing import Any, Final, Literal, TypeAlias, get_args

Counter: TypeAlias = Literal[
    "sent",
    "duplicates",
    "conflicts",
    "refused",
    "delivered",
    "done",
    "retried",
    "dead",
    "expired",
    "dropped",
    "cancelled",
    "forwarded",
]
"""What is counted of each queue.

- ``sent``: messages that were stored. ``duplicates``: messages that were stored before.
- ``conflicts``: sends that were refused because an id has other content. ``refused``: those for lack of room.
- ``delivered``: deliveries. ``done``: acks. ``retried``: deliveries that failed, so that another one follows.
- ``dead``: dead letters. ``expired``, ``dropped``, ``cancelled``, ``forwarded``: other ends of messages.
"""
COUNTERS: Final[tuple[Counter, ...]] = get_args(Counter)
Counts: TypeAlias = dict[Counter, int]

BUCKETS: Final = 24
"""How many buckets have a bound. What takes longer is in further ones, which are not told apart."""
_PER_SECOND: Final = 10_000
"""The first bound is one of so many parts of a second. Each further bound is twice the one before."""
BOUNDS: Final[tuple[float, ...]] = tuple((1 << number) / _PER_SECOND for number in range(BUCKETS))
"""Seconds up to which the times of each bucket go: 0.1 ms, 0.2 ms, 0.4 ms … 14 minutes."""


class Histogram:
    """How often something took how long, since the start of the daemon."""

    __slots__ = ("buckets", "sum")

    def __init__(self) -> None:
        self.buckets = [0] * 64
        self.sum = 0.0

    def add(self, seconds: float, count: int = 1) -> None:
        """Count ``count`` times of ``seconds``, which must not be negative."""
        self.buckets[int(seconds * _PER_SECOND).bit_length()] += count
        self.sum += seconds * count

    def add_since(self, moments: list[float], now: float) -> None:
        """Count the seconds from each of ``moments`` until ``now``, by a clock that may have been set back."""
        longest, shortest = max(0.0, now - min(moments)), max(0.0, now - max(moments))
        if int(longest * _PER_SECOND).bit_length() == int(shortest * _PER_SECOND).bit_length():
            self.add((longest + shortest) / 2, len(moments))  # mostly all are in one bucket
        else:
            for moment in moments:
                self.add(max(0.0, now - moment))

    @property
    def count(self) -> int:
        """How many times were counted."""
        return sum(self.buckets)

    def cumulative(self) -> list[int]:
        """Return for each of `BOUNDS` how many times are below it."""
        return list(accumulate(self.buckets[:BUCKETS]))

    def fields(self) -> dict[str, Any]:
        """Return the fields of a reply.

        ``buckets`` has pairs of a bound and the number of times below it, up to the first bound that all are below.
        ``p50`` and ``p99`` are the bounds below which that part of the times is; None without times.
        """
        below, count = self.cumulative(), self.count
        used = min(bisect_left(below, count) + 1, BUCKETS) if count else 0
        return {
            "count": count,
            "sum": round(self.sum, 6),
            "p50": _quantile(below, count, 0.5),
            "p99": _quantile(below, count, 0.99),
            "buckets": list(zip(BOUNDS[:used], below[:used], strict=True)),
        }


def _quantile(below: Sequence[int], count: int, part: float) -> float | None:
    if not count:
        return None
    return BOUNDS[min(bisect_left(below, part * count), BUCKETS - 1)]


class Latencies:
    """The histograms of a daemon. What a failed transaction has added stays, so a second try is measured again."""

    def __init__(self) -> None:
        self.commit = Histogram()
        """Durable transactions, from their begin until they are on disk."""
        self.sync = Histogram()
        """The commit of such a transaction: the log is written and synced."""
        self.waiting = Histogram()
        """Messages, from their send until each delivery."""
        self.handling = Histogram()
        """Messages, from their delivery until their ack."""

    def fields(self) -> dict[str, Any]:
        """Return the fields of all histograms."""
        return {name: histogram.fields() for name, histogram in self.named()}

    def named(self) -> Iterable[tuple[str, Histogram]]:
        """Return the histograms with their names."""
        return vars(self).items()


def all_counters(counts: Mapping[Counter, int]) -> Counts:
    """Return all counters by name, those without a count as 0."""
    return {counter: counts.get(counter, 0) for counter in COUNTERS}
