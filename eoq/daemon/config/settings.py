"""What can be set for a queue, with the bounds of each setting and what holds where nothing is set."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Final, Literal, TypeAlias

from msgspec import Meta, Struct

from ...protocol.limits import MAX_DELAY, MAX_TTL

RETENTION: Final = 7 * 86400.0
"""Seconds that the record of a settled message is kept: so long its id is known, and its result."""
MAX_ATTEMPTS: Final = 10
"""Deliveries of a message before it is dead."""
MAX_COUNT: Final = 2**53
LEAST_FILE: Final = 1024 * 1024
"""Bytes of the daemon's file; below this no queue would have room."""
MOST_KEPT_FREE: Final = 16 * 1024 * 1024
"""Bytes of the disk that sends leave free by default, on a large one."""

Seconds = Annotated[float, Meta(ge=0, le=MAX_DELAY)]
Count = Annotated[int, Meta(ge=1, le=MAX_COUNT)]


class QueueSettings(Struct, forbid_unknown_fields=True, frozen=True):
    """What holds for one queue. None is no limit."""

    retention: Annotated[float, Meta(ge=0, le=MAX_TTL)] = RETENTION
    """Seconds that the record of a settled message is kept."""
    max_attempts: Annotated[int, Meta(ge=1, le=1_000_000)] = MAX_ATTEMPTS
    """Deliveries of a message before it is dead."""
    retry_first: Seconds = 0.0
    """Seconds before the second delivery, where the consumer asks for none; at once, since most failures pass."""
    retry_base: Seconds = 1.0
    """Seconds before the third."""
    retry_factor: Annotated[float, Meta(ge=1, le=100)] = 2.0
    """How many times longer each further wait is."""
    retry_cap: Seconds = 300.0
    """Seconds of the longest wait."""
    retry_jitter: Annotated[float, Meta(ge=0, le=1)] = 0.2
    """The part of a wait that is left to chance, so that what failed together does not come back together."""
    ttl: Annotated[float, Meta(gt=0, le=MAX_TTL)] | None = None
    """Seconds that a message lives which has no ``ttl`` of its own."""
    on_expiry: Literal["settle", "dead"] = "settle"
    """Whether what has expired is settled as ``expired``, or becomes a dead letter."""
    max_in_flight: Count | None = None
    """Messages leased at once."""
    rate: Annotated[float, Meta(gt=0, le=1_000_000)] | None = None
    """Deliveries a second."""
    burst: Annotated[int, Meta(ge=1, le=1_000_000)] = 1
    """Deliveries at once, after a pause, where there is a ``rate``."""
    max_depth: Count | None = None
    """Messages that wait or are leased; dead letters are not counted."""
    max_bytes: Count | None = None
    """Bytes of their bodies."""
    when_full: Literal["refuse", "drop_oldest"] = "refuse"
    """Whether a send over a limit is refused (`QueueFull`), or the oldest message that is not leased makes room."""

    @property
    def limited(self) -> bool:
        """Whether there is a limit to what may wait."""
        return self.max_depth is not None or self.max_bytes is not None


class StorageSettings(Struct, forbid_unknown_fields=True, frozen=True):
    """What holds for the daemon's file."""

    max_file_bytes: Annotated[int, Meta(ge=LEAST_FILE, le=MAX_COUNT)] | None = None
    """Bytes of the file above which sends are refused; None is no limit."""
    min_free_bytes: Annotated[int, Meta(ge=0, le=MAX_COUNT)] | None = None
    """Bytes of the disk that sends leave free; None is a twentieth of it, 16 MiB at most."""

    def least_free(self, disk_bytes: int) -> int:
        """The bytes that sends leave free on a disk of this size."""
        return min(disk_bytes // 20, MOST_KEPT_FREE) if self.min_free_bytes is None else self.min_free_bytes


SettingsOf: TypeAlias = Callable[[str], QueueSettings]
"""What holds for the queue of a name, now."""


def defaults(_queue: str) -> QueueSettings:
    """What holds where nothing is set."""
    return _DEFAULTS


_DEFAULTS: Final = QueueSettings()
