"""Commands: what the daemon can ask its store to do, as plain values.

The outcome of a `Command[R]` is an ``R``, or an `EoqError`.

The broker and the services make commands; the writer groups them into transactions; the store runs them. A command
either does all of its work, or it raises an `EoqError` and changes nothing. So a refusal harms no other command of its
transaction.

Moments are seconds since the epoch. ``settings`` returns the settings of a queue by its name.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Generic, Literal, TypeAlias, TypeVar

from msgspec import Struct

from ..config.settings import SettingsOf, defaults
from ..portable import Entry
from ..records import (
    Advanced,
    Binding,
    Cancelled,
    Claimed,
    Deleted,
    DeliveryRef,
    Edited,
    End,
    FarResult,
    Forgotten,
    NewMessage,
    OnceRecord,
    Remembered,
    ResultsTaken,
    Shifted,
    Step,
    Stored,
)

Counts: TypeAlias = Literal["all", "handled", "none"]
"""Which of the deliveries that end use an attempt."""

R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)


class Command(Struct, Generic[R_co], frozen=True):
    """One change of the store, or one query, whose outcome is an ``R``."""


# ── messages ────────────────────────────────────────────────────────────────────────────────────────────────


class Put(Command[Stored], frozen=True):
    """Store messages, all or none.

    Raises `IdConflict` where an id is stored with other content, `QueueFull` where a queue's limit would be exceeded
    or there are too many queues, `StorageFull` where the disk or the file has no room for sends.
    """

    now: float
    messages: Sequence[NewMessage]
    settings: SettingsOf


class Claim(Command[Claimed], frozen=True):
    """Lease the next messages of a queue; none while the queue is paused.

    At most ``limit`` messages, and at most ``most_bytes`` of bodies and headers unless the first alone has more.
    """

    now: float
    queue: str
    limit: int
    most_bytes: int
    settings: SettingsOf
    consumer: str | None = None
    handles: int | None = None
    """How many of the messages are handled at once, in their order; None is all."""


class Settle(Command[Stored], frozen=True):
    """Ack deliveries with their results, and store messages: everything or nothing (G4).

    An ack that the same delivery made before is repeated without effect. Raises `LeaseLost`, or what `Put` raises.
    With ``forwarded``, the messages went to that place instead of being done here; they have no results. Where it
    ``awaits`` these, they come back later, by `TakeResults`.
    """

    now: float
    acks: Sequence[tuple[DeliveryRef, bytes | None]]
    messages: Sequence[NewMessage]
    settings: SettingsOf
    forwarded: str | None = None
    awaits: bool = False


class TakeResults(Command[ResultsTaken], frozen=True):
    """Store how forwarded messages ended elsewhere, for those that await it. Repeated, it changes nothing."""

    queue: str
    results: Sequence[FarResult]


class RetryDeliveries(Command[list[End | bool]], frozen=True):
    """Make leased messages deliverable again, at ``due_at``, or dead where no attempt is left.

    The outcome has, for each delivery: the `End` of its message, True where the message stays, and False where its
    lease had ended before.

    ``counts`` says which of them use an attempt: ``all``, ``none``, or those that were being ``handled``: the first
    ones of each claim, as many as the claim says that are handled at once.
    """

    now: float
    deliveries: Sequence[DeliveryRef]
    settings: SettingsOf
    due_at: float | None = None
    error: str | None = None
    counts: Counts = "all"


class RejectDelivery(Command[str], frozen=True):
    """Make a leased message a dead letter. The outcome is ``dead``, or ``cancelled``. Raises `LeaseLost`."""

    now: float
    delivery: DeliveryRef
    error: str | None


class EndLife(Command[None], frozen=True):
    """Store that this daemon stops, and was not killed: then the next one counts no delivery as an attempt."""


class StoreTotals(Command[bool], frozen=True):
    """Write what was counted of the queues to the file. It is done now and then in any case, while others follow.

    The outcome says whether counts of further queues are left.
    """


# ── time ────────────────────────────────────────────────────────────────────────────────────────────────────


class Advance(Command[Advanced], frozen=True):
    """End up to ``limit`` expired messages, and make up to ``limit`` due messages ready."""

    now: float
    limit: int
    settings: SettingsOf


class ShiftTimes(Command[Shifted], frozen=True):
    """Move waits and times to live by ``seconds``, because the wall clock was set. Moments that a sender named stay.

    However many wait, it is one number that changes: see `ClockNotes`.
    """

    seconds: float
    now: float
    """The wall clock afterwards. It is noted in the same step, with the next two, as `NoteClock` does."""
    elapsed: float
    boot: str


class NoteClock(Command[Shifted], frozen=True):
    """Store what the clocks show. A daemon that starts finds out whether the wall clock was set meanwhile.

    Then it moves waits and times to live, as `ShiftTimes` does.
    """

    now: float
    elapsed: float
    """Seconds of the clock that is never set."""
    boot: str
    """The start of the machine from which ``elapsed`` counts. Empty where it is unknown."""
    starting: bool


class ReadRemembered(Command[Remembered | None], frozen=True):
    """Read what the last `StoreRemembered` has stored. The outcome is None where there was none."""


class StoreRemembered(Command[None], frozen=True):
    """Store the retentions under which ids are remembered from now on."""

    remembered: Remembered


class Forget(Command[Forgotten], frozen=True):
    """Examine up to ``limit`` ids, and forget those that have passed their retention. Drop old dead letters.

    ``after`` is where the last step of this round has ended; None begins a round. A round passes the queues whose last
    pass was some time ago; with ``hurry``, all queues. The first steps of a life only read when records were settled.
    """

    now: float
    after: tuple[int, str | None] | None
    limit: int
    settings: SettingsOf
    hurry: bool = False


class Shrink(Command[int], frozen=True):
    """Give up to ``pages`` unused pages of the file back to the disk. The outcome is how many more could be given."""

    pages: int


# ── administration ──────────────────────────────────────────────────────────────────────────────────────────


class Pause(Command[bool], frozen=True):
    """Pause all deliveries of a queue, or resume them. The outcome says whether that changed anything.

    Pausing makes a queue that does not exist. Resuming one raises `NotFound`.
    """

    queue: str
    paused: bool


class DeleteQueue(Command[Deleted], frozen=True):
    """Delete a queue without messages, in steps.

    ``keep`` has the queues that the configuration names in a binding. Raises `InvalidRequest` where the queue has
    messages, is bound, is a topic, or a schedule sends to it; and where its ids are remembered, unless ``forget_ids``.
    """

    queue: str
    forget_ids: bool
    keep: frozenset[str]


class DeleteIdleQueues(Command[Forgotten], frozen=True):
    """Delete the queues of which nothing is left: no message, id, binding or schedule, and not paused.

    One step looks at ``limit`` queues with a queue_id above ``after``. ``keep`` is that of `DeleteQueue`.
    """

    after: int
    limit: int
    keep: frozenset[str]


class Purge(Command[Step], frozen=True):
    """Drop the waiting messages with a seq up to ``upto``, in steps. None means all that are stored now.

    Leased messages and dead letters stay. ``after`` of the outcome is the ``upto`` of the next step.
    """

    now: float
    queue: str
    upto: int | None


class CancelMessage(Command[Cancelled], frozen=True):
    """Settle a message as cancelled, or, where it is leased, note that it is to end so. Raises `NotFound`."""

    now: float
    queue: str
    id: str


class EditMessage(Command[Edited], frozen=True):
    """Change the body, the priority or the due time of a message. None leaves each as it is.

    Its digest stays that of the content that was sent first. Raises `NotFound`, `InvalidRequest` where the message is
    leased, settled, or a dead letter that is to be due, and `StorageFull`.
    """

    now: float
    queue: str
    id: str
    body: bytes | None
    priority: int | None
    due_at: float | None
    fixed: bool


class Import(Command[int], frozen=True):
    """Store the entries of an export, each with the number of its line, all or none.

    What the file knows already stays as it is. The outcome is how many entries were new. Raises `IdConflict` where an
    id is known with other content, `QueueFull` where there are too many queues, and `StorageFull`.
    """

    now: float
    entries: Sequence[tuple[int, Entry]]


class Redrive(Command[Step], frozen=True):
    """Give dead letters a new set of attempts: those of ``ids``, or all that failed before a moment.

    ``seen_at`` is when the operator looked: messages that failed since then stay.

    A message keeps its id, its seq and the history of its deliveries. Its time to live no longer counts.

    With ``to``, the messages are stored in that queue instead, under their ids, and the dead letters are dropped. Those
    whose id is stored there with other content stay: they are the ``refused`` of the outcome. Raises what `Put` raises.
    """

    now: float
    queue: str
    ids: Sequence[str] | None
    failed_before: float | None
    after: int
    seen_at: float | None = None
    to: str | None = None
    settings: SettingsOf = defaults


class Drop(Command[Step], frozen=True):
    """Settle dead letters as dropped: those of ``ids``, or all that failed before a moment. See `Redrive`."""

    now: float
    queue: str
    ids: Sequence[str] | None
    failed_before: float | None
    after: int
    seen_at: float | None = None


# ── topics ──────────────────────────────────────────────────────────────────────────────────────────────────


class Bind(Command[list[Binding]], frozen=True):
    """Store a binding, in place of another of the same topic and queue. The outcome is all stored bindings.

    ``configured`` are the bindings of the configuration. Raises `InvalidRequest` where the topic is a queue with
    messages, or where one name would be a topic and a bound queue, and `QueueFull` where there are too many.
    """

    binding: Binding
    configured: Sequence[Binding]


class Unbind(Command[list[Binding]], frozen=True):
    """Remove a binding. The outcome is all stored bindings. Raises `NotFound`."""

    topic: str
    queue: str


class ListBindings(Command[list[Binding]], frozen=True):
    """Return all stored bindings."""


# ── the dedup service ───────────────────────────────────────────────────────────────────────────────────────


class OnceBegin(Command[OnceRecord], frozen=True):
    """Give ``key`` to the caller with ``token``, unless another caller runs it or it is done.

    Raises `IdConflict` where the key was used with another fingerprint.
    """

    now: float
    key: str
    token: str
    fingerprint: str | None


class OnceFinish(Command[None], frozen=True):
    """Store the output of a key. Repeating it has no effect. Raises `LeaseLost` where another caller took the key."""

    key: str
    token: str
    status: int
    output: bytes | None
    output_bytes: int
    expires_at: float | None


class OnceRelease(Command[None], frozen=True):
    """Open a key that ``token`` runs. It has no effect where ``token`` does not run it."""

    key: str
    token: str


class OnceRunning(Command[list[tuple[str, str]]], frozen=True):
    """Return the running keys with their tokens."""


class OnceForget(Command[int], frozen=True):
    """Delete up to ``limit`` expired keys. The outcome is how many were deleted."""

    now: float
    limit: int
