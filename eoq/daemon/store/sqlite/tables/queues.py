"""The table ``queue``: the names of the queues, their ids, and whether they are paused."""

from __future__ import annotations

from typing import Final

from .....errors import NotFound, QueueFull
from ....store.commands import Pause
from ..database import Database

MAX_QUEUES: Final = 100_000


class Queues:
    """All queues. Their names and ids are kept in memory once they were used."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._ids: dict[str, int] = {}
        self._names: dict[int, str] = {}
        self._paused: set[int] | None = None
        self.known_id = self._ids.get
        """Return the id of a queue that was used before. None does not mean that the queue does not exist."""

    # ── names ───────────────────────────────────────────────────────────────────────────────────────────

    def find(self, name: str) -> int | None:
        """Return the id of a queue; None where there is no such queue."""
        queue_id = self._ids.get(name)
        if queue_id is None:
            row = self._database.execute("select number from queue where name = ?", (name,)).fetchone()
            if row is not None:
                queue_id = self._remember(name, row[0])
        return queue_id

    def require(self, name: str) -> int:
        """Return the id of a queue. Raises `NotFound`."""
        queue_id = self.find(name)
        if queue_id is None:
            raise NotFound(f"there is no queue {name!r}; `eoq queues` lists them")
        return queue_id

    def make(self, name: str) -> int:
        """Return the id of a queue. Create the queue if it does not exist. Raises `QueueFull` if there are too many."""
        queue_id = self._ids.get(name) or self.find(name)
        if queue_id is not None:
            return queue_id
        (count,) = self._database.execute("select count(*) from queue").fetchone()
        if count >= MAX_QUEUES:
            raise QueueFull(
                f"there are {MAX_QUEUES:,} queues, and no more can be made; delete some that are empty "
                "(`eoq queue delete`), or use fewer, with groups"
            )
        # Above the numbers of deleted queues as well: nothing that was known of those is then true of this one.
        (made,) = self._database.execute(
            """
            insert into queue (number, name)
            select
              max(
                (select coalesce(max(number), 0) + 1 from queue),
                (select coalesce(max(value), 1) from counter where name = 'next_queue')
              ),
              ?
            returning number
            """,
            (name,),
        ).fetchone()
        self._database.on_rollback(self._forget_names)
        return self._remember(name, made)

    def name(self, queue_id: int) -> str:
        """Return the name of a queue."""
        name = self._names.get(queue_id)
        if name is None:
            (name,) = self._database.execute("select name from queue where number = ?", (queue_id,)).fetchone()
            self._remember(name, queue_id)
        return name

    def delete(self, name: str, queue_id: int) -> None:
        """Delete the row of a queue. Nothing else in the file may name it any more."""
        self._database.execute("delete from queue where number = ?", (queue_id,))
        self._database.execute(
            """
            insert into counter (name, value)
            values ('next_queue', ?)
            on conflict (name) do update set value = max(value, excluded.value)
            """,
            (queue_id + 1,),
        )
        # Whatever becomes of the transaction, they are looked up again.
        self._ids.pop(name, None)
        self._names.pop(queue_id, None)
        self._paused = None
        self._database.on_rollback(self._forget_names)
        self._database.on_rollback(self._forget_paused)

    def _remember(self, name: str, queue_id: int) -> int:
        self._ids[name] = queue_id
        self._names[queue_id] = name
        return queue_id

    def _forget_names(self) -> None:
        self._ids.clear()
        self._names.clear()

    # ── pausing ─────────────────────────────────────────────────────────────────────────────────────────

    def pause(self, command: Pause) -> bool:
        """See `Pause`."""
        queue_id = self.make(command.queue) if command.paused else self.require(command.queue)
        changed = self._database.execute(
            """
            update queue
            set paused = ?
            where number = ? and paused <> ?
            """,
            (command.paused, queue_id, command.paused),
        ).rowcount
        self._paused = None
        self._database.on_rollback(self._forget_paused)
        return changed > 0

    def is_paused(self, queue_id: int) -> bool:
        """Return whether a queue is paused."""
        if self._paused is None:
            self._paused = {number for (number,) in self._database.execute("select number from queue where paused")}
        return queue_id in self._paused

    def _forget_paused(self) -> None:
        self._paused = None
