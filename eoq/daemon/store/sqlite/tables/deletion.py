"""Queues without messages are deleted: by an operator, or because nothing is left of them."""

from __future__ import annotations

from typing import Final

from .....errors import InvalidRequest
from ....records import Deleted, Forgotten
from ....store.commands import DeleteIdleQueues, DeleteQueue
from ..database import Database
from ..deliveries.leased import Leased
from ..deliveries.record_retention import RecordRetention
from ..deliveries.settled import Settled
from ..totals import Totals
from .contents import Contents
from .dead_letters import STEP_ROWS
from .queues import Queues

_HAS_MESSAGES: Final = """
    select 1
    from (
      select 1 from message where queue = ?1 and state = 'ready'
      union all
      select 1 from message where queue = ?1 and state in ('delayed', 'blocked')
      union all
      select 1 from message where queue = ?1 and state = 'dead'
    )
    limit 1
    """


class Deletion:
    """The deletion of queues without messages: by an operator, and of those of which nothing is left."""

    def __init__(
        self,
        database: Database,
        queues: Queues,
        settled: Settled,
        contents: Contents,
        leased: Leased,
        retention: RecordRetention,
        totals: Totals,
    ) -> None:
        self._database = database
        self._queues = queues
        self._settled = settled
        self._contents = contents
        self._leased = leased
        self._retention = retention
        self._totals = totals

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
            if not paused and name not in kept and not self._has_messages(queue_id) and not self._remembers(queue_id):
                self._remove(name, queue_id)
                gone += 1
        return Forgotten(gone, (rows[-1][0], None) if len(rows) == command.limit else None, [], [])

    def _has_messages(self, queue_id: int) -> bool:
        return self._database.execute(_HAS_MESSAGES, (queue_id,)).fetchone() is not None

    def _remembers(self, queue_id: int) -> bool:
        """Return whether the ids of settled messages are remembered. The queue has no messages."""
        return bool(self._settled.first(queue_id, 1))

    def _bound(self) -> set[str]:
        """Return the topics and the queues of the stored bindings."""
        return {name for pair in self._database.execute("select topic, queue from binding") for name in pair}

    def _scheduled(self) -> set[str]:
        """Return the queues to which schedules send."""
        return {queue for (queue,) in self._database.execute("select queue from schedule")}

    def _forget_ids(self, queue_id: int) -> int:
        records = self._settled.first(queue_id, STEP_ROWS)
        self._settled.forget(queue_id, records)
        return len(records)

    def _remove(self, name: str, queue_id: int) -> None:
        self._contents.drop(queue_id)
        self._leased.forget_queue(queue_id)
        self._retention.forget_queue(queue_id)
        self._totals.move_to_deleted(queue_id)
        self._queues.delete(name, queue_id)
