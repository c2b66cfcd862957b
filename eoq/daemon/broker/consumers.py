"""Consumers: how many open connections have asked for the messages of each queue."""

from __future__ import annotations

from functools import partial
from typing import Final

from ..session import Session

MOST_QUEUES: Final = 1000
"""Of how many queues one connection counts as a consumer, so that it cannot use memory without end."""


class Consumers:
    """The connections that consume, by queue."""

    def __init__(self) -> None:
        self._by_queue: dict[str, int] = {}
        self._queues_of: dict[Session, set[str]] = {}

    def note(self, session: Session, queue: str) -> None:
        """Count a connection as a consumer of a queue, until it ends."""
        queues = self._queues_of.get(session)
        if queues is None:
            queues = self._queues_of[session] = set()
            session.on_close(partial(self._leave, session))
        if queue not in queues and len(queues) < MOST_QUEUES:
            queues.add(queue)
            self._by_queue[queue] = self._by_queue.get(queue, 0) + 1

    def of(self, queue: str) -> int:
        """Return how many consumers a queue has."""
        return self._by_queue.get(queue, 0)

    def _leave(self, session: Session) -> None:
        for queue in self._queues_of.pop(session):
            self._by_queue[queue] -= 1
            if not self._by_queue[queue]:
                del self._by_queue[queue]
