"""The oldest messages of a queue that are ready and not leased.

A queue may have 100,000 leased messages before the first of these. So what was found to be leased is not looked at
again: `OldestPlace` knows where the search goes on, and which messages became ready behind its back.
"""

from __future__ import annotations

import heapq
from typing import Final

from ..database import Database
from ..tables.messages import ENDING_COLUMNS, Ending
from .leased import Leased, OldestPlace

_BEHIND: Final = f"""
    select {ENDING_COLUMNS}
    from message
    where queue = ?1 and state = 'ready' and priority = 0 and seq > ?2 and seq <= ?3 and not leased(seq)
    order by seq
    limit ?4
    """  # noqa: S608 # a constant
_BEHIND_OTHERS: Final = _BEHIND.replace("priority = 0", "priority <> 0")
_ONE: Final = f"""
    select {ENDING_COLUMNS}
    from message
    where seq = ? and queue = ? and state = 'ready'
    """  # noqa: S608 # a constant


class Unleased:
    """Finds the oldest messages that can be dropped. It keeps nothing itself: `Leased` does."""

    def __init__(self, database: Database, leased: Leased) -> None:
        self._database = database
        self._leased = leased

    def oldest(self, queue_id: int, upto: int, limit: int) -> list[Ending]:
        """Return the oldest ready messages that are not leased, in order, with seqs up to ``upto``, ``limit`` at most.

        ``upto`` must be the seq of a message that was stored, or lower.
        """
        place = self._leased.oldest_place(queue_id)
        found = self._came_back(place, queue_id, upto, limit)
        values = (queue_id, place.seq, upto, limit)
        rows = [row for one in (_BEHIND, _BEHIND_OTHERS) for row in self._database.execute(one, values)]
        behind = sorted(map(Ending._make, rows))
        self._leased.pass_over(place, behind[0].seq - 1 if behind else upto)
        return sorted(found + behind)[:limit]

    def _came_back(self, place: OldestPlace, queue_id: int, upto: int, limit: int) -> list[Ending]:
        found: list[Ending] = []
        while place.back and place.back[0] <= upto and len(found) < limit:
            seq = self._leased.pop_oldest(place)
            row = self._database.execute(_ONE, (seq, queue_id)).fetchone()
            if row is not None and self._leased.get(seq) is None:
                found.append(Ending._make(row))
        for message in found:
            heapq.heappush(place.back, message.seq)
        return found
