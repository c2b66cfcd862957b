"""Records of settled messages are deleted when their retention has passed, and so are old dead letters.

The records are passed in the order of their key, in steps, so that no send waits long. No index on time is kept for
this. A queue is passed again after a small part of its shortest retention.
"""

from __future__ import annotations

import json
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

    def forget(self, command: Forget) -> Forgotten:
        """See `Forget`."""
        position = Position(0, None) if command.after is None else Position(*command.after)
        outcome = Forgotten(0, None, [], [])
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
            count, last, gone = self._pass(command, queue_id, after, settings, command.limit - examined)
            examined += count
            outcome = outcome._replace(rows=outcome.rows + gone)
            position = Position(queue_id, last)
            if last is None:
                self._passed[queue_id] = command.now
        return outcome._replace(after=(position.queue_id, position.id))

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
