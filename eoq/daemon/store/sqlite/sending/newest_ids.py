"""The newest id of each queue, so that most new messages need no look-up among the settled ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from ..database import Database

MOST_KNOWN: Final = 10_000
"""Of how many queues the newest id is known."""
_NEWEST: Final = """
    select max(id)
    from (
      select max(id) as id from message where queue = ?1
      union all
      select max(id) from settled where queue = ?1
    )
    """


class NewestIds:
    """By queue, an id above which none is stored.

    Ids that begin with the time, as those that eoq makes do, are mostly above it. To look one up takes a tenth of the
    time that the store needs for a send, without the sync of the disk. Measure: `send, batches of 100` of
    tests/bench/run.py. After a rollback the id may be above all that are stored, which costs a look-up, no more.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._newest: dict[int, str] = {}

    def are_new(self, queue_id: int, ids: Sequence[str]) -> bool:
        """Return True if no message of a queue had one of these ids. False where that has to be looked up.

        Whoever stores messages has to call it before, with all their ids in their order.
        """
        newest = self._newest.get(queue_id)
        if newest is None:
            newest = self._read(queue_id)
        are_new = True
        for id in ids:
            if id > newest:
                newest = id
            else:
                are_new = False
        self._newest[queue_id] = newest
        return are_new

    def _read(self, queue_id: int) -> str:
        if len(self._newest) >= MOST_KNOWN:
            self._newest.clear()
        (newest,) = self._database.execute(_NEWEST, (queue_id,)).fetchone()
        return "" if newest is None else str(newest)
