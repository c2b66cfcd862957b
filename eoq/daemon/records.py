"""What goes into the verbs of the store, and what comes out of them.

What there is one of for each message is a struct, which takes less time to make than a named tuple.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from msgspec import Struct

from ..errors import LeaseLost


class NewMessage(Struct, frozen=True, gc=False):
    """A message to be stored, already validated. ``headers`` is JSON; ``due_at`` None is now, ``expires_at`` never."""

    queue: str
    id: str
    body: bytes
    digest: bytes
    headers: str | None = None
    priority: int = 0
    group: str | None = None
    due_at: float | None = None
    fixed: bool = False
    """Whether ``due_at`` is a moment that was asked for, which stays when the clock jumps; else it is a wait."""
    expires_at: float | None = None


def counted(queues: Sequence[str]) -> dict[str, int]:
    """How often each of ``queues`` is there. Mostly there is one, and a `Counter` takes longer to make."""
    counts: dict[str, int] = {}
    for queue in queues:
        counts[queue] = counts.get(queue, 0) + 1
    return counts


class Routed(Struct, frozen=True):
    """Messages as they are stored. ``origins`` tells from which of those that were sent each is; None: all as sent."""

    messages: Sequence[NewMessage]
    origins: list[int] | None

    def duplicates(self, stored: Sequence[int]) -> list[int]:
        """The indexes of sent messages of which every copy was stored before."""
        if self.origins is None:
            return list(stored)
        known = set(stored)
        new = {origin for index, origin in enumerate(self.origins) if index not in known}
        return sorted(set(self.origins) - new)


class End(NamedTuple):
    """A message that ended, though nobody who holds it settled it."""

    queue: str
    id: str
    outcome: str
    error: str | None


class Stored(Struct, frozen=True):
    """What came of messages that were to be stored.

    ``duplicates`` are the indexes of those that were stored before, ``ended`` what was dropped to make room.
    """

    duplicates: list[int]
    ended: Sequence[End]


class Claimed(Struct, frozen=True, gc=False):
    """A message as it is leased. ``fence`` is the number of this delivery."""

    seq: int
    id: str
    body: bytes
    headers: str | None
    attempt: int
    fence: int
    priority: int
    group: str | None
    enqueued_at: float
    expires_at: float | None


class Claim(NamedTuple):
    """What one receive takes, and the queue's watermark.

    ``ended`` had expired. ``unfinished`` says that there may be more: so many had expired, or so large were they.
    """

    messages: list[Claimed]
    watermark: int
    ended: Sequence[End] = ()
    unfinished: bool = False


class DeliveryRef(Struct, frozen=True, gc=False):
    """A delivery that is to be settled: the message's place, its fence, and what its lease knows of it.

    Of one that has ``ended`` there is no lease any more; all it can do is repeat what it did before.
    """

    seq: int
    fence: int
    queue: str = ""
    group: str | None = None
    size: int = 0
    expires: bool = False
    ended: bool = False


class Advanced(NamedTuple):
    """What time has done: how many became ready in which queue, what expired, and when to look again."""

    ready: dict[str, int]
    ended: Sequence[End]
    next_at: float | None


class Shifted(NamedTuple):
    """Waits and times to live were moved with the wall clock, by so many seconds."""

    seconds: float


LEASE_ENDED: Final = "the lease of this receipt has ended, so nothing was changed; go on with the next message"


class DeliveryLost(LeaseLost):
    """The lease of ``held`` has ended."""

    def __init__(self, held: DeliveryRef) -> None:
        super().__init__(LEASE_ENDED)
        self.held = held
