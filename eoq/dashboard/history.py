"""The charts: the last samples of the queues, in memory, as many as somebody can look at."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable, Sequence
from typing import Any, Final

from ..protocol.codec import Fields

SAMPLES: Final = 120
"""Samples of a queue that are kept: four minutes where the daemon answers quickly."""
ALL_UP_TO: Final = 500
"""With more queues, only those that somebody looks at have samples."""
SERIES: Final = ("ready", "leased", "delayed", "dead", "sent_rate", "done_rate")
"""What is sampled of a queue, in this order."""
WHOLE: Final = ""
"""The name under which the sum of all queues is kept. No queue has it."""

Sample = tuple[float, ...]


class History:
    """The samples of each queue, from the oldest."""

    def __init__(self) -> None:
        self._samples: dict[str, deque[Sample]] = {}

    def add(self, rows: Sequence[Fields], looked_at: Collection[str]) -> None:
        """Keep a sample of the queues, and forget the queues that are gone or that nobody looks at any more."""
        kept = rows if len(rows) <= ALL_UP_TO else [row for row in rows if row["name"] in looked_at]
        names = {WHOLE, *(row["name"] for row in kept)}
        for name in [name for name in self._samples if name not in names]:
            del self._samples[name]
        for row in kept:
            self._keep(row["name"], _sample(row))
        self._keep(WHOLE, total(rows))

    def of(self, name: str, newest: int = SAMPLES) -> list[Sample]:
        """Return the samples of a queue, or of all queues under `WHOLE`."""
        return list(self._samples.get(name, ()))[-newest:]

    def _keep(self, name: str, sample: Sample) -> None:
        self._samples.setdefault(name, deque(maxlen=SAMPLES)).append(sample)


def total(rows: Iterable[Fields]) -> Sample:
    """Return the sum of all queues."""
    sums: list[float] = [0] * len(SERIES)
    for row in rows:
        for place, value in enumerate(_sample(row)):
            sums[place] += value
    return tuple(round(value, 3) for value in sums)


def _sample(row: Fields) -> Sample:
    values: list[Any] = [row[name] for name in SERIES]
    return tuple(values)
