"""Values that the commands of the store and their outcomes consist of.

Values that exist once per message are msgspec structs, which are cheaper to make than named tuples.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from msgspec import Struct

from ..errors import LeaseLost
from .rules.schedule_rules import Definition

# ── messages that are stored ────────────────────────────────────────────────────────────────────────────────


class NewMessage(Struct, frozen=True, gc=False):
    """A validated message that is to be stored. ``headers`` is JSON."""

    queue: str
    id: str
    body: bytes
    digest: bytes
    headers: str | None = None
    priority: int = 0
    group: str | None = None
    due_at: float | None = None
    """Seconds since the epoch. None means now."""
    fixed: bool = False
    """Whether ``due_at`` is a moment that the sender named. When the clock is set, a moment stays and a wait moves."""
    expires_at: float | None = None
    """Seconds since the epoch. None means never."""


class Routed(Struct, frozen=True):
    """Messages after routing.

    ``origins`` has, for each message, the index of the sent message that it is a copy of. It is None without copies.
    """

    messages: Sequence[NewMessage]
    origins: list[int] | None

    def duplicates(self, stored: Sequence[int]) -> list[int]:
        """Return the indexes of the sent messages of which every copy was stored before."""
        if self.origins is None:
            return list(stored)
        known = set(stored)
        new = {origin for index, origin in enumerate(self.origins) if index not in known}
        return sorted(set(self.origins) - new)

    def queues(self, sent: int) -> list[int] | None:
        """Return to how many queues each of the ``sent`` messages goes. None where none of them is for a topic."""
        if self.origins is None:
            return None
        counts = [0] * sent
        for origin in self.origins:
            counts[origin] += 1
        return counts


class End(Struct, frozen=True, gc=False):
    """A message that has ended."""

    queue: str
    id: str
    outcome: str
    """``done``, ``dead``, ``expired``, ``dropped``, ``cancelled`` or ``forwarded``."""
    error: str | None
    result: bytes | None = None
    """The result of its ack. The store sets none, because its outcomes list only messages that were not acked."""
    forwarded_to: str | None = None
    """Where it went, if it was forwarded."""
    awaits: bool = False
    """Whether its result is to come back from there, so that who waits for it goes on waiting."""


class FarResult(NamedTuple):
    """How a message ended where it was forwarded to."""

    id: str
    outcome: str
    result: bytes | None
    error: str | None


class ResultsTaken(NamedTuple):
    """The outcome of storing results that came back."""

    early: list[str]
    """The ids of those whose messages are not settled here yet. The others are stored, or nothing waits for them."""
    ended: list[End]


class Stored(Struct, frozen=True):
    """The outcome of storing messages."""

    duplicates: list[int]
    """The indexes of the messages that were stored before."""
    ended: Sequence[End]
    """The messages that were dropped to make room."""


def counted(queues: Sequence[str]) -> dict[str, int]:
    """Return how often each queue occurs. Usually there is one queue, for which a `Counter` would take longer."""
    counts: dict[str, int] = {}
    for queue in queues:
        counts[queue] = counts.get(queue, 0) + 1
    return counts


# ── deliveries ──────────────────────────────────────────────────────────────────────────────────────────────


class ClaimedMessage(Struct, frozen=True, gc=False):
    """A message as it is leased."""

    seq: int
    id: str
    body: bytes
    headers: str | None
    attempt: int
    priority: int
    group: str | None
    enqueued_at: float
    expires_at: float | None
    digest: bytes


class Claimed(NamedTuple):
    """The outcome of a claim."""

    messages: list[ClaimedMessage]
    watermark: int
    ended: Sequence[End] = ()
    """The messages that had expired."""
    unfinished: bool = False
    """Whether more may be ready: many had expired, or the rest was too large for one reply."""
    queue_id: int = 0
    delivery_number: int = 0
    """The number of this delivery, new in this life of the daemon. It fences: a settle with another one is refused."""


class DeliveryRef(Struct, frozen=True, gc=False):
    """A delivery that a command settles or ends, with what its lease knows of the message."""

    seq: int
    number: int
    """The number of the delivery in its life."""
    queue: str = ""
    group: str | None = None
    size: int = 0
    expires: bool = False
    ended: bool = False
    """Whether its lease has ended. A command can then only repeat what the delivery did before."""
    life: str = ""
    """The token of its life; empty for a lease of this life."""
    queue_id: int = 0
    id: str = ""
    """With the queue, where its record is, once the message is settled."""


LEASE_ENDED: Final = "the lease of this receipt has ended, so nothing was changed; go on with the next message"


class DeliveryLost(LeaseLost):
    """The lease of ``delivery`` has ended."""

    def __init__(self, delivery: DeliveryRef) -> None:
        super().__init__(LEASE_ENDED)
        self.delivery = delivery


# ── time ────────────────────────────────────────────────────────────────────────────────────────────────────


class Advanced(NamedTuple):
    """The outcome of `Advance`: the messages that time has changed."""

    ready: dict[str, int]
    """How many delayed messages became ready, by queue."""
    ended: Sequence[End]
    """The messages that expired."""
    next_at: float | None
    """When the next message is due or expires, in seconds since the epoch."""


class Shifted(NamedTuple):
    """The outcome of `ShiftTimes`."""

    seconds: float


class DroppedLetters(NamedTuple):
    """Dead letters of a queue that were dropped, and the setting that says so."""

    queue: str
    number: int
    setting: str


class Forgotten(NamedTuple):
    """The outcome of `Forget`, one step of deleting settled records."""

    rows: int
    """How many records were deleted."""
    after: tuple[int, str | None] | None
    """Where the next step continues; None at the end of the round."""
    letters: list[DroppedLetters]
    """The dead letters that were dropped."""
    ended: list[End]
    """The same dead letters, one by one."""


# ── administration ──────────────────────────────────────────────────────────────────────────────────────────


class Step(NamedTuple):
    """The outcome of one bounded step of a purge, redrive or drop."""

    ids: list[str]
    """The ids of the messages it changed."""
    after: int | None
    """Where the next step continues; None when there is nothing more."""
    ended: Sequence[End] = ()
    """The messages that it ended."""
    refused: Sequence[str] = ()
    """The ids of the messages that it could not change."""
    left: Sequence[str] = ()
    """The ids that were asked for, and are for the next step."""


class Cancelled(NamedTuple):
    """The outcome of cancelling a message."""

    state: str
    """``cancelled``; ``leased``: it ends so with its delivery, unless that is acked; or how it had ended before."""
    changed: bool
    delivered: bool
    """Whether it was delivered before, so that it may have taken effect."""
    delivery: tuple[int, int, int] | None
    """Where it is leased: its seq, the number of its delivery, and the id of its queue."""
    ended: Sequence[End]


class Edited(NamedTuple):
    """The outcome of editing a message: its state now, and whether it was delivered before."""

    state: str
    delivered: bool


class Deleted(NamedTuple):
    """The outcome of one step of deleting a queue."""

    existed: bool
    forgotten: int
    """How many ids this step made the daemon forget."""
    done: bool
    """Whether the queue is gone. If not, ids are left for the next step."""


class Binding(NamedTuple):
    """A queue bound to a topic: it gets the messages of the topic that have all of ``headers``."""

    topic: str
    queue: str
    headers: dict[str, str]


# ── the dedup service ───────────────────────────────────────────────────────────────────────────────────────


class OnceRecord(NamedTuple):
    """What is stored for a key of the dedup service."""

    state: str
    mine: bool
    """Whether the caller that asks runs the key, or ran it."""
    status: int
    output: bytes | None
    output_bytes: int


# ── schedules ───────────────────────────────────────────────────────────────────────────────────────────────


class ScheduleRecord(NamedTuple):
    """A schedule as it is stored."""

    definition: Definition
    origin: str
    """``client``, or ``config`` for one of the configuration file."""
    seen_at: float
    next_at: int | None
    last_at: int | None
    error: str | None
    paused: int
    row_id: int


class ScheduleAdded(NamedTuple):
    """The outcome of adding a schedule."""

    changed: bool
    next_at: int | None


class DueSchedules(NamedTuple):
    """The schedules that the scheduler has to plan."""

    set_back: list[ScheduleRecord]
    """Schedules that are ahead of the clock, which was set back."""
    due: list[ScheduleRecord]
    next_due_at: float | None
    """When the next schedule is due; None where there is none."""


class OccurrencePlan(NamedTuple):
    """The occurrences of a schedule that are to be stored now, and what the schedule is afterwards."""

    schedule: ScheduleRecord
    """The schedule as it was read. If it has changed since, nothing is stored."""
    occurrences: Sequence[tuple[int, Sequence[NewMessage]]]
    """The time of each occurrence, and its routed messages."""
    updated: ScheduleRecord
    """The schedule as it is to be stored afterwards."""
    try_at: float | None
    """When the schedule is due again."""


class Fired(NamedTuple):
    """The outcome of storing occurrences."""

    stored: list[tuple[Sequence[NewMessage], Stored]]
    notes: list[str]
    """Lines for the log."""
    next_due_at: float | None
    """When the next schedule is due; None where there is none."""
    refused: bool
    """Whether an occurrence was refused, and is tried again."""


class Remembered(Struct, frozen=True):
    """Under which retentions ids are remembered: each pattern of the configuration, with its seconds."""

    retentions: tuple[tuple[str, float], ...]
    forgotten_until: float | None
    """What was first tried before this moment may be forgotten, however long the retention is now."""
