"""Contents: how many messages wait or are leased in the queues that have a limit, and the bytes of their bodies.

The messages of a queue are counted in the file once, when its content is first needed. From then on every change is
counted in memory, and undone with its transaction.
"""

from __future__ import annotations

from functools import partial
from typing import Final, NamedTuple

from ..database import Database

_COUNT: Final = """
    select count(*), coalesce(sum(length(body)), 0)
    from message
    where seq in (
      select seq from message where queue = ?1 and state = 'ready'
      union all
      select seq from message where queue = ?1 and state in ('delayed', 'blocked')
    )
    """


class Content(NamedTuple):
    """Messages, and the bytes of their bodies."""

    messages: int
    size: int


class Contents:
    """The contents of the queues that are counted."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._by_queue: dict[int, Content] = {}

    def __bool__(self) -> bool:
        """Return whether any queue is counted."""
        return bool(self._by_queue)

    def of(self, queue_id: int) -> Content:
        """Return the content of a queue, which is counted from now on."""
        content = self._by_queue.get(queue_id)
        if content is None:
            row = self._database.execute(_COUNT, (queue_id,)).fetchone()
            self._database.on_rollback(partial(self._by_queue.pop, queue_id, None))
            content = self._by_queue[queue_id] = Content(*row)
        return content

    def drop(self, queue_id: int) -> None:
        """Count a queue no longer."""
        content = self._by_queue.pop(queue_id, None)
        if content is not None:
            self._database.on_rollback(partial(self._by_queue.update, {queue_id: content}))

    def add(self, queue_id: int, messages: int, size: int) -> None:
        """Add to the counts of a queue, if it is counted. Negative numbers subtract."""
        content = self._by_queue.get(queue_id)
        if content is not None:
            self._database.on_rollback(partial(self._by_queue.__setitem__, queue_id, content))
            self._by_queue[queue_id] = Content(content.messages + messages, content.size + size)
