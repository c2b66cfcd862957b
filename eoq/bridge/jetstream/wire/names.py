"""The names of a queue in NATS: its subjects, its keys, its readers, and the partition of a message.

A dot divides the names of NATS. So a dot in the name of a queue is written as ``=``, which no queue has.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Final

from ....errors import InvalidRequest

MAX_PARTITIONS: Final = 256


def partition_of(key: str, count: int) -> int:
    """Return the partition of a message: ``key`` is its group, or its id where it has none."""
    return zlib.crc32(key.encode()) % count


@dataclass(frozen=True)
class Partitions:
    """Into how many partitions a queue is divided, and which of them belong to this machine. None: not given."""

    count: int | None = None
    own: tuple[int, ...] | None = None

    @classmethod
    def read(cls, count: int | None, own: str | None) -> Partitions:
        """Return what a user has given: ``own`` is a text such as ``0-3`` or ``1,4-5``. Raises `InvalidRequest`."""
        if count is not None and not 1 <= count <= MAX_PARTITIONS:
            raise InvalidRequest(f"a queue has 1 to {MAX_PARTITIONS} partitions, and not {count}")
        if own is None:
            return cls(count)
        numbers: set[int] = set()
        for part in own.split(","):
            first, dash, last = part.strip().partition("-")
            ends = (first, last) if dash else (first, first)
            if not all(end.isascii() and end.isdecimal() and len(end) <= 3 for end in ends):
                raise InvalidRequest(f"{own!r} names no partitions: write a number, or a range such as 0-3")
            numbers |= set(range(int(ends[0]), int(ends[1]) + 1))
        if not numbers or max(numbers) >= (count or MAX_PARTITIONS):
            raise InvalidRequest(f"{own!r} names no partitions, or more than there are: they count from 0")
        return cls(count, tuple(sorted(numbers)))


@dataclass(frozen=True)
class Names:
    """The names of one queue, in the stream of this name."""

    stream: str
    queue: str

    @property
    def token(self) -> str:
        """The queue, as one part of a name of NATS."""
        return self.queue.replace(".", "=")

    @property
    def bucket(self) -> str:
        """The bucket that knows to which machines the partitions belong."""
        return bucket_of(self.stream)

    @property
    def aside(self) -> str:
        """The stream of messages that cannot be stored."""
        return f"{self.stream}_aside"

    @property
    def count_key(self) -> str:
        """The key of the number of partitions."""
        return f"{self.token}.partitions"

    def owner_key(self, partition: int) -> str:
        """The key of the record of one partition."""
        return f"{self.token}.{partition}"

    def subject(self, partition: int) -> str:
        """The subject of the messages of one partition."""
        return f"{self.stream}.{self.token}.{partition}"

    def reader(self, partition: int) -> str:
        """The consumer that reads one partition."""
        return f"eoq-{self.token}-{partition}"

    def aside_subject(self, partition: int, made: str, seq: int) -> str:
        """The subject of a message that was set aside: it had this place in the stream that was made at that moment."""
        return f"{self.aside}.{self.token}.{partition}.{made}-{seq}"


def bucket_of(stream: str) -> str:
    """Return the bucket of the queues of a stream."""
    return f"eoq_{stream}"
