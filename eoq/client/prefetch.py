"""Messages fetched ahead of their handling, and their leases: shared by both clients, no socket, no clock.

A message is handed out only while its lease surely holds: one that has waited for half of its lease is extended
first, and one whose lease is gone is dropped here, since the daemon delivers it again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Generic, TypeVar

from ..message import Delivery
from ..protocol.limits import DEFAULT_LEASE

M = TypeVar("M", bound=Delivery)


class Prefetched(Generic[M]):
    """The messages of one consumer that wait to be handled. All times are monotonic seconds."""

    def __init__(self, lease: float | None, most: int) -> None:
        self.lease = DEFAULT_LEASE if lease is None else lease
        self._most = most
        self._messages: deque[M] = deque()
        self._renewed = 0.0
        self._generation = 0

    def __len__(self) -> int:
        return len(self._messages)

    def fill(self, messages: Iterable[M], asked_at: float, generation: int) -> None:
        """Takes what was received over the connection number ``generation``; the leases run since ``asked_at``."""
        self._drop_of_another(generation)
        self._renewed = min(self._renewed, asked_at) if self._messages else asked_at
        self._messages.extend(messages)

    def is_old(self, since: float, now: float) -> bool:
        """Whether leases that run ``since`` then are to be extended now."""
        return now >= since + self.lease / 2

    def next(self) -> M | None:
        """The next message; None where none is left."""
        return self._messages.popleft() if self._messages else None

    def room(self) -> int:
        """How many more to ask for: none until half of them are gone, so that requests stay few and large."""
        room = self._most - len(self._messages) - 1  # the one in hand counts
        return room if room >= max(1, self._most // 2) else 0

    def to_extend(self, now: float, generation: int) -> list[str]:
        """The receipts to extend before the next message is handed out."""
        self._drop_of_another(generation)
        return [message.receipt for message in self._messages] if self.is_old(self._renewed, now) else []

    def extended(self, now: float, lost: set[str]) -> None:
        """Keeps what could be extended."""
        self._messages = deque(message for message in self._messages if message.receipt not in lost)
        self._renewed = now

    def drain(self, generation: int) -> list[str]:
        """Forgets all messages; returns the receipts of those that can be given back."""
        self._drop_of_another(generation)
        receipts = [message.receipt for message in self._messages]
        self._messages.clear()
        return receipts

    def _drop_of_another(self, generation: int) -> None:
        """Bound leases end with the connection they came over."""
        if generation != self._generation:
            self._messages.clear()
            self._generation = generation
