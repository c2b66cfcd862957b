"""Messages that a consumer has fetched ahead, and their leases. Shared by both clients; no socket, no clock.

A message is yielded only while its lease certainly lasts. If it has waited for half of its lease, the lease is extended
first. If its lease has ended, it is dropped, since the daemon delivers it again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Generic, TypeVar

from ..message import Delivery
from ..protocol.calls import Extended
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
        """Add messages received over the connection of this ``generation``. Their leases run since ``asked_at``."""
        self._drop_other_generations(generation)
        self._renewed = min(self._renewed, asked_at) if self._messages else asked_at
        self._messages.extend(messages)

    def is_old(self, since: float, now: float) -> bool:
        """Return whether leases that run since ``since`` are to be extended now."""
        return now >= since + self.lease / 2

    def next(self) -> M | None:
        """Return the next message, or None where none is left."""
        return self._messages.popleft() if self._messages else None

    def room(self) -> int:
        """Return how many messages to ask for: none until half of them are used, so that requests are few and large."""
        room = self._most - len(self._messages)
        return room if room >= max(1, self._most // 2) else 0

    def to_extend(self, now: float, generation: int) -> list[str]:
        """Return the receipts to extend before the next message is yielded."""
        self._drop_other_generations(generation)
        return [message.receipt for message in self._messages] if self.is_old(self._renewed, now) else []

    def extended(self, now: float, extended: Extended) -> None:
        """Note that the leases were extended, except those that were lost."""
        self._messages = deque(message for message in self._messages if message.receipt not in extended.lost)
        for message in self._messages:
            message.cancelled = message.receipt in extended.cancelled
        self._renewed = now

    def drain(self, generation: int) -> list[str]:
        """Forget all messages. Return the receipts of those that can be given back."""
        self._drop_other_generations(generation)
        receipts = [message.receipt for message in self._messages]
        self._messages.clear()
        return receipts

    def _drop_other_generations(self, generation: int) -> None:
        """Drop the messages of an earlier connection: bound leases end with their connection."""
        if generation != self._generation:
            self._messages.clear()
            self._generation = generation
