"""Results that come back: how forwarded messages ended elsewhere. Only a record that awaits one takes it."""

from __future__ import annotations

from typing import Final

from ....records import End, FarResult, ResultsTaken
from ...commands import TakeResults
from ..database import Database
from ..tables.queues import Queues
from .settled import AWAITED

OPEN: Final = (AWAITED, "dead")
"""What a later result replaces: a message that is dead elsewhere may be redriven there."""


class FarResults:
    """The results that came back, in the table ``result``."""

    def __init__(self, database: Database, queues: Queues) -> None:
        self._database = database
        self._queues = queues

    def take(self, command: TakeResults) -> ResultsTaken:
        """See `TakeResults`."""
        taken = ResultsTaken([], [])
        queue_id = self._queues.find(command.queue)
        if queue_id is not None:
            for result in command.results:
                self._take(queue_id, command.queue, result, taken)
        return taken

    def _take(self, queue_id: int, queue: str, result: FarResult, taken: ResultsTaken) -> None:
        found = self._database.execute(
            """
            select seq, far_outcome, error
            from settled
            join result using (seq)
            where queue = ? and id = ? and outcome = 'forwarded'
            """,
            (queue_id, result.id),
        ).fetchone()
        if found is None:
            if self._is_live(queue_id, result.id):
                taken.early.append(result.id)
            return
        seq, far_outcome, place = found
        if far_outcome not in OPEN or far_outcome == result.outcome:
            return
        self._database.execute(
            """
            update result
            set result = ?, far_outcome = ?, far_error = ?
            where seq = ?
            """,
            (result.result, result.outcome, result.error, seq),
        )
        taken.ended.append(End(queue, result.id, result.outcome, result.error, result.result, place))

    def _is_live(self, queue_id: int, id: str) -> bool:
        """Return whether a message may still be settled as forwarded."""
        row = self._database.execute(
            """
            select state
            from message
            where seq = (select seq from known_id where queue = ? and id = ?)
            """,
            (queue_id, id),
        ).fetchone()
        return row is not None and row[0] != "dead"
