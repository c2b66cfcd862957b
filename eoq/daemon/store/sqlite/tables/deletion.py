"""The deletion of queues: by an operator, and by itself where nothing is left of a queue.

A queue with messages is never deleted. Its remembered ids go in steps of bounded length.
"""

from __future__ import annotations

from typing import Final

from .....errors import InvalidRequest
from ....records import Deleted, Forgotten
from ....store.commands import DeleteIdleQueues, DeleteQueue
from ..database import Database
from .contents import Contents
from .messages import Messages
from .queues import Queues

STEP_ROWS: Final = 500
"""How many remembered ids one step deletes."""

_HAS_MESSAGES: Final = """
    select 1
    from (
      select 1 from message where queue = ?1 and state = 'ready'
      union all
      select 1 from message where queue = ?1 and state in ('delayed', 'blocked')
      union all
      select 1 from message where queue = ?1 and state = 'leased'
      union all
      select 1 from message where queue = ?1 and state = 'dead'
    )
    limit 1
    """


class Deletion:
    """The deletion of queues."""

    def __init__(self, database: Database, queues: Queues, messages: Messages, contents: Contents) -> None:
        self._database = database
        self._queues = queues
        self._messages = messages
        self._contents = contents

    def delete(self, command: DeleteQueue) -> Deleted:
        """See `DeleteQueue`."""
        name = command.queue
        queue_id = self._queues.find(name)
        if queue_id is None:
            return Deleted(False, 0, True)
        if self._has_messages(queue_id):
            raise InvalidRequest(
                f"the queue {name!r} has messages; let them be settled, or drop them with `eoq purge {name}` and "
                f"`eoq dead drop {name} --all`"
            )
        if name in command.keep or name in self._bound():
            raise InvalidRequest(f"{name!r} is bound, or is a topic; end that first, as `eoq topics` shows it")
        if name in self._scheduled():
            raise InvalidRequest(f"a schedule sends to the queue {name!r}; remove it first (`eoq schedule list`)")
        if not command.forget_ids and self._remembers(queue_id):
            raise InvalidRequest(
                f"the queue {name!r} remembers the ids of settled messages, which keep a repeated send from being "
                "stored twice; it goes by itself when their retention has passed, or now with `--forget-ids` "
                "(`forget_ids`)"
            )
        forgotten = self._forget_ids(queue_id)
        if forgotten == STEP_ROWS:
            return Deleted(True, forgotten, False)
        self._remove(name, queue_id)
        return Deleted(True, forgotten, True)

    def delete_idle(self, command: DeleteIdleQueues) -> Forgotten:
        """See `DeleteIdleQueues`."""
        rows = self._database.execute(
            """
            select number, name, paused
            from queue
            where number > ?
            order by number
            limit ?
            """,
            (command.after, command.limit),
        ).fetchall()
        kept = command.keep | self._bound() | self._scheduled()
        gone = 0
        for queue_id, name, paused in rows:
            if not paused and name not in kept and not self._remembers(queue_id) and not self._has_messages(queue_id):
                self._remove(name, queue_id)
                gone += 1
        return Forgotten(gone, rows[-1][0] if len(rows) == command.limit else None)

    def _has_messages(self, queue_id: int) -> bool:
        return self._database.execute(_HAS_MESSAGES, (queue_id,)).fetchone() is not None

    def _remembers(self, queue_id: int) -> bool:
        """Return whether the ids of settled messages are remembered."""
        row = self._database.execute(
            "select 1 from message where queue = ? and settled_at is not null limit 1", (queue_id,)
        ).fetchone()
        return row is not None

    def _bound(self) -> set[str]:
        """Return the topics and the queues of the stored bindings."""
        return {name for pair in self._database.execute("select topic, queue from binding") for name in pair}

    def _scheduled(self) -> set[str]:
        """Return the queues to which schedules send."""
        return {queue for (queue,) in self._database.execute("select queue from schedule")}

    def _forget_ids(self, queue_id: int) -> int:
        return self._messages.forget_settled(queue_id, float("inf"), STEP_ROWS)

    def _remove(self, name: str, queue_id: int) -> None:
        self._contents.drop(queue_id)
        self._queues.delete(name, queue_id)
