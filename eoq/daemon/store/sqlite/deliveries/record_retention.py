"""Records of settled messages are deleted when their retention has passed, and so are old dead letters.

The ids of a queue are passed in their order, in steps, so that no send waits long. No index on time is kept for this. A
queue is passed again after a small part of its shortest retention, but not while none of its records can be old enough.
"""

from __future__ import annotations

import json
import math
from functools import partial
from typing import Final, NamedTuple

from ....config.settings import QueueSettings
from ....records import DroppedLetters, End, Forgotten
from ....store.commands import Forget
from ..database import Database
from ..tables.clock import ClockNotes
from ..tables.messages import ENDING_COLUMNS, Ending, Messages
from .settled import Settled

PART: Final = 0.1
"""After which part of its shortest retention a queue is passed again."""
SHORTEST, LONGEST, OFTEN = 1.0, 6 * 3600.0, 60.0
"""Seconds between two passes of one queue: at least, at most, and at most where its dead letters are limited."""
MOST_QUEUES: Final = 500
"""How many queues one step looks at."""
LEARNED: Final = 5
"""How many outcomes a start reads in the time of one id that is passed: they are read in the order of the file."""


class Position(NamedTuple):
    """How far a round has come: behind this id of a queue, or (None) behind the whole queue."""

    queue_id: int
    id: str | None


class RecordRetention:
    """The rounds over all queues."""

    def __init__(self, database: Database, messages: Messages, settled: Settled, clock_notes: ClockNotes) -> None:
        self._database = database
        self._messages = messages
        self._settled = settled
        self._clock_notes = clock_notes
        self._passed: dict[int, float] = {}
        """When each queue was passed to its end, by the wall clock."""
        self._learned_to: int | None = 0
        """The seq up to which this life has learned when the oldest record was settled. None: it knows that."""
        self._oldest_of_all = math.inf
        self._oldest: dict[int, float] = {}
        """By queue, a moment before which none of its records was settled. Where it has none, `_oldest_of_all` is."""
        self._oldest_kept = math.inf
        """The same of the records that the round under way has kept in its queue."""

    def forget(self, command: Forget) -> Forgotten:
        """See `Forget`."""
        position = Position(0, None) if command.after is None else Position(*command.after)
        outcome = Forgotten(0, None, [], [])
        if self._learned_to is not None and not self._learn(command, self._learned_to):
            return outcome._replace(after=(position.queue_id, position.id))
        examined = looked = 0
        while examined < command.limit and looked < MOST_QUEUES:
            row = self._database.execute(
                """
                select number, name
                from queue
                where number >= ? and (number > ? or ?)
                order by number
                limit 1
                """,
                (position.queue_id, position.queue_id, position.id is not None),
            ).fetchone()
            if row is None:
                return outcome
            queue_id, name = row
            settings = command.settings(name)
            looked += 1
            after = position.id if queue_id == position.queue_id else None
            if after is None:
                if not (command.hurry or self._is_due(queue_id, command.now, settings)):
                    position = Position(queue_id, None)
                    continue
                after = ""
                self._drop_letters(command, queue_id, name, settings, outcome)
                self._oldest_kept = command.now
                if not self._may_be_old(queue_id, command.now, settings):
                    position = Position(queue_id, None)
                    self._passed[queue_id] = command.now
                    continue
            count, last, gone = self._pass(command, queue_id, after, settings, command.limit - examined)
            examined += count
            outcome = outcome._replace(rows=outcome.rows + gone)
            position = Position(queue_id, last)
            if last is None:
                self._passed[queue_id] = command.now
                self._oldest[queue_id] = self._oldest_kept
                self._database.on_rollback(partial(self.may_be_older, queue_id, -math.inf))
        return outcome._replace(after=(position.queue_id, position.id))

    # ── the oldest records ──────────────────────────────────────────────────────────────────────────────

    def _learn(self, command: Forget, after: int) -> bool:
        """Read when the next records were settled, once in each life. Return whether these were the last ones."""
        limit = command.limit * LEARNED
        count, last, oldest = self._database.execute(
            """
            select count(*), max(seq), min(settled_at)
            from (select seq, settled_at from outcome where seq > ? order by seq limit ?)
            """,
            (after, limit),
        ).fetchone()
        self._oldest_of_all = min(self._oldest_of_all, command.now, oldest if count else math.inf)
        self._learned_to = last if count == limit else None
        return self._learned_to is None

    def may_be_older(self, queue_id: int, settled_at: float) -> None:
        """Note that a queue has a record that was settled then, other than by a settle of this life."""
        self._oldest[queue_id] = min(settled_at, self._oldest.get(queue_id, self._oldest_of_all))

    def forget_queue(self, queue_id: int) -> None:
        """Forget what is known of a queue that is deleted. Its number is not used again."""
        self._passed.pop(queue_id, None)
        self._oldest.pop(queue_id, None)

    def _may_be_old(self, queue_id: int, now: float, settings: QueueSettings) -> bool:
        """Return whether a record of a queue may have passed its retention."""
        # The clock may have been ahead. What was settled since it is right is not older than now.
        oldest = self._oldest[queue_id] = min(self._oldest.get(queue_id, self._oldest_of_all), now)
        retention = min(settings.retention, settings.result_retention or math.inf)
        return oldest < self._before(now, retention)

    # ── rounds ──────────────────────────────────────────────────────────────────────────────────────────

    def _is_due(self, queue_id: int, now: float, settings: QueueSettings) -> bool:
        passed = self._passed.get(queue_id)
        return passed is None or not passed <= now < passed + pause_of(settings)

    def _pass(
        self, command: Forget, queue_id: int, after: str, settings: QueueSettings, limit: int
    ) -> tuple[int, str | None, int]:
        """Delete what has passed its retention among the next ids of a queue.

        Return how many were examined, behind which id to go on (None at the end), and how many were deleted.
        """
        rows = self._database.execute(
            """
            select id, known_id.seq, settled_at
            from known_id
            left join outcome on outcome.seq = known_id.seq
            where known_id.queue = ? and id > ?
            order by id
            limit ?
            """,
            (queue_id, after, limit),
        ).fetchall()
        before = self._before(command.now, settings.retention)
        settled = [row for row in rows if row[2] is not None]
        old = [(id, seq) for id, seq, settled_at in settled if settled_at < before]
        kept = [settled_at for _, _, settled_at in settled if settled_at >= before]
        self._oldest_kept = min(self._oldest_kept, *kept, math.inf)
        if old:
            self._settled.forget(queue_id, old)
        if settings.result_retention is not None:
            before = self._before(command.now, settings.result_retention)
            seqs = json.dumps([seq for _, seq, settled_at in settled if settled_at < before])
            # What comes back from elsewhere, or came, stays until its record goes: it may be newer than the record.
            self._database.execute(
                """
                delete from result
                where seq in (select value from json_each(?)) and far_outcome is null
                """,
                (seqs,),
            )
        return len(rows), rows[-1][0] if len(rows) == limit else None, len(old)

    def _before(self, now: float, retention: float) -> float:
        """Return the moment before which a retention has passed. Only time that surely passed counts."""
        before = now - retention
        return before - self._clock_notes.uncounted_since(before)

    # ── dead letters ────────────────────────────────────────────────────────────────────────────────────

    def _drop_letters(
        self, command: Forget, queue_id: int, name: str, settings: QueueSettings, outcome: Forgotten
    ) -> None:
        """Drop the dead letters of a queue that are too old, and the oldest of those that are too many."""
        if settings.dead_retention is not None:
            rows = self._database.execute(
                f"""
                select {ENDING_COLUMNS}
                from message
                where queue = ? and state = 'dead' and coalesce(failed_at, enqueued_at) < ?
                order by seq
                limit ?
                """,  # noqa: S608 # a constant
                (queue_id, self._before(command.now, settings.dead_retention), command.limit),
            ).fetchall()
            self._drop(command, name, rows, "dead_retention", outcome)
        if settings.max_dead is not None:
            (count,) = self._database.execute(
                "select count(*) from message where queue = ? and state = 'dead'", (queue_id,)
            ).fetchone()
            rows = self._database.execute(
                f"""
                select {ENDING_COLUMNS}
                from message
                where queue = ? and state = 'dead'
                order by seq
                limit ?
                """,  # noqa: S608 # a constant
                (queue_id, min(max(count - settings.max_dead, 0), command.limit)),
            ).fetchall()
            self._drop(command, name, rows, "max_dead", outcome)

    def _drop(
        self,
        command: Forget,
        name: str,
        rows: list[tuple[int, int, str, str | None, int, str]],
        why: str,
        outcome: Forgotten,
    ) -> None:
        ends: list[End] = []
        for row in rows:
            ends.append(self._messages.discard(command.now, Ending._make(row), "dropped", f"by its queue's {why}"))
        if ends:
            outcome.ended.extend(ends)
            outcome.letters.append(DroppedLetters(name, len(ends), why))


def pause_of(settings: QueueSettings) -> float:
    """Return for how many seconds a queue with these settings is not passed again."""
    moments = [settings.retention, settings.result_retention, settings.dead_retention]
    shortest = min(moment for moment in moments if moment is not None)
    longest = LONGEST if settings.dead_retention is None and settings.max_dead is None else OFTEN
    return min(max(shortest * PART, SHORTEST), longest)
