"""The options of `Client.work`, and the times and bounds of its loop."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, TypedDict

from ..errors import InvalidRequest
from ..protocol.limits import DEFAULT_LEASE, MAX_LEASE

BEATS: Final = 3
"""How often a lease is extended within its length: two extensions may be late before it ends."""
RECHECK_SECONDS: Final = 1.0
"""How soon a loop that ends when the queue is empty asks again while its own handlers run."""
STOP_SECONDS: Final = 2.0
"""How long the end of the loop waits until the waiting messages are given back to the daemon."""
LAST_SECONDS: Final = 0.1
"""How long the end of the loop then waits until messages delivered meanwhile are given back. Mostly there are none."""
PAUSE_STEP: Final = 0.1
"""How soon a loop that pauses because of failures notices its stop."""
MAX_PIPELINED: Final = 32
"""How many acks are in flight while the next message is handled. They can share one commit of the daemon.

The acks of a batch are one request; of those, each of the handlers that run at once may have one in flight.
"""


class WorkKeywords(TypedDict, total=False):
    """The options of `Client.work` without an inbox, as keywords. `WorkOptions` says what they mean."""

    concurrency: int
    prefetch: int
    lease: float | None
    timeout: float | None
    until_empty: bool
    idle: float | None


class InboxWorkKeywords(WorkKeywords, total=False):
    """Those that it takes with an inbox."""

    batch: int


@dataclass(frozen=True, slots=True)
class WorkOptions:
    """How a loop works. Raises `InvalidRequest` for values out of bounds.

    Up to ``concurrency`` handlers run at once, and ``prefetch`` more messages may wait. Up to ``batch`` of those share
    a transaction of an inbox. ``lease`` is in seconds. ``timeout`` is the seconds for one run of a handler. The
    loop ends when it has had nothing to do for ``idle`` seconds, or with ``until_empty`` at once.
    """

    concurrency: int = 1
    prefetch: int = 0
    batch: int = 1
    lease: float | None = None
    timeout: float | None = None
    until_empty: bool = False
    idle: float | None = None

    def __post_init__(self) -> None:
        if self.concurrency < 1 or self.prefetch < 0:
            raise InvalidRequest(
                f"concurrency is 1 or more and prefetch 0 or more, not {self.concurrency!r} and {self.prefetch!r}"
            )
        if self.lease is not None and not 0 < self.lease <= MAX_LEASE:
            raise InvalidRequest(f"a lease has up to {MAX_LEASE:,.0f} seconds, and not {self.lease!r}")
        if self.timeout is not None and not self.timeout > 0:
            raise InvalidRequest(f"a timeout is more than 0 seconds, and not {self.timeout!r}")
        if self.idle is not None and not self.idle >= 0:
            raise InvalidRequest(f"idle is 0 or more seconds, and not {self.idle!r}")

    def check_inbox(self, inbox: object | None) -> None:
        """Raise `InvalidRequest` where ``inbox`` cannot process such batches, or not in so many threads."""
        if self.batch < 1 or (self.batch > 1 and inbox is None):
            raise InvalidRequest(f"batch is 1, or more with an inbox, and not {self.batch!r}")
        if self.batch > 1 and not hasattr(inbox, "process_many"):
            raise InvalidRequest(f"a {type(inbox).__name__} processes one message at a time; leave batch at 1")
        check_threads = getattr(inbox, "check_threads", None)
        if check_threads is not None:
            check_threads(self.concurrency)

    @property
    def places(self) -> int:
        """How many messages can be handled at once."""
        return self.concurrency * self.batch

    @property
    def pipelined(self) -> int:
        """How many requests with acks may be in flight before the next handler begins."""
        return MAX_PIPELINED if self.batch == 1 else self.concurrency

    @property
    def suspects(self) -> int | None:
        """How many messages with a failed attempt the loop keeps at once; None without batches. See `InFlight`."""
        return self.concurrency if self.batch > 1 else None

    @property
    def lease_seconds(self) -> float:
        """The length of a lease."""
        return DEFAULT_LEASE if self.lease is None else self.lease

    @property
    def idle_seconds(self) -> float | None:
        """The seconds without work after which the loop ends. None means never."""
        return 0.0 if self.until_empty and self.idle is None else self.idle
