"""The charts: the last samples of the queues, in memory, as many as somebody can look at."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any, Final

from ..protocol.codec import Fields

SAMPLES: Final = 120
"""Samples of a queue that are kept: four minutes where the daemon answers quickly."""
SERIES: Final = ("ready", "leased", "delayed", "dead", "sent_rate", "done_rate")
"""What is sampled of a queue, in this order."""
WHOLE: Final = ""
"""The name under which the sum of all queues is kept. No queue has it."""

Sample = tuple[float, ...]


class History:
    """The samples of each queue, from the oldest."""

    def __init__(self) -> None:
        self._samples: dict[str, deque[Sample]] = {}

    def add(self, rows: Sequence[Fields], sums: Fields) -> None:
        """Keep a sample of each of these queues, and of the sums of all. Forget the queues that are not among them."""
        samples = {row["name"]: sample(row) for row in rows} | {WHOLE: sample(sums)}
        for name in self._samples.keys() - samples.keys():
            del self._samples[name]
        for name, one in samples.items():
            self._samples.setdefault(name, deque(maxlen=SAMPLES)).append(one)

    def of(self, name: str, newest: int = SAMPLES) -> list[Sample]:
        """Return the samples of a queue, or of all queues under `WHOLE`."""
        return list(self._samples.get(name, ()))[-newest:]


def sample(row: Fields) -> Sample:
    """Return a sample of a queue, or of the sums of all."""
    values: list[Any] = [row.get(name, 0) for name in SERIES]
    return tuple(values)
