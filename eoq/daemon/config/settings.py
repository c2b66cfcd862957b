"""The settings of queues and of the daemon's file: for each its type, bounds, meaning and default."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Final, Literal, TypeAlias

from msgspec import Meta, Struct

from ...message import MAX_DELAY
from ...protocol.limits import MAX_TTL

RETENTION: Final = 7 * 86400.0
_RESEND_PART: Final = 6 / 7
"""The part of a retention during which a message may be sent again. The rest is a margin."""
MAX_ATTEMPTS: Final = 10
MAX_COUNT: Final = 2**53
LEAST_FILE: Final = 1024 * 1024
"""Bytes: the lowest limit of the daemon's file. In a smaller file no queue would have room."""
MOST_KEPT_FREE: Final = 64 * 1024 * 1024
"""Bytes that sends leave free by default on a large disk. The largest request takes half of it."""

Seconds = Annotated[float, Meta(ge=0, le=MAX_DELAY)]
Count = Annotated[int, Meta(ge=1, le=MAX_COUNT)]


class QueueSettings(Struct, forbid_unknown_fields=True, frozen=True):
    """The settings of one queue. None is no limit.

    The type of a setting has its bounds and says what it means. `eoq config check` repeats it where a value is wrong.
    """

    retention: Annotated[
        float,
        Meta(ge=0, le=MAX_TTL, description="seconds for which the id and the result of a settled message are kept"),
    ] = RETENTION
    result_retention: Annotated[
        Annotated[float, Meta(ge=0, le=MAX_TTL)] | None,
        Meta(description="seconds for which the result of a settled message is kept; by default as long as its id"),
    ] = None
    dead_retention: Annotated[
        Annotated[float, Meta(ge=0, le=MAX_TTL)] | None,
        Meta(description="seconds after its last failure after which a dead letter is dropped"),
    ] = None
    max_dead: Annotated[Count | None, Meta(description="dead letters, above which the oldest are dropped")] = None
    max_attempts: Annotated[
        int, Meta(ge=1, le=1_000_000, description="deliveries of a message before it becomes a dead letter")
    ] = MAX_ATTEMPTS
    # At once by default, since most failures pass.
    retry_first: Annotated[
        Seconds, Meta(description="seconds before the second delivery, unless the consumer asks for another delay")
    ] = 0.0
    retry_base: Annotated[Seconds, Meta(description="seconds before the third delivery")] = 1.0
    retry_factor: Annotated[float, Meta(ge=1, le=100, description="how many times longer each further wait is")] = 2.0
    retry_cap: Annotated[Seconds, Meta(description="seconds of the longest wait")] = 300.0
    # So that messages that failed together do not come back together.
    retry_jitter: Annotated[float, Meta(ge=0, le=1, description="the part of a wait that is random")] = 0.2
    ttl: Annotated[
        Annotated[float, Meta(gt=0, le=MAX_TTL)] | None,
        Meta(description="seconds after which a message without a ttl of its own expires"),
    ] = None
    on_expiry: Annotated[
        Literal["settle", "dead"],
        Meta(description='"settle": an expired message is settled as expired; "dead": it becomes a dead letter'),
    ] = "settle"
    max_in_flight: Annotated[Count | None, Meta(description="messages that are leased at the same time")] = None
    rate: Annotated[Annotated[float, Meta(gt=0, le=1_000_000)] | None, Meta(description="deliveries per second")] = None
    burst: Annotated[
        int, Meta(ge=1, le=1_000_000, description="deliveries at once after a pause, if there is a rate")
    ] = 1
    max_depth: Annotated[Count | None, Meta(description="messages that wait or are leased, without dead letters")] = (
        None
    )
    max_bytes: Annotated[Count | None, Meta(description="bytes of the bodies of these messages")] = None
    when_full: Annotated[
        Literal["refuse", "drop_oldest"],
        Meta(
            description='"refuse": a send over a limit is refused; '
            '"drop_oldest": the oldest message that is not leased makes room'
        ),
    ] = "refuse"

    @property
    def limited(self) -> bool:
        """Whether the number or the size of waiting messages is limited."""
        return self.max_depth is not None or self.max_bytes is not None


class StorageSettings(Struct, forbid_unknown_fields=True, frozen=True):
    """The settings of the daemon's file."""

    max_file_bytes: Annotated[
        Annotated[int, Meta(ge=LEAST_FILE, le=MAX_COUNT)] | None,
        Meta(description="bytes of the daemon's file above which sends are refused"),
    ] = None
    min_free_bytes: Annotated[
        Annotated[int, Meta(ge=0, le=MAX_COUNT)] | None,
        Meta(description="bytes of the disk that sends leave free; by default 5 % of the disk, 64 MiB at most"),
    ] = None

    def least_free(self, disk_bytes: int) -> int:
        """Return the bytes that sends leave free on a disk of this size."""
        return min(disk_bytes // 20, MOST_KEPT_FREE) if self.min_free_bytes is None else self.min_free_bytes


def resend_within(retention: float) -> float:
    """Return for how many seconds a message that may have been stored can be sent again under the same id.

    The daemon remembers the id of a settled message for the ``retention`` of its queue, in seconds.
    """
    return retention * _RESEND_PART


SettingsOf: TypeAlias = Callable[[str], QueueSettings]
"""Returns the settings that a queue has now, by its name."""


def defaults(_queue: str) -> QueueSettings:
    """Return the settings of a queue for which nothing is set."""
    return _DEFAULTS


_DEFAULTS: Final = QueueSettings()
