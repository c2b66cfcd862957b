"""What is leased: which messages, by which delivery, and where the next claim of each queue goes on.

A lease is not written into its message. It is known here, in memory, and follows the transaction. The table
``delivery`` has a row for each claim, so that the next daemon knows after a kill what had been delivered.

Statements ask ``leased(seq)`` of messages that are stored as ready.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Final, TypeAlias

from msgspec import Struct

from ....records import NewMessage
from ..database import Database
from .lives import Lives

MOST_BACK: Final = 10_000
"""How many messages that came back are known for one queue. With more, the next claim begins at the first message."""

Key: TypeAlias = tuple[int, int]
"""The place of a message in the order of delivery: the negated priority, and the seq."""
START: Final[Key] = (-(2**62), 0)
"""A place before all messages."""
BEFORE_ALL: Final = -1e12
"""A time before all times, in seconds since the epoch."""


class Delivered(Struct, eq=False):
    """What one claim has delivered. Its number is new in this life, so it fences."""

    number: int
    queue_id: int
    delivered_at: float
    consumer: str | None
    handles: int | None
    """How many of its messages are handled at once, in their order. None is all."""
    seqs: Sequence[int]
    """The messages, in the order of delivery."""
    open: int
    """How many of them are leased still."""


class ClaimPlace:
    """Where the next claim of a queue goes on.

    All ready messages before ``key`` are leased, or they are in ``back``, because they became ready after it had been
    passed.
    """

    __slots__ = ("back", "key", "skipping")

    def __init__(self) -> None:
        self.key = START
        self.back: list[Key] = []
        """A heap. Some of these messages may be leased by now, or not ready any more."""
        self.skipping = False
        """Whether there may be leased messages behind ``key``."""

    def start_again(self) -> None:
        """Go on at the first message of the queue."""
        self.key = START
        self.back.clear()
        self.skipping = True


class OldestPlace:
    """Where the search for the oldest message of a queue that can be dropped goes on.

    All ready messages up to ``seq`` are leased, or they are in ``back``, because they became ready after it had been
    passed.
    """

    __slots__ = ("back", "seq")

    def __init__(self) -> None:
        self.seq = 0
        self.back: list[int] = []
        """A heap of seqs. Some of these messages may be leased by now, or not ready any more."""

    def start_again(self) -> None:
        """Go on at the first message of the queue."""
        self.seq = 0
        self.back.clear()


class ExpiryPlace:
    """Where the search for expired messages goes on: all that expire before it are leased.

    What stores a message, or gives one back, that expires before it, has to say so with `Leased.may_expire`.
    """

    __slots__ = ("expires_at", "seq")

    def __init__(self) -> None:
        self.start_again()

    def start_again(self) -> None:
        """Go on at the first message that expires."""
        self.expires_at = BEFORE_ALL
        self.seq = 0


class Leased:
    """All leased messages, and the places of all queues."""

    def __init__(self, database: Database, lives: Lives) -> None:
        self._database = database
        self._lives = lives
        self._by_seq: dict[int, Delivered] = {}
        self.get = self._by_seq.get
        """Return the delivery that leases a message, by its seq, or None."""
        self._places: dict[int, ClaimPlace] = {}
        self._oldest: dict[int, OldestPlace] = {}
        self.expiry = ExpiryPlace()
        self._next_number = 1
        database.create_function("leased", self._is_leased)

    # ── leases ──────────────────────────────────────────────────────────────────────────────────────────

    def add(self, queue_id: int, now: float, consumer: str | None, handles: int | None, seqs: Sequence[int]) -> int:
        """Lease messages in one delivery, and return its number."""
        self._lives.store()
        number = self._next_number
        self._next_number += 1
        delivery = Delivered(number, queue_id, now, consumer, handles, seqs, len(seqs))
        self._database.execute(
            """
            insert into delivery (number, queue, delivered_at, consumer, handles, seqs)
            values (?, ?, ?, ?, ?, ?)
            """,
            (number, queue_id, now, consumer, handles, str(seqs)),
        )
        self._database.on_rollback(partial(self._forget, delivery))
        self._by_seq.update(dict.fromkeys(seqs, delivery))
        return number

    def end(self, seqs: Iterable[int]) -> None:
        """End the leases of messages that are settled."""
        self._end(seqs)

    def give_back(self, seqs: Iterable[int]) -> None:
        """End the leases of messages that stay, so that their delivery is not about them any more."""
        for delivery in self._end(seqs):
            if delivery.open:
                self._database.execute(
                    "update delivery set seqs = ? where number = ?",
                    (str(self._still_leased(delivery)), delivery.number),
                )

    def _end(self, seqs: Iterable[int]) -> set[Delivered]:
        pop = self._by_seq.pop
        ended = [(seq, pop(seq)) for seq in seqs]
        self._database.on_rollback(partial(self._restore, ended))
        changed = set()
        for _, delivery in ended:
            delivery.open -= 1
            changed.add(delivery)
        for delivery in changed:
            if not delivery.open:
                self._database.execute("delete from delivery where number = ?", (delivery.number,))
        return changed

    def handled(self, seqs: Iterable[int]) -> set[int]:
        """Return those of the leased messages ``seqs`` that were being handled, as far as is known.

        These are the first ones of their delivery that are not settled, as many as it says that are handled at once.
        """
        handled: set[int] = set()
        for delivery in {self._by_seq[seq] for seq in seqs}:
            handled.update(self._still_leased(delivery)[: delivery.handles])
        return handled.intersection(seqs)

    def _still_leased(self, delivery: Delivered) -> list[int]:
        return [seq for seq in delivery.seqs if self.get(seq) is delivery]

    def _forget(self, delivery: Delivered) -> None:
        for seq in delivery.seqs:
            del self._by_seq[seq]

    def _restore(self, ended: Sequence[tuple[int, Delivered]]) -> None:
        for seq, delivery in ended:
            self._by_seq[seq] = delivery
            delivery.open += 1

    def _is_leased(self, seq: int) -> bool:
        return seq in self._by_seq

    # ── places ──────────────────────────────────────────────────────────────────────────────────────────

    def place(self, queue_id: int) -> ClaimPlace:
        """Return where the next claim of a queue goes on."""
        place = self._places.get(queue_id)
        if place is None:
            place = self._places[queue_id] = ClaimPlace()
        return place

    def pop_back(self, place: ClaimPlace) -> Key | None:
        """Remove the first message that came back, and return its place; None where there is none."""
        back = place.back
        if not back:
            return None
        self._database.on_rollback(place.start_again)
        key = heapq.heappop(back)
        while back and back[0] == key:  # it became ready more than once
            heapq.heappop(back)
        return key

    def move(self, place: ClaimPlace, key: Key) -> None:
        """Let the next claim go on behind ``key``, if it is not behind it already."""
        if key > place.key:
            self._database.on_rollback(place.start_again)
            place.key = key

    def ready(self, queue_id: int, priority: int, seq: int) -> None:
        """Note that a message has become ready, so that the next claim finds it."""
        place = self._places.get(queue_id)
        if place is not None:
            self._come_back(place, (-priority, seq))
        oldest = self._oldest.get(queue_id)
        if oldest is not None and seq <= oldest.seq:
            self._database.on_rollback(oldest.start_again)
            if len(oldest.back) < MOST_BACK:
                heapq.heappush(oldest.back, seq)
            else:
                oldest.start_again()

    def stored(self, queue_id: int, first: int, messages: Sequence[tuple[float, NewMessage]]) -> None:
        """Note that new messages are ready, with seqs from ``first`` on."""
        place = self._places.get(queue_id)
        if place is None:
            return
        passed = place.key[0]
        for index, (_, message) in enumerate(messages):
            if -message.priority < passed:
                self._come_back(place, (-message.priority, first + index))

    def _come_back(self, place: ClaimPlace, key: Key) -> None:
        if key > place.key:
            return
        # A rollback may also take the place back, to before this message.
        self._database.on_rollback(place.start_again)
        if len(place.back) < MOST_BACK:
            heapq.heappush(place.back, key)
        else:
            place.start_again()

    # ── expiry ──────────────────────────────────────────────────────────────────────────────────────────

    def move_expiry(self, expires_at: float, seq: int) -> None:
        """Note that all messages that expire earlier, up to this one, have ended or are leased."""
        self._database.on_rollback(self.expiry.start_again)
        self.expiry.expires_at, self.expiry.seq = expires_at, seq

    def may_expire(self, expires_at: float) -> None:
        """Note that a message that is not leased expires then. It is found, also if the clock was set back."""
        if expires_at <= self.expiry.expires_at:
            self.expiry.start_again()

    # ── the oldest that can be dropped ──────────────────────────────────────────────────────────────────

    def oldest_place(self, queue_id: int) -> OldestPlace:
        """Return where the search for the oldest message of a queue goes on. See ``unleased.py``."""
        place = self._oldest.get(queue_id)
        if place is None:
            place = self._oldest[queue_id] = OldestPlace()
        return place

    def pass_over(self, place: OldestPlace, seq: int) -> None:
        """Note that all ready messages up to ``seq`` are leased, or in ``place.back``."""
        if seq > place.seq:
            self._database.on_rollback(place.start_again)
            place.seq = seq

    def pop_oldest(self, place: OldestPlace) -> int:
        """Remove the oldest message that came back, and return its seq."""
        self._database.on_rollback(place.start_again)
        seq = heapq.heappop(place.back)
        while place.back and place.back[0] == seq:  # it became ready more than once
            heapq.heappop(place.back)
        return seq

    def forget_queue(self, queue_id: int) -> None:
        """Forget the places of a queue that is deleted. Its number is not used again."""
        self._places.pop(queue_id, None)
        self._oldest.pop(queue_id, None)
